"""How long a pool takes until every one of its workers has answered."""

from __future__ import annotations

import os
import select
import tempfile
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import bench_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.pool import Pool

_DEADLINE = 60.0
"""Seconds after which a worker that has not reported counts as lost."""


def start_up(context: BaseContext, workers: int) -> float:
    """Seconds from the creation of `context.Pool(workers)` until as many different workers have answered."""
    with _meeting() as meeting:
        begin = time.perf_counter()
        pool = context.Pool(workers)
        try:
            answered = _answers(pool, meeting, workers)
            elapsed = time.perf_counter() - begin
        finally:
            pool.terminate()
            pool.join()
    if len(answered) != workers:
        raise RuntimeError(f"{len(answered)} of {workers} workers answered")
    return elapsed


def _answers(pool: Pool, meeting: _Meeting, workers: int) -> set[int]:
    replies = [pool.apply_async(bench_tasks.meet, meeting.paths) for _ in range(workers)]
    reported = meeting.gather(workers)
    meeting.release(workers)
    answered = {reply.get(_DEADLINE) for reply in replies}
    if answered != reported:
        raise RuntimeError("the workers that answered are not those that reported")
    return answered


@contextmanager
def _meeting() -> Iterator[_Meeting]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        yield _Meeting(directory, stack)


class _Meeting:
    """Two fifos: workers report in one and wait for a byte from the other.

    Fifos have names, so no start method has to hand descriptors over, which each does at another price.
    """

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.paths = os.path.join(directory, "report"), os.path.join(directory, "release")
        self._reports, _ = _open_fifo(self.paths[0], stack)
        _, self._releases = _open_fifo(self.paths[1], stack)

    def gather(self, count: int) -> set[int]:
        """The pids of `count` reports."""
        text = b""
        while len(text) < count * bench_tasks.PID_SIZE:
            if not select.select([self._reports], [], [], _DEADLINE)[0]:
                raise RuntimeError(f"a worker did not report within {_DEADLINE:.0f} s")
            text += os.read(self._reports, count * bench_tasks.PID_SIZE - len(text))
        starts = range(0, len(text), bench_tasks.PID_SIZE)
        return {int.from_bytes(text[at : at + bench_tasks.PID_SIZE], "little") for at in starts}

    def release(self, count: int) -> None:
        """Let `count` waiting workers go on."""
        os.write(self._releases, bytes(count))


def _open_fifo(path: str, stack: ExitStack) -> tuple[int, int]:
    """Both ends of a new fifo, held open by `stack` so that no worker waits for one or sees it end."""
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, reader)
    writer = os.open(path, os.O_WRONLY)
    stack.callback(os.close, writer)
    return reader, writer
