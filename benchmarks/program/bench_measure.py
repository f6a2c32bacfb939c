"""What a client measures with its start method. All times are in seconds.

Imports are few on purpose: stdlib fork copies this very process, and it is meant to be a small one.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, cast

import bench_tasks
import bench_usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from bench_crowd import Crowd

_DEADLINE = 60.0
"""Seconds after which a child that has not answered counts as lost."""


class WrongResultError(Exception):
    """A process ended with another exit code or another value than it was asked for."""


class Client:
    """The measurements of one start method, in the process that starts the children."""

    def __init__(self, nop: Callable[[], None]) -> None:
        self._nop = nop
        self._starts = 0
        self._method = ""
        self._context: BaseContext = multiprocessing.get_context()
        self._crowd: Crowd | None = None

    def setup(self, method: str, preload: list[str], sys_path: list[str]) -> None:
        """Choose the start method and give it its preload.

        A fork server preloads `__main__`, as by default, and `preload`. Under fork the children have what
        this process has, so it imports `preload` itself. Children of spawn have nothing.
        """
        sys.path += [entry for entry in sys_path if entry not in sys.path]
        self.use(method)
        if method == "fork":
            import_all(preload)
        elif method != "spawn":
            self._context.set_forkserver_preload(["__main__", *preload])

    def use(self, method: str) -> None:
        """Choose the start method, and leave its preload as it is."""
        if method == "fastfork":
            importlib.import_module("fastfork")  # which registers the start method
        self._method = method
        self._context = multiprocessing.get_context(method)

    def latency(self, count: int) -> tuple[list[float], float]:
        """Start and join `count` no-ops one after another: the time of each, and of all.

        The first is `start(); join()` alone; the second also covers making the Process objects and checking
        the exit codes. One more child, outside the times, proves that children compute and exit as asked.
        """
        begin = time.perf_counter()
        times = [self._start_and_join(self._process(self._nop)) for _ in range(count)]
        elapsed = time.perf_counter() - begin
        self._check_answer()
        return times, elapsed

    def with_queue(self, count: int) -> list[float]:
        """Start and join `count` processes that are sent a queue: the time of each."""
        sent = (self._context.SimpleQueue(),)
        return [self._start_and_join(self._process(bench_tasks.take, sent)) for _ in range(count)]

    def lean_calls(self, count: int) -> list[float]:
        """Have `count` processes answer by lean calls, one after another: the time of each."""
        from fastfork import lean

        def call(number: int) -> float:
            data = number.to_bytes(8, "little")
            begin = time.perf_counter()
            answer = lean.call("bench_tasks:echo", data)
            elapsed = time.perf_counter() - begin
            if answer != data:
                raise WrongResultError(f"a lean call returned {answer!r} instead of {data!r}")
            return elapsed

        return [call(number) for number in range(count)]

    def batches(self, count: int, size: int, at_once: bool) -> list[float]:
        """Start and join `size` no-ops, `count` times, by one call or by one each: the time for one of them."""
        from fastfork import start_all

        def start_and_join() -> float:
            processes = [self._process(self._nop) for _ in range(size)]
            begin = time.perf_counter()
            if at_once:
                start_all(cast("Any", processes))
            else:
                for process in processes:
                    process.start()
            for process in processes:
                process.join()
            elapsed = time.perf_counter() - begin
            for process in processes:
                _check_code(process, 0)
            return elapsed / size

        return [start_and_join() for _ in range(count)]

    def in_flight(self, count: int, width: int) -> float:
        """Run `count` no-ops, never more than `width` at once and never fewer while any remain."""
        running: dict[Any, BaseProcess] = {}
        remaining = count
        begin = time.perf_counter()
        while remaining or running:
            while remaining and len(running) < width:
                process = self._process(self._nop)
                process.start()
                running[process.sentinel] = process
                remaining -= 1
            for sentinel in wait(list(running)):
                _finish(running.pop(sentinel))
        return time.perf_counter() - begin

    def pool(self, workers: int) -> float:
        """Time from the creation of a pool until `workers` different workers have answered."""
        import bench_pool  # only here: the modules it needs would make fork's client larger

        return bench_pool.start_up(self._context, workers)

    def executor(self, workers: int) -> float:
        """As `pool`, of a ProcessPoolExecutor."""
        import bench_pool

        return bench_pool.executor_start_up(self._context, workers)

    def private_bytes(self, workers: int) -> list[int]:
        """Bytes of memory that each idle worker of a pool has for itself alone."""
        import bench_pool

        return bench_pool.private_bytes(self._context, workers)

    def arrivals(self, count: int, directory: str) -> list[float]:
        """Start and join `count` processes: the time from each `start()` being called to its function's first line.

        They tell it through a fifo in `directory`.
        """
        path = os.path.join(directory, "arrivals")
        os.mkfifo(path, 0o600)
        fifo = os.open(path, os.O_RDWR)  # both ends: it is always open to write, and never at its end
        try:
            return [self._arrival(path, fifo) for _ in range(count)]
        finally:
            os.close(fifo)
            os.unlink(path)

    def make_room(self, size: int) -> int:
        """Allow the descriptors of a crowd; for how many of its `size` children. Before the first start."""
        import bench_crowd

        return bench_crowd.make_room(size)

    def gather_crowd(self, size: int, directory: str) -> None:
        """Have `size` more children live until `dismiss_crowd`. They need a `directory`."""
        import bench_crowd

        self._crowd = bench_crowd.Crowd(size, directory, self._started)

    def dismiss_crowd(self) -> None:
        """Let the crowd go, and check that each of its children has ended well."""
        assert self._crowd is not None
        for member in self._crowd.dismiss():
            _finish(member)

    def throughput(self, clients: int, count: int, width: int, directory: str) -> float:
        """Processes per second that are started by so many clients of one server: see `bench_scale`."""
        import bench_scale

        rate, ended = bench_scale.rate(self._started, self._method, clients, count, width, directory)
        for client in ended:
            _finish(client)
        return rate

    def modules(self) -> list[str]:
        """Names of the modules that a child of this start method has imported by itself."""
        names = self._ask(bench_tasks.loaded_modules, (), 0)
        return [name for name in cast("list[str]", names) if name not in ("__main__", "__mp_main__")]

    def usage(self) -> tuple[int, int, float, float] | None:
        """Processes started so far, then `bench_usage.usage()`; None where that has none."""
        spent = bench_usage.usage()
        return None if spent is None else (self._starts, *spent)

    def _process(self, target: Callable[..., object], args: tuple[Any, ...] = ()) -> BaseProcess:
        self._starts += 1
        process = self._context.Process(target=target, args=args)  # type: ignore[attr-defined]
        return cast("BaseProcess", process)

    def _started(self, target: Callable[..., object], args: tuple[Any, ...]) -> BaseProcess:
        process = self._process(target, args)
        process.start()
        return process

    def _arrival(self, path: str, fifo: int) -> float:
        process = self._process(bench_tasks.arrive, (path,))
        begin = time.monotonic_ns()
        process.start()
        _finish(process)
        arrived = int.from_bytes(os.read(fifo, bench_tasks.TIME_SIZE), "little")
        return (arrived - begin) / 1e9

    def _start_and_join(self, process: BaseProcess) -> float:
        begin = time.perf_counter()
        process.start()
        process.join()
        elapsed = time.perf_counter() - begin
        _check_code(process, 0)
        return elapsed

    def _check_answer(self) -> None:
        number = self._starts
        code = number % 100 + 1
        value = self._ask(bench_tasks.answer, (number, code), code)
        if value != number * number:
            raise WrongResultError(f"a child computed {value!r} instead of {number * number}")

    def _ask(self, target: Callable[..., None], args: tuple[Any, ...], code: int) -> object:
        """What a child that runs `target(connection, *args)` sends; it must exit with `code`."""
        receiver, sender = self._context.Pipe(duplex=False)
        with receiver:
            with sender:
                process = self._started(target, (sender, *args))
            if not receiver.poll(_DEADLINE):
                raise WrongResultError(f"a child sent nothing within {_DEADLINE:.0f} s")
            value: object = receiver.recv()
        _finish(process, code)
        return value


def import_all(names: list[str]) -> None:
    """Import modules by name."""
    for name in names:
        importlib.import_module(name)


def _finish(process: BaseProcess, code: int = 0) -> None:
    process.join()
    _check_code(process, code)


def _check_code(process: BaseProcess, code: int) -> None:
    if process.exitcode != code:
        raise WrongResultError(f"a child ended with exit code {process.exitcode} instead of {code}")
