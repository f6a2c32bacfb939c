"""Where processes meet: each reports to the client and waits until all may go on.

A worker that waits takes no second task, so as many tasks as a pool has workers reach them all.
"""

from __future__ import annotations

import os
import select
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import bench_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE = 60.0
"""Seconds after which a process that has not reported counts as lost."""


@contextmanager
def called(directory: str) -> Iterator[Meeting]:
    """A meeting whose fifos lie in `directory`, which has none yet, for as long as the block lasts."""
    with ExitStack() as stack:
        yield Meeting(directory, stack)


class Meeting:
    """Two fifos: processes report in one and wait for a byte from the other.

    Fifos have names, so no start method has to hand descriptors over, which each does at another price.
    """

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.paths = os.path.join(directory, "report"), os.path.join(directory, "release")
        self._reports, _ = _open_fifo(self.paths[0], stack)
        _, self._releases = _open_fifo(self.paths[1], stack)

    def gather(self, count: int) -> set[int]:
        """The pids of `count` reports."""
        size = count * bench_tasks.PID_SIZE
        text = b""
        while len(text) < size:
            if not select.select([self._reports], [], [], DEADLINE)[0]:
                raise RuntimeError(f"a process did not report within {DEADLINE:.0f} s")
            text += os.read(self._reports, size - len(text))
        starts = range(0, size, bench_tasks.PID_SIZE)
        return {int.from_bytes(text[at : at + bench_tasks.PID_SIZE], "little") for at in starts}

    def release(self, count: int) -> None:
        """Let `count` waiting processes go on."""
        os.write(self._releases, bytes(count))

    def of_workers(self, answers: Sequence[Callable[[float], int]]) -> set[int]:
        """Meet as many different workers as there are answers to be had, within a number of seconds each."""
        reported = self.gather(len(answers))
        self.release(len(answers))
        answered = {answer(DEADLINE) for answer in answers}
        if answered != reported or len(answered) != len(answers):
            raise RuntimeError(
                f"of {len(answers)} workers {len(reported)} reported, {len(answered)} answered"
            )
        return answered


def _open_fifo(path: str, stack: ExitStack) -> tuple[int, int]:
    """Both ends of a new fifo, held open by `stack` so that no process waits for one or sees it end."""
    os.mkfifo(path, 0o600)
    stack.callback(os.unlink, path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, reader)
    writer = os.open(path, os.O_WRONLY)
    stack.callback(os.close, writer)
    return reader, writer
