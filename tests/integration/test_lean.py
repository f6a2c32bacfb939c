"""Lean calls: bytes and descriptors in and out, and whatever may become of the process."""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import tasks
from support.processes import DEADLINE, children_of, is_alive, wait_until

import fastfork
from fastfork import lean

TASKS = tasks.__name__


@pytest.fixture(autouse=True)
def _preloaded():
    fastfork.get_context(preload=[TASKS])


def name_of(function):
    return f"{TASKS}:{function.__name__}"


@pytest.mark.parametrize("size", [0, 1, 60_000, 65_536, 70_000, 5_000_000])
def test_bytes_come_back_as_they_went(size):
    data = os.urandom(size)
    assert lean.call(name_of(tasks.echo), data) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [10, 100_000])
def test_anything_with_bytes_goes(kind, size):
    assert lean.call(name_of(tasks.length), kind(bytes(size))) == b"%d" % size


def test_a_large_answer():
    assert lean.call(name_of(tasks.many), b"20000000") == bytes(20_000_000)


def test_none_is_no_bytes():
    assert lean.call(name_of(tasks.nothing)) == b""


def test_descriptors_go_and_come():
    reader, writer = os.pipe()
    with lean.start(name_of(tasks.exchange), b"ab", fds=[writer]) as call:
        os.close(writer)
        answer = call.result(DEADLINE)
    assert answer.data == b"ab"
    assert os.read(reader, 10) == b"ab"
    assert os.read(answer.fds[0], 10) == b"ba"
    for fd in (reader, *answer.fds):
        os.close(fd)


def test_call_returns_no_descriptors():
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="descriptors"):
        lean.call(name_of(tasks.exchange), b"ab", fds=[writer])
    os.close(reader)
    os.close(writer)


def test_the_process_has_what_it_was_given_and_little_more():
    alone = int(lean.call(name_of(tasks.open_descriptors)))
    reader, writer = os.pipe()
    assert int(lean.call(name_of(tasks.open_descriptors), fds=[reader] * 5)) == alone + 5
    os.close(reader)
    os.close(writer)


def test_each_call_has_a_process_of_its_own():
    with lean.start(name_of(tasks.stay)) as one, lean.start(name_of(tasks.stay)) as other:
        pids = {one.pid(), other.pid()}
        assert len(pids) == 2
        assert os.getpid() not in pids
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_calls_side_by_side_can_be_waited_for():
    calls = [lean.start(name_of(tasks.echo), b"%d" % number) for number in range(20)]
    poller = select.poll()
    for call in calls:
        poller.register(call, select.POLLIN)
    assert poller.poll(DEADLINE * 1000)
    assert [call.result(DEADLINE).data for call in calls] == [b"%d" % number for number in range(20)]


def test_an_exception_comes_with_its_traceback():
    with pytest.raises(fastfork.LeanCallError, match="has raised ValueError") as caught:
        lean.call(name_of(tasks.raise_error), b"why")
    assert caught.value.type_name == "ValueError"
    assert "in raise_error" in caught.value.traceback
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.function, copy.traceback) == (caught.value.function, caught.value.traceback)


@pytest.mark.parametrize(
    ("function", "type_name"),
    [
        (f"{TASKS}:no_such_function", "AttributeError"),
        ("no_such_module:f", "ModuleNotFoundError"),
        (name_of(tasks.no_bytes), "TypeError"),
    ],
)
def test_what_cannot_be_called_or_returned(function, type_name):
    with pytest.raises(fastfork.LeanCallError) as caught:
        lean.call(function)
    assert caught.value.type_name == type_name


@pytest.mark.parametrize("function", ["no_colon", "null\0:f"])
def test_a_name_that_is_none(function):
    with pytest.raises(ValueError, match="module:function"):
        lean.call(function)


def test_a_process_that_leaves():
    with pytest.raises(fastfork.ProcessDiedError, match="exit code 7") as caught:
        lean.call(name_of(tasks.leave), b"7")
    assert caught.value.exit_code == 7
    assert caught.value.peak_memory > 1_000_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_process_that_is_killed(number):
    with lean.start(name_of(tasks.stay)) as call:
        call.kill(number)
        while not select.select([call], [], [], 0.01)[0]:
            call.kill(number)  # it may not have been there yet
        with pytest.raises(fastfork.ProcessDiedError, match=number.name):
            call.result(DEADLINE)


def test_time_that_is_over_ends_the_process(template):
    with pytest.raises(TimeoutError):
        lean.call(name_of(tasks.stay), timeout=0.05)
    wait_until(lambda: not children_of(template._forkserver_pid))


def test_time_that_is_over_amid_many_bytes_to_a_process_that_does_not_read(template):
    with lean.start(name_of(tasks.stay), bytes(5_000_000)) as call:
        os.kill(call.pid(), signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            call.result(0.05)
    wait_until(lambda: not children_of(template._forkserver_pid))


def test_more_calls_than_the_answers_of_the_server_that_a_socket_holds():
    for _ in range(400):
        lean.call(name_of(tasks.nothing))


def test_a_server_that_is_killed_before_it_has_read_the_request(template):
    lean.call(name_of(tasks.nothing))
    connection = template._connection
    latest = connection._last_id
    with ThreadPoolExecutor(1) as threads:
        os.kill(template._forkserver_pid, signal.SIGSTOP)
        answer = threads.submit(lean.call, name_of(tasks.echo), b"bytes", timeout=DEADLINE)
        wait_until(lambda: connection._last_id > latest and connection._last_id in connection._posted)
        os.kill(template._forkserver_pid, signal.SIGKILL)
        assert answer.result(DEADLINE) == b"bytes"


def test_a_call_that_was_started_says_that_its_server_has_not_had_it(template):
    lean.call(name_of(tasks.nothing))
    os.kill(template._forkserver_pid, signal.SIGSTOP)
    with lean.start(name_of(tasks.echo)) as call:
        os.kill(template._forkserver_pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            call.result(DEADLINE)


def test_a_server_that_is_killed_amid_a_call_and_another_one(template):
    with lean.start(name_of(tasks.stay)) as call:
        pid = call.pid()
        os.kill(template._forkserver_pid, signal.SIGKILL)
        wait_until(template._launched.process.has_ended)
        assert lean.call(name_of(tasks.echo), b"next") == b"next"
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(fastfork.ProcessDiedError):
            call.result(DEADLINE)


def test_calls_from_many_threads():
    failures = []

    def work(number):
        for count in range(30):
            data = b"%d %d" % (number, count)
            if lean.call(name_of(tasks.echo), data) != data:
                failures.append(data)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_in_a_named_template():
    fastfork.get_context("lean", preload=["decimal"])
    assert lean.call(name_of(tasks.echo), b"x", template="lean") == b"x"
