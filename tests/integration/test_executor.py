"""`fastfork.Executor`: results and failures, each of its own future alone; limits, cancellation, and its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import process, shared_memory

import pytest
from support import tasks
from support.processes import (
    DEADLINE,
    children_of,
    descriptors,
    exit_code_of,
    fork,
    is_alive,
    wait_until,
)

import fastfork
from fastfork import client, forkserver
from fastfork.executor import own_server, settings_of


@pytest.fixture(autouse=True)
def _preloaded():
    fastfork.get_context(preload=[tasks.__name__])


@pytest.fixture(scope="module")
def _server(_lasting_descriptors):
    """A template for those tests of this module that are not about templates: starting one takes longer than most.

    It forks nothing ahead: that would come and go at its own times.
    """
    server = own_server([tasks.__name__], None, (), "pickle")
    server.spares = 0
    with fastfork.Executor.on_server(server, 1, settings_of({})) as executor:
        result_of(executor, abs, 1)
    yield server
    server.stop()


@pytest.fixture
def executor(_server):
    """An executor of this test's own, on a template that is not."""
    with fastfork.Executor.on_server(_server, 2, settings_of({})) as executor:
        yield executor


@pytest.fixture
def default_executor():
    """An executor on the default template, which is this test's own, as are all that a test makes itself."""
    with fastfork.Executor(2) as executor:
        yield executor


def result_of(executor, function, *arguments):
    return executor.submit(function, *arguments).result(DEADLINE)


def failure_of(executor, function, *arguments):
    return executor.submit(function, *arguments).exception(DEADLINE)


def pids_in(path):
    wait_until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


# ---- results ----


def test_results_come_in_order(executor):
    assert list(executor.map(pow, range(20), [2] * 20)) == [number**2 for number in range(20)]


def test_keywords_and_names_that_are_also_the_executor_s(executor):
    assert executor.submit(dict, fn=1, self=2, timeout=3).result() == {"fn": 1, "self": 2, "timeout": 3}


def test_each_task_has_a_process_of_its_own(executor):
    pids = set(executor.map(tasks.sleep_and_return, [0] * 10, range(10)))
    assert len(pids) == 10
    assert result_of(executor, tasks.append_to_state, 1) == [1]
    assert result_of(executor, tasks.append_to_state, 2) == [2]


def test_a_thousand_tasks(executor):
    assert sum(executor.map(abs, range(1000))) == sum(range(1000))


@pytest.mark.parametrize("size", [1, 5000, 65_000, 66_000, 300_000, 20_000_000])
def test_buffers_of_any_size_go_and_come(executor, size):
    buffer = tasks.Buffer(bytearray(b"\1") * size)
    assert result_of(executor, tasks.checksum, buffer) == (size, size)
    assert result_of(executor, tasks.make_buffer, size).content == bytearray(b"\1") * size


@pytest.mark.parametrize("size", [65_000, 66_000, 20_000_000])
def test_large_pickles_go_and_come(executor, size):
    text = "x" * size
    assert result_of(executor, tasks.sleep_and_return, 0, text) == text


def test_large_arguments_for_a_task_that_does_not_read_them_do_not_hold_others_up(executor):
    stuck = executor.submit(tasks.sleep_and_return, 0, bytes(20_000_000))
    assert result_of(executor, abs, -1) == 1
    assert len(stuck.result(DEADLINE)) == 20_000_000


def test_no_more_than_max_workers_at_once(tmp_path):
    with fastfork.Executor(3) as executor:
        futures = [executor.submit(tasks.tell_pid_and_stay, tmp_path / f"{number}") for number in range(5)]
        wait_until(lambda: len([name for name in os.listdir(tmp_path) if name.isdigit()]) == 3)
        assert [future.running() for future in futures] == [True] * 3 + [False] * 2
        for future in futures:
            future.kill()


def test_a_task_sees_what_a_process_does(executor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "late"))
    seen = result_of(executor, tasks.seen)
    assert seen == {
        "parent": os.getpid(),
        "directory": str(tmp_path),
        "argv": sys.argv,
        "path": sys.path,
        "authkey": bytes(process.current_process().authkey),
        "group": True,
    }


def test_shared_memory_is_the_client_s_still(executor):
    memory = shared_memory.SharedMemory(create=True, size=100)
    try:
        result_of(executor, tasks.write_to_shared_memory, memory.name, b"from a task")
        assert bytes(memory.buf[:11]) == b"from a task"
        shared_memory.SharedMemory(name=memory.name).close()
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("function", [tasks.leave_thread, tasks.leave_exit_function])
def test_what_a_task_leaves_behind_comes_to_its_end(executor, tmp_path, function):
    path = tmp_path / "written"
    assert result_of(executor, function, path) == "returned"
    wait_until(path.exists)


def test_a_fork_that_a_task_leaves_behind_does_not_hold_its_end_up(tmp_path):
    with fastfork.Executor(1) as executor:
        pid = result_of(executor, tasks.leave_fork)
        os.kill(pid, signal.SIGKILL)
        error = failure_of(executor, tasks.die_leaving_fork, tmp_path / "pid")
        assert error.exit_code == 5
        os.kill(*pids_in(tmp_path / "pid"), signal.SIGKILL)


def test_nested_executors(executor):
    assert result_of(executor, tasks.nested_sum, 3) == 4


# ---- failures, each alone ----


def test_an_exception_comes_back_with_its_traceback(executor):
    error = failure_of(executor, tasks.fail, KeyError("why"))
    assert type(error) is KeyError
    assert error.args == ("why",)
    assert "in fail" in str(error.__cause__)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (abs, (lambda: 1,), "arguments cannot be pickled"),
        (lambda: 1, (), "cannot be pickled"),
        (tasks.unpicklable, (), "result, of type _thread.lock, of unpicklable cannot be pickled"),
        (tasks.raise_unpicklable, (), "exception, of type ValueError"),
        (tasks.raise_not_unpicklable, (), "cannot be unpickled"),
        (tasks.ExplodesOnArrival, (), "result of ExplodesOnArrival cannot be unpickled"),
    ],
)
def test_what_cannot_be_pickled_fails_alone(executor, function, arguments, words):
    good = executor.submit(abs, -1)
    error = failure_of(executor, function, *arguments)
    assert isinstance(error, fastfork.TransferError)
    assert words in str(error)
    assert good.result(DEADLINE) == result_of(executor, abs, -1) == 1


def test_a_serializer_that_fails_hides_no_exception(executor, tmp_path, monkeypatch):
    """A time limit may end a task while it imports what its serializer is made of."""
    source = "from pickle import dumps as dumps\nimport os\nif os.getpid() != {}: del dumps\n"
    (tmp_path / "half_there.py").write_text(source.format(os.getpid()))
    monkeypatch.syspath_prepend(str(tmp_path))
    error = failure_of(executor.configured(serializer="half_there"), tasks.fail, KeyError("why"))
    assert type(error) is KeyError
    assert "in fail" in str(error.__cause__)


def test_what_cannot_be_unpickled_in_the_process_is_an_exception_of_the_task(executor):
    error = failure_of(executor, abs, tasks.ExplodesOnArrival())
    assert type(error) is RuntimeError
    assert error.args == ("explodes",)


@pytest.mark.parametrize(
    ("function", "arguments", "exit_code", "words"),
    [
        (os._exit, (0,), 0, "exit code 0"),
        (os._exit, (3,), 3, "exit code 3"),
        (sys.exit, (4,), 4, "exit code 4"),
        (sys.exit, (), 0, "exit code 0"),
        (tasks.dump_core_never, (), -signal.SIGABRT, "SIGABRT"),
        (tasks.kill_self, (signal.SIGKILL,), -signal.SIGKILL, "memory has run out"),
        (tasks.kill_self, (signal.SIGTERM,), -signal.SIGTERM, "SIGTERM"),
        (tasks.interrupt_self, (), -signal.SIGINT, "SIGINT"),
    ],
)
def test_a_process_that_dies_fails_its_own_future_and_says_how(
    executor, function, arguments, exit_code, words
):
    good = executor.submit(tasks.sleep_and_return, 0.05, "good")
    error = failure_of(executor, function, *arguments)
    assert isinstance(error, fastfork.ProcessDiedError)
    assert error.exit_code == exit_code
    assert words in str(error)
    assert error.peak_memory > 1_000_000
    assert error.cpu_time >= 0
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.exit_code, copy.signal, str(copy)) == (error.exit_code, error.signal, str(error))
    assert good.result(DEADLINE) == "good"


def test_nonsense_on_the_channel_fails_its_own_future(executor):
    assert isinstance(failure_of(executor, tasks.corrupt_channel), Exception)
    assert result_of(executor, abs, -1) == 1


def test_nonsense_that_comes_before_the_start_is_told_of_ends_its_process(executor, monkeypatch):
    template = result_of(executor, os.getppid)
    told = threading.Event()
    answer_to = client.Connection.answer_to
    monkeypatch.setattr(
        client.Connection,
        "answer_to",
        lambda self, number: answer_to(self, number) if told.is_set() else None,
    )
    assert isinstance(failure_of(executor, tasks.corrupt_channel), Exception)
    wait_until(lambda: len(children_of(template)) == 1)  # the one before has ended
    told.set()
    wait_until(lambda: children_of(template) == [])


def test_a_template_that_is_killed_is_replaced(default_executor, template):
    assert result_of(default_executor, abs, -1) == 1
    os.kill(template._forkserver_pid, signal.SIGKILL)
    wait_until(template._launched.process.has_ended)
    assert result_of(default_executor, abs, -2) == 2


def test_a_template_that_is_killed_amid_many_tasks_fails_few_of_them(default_executor, template):
    futures = [default_executor.submit(tasks.sleep_and_return, 0.01, number) for number in range(100)]
    futures[20].result(DEADLINE)
    os.kill(template._forkserver_pid, signal.SIGKILL)
    concurrent.futures.wait(futures, DEADLINE)
    failed = [future for future in futures if future.exception() is not None]
    assert len(failed) <= 2
    assert all(isinstance(future.exception(), (OSError, fastfork.ProcessDiedError)) for future in failed)


# ---- time ----


@pytest.mark.parametrize("function", [tasks.tell_pid_and_stay, tasks.tell_pid_and_stay_on])
def test_a_time_limit_ends_a_task_and_all_below_it(executor, tmp_path, function):
    limited = executor.configured(timeout=1.0, grace=0.2)
    future = limited.submit(function, tmp_path / "pids")
    pids = pids_in(tmp_path / "pids")
    error = future.exception(DEADLINE)
    assert isinstance(error, fastfork.TimeLimitError)
    assert "time limit of 1 s" in str(error)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_time_limit_shows_where_the_task_was(executor, tmp_path):
    error = failure_of(executor.configured(timeout=0.3), tasks.tell_pid_and_stay, tmp_path / "pids")
    assert "in tell_pid_and_stay" in str(error.__cause__)


def test_a_task_may_use_its_grace(executor):
    assert result_of(executor.configured(timeout=0.3, grace=DEADLINE), tasks.clean_up_in_time) == "cleaned up"


def test_without_grace_there_is_none(executor):
    error = failure_of(executor.configured(timeout=0.3, grace=0), tasks.clean_up_in_time)
    assert isinstance(error, fastfork.TimeLimitError)
    assert error.__cause__.signal == "SIGKILL"


def test_a_stopped_process_does_not_escape(executor):
    limited = executor.configured(timeout=0.3, grace=0.1)
    assert isinstance(failure_of(limited, tasks.kill_self, signal.SIGSTOP), fastfork.TimeLimitError)


def test_others_have_the_time_that_they_need(executor):
    executor.configured(timeout=0.2, grace=0.1).submit(time.sleep, 600)
    assert result_of(executor, tasks.sleep_and_return, 0.5, 1) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"grace": -1}, ValueError),
        ({"template": "name", "preload": ["os"]}, ValueError),
        ({"preload": [1]}, TypeError),
        ({"initializer": 1}, TypeError),
    ],
)
def test_values_that_are_not_possible(arguments, error):
    with pytest.raises(error):
        fastfork.Executor(**arguments)


def test_settings_that_are_not_known(executor):
    with pytest.raises(TypeError, match="timeuot"):
        executor.configured(timeuot=1)


# ---- output ----


@pytest.fixture
def capturing(executor):
    return executor.configured(capture=True)


def test_what_a_task_writes_is_kept(capturing, capfd):
    future = capturing.submit(tasks.speak)
    assert future.result(DEADLINE) is None
    assert sorted(future.stdout.splitlines()) == [b"from Python", b"from below", b"from the system"]
    assert sorted(future.stderr.splitlines()) == [b"error from Python", b"error from below"]
    assert capfd.readouterr() == ("", "")


def test_output_is_each_task_s_own(capturing):
    futures = [capturing.submit(print, number) for number in range(10)]
    concurrent.futures.wait(futures, DEADLINE)
    assert [future.stdout for future in futures] == [b"%d\n" % number for number in range(10)]


def test_what_is_not_asked_for_is_not_kept(executor):
    future = executor.submit(abs, 1)
    future.result(DEADLINE)
    assert (future.stdout, future.stderr) == (None, None)


def test_much_output(capturing):
    future = capturing.submit(tasks.write_much, 20_000_000)
    future.result(DEADLINE)
    assert future.stdout == b"x" * 20_000_000


def test_output_of_a_task_that_raises(capturing):
    future = capturing.submit(tasks.speak, tasks.divide_by_zero)
    assert isinstance(future.exception(DEADLINE), ZeroDivisionError)
    assert b"from Python" in future.stdout


def test_what_exit_functions_write_is_kept_too(capturing):
    future = capturing.submit(tasks.print_at_exit)
    future.result(DEADLINE)
    assert future.stdout == b"at exit\n"


def test_the_last_lines_of_a_process_that_died_are_told(capturing):
    future = capturing.submit(tasks.leave_with_lines, 1000)
    error = future.exception(DEADLINE)
    assert error.exit_code == 3
    assert error.stderr.splitlines() == [f"line {number}" for number in range(980, 1000)]
    assert str(error).endswith("line 999\n")
    assert future.stderr.count(b"\n") == 1000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_output_before_a_time_limit(executor, tmp_path):
    limited = executor.configured(timeout=0.5, grace=0.1, capture=True)
    future = limited.submit(tasks.speak, tasks.sleep_on)
    assert isinstance(future.exception(DEADLINE), fastfork.TimeLimitError)
    assert b"from the system" in future.stdout


def test_where_there_is_no_descriptor_for_it_only_that_task_fails(executor, capturing, monkeypatch):
    def fail():
        raise OSError(errno.EMFILE, "no more")

    monkeypatch.setattr("fastfork.submission.Output", fail)
    assert failure_of(capturing, abs, 1).errno == errno.EMFILE
    assert result_of(executor, abs, -1) == 1


# ---- options ----


def test_options_of_tasks(executor, tmp_path):
    options = fastfork.ChildOptions(env={"NAME": "value"}, cwd=tmp_path, umask=0o27, new_session=True)
    configured = executor.configured(options=options)
    assert result_of(configured, os.getenv, "NAME") == "value"
    assert result_of(configured, os.getcwd) == str(tmp_path)
    assert result_of(configured, os.umask, 0) == 0o27
    assert result_of(configured, tasks.leads_session)
    assert not result_of(executor, tasks.leads_session)


def test_options_of_an_executor(tmp_path):
    with open(tmp_path / "out", "w+b") as stream:
        options = fastfork.ChildOptions(stdout=stream, rlimits={resource.RLIMIT_NOFILE: 64})
        with fastfork.Executor(1, options=options) as executor:
            assert result_of(executor, resource.getrlimit, resource.RLIMIT_NOFILE) == (64, 64)
            result_of(executor, print, "to a file")
        stream.seek(0)
        assert stream.read() == b"to a file\n"


def test_a_directory_of_options_with_a_main_module_that_is_not_preloaded(tmp_path):
    fastfork.get_context("bare", preload=[])
    with fastfork.Executor(1, template="bare", options=fastfork.ChildOptions(cwd=tmp_path)) as executor:
        assert result_of(executor, os.getcwd) == str(tmp_path)


def test_options_that_cannot_be_applied_fail_the_task_alone(executor, tmp_path):
    options = fastfork.ChildOptions(cwd=tmp_path / "missing")
    error = failure_of(executor.configured(options=options), abs, 1)
    assert isinstance(error, FileNotFoundError)
    assert "cwd" in str(error)
    with open(tmp_path / "out", "w") as stream:
        closed = fastfork.ChildOptions(stdout=stream.fileno())
    assert isinstance(failure_of(executor.configured(options=closed), abs, 1), (OSError, ValueError))
    assert result_of(executor, abs, -1) == 1


def test_options_beside_captured_output(executor):
    options = fastfork.ChildOptions(env={}, stderr=subprocess.DEVNULL)
    with pytest.raises(ValueError, match="captured"):
        executor.configured(capture=True, options=options)
    future = executor.configured(capture=True, options=fastfork.ChildOptions(umask=0)).submit(print, 1)
    future.result(DEADLINE)
    assert future.stdout == b"1\n"


# ---- what the template has ----


def test_the_initializer_runs_once_and_all_tasks_share_its_state():
    with fastfork.Executor(2, initializer=tasks.initialize, initargs=(os.getpid, 5)) as executor:
        assert list(executor.map(tasks.append_to_state, [7, 8])) == [[os.getpid, 5, 7], [os.getpid, 5, 8]]


def test_modules_and_callables_are_preloaded():
    with fastfork.Executor(1, preload=["this_is_not_there", tasks.initialize]) as executor:
        error = failure_of(executor, tasks.state)
        assert isinstance(error, fastfork.PreloadError)
        assert error.module == "this_is_not_there"
    with fastfork.Executor(1, preload=["decimal", tasks.initialize]) as executor:
        assert result_of(executor, eval, "'decimal' in __import__('sys').modules")


def test_an_initializer_that_fails_fails_each_future(capfd):
    with fastfork.Executor(2, initializer=tasks.fail, initargs=(KeyError("why"),)) as executor:
        for _ in range(2):
            error = failure_of(executor, abs, 1)
            assert isinstance(error, fastfork.PreloadError)
            assert "KeyError: 'why'" in error.traceback
    assert "KeyError" in capfd.readouterr().err


def test_its_own_template_ends_with_it():
    with fastfork.Executor(1, initializer=tasks.initialize) as executor:
        pid = result_of(executor, os.getppid)
        assert is_alive(pid)
    assert not is_alive(pid)


# ---- cancellation and the end ----


def test_a_task_that_waits_can_be_cancelled():
    with fastfork.Executor(1) as executor:
        running = executor.submit(time.sleep, 600)
        wait_until(running.running)
        waiting = executor.submit(abs, 1)
        assert not running.cancel()
        assert waiting.cancel()
        running.kill()
    assert isinstance(running.exception(), fastfork.ProcessDiedError)


def test_a_task_that_waits_and_is_killed_is_cancelled():
    with fastfork.Executor(1) as executor:
        running, waiting = executor.submit(time.sleep, 600), executor.submit(abs, 1)
        waiting.kill()
        assert waiting.cancelled()
        wait_until(running.running)
        running.kill()


def test_kill_takes_those_below_along(executor, tmp_path):
    future = executor.submit(tasks.tell_pid_and_stay, tmp_path / "pids")
    pids = pids_in(tmp_path / "pids")
    future.kill()
    assert future.exception(DEADLINE).signal == "SIGKILL"
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_shutdown_waits_for_all():
    executor = fastfork.Executor(2)
    futures = [executor.submit(tasks.sleep_and_return, 0.02, number) for number in range(6)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


def test_shutdown_without_waiting_lets_them_finish():
    executor = fastfork.Executor(1)
    futures = [executor.submit(tasks.sleep_and_return, 0.02, number) for number in range(3)]
    executor.shutdown(wait=False)
    assert [future.result(DEADLINE) for future in futures] == [0, 1, 2]
    executor.shutdown()


def test_shutdown_may_cancel_what_waits():
    executor = fastfork.Executor(1)
    futures = [executor.submit(tasks.sleep_and_return, 0.1, number) for number in range(5)]
    wait_until(futures[0].running)
    executor.shutdown(cancel_futures=True)
    assert futures[0].result() == 0
    assert all(future.cancelled() for future in futures[1:])


def test_shutdown_twice_and_without_a_task():
    executor = fastfork.Executor(1)
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_its_own_leaves_nobody_waiting(monkeypatch):
    def fail(_self):
        raise MemoryError

    with fastfork.Executor(1) as executor:
        futures = [executor.submit(time.sleep, 600), executor.submit(abs, 1)]
        wait_until(futures[0].running)
        monkeypatch.setattr("fastfork.manager.Manager._obey", fail)
        futures[0].kill()
        assert isinstance(futures[0].exception(DEADLINE), MemoryError)
        assert futures[1].cancelled()
        with pytest.raises(RuntimeError):
            executor.submit(abs, 1)


def test_an_executor_that_nobody_knows_any_more_ends():
    before = threading.active_count()
    fastfork.Executor(1).submit(abs, 1).result(DEADLINE)
    wait_until(lambda: threading.active_count() == before)


def test_an_idle_executor_costs_no_processes(default_executor, template):
    result_of(default_executor, abs, 1)
    wait_until(lambda: fastfork.server_status().live_children == 0)


def test_descriptors_come_back(executor):
    result_of(executor, abs, 1)
    before = descriptors()
    for _ in range(20):
        failure_of(executor, os._exit, 1)
        result_of(executor, bytes, 100_000)
    assert descriptors() == before


def test_at_the_end_of_a_program_all_is_done(programs):
    outcome = programs.run(
        """
        import os, fastfork

        def work(number):
            os.write(1, b"done\\n")

        if __name__ == "__main__":
            executor = fastfork.Executor(1)
            for number in range(3):
                executor.submit(work, number)
        """
    )
    assert outcome.lines == ["done"] * 3


def test_interrupt_reaches_the_tasks(programs):
    outcome = programs.python(
        str(
            programs.write(
                "program.py",
                """
                import os, signal, time, fastfork

                def work():
                    os.kill(os.getppid(), 0)
                    os.write(1, b"begun\\n")
                    time.sleep(600)

                if __name__ == "__main__":
                    with fastfork.Executor(1) as executor:
                        future = executor.submit(work)
                        while not future.running():
                            time.sleep(0.001)
                        time.sleep(0.2)
                        signal.raise_signal(signal.SIGINT)
                """,
            )
        )
    )
    assert outcome.status == -signal.SIGINT
    assert "KeyboardInterrupt" in outcome.stderr


def test_tasks_die_with_their_client(programs, tmp_path):
    programs.python(
        str(
            programs.write(
                "program.py",
                """
                import os, sys, time, fastfork

                def work(path):
                    with open(path + ".part", "w") as stream:
                        stream.write(str(os.getpid()))
                    os.rename(path + ".part", path)
                    time.sleep(600)

                if __name__ == "__main__":
                    fastfork.Executor(1).submit(work, sys.argv[1])
                    while not os.path.exists(sys.argv[1]):
                        time.sleep(0.001)
                    os._exit(0)
                """,
            )
        ),
        str(tmp_path / "pid"),
    )
    pids = pids_in(tmp_path / "pid")
    wait_until(lambda: not is_alive(*pids))


# ---- a fork of the client ----


def test_a_fork_of_the_client_can_go_on_and_knows_what_is_not_its_own(executor):
    running = executor.submit(tasks.sleep_and_return, 0.5, "parent's")
    wait_until(running.running)
    waiting = [executor.submit(abs, -number) for number in range(3)]

    def in_child():
        assert isinstance(running.exception(DEADLINE), RuntimeError)
        assert isinstance(waiting[2].exception(DEADLINE), RuntimeError)
        assert executor.submit(abs, -5).result(DEADLINE) == 5
        executor.shutdown()

    assert exit_code_of(fork(in_child)) == 0
    assert running.result(DEADLINE) == "parent's"
    assert [future.result(DEADLINE) for future in waiting] == [0, 1, 2]


# ---- asyncio ----


def test_awaited_without_a_thread_for_each(executor):
    async def main():
        loop = asyncio.get_running_loop()
        before = threading.active_count()
        values = await asyncio.gather(
            *(loop.run_in_executor(executor, abs, -number) for number in range(10)),
            *(executor.run(abs, -number) for number in range(10)),
        )
        return values, threading.active_count() - before

    values, threads = asyncio.run(main())
    assert values == [*range(10), *range(10)]
    assert threads <= 1


def test_cancelled_while_awaited_the_process_ends(executor, tmp_path):
    async def main():
        task = asyncio.ensure_future(executor.run(tasks.tell_pid_and_stay, tmp_path / "pids"))
        while not (tmp_path / "pids").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    pids = pids_in(tmp_path / "pids")
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_future_can_be_awaited(executor):
    async def main():
        return await asyncio.gather(executor.submit(abs, -1), executor.submit(abs, -2))

    assert asyncio.run(main()) == [1, 2]


# ---- without an executor ----


def test_run():
    assert fastfork.run(divmod, 7, 2, timeout=DEADLINE) == (3, 1)
    assert fastfork.run(dict, one=1) == {"one": 1}
    with pytest.raises(KeyError):
        fastfork.run(tasks.fail, KeyError("why"))
    with pytest.raises(fastfork.TimeLimitError):
        fastfork.run(time.sleep, 600, timeout=0.1)
    with pytest.raises(fastfork.ProcessDiedError):
        fastfork.run(os.abort)


def test_map():
    assert fastfork.map(pow, [1, 2, 3], [2, 2, 2], max_workers=2) == [1, 4, 9]
    with pytest.raises(fastfork.TimeLimitError):
        fastfork.map(time.sleep, [0, 600], timeout=0.3)


def test_they_leave_nothing_running(template):
    fastfork.map(abs, range(3))
    assert threading.active_count() == 1
    wait_until(lambda: fastfork.server_status().live_children == 0)


# ---- beside others ----


def test_beside_processes_of_the_same_template(ctx, default_executor):
    processes = [ctx.Process(target=abs, args=(1,)) for _ in range(5)]
    futures = []
    for started in processes:
        started.start()
        futures.append(default_executor.submit(abs, -1))
    for started in processes:
        started.join()
        assert started.exitcode == 0
    assert [future.result(DEADLINE) for future in futures] == [1] * 5


def test_nobody_of_it_is_left(template):
    with fastfork.Executor(4) as executor:
        list(executor.map(abs, range(50)))
    wait_until(lambda: fastfork.server_status().live_children == 0)
    assert template is forkserver._forkserver
    assert len(children_of(template._forkserver_pid)) <= 2  # spares
