"""`fastfork.Executor.from_current_process`: what is there in every task, and what travels to it."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
from support import tasks
from support.processes import DEADLINE, descriptors, is_alive, wait_until

import fastfork
from fastfork import functions

TABLE = {"before": 1}


class Adder:
    def __init__(self, number):
        self.number = number

    def __call__(self, other):
        return self.number + other


@pytest.fixture
def executor():
    TABLE["before"] = 2
    with fastfork.Executor.from_current_process(2) as executor:
        yield executor
    TABLE["before"] = 1


def result_of(executor, function, *arguments):
    return executor.submit(function, *arguments).result(DEADLINE)


# ---- what is there ----


def test_data_of_this_process_is_there_as_it_was(executor):
    TABLE["before"] = 3
    assert result_of(executor, lambda: TABLE["before"]) == 2


def test_what_a_closure_has_captured_before_is_not_pickled():
    data = [threading.Lock()]  # cannot be

    def count():
        return len(data)

    with fastfork.Executor.from_current_process(1) as executor:
        data.append(1)
        assert result_of(executor, count) == 1


def test_tasks_do_not_share_what_they_do(executor):
    def put():
        TABLE["task"] = os.getpid()
        return len(TABLE)

    assert [result_of(executor, put) for _ in range(3)] == [2, 2, 2]
    assert "task" not in TABLE


# ---- functions that came later ----


def test_a_lambda(executor):
    number = 5
    assert list(executor.map(lambda value: value + number, range(3))) == [5, 6, 7]


def test_a_closure_that_calls_itself(executor):
    def factorial(number):
        return 1 if number < 2 else number * factorial(number - 1)

    assert result_of(executor, factorial, 5) == 120


def test_closures_that_share_a_variable(executor):
    count = 0

    def add():
        nonlocal count
        count += 1

    def both(first, second):
        first()
        return second()

    assert result_of(executor, both, add, lambda: count) == 1
    assert count == 0


def test_defaults_keywords_and_attributes(executor):
    def function(one, two=2, *, three=3):
        """Say so."""
        return one, two, three, function.four, function.__doc__, function.__name__

    function.four = 4
    assert result_of(executor, function, 1) == (1, 2, 3, 4, "Say so.", "function")


def test_a_variable_that_has_no_value_yet(executor):
    def function():
        try:
            return unset
        except NameError:
            return "none"

    if not function:
        unset = 1
    assert result_of(executor, function) == "none"


def test_a_function_of_no_module(executor):
    names = {"helper": Adder(3)}
    exec("def function(number):\n    return helper(number)", names)
    assert result_of(executor, names["function"], 4) == 7


def test_functions_come_back(executor):
    def make(number):
        return lambda: number

    assert result_of(executor, make, 6)() == 6


def test_functions_of_the_main_module_that_came_later(programs):
    outcome = programs.run(
        """
        import fastfork

        def first():
            return 1

        if __name__ == "__main__":
            with fastfork.Executor.from_current_process(1) as executor:
                def helper():
                    return 2

                def second():
                    return first() + helper()

                def first():
                    return 10

                print(executor.submit(second).result())
        """
    )
    assert outcome.lines == ["12"]


def test_a_module_s_function_goes_by_name(executor):
    assert b"later" not in functions.dumps(os.path.join)
    assert result_of(executor, os.path.join, "a", "b") == "a/b"


def test_what_does_not_pickle_still_does_not(executor):
    with pytest.raises(fastfork.TransferError):
        result_of(executor, lambda lock: 1, threading.Lock())
    assert result_of(executor, lambda: 1) == 1


def test_methods_and_objects(executor):
    assert result_of(executor, Adder(1), 2) == 3
    assert result_of(executor, "abc".upper) == "ABC"


# ---- its template ----


def test_it_ends_with_the_executor():
    with fastfork.Executor.from_current_process(1) as executor:
        template = result_of(executor, os.getppid)
        assert template != os.getpid()
        assert is_alive(template)
    assert not is_alive(template)


def test_once_it_has_died_tasks_fail_and_say_so(executor):
    template = result_of(executor, os.getppid)
    os.kill(template, signal.SIGKILL)
    wait_until(lambda: not is_alive(template))
    with pytest.raises(OSError, match="cannot be made again"):
        result_of(executor, abs, 1)


def test_it_keeps_no_other_template_alive(template):
    with fastfork.Executor(1, initializer=tasks.initialize) as other:
        own = result_of(other, os.getppid)
        with fastfork.Executor.from_current_process(1) as executor:
            assert result_of(executor, abs, -1) == 1
            other.shutdown()
            wait_until(lambda: not is_alive(own))
            pid = template._forkserver_pid
            template._stop()
            assert not is_alive(pid)
            assert result_of(executor, abs, -1) == 1


def test_a_task_has_no_more_open_than_this_process_and_its_channel(executor):
    reader, writer = os.pipe()
    tasks_fds = result_of(executor, lambda: len(os.listdir("/proc/self/fd")))
    assert tasks_fds <= len(descriptors()) + 6
    os.close(reader)
    os.close(writer)


def test_signals_and_exit_functions_of_this_process_are_its_own(programs):
    outcome = programs.run(
        """
        import atexit, os, sys, fastfork
        sys.stdout.write("buffered\\n")
        atexit.register(print, "at exit")
        with fastfork.Executor.from_current_process(1) as executor:
            assert executor.submit(abs, -1).result() == 1
            assert executor.submit(os._exit, 1).exception().exit_code == 1
        """
    )
    assert outcome.lines == ["buffered", "at exit"]


def test_output_is_captured_though_the_stream_is_another_one(monkeypatch):
    class Stream:
        def write(self, text):
            return len(text)

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Stream())
    with fastfork.Executor.from_current_process(1, capture=True) as executor:
        future = executor.submit(print, "words")
        future.result(DEADLINE)
    assert future.stdout == b"words\n"


def test_within_a_task(executor):
    def outer(number):
        with fastfork.Executor.from_current_process(1) as inner:
            return inner.submit(lambda: number + 1).result()

    assert result_of(executor, outer, 1) == 2


def test_processes_of_multiprocessing_within_a_task(executor):
    def with_process():
        context = fastfork.get_context()
        process = context.Process(target=os._exit, args=(3,))
        process.start()
        process.join()
        return process.exitcode

    assert result_of(executor, with_process) == 3


@pytest.mark.parametrize("arguments", [{"max_workers": 0}, {"timeout": 0}])
def test_values_that_are_not_possible(arguments):
    with pytest.raises(ValueError, match="positive"):
        fastfork.Executor.from_current_process(**arguments)
