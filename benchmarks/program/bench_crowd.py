"""A crowd of live children, beside which others are started."""

from __future__ import annotations

import resource
from contextlib import ExitStack, contextmanager
from multiprocessing import process
from typing import TYPE_CHECKING

import bench_meeting
import bench_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.process import BaseProcess

_DESCRIPTORS_EACH = 4
"""Descriptors that a live child may cost its client, or its server: more than any start method needs."""
_DESCRIPTORS_BESIDE = 200


def make_room(size: int) -> int:
    """Raise the limit of descriptors for a crowd, as far as it goes: for how many children, of `size`, it is enough.

    Before the first start, since a server inherits the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = size * _DESCRIPTORS_EACH + _DESCRIPTORS_BESIDE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(size, (wanted - _DESCRIPTORS_BESIDE) // _DESCRIPTORS_EACH)


class Crowd:
    """`size` children that `started` has begun, all of which have reported and wait in the fifos in `directory`."""

    def __init__(self, size: int, directory: str, started: Callable[..., BaseProcess]) -> None:
        with ExitStack() as stack:
            self._meeting = stack.enter_context(bench_meeting.called(directory))
            with _unvisited():
                self._members = [started(bench_tasks.meet, self._meeting.paths) for _ in range(size)]
            if len(self._meeting.gather(size)) != size:
                raise RuntimeError("two members of a crowd have the same pid")
            self._stack = stack.pop_all()

    def dismiss(self) -> list[BaseProcess]:
        """Let all of them end; the processes, which are to be joined."""
        with self._stack:
            self._meeting.release(len(self._members))
            for member in self._members:
                member.join()
        return self._members


@contextmanager
def _unvisited() -> Iterator[None]:
    """Have no start look after all other children: it is not the gathering of the crowd that is measured."""
    visit = process._cleanup  # type: ignore[attr-defined]
    process._cleanup = lambda: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        process._cleanup = visit  # type: ignore[attr-defined]
