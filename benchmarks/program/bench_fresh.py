"""Executors with two workers and a fresh process for each task, as their documentation has them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Task = Callable[[int], tuple[int, int, int]]
    Run = Callable[[Task, range], list[tuple[int, int, int]]]

WORKERS = 2
_FIRST = 8
"""Tasks from whose time it is found out how many fill a run: the first of all are not representative, the last are."""
_MOST = 5000


def measure(name: str, task: Task, seconds: float) -> dict[str, float]:
    """Return the tasks of a run that takes about as many seconds, the time that it took, and the rate."""
    with EXECUTORS[name]() as run:
        _timed(run, task, WORKERS)
        count = int(_FIRST / _timed(run, task, _FIRST) * seconds)
        count = max(_FIRST, min(count, _MOST))
        taken = _timed(run, task, count)
    return {"tasks": count, "seconds": taken, "rate": count / taken}


def _timed(run: Run, task: Task, count: int) -> float:
    """Return the seconds that as many tasks take. Raises `RuntimeError` unless each has had a process of its own."""
    begin = time.perf_counter()
    results = run(task, range(count))
    taken = time.perf_counter() - begin
    numbers, tasks, pids = zip(*results)
    if list(numbers) != list(range(count)):
        raise RuntimeError(f"wrong results: {numbers}")
    if set(tasks) != {1} or len(set(pids)) != count or os.getpid() in pids:
        raise RuntimeError(f"not all tasks have had fresh processes: {results}")
    return taken


@contextmanager
def _fastfork() -> Iterator[Run]:
    import fastfork

    with fastfork.Executor(WORKERS) as executor:
        yield lambda task, numbers: list(executor.map(task, numbers))


@contextmanager
def _pool(method: str) -> Iterator[Run]:
    with multiprocessing.get_context(method).Pool(WORKERS, maxtasksperchild=1) as pool:
        yield lambda task, numbers: pool.map(task, numbers, chunksize=1)


@contextmanager
def _futures() -> Iterator[Run]:
    executors: Any = concurrent.futures
    with executors.ProcessPoolExecutor(WORKERS, max_tasks_per_child=1) as executor:
        yield lambda task, numbers: list(executor.map(task, numbers))


@contextmanager
def _pebble() -> Iterator[Run]:
    from pebble import ProcessPool

    with ProcessPool(WORKERS, max_tasks=1) as pool:
        yield lambda task, numbers: list(pool.map(task, numbers, chunksize=1).result())


@contextmanager
def _mpire() -> Iterator[Run]:
    from mpire import WorkerPool

    with WorkerPool(WORKERS) as pool:
        yield lambda task, numbers: list(pool.map(task, numbers, chunk_size=1, worker_lifespan=1))


@contextmanager
def _loky() -> Iterator[Run]:
    """It renews no workers: each task has an executor of its own, with one worker."""
    from loky import ProcessPoolExecutor

    def run(task: Task, number: int) -> Any:
        with ProcessPoolExecutor(1) as executor:
            return executor.submit(task, number).result()

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as threads:
        yield lambda task, numbers: list(threads.map(lambda number: run(task, number), numbers))


EXECUTORS: dict[str, Callable[[], Any]] = {
    "fastfork": _fastfork,
    "pool-fork": lambda: _pool("fork"),
    "pool-forkserver": lambda: _pool("forkserver"),
    "futures": _futures,
    "pebble": _pebble,
    "mpire": _mpire,
    "loky": _loky,
}
