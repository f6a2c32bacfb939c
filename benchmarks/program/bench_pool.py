"""How long a pool takes until every one of its workers has answered, and what idle ones keep to themselves.

What executors need is imported at the top, as programs have it: a template that is launched later has it, too.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures.process import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import bench_meeting
import bench_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext

    from bench_meeting import Meeting


def start_up(context: BaseContext, workers: int) -> float:
    """Seconds from the creation of `context.Pool(workers)` until as many different workers have answered."""
    with _meeting() as meeting:
        begin = time.perf_counter()
        with _pool(context, workers, meeting):
            return time.perf_counter() - begin


def executor_start_up(context: BaseContext, workers: int) -> float:
    """As `start_up`, of a `ProcessPoolExecutor`."""
    with _meeting() as meeting:
        begin = time.perf_counter()
        with ProcessPoolExecutor(workers, mp_context=context) as executor:
            futures = [executor.submit(bench_tasks.meet, *meeting.paths) for _ in range(workers)]
            meeting.of_workers([future.result for future in futures])
            return time.perf_counter() - begin


def private_bytes(context: BaseContext, workers: int) -> list[int]:
    """Bytes that each worker of a pool shares with nobody when it has answered and is idle."""
    with _meeting() as meeting, _pool(context, workers, meeting) as pids:
        return [_private_bytes(pid) for pid in pids]


def _private_bytes(pid: int) -> int:
    """The sum of the private parts of a process's memory, of which /proc tells in kB."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
        fields = [line.split() for line in file]
    return sum(int(field[1]) for field in fields if field[0].startswith("Private_")) * 1024


@contextmanager
def _pool(context: BaseContext, workers: int, meeting: Meeting) -> Iterator[set[int]]:
    """A pool all of whose workers have answered: their pids. It ends with the block."""
    pool = context.Pool(workers)
    try:
        replies = [pool.apply_async(bench_tasks.meet, meeting.paths) for _ in range(workers)]
        yield meeting.of_workers([reply.get for reply in replies])
    finally:
        pool.terminate()
        pool.join()


@contextmanager
def _meeting() -> Iterator[Meeting]:
    with tempfile.TemporaryDirectory() as directory, bench_meeting.called(directory) as meeting:
        yield meeting
