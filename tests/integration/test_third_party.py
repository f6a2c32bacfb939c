"""Other libraries on fastfork, each told so by its own means, in a program of its own.

Their processes have to come from the template: `answers` asserts it of every one.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest

TASKS = """
    import os
    import time

    import fastfork
    from fastfork import forkserver

    CONTEXT = fastfork.get_context()


    def square(number):
        return number * number, os.getpid(), os.getppid()


    async def square_later(number):
        return square(number)


    def leave_at_once(code):
        os._exit(code)


    def last_too_long():
        time.sleep(600)


    def answers(results):
        "The squares and the processes that computed them."
        numbers, pids, parents = zip(*results)
        assert set(parents) == {forkserver._forkserver._forkserver_pid}, parents
        return list(numbers), set(pids)
"""

SQUARES = [number * number for number in range(12)]

needs_max_tasks = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="max_tasks_per_child came with Python 3.11"
)


def needs(library):
    """Skip a test whose library is not here. It is not imported: libraries may open what they keep open."""
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture
def run(programs):
    """Run a program that finds TASKS as the module `tasks`; return the lines that it prints."""
    programs.write("tasks.py", TASKS)
    return lambda source: programs.run(source).lines


def test_executor(run):
    assert run(
        """
        from concurrent.futures import ProcessPoolExecutor
        import tasks

        if __name__ == "__main__":
            with ProcessPoolExecutor(3, mp_context=tasks.CONTEXT) as executor:
                squares, pids = tasks.answers(executor.map(tasks.square, range(12)))
            assert len(pids) <= 3
            print(squares)
        """
    ) == [str(SQUARES)]


@needs_max_tasks
def test_executor_with_a_process_for_each_task(run):
    assert run(
        """
        from concurrent.futures import ProcessPoolExecutor
        import tasks

        if __name__ == "__main__":
            with ProcessPoolExecutor(3, mp_context=tasks.CONTEXT, max_tasks_per_child=1) as executor:
                squares, pids = tasks.answers(executor.map(tasks.square, range(12)))
            print(squares, len(pids))
        """
    ) == [f"{SQUARES} 12"]


@needs_max_tasks
def test_executor_replaces_its_processes(run):
    # One task at a time: the executor itself may lose count of its idle workers when several wait, whatever the
    # start method, and then starts no more of them (gh-115634).
    assert run(
        """
        from concurrent.futures import ProcessPoolExecutor
        import tasks

        if __name__ == "__main__":
            with ProcessPoolExecutor(2, mp_context=tasks.CONTEXT, max_tasks_per_child=2) as executor:
                results = [executor.submit(tasks.square, number).result() for number in range(12)]
            squares, pids = tasks.answers(results)
            assert len(pids) >= 6
            print(squares)
        """
    ) == [str(SQUARES)]


def test_executor_tells_of_a_process_that_died(run):
    assert run(
        """
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool
        import tasks

        if __name__ == "__main__":
            with ProcessPoolExecutor(2, mp_context=tasks.CONTEXT) as executor:
                try:
                    executor.submit(tasks.leave_at_once, 3).result()
                except BrokenProcessPool:
                    print("broken")
            with ProcessPoolExecutor(2, mp_context=tasks.CONTEXT) as executor:
                print(tasks.answers(executor.map(tasks.square, range(12)))[0])
        """
    ) == ["broken", str(SQUARES)]


@needs("pebble")
def test_pebble_pool(run):
    assert run(
        """
        from concurrent.futures import TimeoutError
        from pebble import ProcessExpired, ProcessPool
        import tasks

        if __name__ == "__main__":
            with ProcessPool(2, max_tasks=2, context=tasks.CONTEXT) as pool:
                squares, pids = tasks.answers(pool.map(tasks.square, range(12)).result())
                assert len(pids) >= 6
                print(squares)
                try:
                    pool.schedule(tasks.leave_at_once, args=[3]).result()
                except ProcessExpired as error:
                    print("exit code", error.exitcode)
                try:
                    pool.schedule(tasks.last_too_long, timeout=0.2).result()
                except TimeoutError:
                    print("too long")
        """
    ) == [str(SQUARES), "exit code 3", "too long"]


@needs("pebble")
def test_pebble_process(run):
    assert run(
        """
        from concurrent.futures import TimeoutError
        from pebble import ProcessExpired, concurrent
        import tasks

        if __name__ == "__main__":
            in_process = concurrent.process(context=tasks.CONTEXT)
            print(tasks.answers([in_process(tasks.square)(number).result() for number in range(12)])[0])
            try:
                in_process(tasks.leave_at_once)(3).result()
            except ProcessExpired as error:
                print("exit code", error.exitcode)
            try:
                concurrent.process(context=tasks.CONTEXT, timeout=0.2)(tasks.last_too_long)().result()
            except TimeoutError:
                print("too long")
        """
    ) == [str(SQUARES), "exit code 3", "too long"]


@needs("joblib")
def test_joblib_with_a_context(run):
    assert run(
        """
        from joblib import Parallel, delayed
        import tasks

        if __name__ == "__main__":
            results = Parallel(n_jobs=2, backend=tasks.CONTEXT)(delayed(tasks.square)(i) for i in range(12))
            print(tasks.answers(results)[0])
        """
    ) == [str(SQUARES)]


@needs("joblib")
def test_joblib_in_a_program_that_is_run_by_fastfork(programs):
    programs.write("tasks.py", TASKS)
    path = programs.write(
        "program.py",
        """
        from joblib import Parallel, delayed
        import tasks

        if __name__ == "__main__":
            results = Parallel(n_jobs=2, backend="multiprocessing")(
                delayed(tasks.square)(i) for i in range(12)
            )
            print(tasks.answers(results)[0])
        """,
    )
    outcome = programs.python("-m", "fastfork", "run", str(path))
    assert (outcome.status, outcome.lines, outcome.stderr) == (0, [str(SQUARES)], "")


@needs("joblib")
def test_loky_keeps_its_own_processes(run):
    # joblib's default backend takes no context: it starts interpreters by itself, and works beside fastfork.
    assert run(
        """
        from joblib import Parallel, delayed
        from joblib.externals.loky import get_reusable_executor
        import tasks

        if __name__ == "__main__":
            on_fastfork = tasks.CONTEXT.Process(target=tasks.square, args=(1,))
            on_fastfork.start()
            results = Parallel(n_jobs=2)(delayed(tasks.square)(i) for i in range(12))
            get_reusable_executor().shutdown()
            on_fastfork.join()
            assert on_fastfork.exitcode == 0
            numbers, _pids, parents = zip(*results)
            assert set(parents) == {tasks.os.getpid()}
            print(list(numbers))
        """
    ) == [str(SQUARES)]


@needs("aiomultiprocess")
def test_aiomultiprocess(run):
    assert run(
        """
        import asyncio
        import aiomultiprocess
        import tasks

        async def main():
            one = await aiomultiprocess.Worker(target=tasks.square_later, args=(5,))
            print(tasks.answers([one])[0])
            async with aiomultiprocess.Pool(2) as pool:
                print(tasks.answers(await pool.map(tasks.square_later, range(12)))[0])

        if __name__ == "__main__":
            aiomultiprocess.set_start_method("fastfork")
            asyncio.run(main())
        """
    ) == ["[25]", str(SQUARES)]


@needs("numpy")
def test_numpy_may_be_preloaded_though_it_starts_threads(programs):
    """OpenBLAS ends its threads before a fork and starts them anew when they are needed: they are no reason to warn."""
    outcome = programs.run(
        """
        import numpy

        import fastfork

        def product(size):
            matrix = numpy.ones((size, size))
            return float((matrix @ matrix)[0, 0])

        if __name__ == "__main__":
            context = fastfork.get_context(preload=["__main__", "numpy"], on_threads="refuse")
            with context.Pool(2) as pool:
                print(pool.map(product, [300] * 4))
        """
    )
    assert outcome.lines == [str([300.0] * 4)]
