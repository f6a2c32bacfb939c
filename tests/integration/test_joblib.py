"""joblib's calls in fresh processes, by the backend that `fastfork.joblib_backend` registers."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import textwrap
import threading
import time
import warnings

import pytest
from support import tasks
from support.processes import DEADLINE, is_alive, wait_until

import fastfork

joblib = pytest.importorskip("joblib")

from joblib import Parallel, delayed

from fastfork import context, joblib_backend


@pytest.fixture(scope="module")
def backend(_lasting_descriptors):
    """One backend, and so one template, for the tests of this module.

    It forks nothing ahead: that would come and go at its own times.
    """
    backend = joblib_backend.FastForkBackend(preload=[tasks.__name__], grace=0.1)
    backend._server.spares = 0
    Parallel(n_jobs=2, backend=backend)(delayed(abs)(number) for number in range(2))
    yield backend
    backend._server.stop()


@pytest.fixture
def parallel(backend):
    """Run calls, two at a time."""

    def parallel(calls, **options):
        with joblib.parallel_config(backend, n_jobs=2):
            return Parallel(**options)(calls)

    return parallel


@pytest.fixture
def _registered():
    joblib_backend.register()
    yield
    del joblib.parallel.BACKENDS["fastfork"]


def pid_of(path):
    wait_until(path.exists)
    return int(path.read_text().split()[0])


def drop(results):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # joblib's, of this
        results.close()


def die_beside(path):
    """Die once another call has told its pid."""
    wait_until(path.exists)
    tasks.dump_core_never()


def raise_beside(path, error):
    wait_until(path.exists)
    raise error


def parents(_number):
    return os.getpid(), os.getppid()


def nested(_number):
    inner = Parallel(n_jobs=2)
    pids = inner(delayed(os.getpid)() for _ in range(4))
    return type(inner._backend).__name__, set(pids) == {os.getpid()}


def nested_twice(number):
    return Parallel(n_jobs=2)(delayed(nested)(number) for _ in range(2))


# ---- results ----


@pytest.mark.usefixtures("_registered")
def test_by_its_name():
    with joblib.parallel_config("fastfork", n_jobs=2):
        assert Parallel()(delayed(pow)(number, 2) for number in range(4)) == [0, 1, 4, 9]
    assert Parallel(n_jobs=2, backend="fastfork")(delayed(abs)(number) for number in (-1, -2)) == [1, 2]


def test_results_come_in_order(parallel):
    assert parallel(delayed(pow)(number, 2) for number in range(20)) == [number**2 for number in range(20)]


def test_each_call_has_a_process_of_its_own(parallel):
    pids, templates = zip(*parallel(delayed(parents)(number) for number in range(10)))
    assert len(set(pids)) == 10
    assert len(set(templates)) == 1
    assert os.getpid() not in {*pids, *templates}


def test_calls_of_a_batch_share_a_process(parallel):
    found = parallel((delayed(parents)(number) for number in range(8)), batch_size=4, pre_dispatch="all")
    assert len(set(found)) == 2


def test_one_job_is_no_process(backend):
    with joblib.parallel_config(backend, n_jobs=1):
        assert Parallel()([delayed(os.getpid)()]) == [os.getpid()]


@pytest.mark.parametrize(("asked", "jobs"), [(None, 1), (3, 3), (-1, 4), (-2, 3), (-9, 1)])
def test_numbers_of_jobs(backend, monkeypatch, asked, jobs):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    assert backend.effective_n_jobs(asked) == jobs


def test_no_jobs_are_an_error(backend):
    with pytest.raises(ValueError, match="n_jobs == 0"):
        backend.effective_n_jobs(0)


def test_no_more_than_n_jobs_at_once(parallel, tmp_path):
    paths = [tmp_path / str(number) for number in range(3)]
    calls = [delayed(abs)(-1), *(delayed(tasks.tell_pid_and_stay)(path) for path in paths)]
    results = parallel(calls, return_as="generator")
    assert next(results) == 1
    pids = [pid_of(path) for path in paths[:2]]
    assert not paths[2].exists()
    drop(results)
    assert not any(is_alive(pid) for pid in pids)


def test_closures_and_lambdas(parallel):
    factor = 3
    assert parallel(delayed(lambda number: number * factor)(number) for number in (1, 2)) == [3, 6]
    (function,) = parallel([delayed(tasks.make_adder)(1)], pre_dispatch="all")
    assert function(2) == 3


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_generators(parallel, return_as):
    results = parallel((delayed(pow)(number, 2) for number in range(6)), return_as=return_as)
    assert next(results) in (0, 1)
    assert len(list(results)) == 5


def test_two_at_once(parallel):
    one = parallel((delayed(pow)(number, 2) for number in range(6)), return_as="generator")
    other = parallel((delayed(pow)(number, 3) for number in range(6)), return_as="generator")
    assert list(zip(one, other)) == [(number**2, number**3) for number in range(6)]


def test_an_error_in_one_ends_nothing_of_another(parallel, tmp_path):
    path = tmp_path / "pids"
    results = parallel([delayed(abs)(-1), delayed(tasks.tell_pid_and_stay)(path)], return_as="generator")
    assert next(results) == 1
    pid = pid_of(path)
    with pytest.raises(KeyError):
        parallel(delayed(tasks.fail)(KeyError("why")) for _ in range(2))
    assert is_alive(pid)
    drop(results)


def test_large_arrays(parallel):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(500_000.0)
    results = parallel(delayed(numpy.multiply)(array, number) for number in range(3))
    assert [float(result[-1]) for result in results] == [0.0, 499_999.0, 999_998.0]


def test_calls_below_are_threads_and_then_none(parallel):
    assert parallel(delayed(nested)(number) for number in range(2)) == [("ThreadingBackend", True)] * 2
    # Only the first level below has threads.
    inner = [("SequentialBackend", True)] * 2
    assert parallel(delayed(nested_twice)(number) for number in range(2)) == [inner] * 2


# ---- failures ----


def test_an_exception_comes_with_its_traceback(parallel):
    with pytest.raises(KeyError, match="why") as caught:
        parallel(delayed(tasks.fail)(KeyError("why")) for _ in range(3))
    assert "in fail" in str(caught.value.__cause__)


def test_a_process_that_dies_says_how_and_the_next_calls_work(parallel):
    with pytest.raises(fastfork.ProcessDiedError, match="process of dump_core_never was killed by SIGABRT"):
        parallel(delayed(tasks.dump_core_never)() for _ in range(2))
    assert parallel(delayed(abs)(number) for number in (-1, -2)) == [1, 2]


def test_what_cannot_be_pickled(parallel):
    with pytest.raises(fastfork.TransferError, match="abs or its arguments cannot be pickled"):
        parallel(delayed(abs)(threading.Lock()) for _ in range(2))


@pytest.mark.parametrize("ensures_ready", [False, True])
@pytest.mark.parametrize("is_dead", [False, True])
def test_an_error_ends_what_runs(backend, tmp_path, ensures_ready, is_dead):
    path = tmp_path / "pids"
    end = delayed(die_beside)(path) if is_dead else delayed(raise_beside)(path, ValueError("why"))
    # No more than these two: joblib gives what it has not begun to the next call, whatever the backend.
    calls = [delayed(tasks.tell_pid_and_stay)(path), end]
    parallel = Parallel(n_jobs=2, backend=backend)
    with parallel if ensures_ready else contextlib.nullcontext():
        with pytest.raises((ValueError, fastfork.ProcessDiedError)):
            parallel(calls)
        assert not is_alive(pid_of(path))
        assert parallel(delayed(abs)(number) for number in (-1, -2)) == [1, 2]


def test_joblib_s_time_limit_ends_what_runs(parallel, tmp_path):
    path = tmp_path / "pids"
    with pytest.raises(multiprocessing.TimeoutError):
        parallel([delayed(tasks.tell_pid_and_stay)(path), delayed(wait_for)(path)], timeout=0.5)
    assert not path.exists() or not is_alive(pid_of(path))


def wait_for(path):
    wait_until(path.exists)


def test_a_time_limit_of_each_batch():
    limited = joblib_backend.FastForkBackend(preload=[tasks.__name__], timeout=0.3, grace=0.1)
    limited._server.spares = 0
    with pytest.raises(fastfork.TimeLimitError, match="sleep took longer than its time limit"):
        Parallel(n_jobs=2, backend=limited)(delayed(time.sleep)(seconds) for seconds in (0, DEADLINE * 10))


def test_a_generator_that_is_dropped_ends_what_runs(parallel, tmp_path):
    path = tmp_path / "pids"
    results = parallel([delayed(abs)(-1), delayed(tasks.tell_pid_and_stay)(path)], return_as="generator")
    assert next(results) == 1
    pid = pid_of(path)
    drop(results)
    assert not is_alive(pid)


# ---- the template ----


def test_another_template():
    backend = joblib_backend.FastForkBackend(template="other")
    results = Parallel(n_jobs=2, backend=backend)(delayed(parents)(number) for number in range(2))
    assert {parent for _, parent in results} == {context._server("other")._forkserver_pid}


def test_the_initializer_runs_once():
    backend = joblib_backend.FastForkBackend(initializer=tasks.initialize, initargs=(os.getpid, 5))
    backend._server.spares = 0
    with joblib.parallel_config(backend, n_jobs=2):
        for _ in range(2):
            states = Parallel()(delayed(tasks.append_to_state)(number) for number in (7, 8))
            assert states == [[os.getpid, 5, 7], [os.getpid, 5, 8]]
    pid = backend._server._forkserver_pid
    del backend
    gc.collect()
    wait_until(lambda: not is_alive(pid))


def test_arguments_that_are_not_possible():
    with pytest.raises(ValueError, match="own"):
        joblib_backend.FastForkBackend(template="name", preload=["os"])
    with pytest.raises(TypeError, match="timeuot"):
        joblib_backend.FastForkBackend(timeuot=1)
    with pytest.raises(ValueError, match="timeout"):
        joblib_backend.FastForkBackend(timeout=-1)


def test_functions_of_the_main_module_are_the_template_s(programs):
    """They are not pickled, nor what they use; where the main module has no file they are, as with joblib's own."""
    source = """
        import contextlib, os, threading
        import fastfork.joblib_backend
        from joblib import Parallel, delayed

        fastfork.joblib_backend.register()
        TABLE, LOCK = {1: "one"}, %s
        def look_up(number):
            with LOCK:
                return TABLE.get(number), os.getpid()

        if __name__ == "__main__":
            values, pids = zip(*Parallel(n_jobs=2, backend="fastfork")(delayed(look_up)(i) for i in (1, 2)))
            assert os.getpid() not in pids and len(set(pids)) == 2
            print(values)
    """
    assert programs.run(source % "threading.Lock()").lines == ["('one', None)"]
    outcome = programs.python("-c", textwrap.dedent(source % "contextlib.nullcontext()"))
    assert (outcome.status, outcome.stderr, outcome.lines) == (0, "", ["('one', None)"])


def test_fastfork_alone_needs_no_joblib(programs):
    assert programs.run(
        """
        import sys
        import fastfork
        fastfork.Executor
        print("joblib" in sys.modules)
        """
    ).lines == ["False"]
