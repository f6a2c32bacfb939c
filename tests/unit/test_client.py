"""A client's connection and starts: what interrupts them, what fails in the midst, and what nobody may lose."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util

import pytest
from support import raw, targets
from support.processes import (
    DEADLINE,
    children_of,
    descriptors,
    exit_code_of,
    fork,
    is_alive,
    stopped,
    wait_until,
)

import fastfork
from fastfork import _native, address, client, context, forkserver, launch, popen


class InterruptedByHandlerError(TimeoutError):
    """What a signal handler of the tests raises: an `OSError`, as many programs do."""


@pytest.fixture
def alarm():
    """Have a signal handler called after some seconds, which raises if it is not given an action."""

    def raise_error(_number, _frame):
        raise InterruptedByHandlerError

    def set_alarm(seconds, action=raise_error, interval=0.0):
        signal.signal(signal.SIGALRM, action)
        signal.setitimer(signal.ITIMER_REAL, seconds, interval)

    before = signal.getsignal(signal.SIGALRM)
    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run(ctx, code):
    process = ctx.Process(target=targets.leave_at_once, args=(code,))
    start_and_join(process)
    assert process.exitcode == code
    process.close()


def start_and_join(process):
    process.start()
    process.join(DEADLINE)


def fail_once(monkeypatch, owner, name, error):
    """Have a function raise `error` when it is called for the first time."""
    real = getattr(owner, name)

    def fail(*arguments, **options):
        monkeypatch.setattr(owner, name, real)
        raise error

    monkeypatch.setattr(owner, name, fail)


def test_a_refusal_that_another_thread_received_is_told_to_who_has_posted(ctx, template):
    """The one that waits for an exit, say: it is not concerned."""
    run(ctx, 1)
    connection = template._connection
    with stopped(template._forkserver_pid):
        os.write(connection._sock, bytes(100))
        posted = [connection.post(b"", [], client.Claim()) for _ in range(2)]
    wait_until(lambda: connection.take_frames() or connection.is_over())
    told = connection.answer_to(posted[0])
    with pytest.raises(ConnectionAbortedError, match="refused the request: not a fastfork frame") as raised:
        connection.await_posted(posted[1], client.Claim())
    assert (type(told), str(told)) == (ConnectionAbortedError, str(raised.value))
    run(ctx, 2)


# ---- signal handlers ----


def test_a_handler_that_raises_amid_a_start_leaves_the_connection_and_no_process(ctx, template, alarm):
    run(ctx, 1)
    connection = template._connection
    with stopped(template._forkserver_pid):
        alarm(0.1)
        with pytest.raises(InterruptedByHandlerError):
            ctx.Process(target=time.sleep, args=(600,)).start()
    run(ctx, 2)
    assert template._connection is connection
    wait_until(lambda: not children_of(template._forkserver_pid))


@pytest.mark.parametrize("step", ["_take_exit", "_take_answer"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptedByHandlerError])
def test_a_frame_amid_which_a_handler_raises_is_not_lost(ctx, template, monkeypatch, step, error):
    run(ctx, 1)
    processes = [ctx.Process(target=targets.leave, args=(code,)) for code in (5, 6)]
    processes[0].start()
    fail_once(monkeypatch, client.Connection, step, error)
    with pytest.raises(error):
        start_and_join(processes[1])
    if step == "_take_answer":
        processes[1]._popen = None  # it was abandoned, and has been ended
        processes.pop()
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [5, 6][: len(processes)]
    run(ctx, 7)


def interrupt(action, number):
    """Do `action`, and raise where a signal handler may run, at the beginning or end of one of its calls.

    Whether it has so many of them. Those of importlib are left out: it would keep its lock.
    """
    events = 0

    def raise_at_number(frame, event, _argument):
        nonlocal events
        is_own = frame.f_code is interrupt.__code__ or "importlib" in frame.f_code.co_filename
        if event != "c_call" and not is_own:
            events += 1
            if events == number:
                raise InterruptedByHandlerError

    sys.setprofile(raise_at_number)
    try:
        action()
    except (InterruptedByHandlerError, fastfork.StartAllError):
        pass
    finally:
        sys.setprofile(None)
    return events >= number


def interrupt_everywhere(action, name):
    """Have `action` interrupted at each of its calls in turn; what the program knows of it is ended."""
    template = context._server(name)
    number, is_over = 1, False
    while not is_over:
        is_over = not interrupt(action, number)
        for process in multiprocessing.active_children():
            process.kill()
            process.join(DEADLINE)
            process.close()
        wait_until(lambda: not children_of(template._forkserver_pid))
        number += 1
    gc.collect()


def stays(ctx, size=0):
    return ctx.Process(target=targets.stay, args=(bytes(size),))


STARTS = {
    "start": lambda ctx: stays(ctx).start(),
    "start with much": lambda ctx: stays(ctx, 1_000_000).start(),
    "start_all": lambda ctx: fastfork.start_all([stays(ctx), stays(ctx)]),
}


LOST = {"start": 0, "start with much": 1, "start_all": 0}
"""Descriptors that may be lost, just before they are closed: the end of a pipe."""


@pytest.mark.parametrize("how", STARTS)
def test_a_start_that_is_interrupted_anywhere_leaves_no_process(how, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # of half a util.Finalize, of sockets
    ctx = fastfork.get_context("calm", spares=0)
    run(ctx, 1)
    before = descriptors()
    interrupt_everywhere(lambda: STARTS[how](ctx), "calm")
    left = descriptors().keys() - before.keys()
    for fd in left:
        os.close(fd)
    assert (
        len(left) <= LOST[how] or not _native.has_pidfds()
    )  # socket.socketpair(), of Python, loses some, too
    assert not context._server("calm")._connection._pending
    run(ctx, 2)


def test_a_handler_that_looks_at_the_process_that_is_waited_for(ctx, alarm):
    """The locks that it meets are its own thread's."""
    waited_for, looks = [], []

    def look(*_arguments):
        for process in waited_for:
            looks.append(process.is_alive())
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    for code in range(50):
        process = ctx.Process(target=targets.leave, args=(code,))
        process.start()
        waited_for.append(process)
        alarm(0.0005, look)
        process.join(DEADLINE)
        waited_for.clear()
        assert process.exitcode == code
        process.close()
    assert looks


def test_a_handler_that_starts_processes_amid_the_first_start_of_all(ctx, alarm):
    codes = []

    def start_another(*_arguments):
        process = ctx.Process(target=targets.leave, args=(3,))
        process.start()
        process.join(DEADLINE)
        codes.append(process.exitcode)

    for delay in range(12):
        alarm(0.004 * delay + 0.001, start_another)
        run(ctx, 5)
        wait_until(lambda delay=delay: len(codes) == delay + 1)
        fastfork.stop()
    assert codes == [3] * 12


# ---- a template that takes no connection ----


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(), BrokenPipeError()])
def test_a_connection_that_is_dropped_is_tried_again(ctx, template, monkeypatch, error):
    pid = template._forkserver_pid
    real = client.authenticate
    attempts = []

    def drop(sock, authkey):
        attempts.append(sock)
        if len(attempts) < 4:
            raise error
        real(sock, authkey)

    monkeypatch.setattr(client, "authenticate", drop)
    run(ctx, 4)
    assert len(attempts) == 4
    assert template._forkserver_pid == pid


def test_connections_that_are_always_dropped_are_given_up_and_the_template_is_not(ctx, template, monkeypatch):
    monkeypatch.setattr(forkserver, "_DROP_DEADLINE", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(client, "authenticate", lambda *_: (_ for _ in ()).throw(EOFError()))
        with pytest.raises(ConnectionAbortedError, match="drops every connection"):
            ctx.Process(target=targets.nothing).start()
    pid = template._forkserver_pid
    run(ctx, 4)
    assert template._forkserver_pid == pid


@pytest.mark.parametrize("connected", [False, True])
def test_a_template_that_is_stopped_is_waited_for(ctx, template, connected):
    if connected:
        run(ctx, 1)
    wait_until(lambda: fastfork.server_status().state == "serving")
    template._connection = template._connection if connected else None
    pid = template._forkserver_pid
    os.kill(pid, signal.SIGSTOP)
    process = ctx.Process(target=targets.leave, args=(6,))
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(process.start)
        try:
            time.sleep(0.3)  # longer than any look at it
            assert not started.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        started.result(DEADLINE)
    process.join(DEADLINE)
    assert (process.exitcode, template._forkserver_pid) == (6, pid)


def test_a_template_whose_socket_was_removed_is_let_go_of(ctx, template, monkeypatch):
    monkeypatch.setattr(forkserver, "_GRACE", 0.05)
    receiver, sender = ctx.Pipe(duplex=False)
    old = ctx.Process(target=targets.leave_after, args=(receiver, 8))
    old.start()
    pid, connection = template._forkserver_pid, template._connection
    shutil.rmtree(os.path.dirname(template._forkserver_address))
    template._connection = None  # as if it had never had one
    run(ctx, 4)
    assert template._forkserver_pid != pid
    assert is_alive(pid)
    sender.close()
    receiver.close()
    old.join(DEADLINE)
    assert old.exitcode == 8
    del connection
    wait_until(lambda: not is_alive(pid))
    fastfork.stop()


def test_a_dead_template_is_known_even_where_a_process_of_its_preload_keeps_its_socket(ctx, module, tmp_path):
    """A nested child is no parent of it, and whoever connects is kept waiting for ever."""
    mark = str(tmp_path / "forked")
    module(
        "import os, signal\n"
        f"if not os.path.exists({mark!r}):\n"
        f"    open({mark!r}, 'w').close()\n"
        "    if os.fork() == 0: signal.pause()"
    )
    forkserver.set_forkserver_preload(["preloaded"])
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=targets.start_when_told, args=(theirs, ctx))
    process.start()
    theirs.close()
    killed = forkserver._forkserver._forkserver_pid
    (stray,) = set(children_of(killed)) - {process.pid}
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    try:
        ours.send("go")
        parent, code = ours.recv()
        assert parent != killed
        assert code == 9
    finally:
        os.kill(stray, signal.SIGKILL)
        process.join(DEADLINE)
        ours.close()


# ---- what fails in the midst of a start ----


def test_a_start_that_fails_after_the_child_was_started_leaves_no_process(ctx, template, monkeypatch):
    run(ctx, 1)
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(util, "Finalize", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            ctx.Process(target=time.sleep, args=(600,)).start()
    wait_until(lambda: not children_of(template._forkserver_pid))
    assert descriptors() == before
    run(ctx, 2)


def test_a_large_payload_that_cannot_be_written_leaves_no_process(ctx, template, monkeypatch):
    run(ctx, 1)
    before = descriptors()
    fail_once(monkeypatch, popen, "_write_payload", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ctx.Process(target=targets.nothing, args=(bytes(1_000_000),)).start()
    wait_until(lambda: not children_of(template._forkserver_pid))
    assert descriptors() == before
    run(ctx, 2)


@pytest.mark.parametrize("successful", [0, 1])
def test_no_descriptor_is_lost_where_there_are_no_more_for_a_pipe(template, monkeypatch, successful):
    assert raw.run(targets.nothing) == 0
    before = descriptors()
    real, calls = os.pipe, []

    def pipe():
        calls.append(None)
        if len(calls) > successful:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe", pipe)
        with pytest.raises(OSError, match="Too many open files"):
            forkserver.connect_to_new_process([])
    assert descriptors() == before
    assert raw.run(targets.nothing) == 0


@pytest.mark.parametrize("name", ["_pipe", "_spawn", "_write_all", "LaunchedTemplate"])
def test_a_launch_that_fails_leaves_nothing(ctx, monkeypatch, name):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(address, "_base_directories", lambda: iter([folder]))
        before = descriptors(), children_of(os.getpid())
        fail_once(monkeypatch, launch, name, MemoryError)
        with pytest.raises(MemoryError):
            forkserver.ensure_running()
        assert (descriptors(), children_of(os.getpid())) == before
        assert os.listdir(folder) == []
        run(ctx, 2)
        fastfork.stop()


def test_without_a_descriptor_for_the_socket_the_error_says_so(monkeypatch):
    def no_socket(*_arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(address.socket, "socket", no_socket)
    with pytest.raises(OSError, match="Too many open files") as caught:
        forkserver.ensure_running()
    assert caught.value.errno == errno.EMFILE


# ---- processes of others ----


@pytest.mark.skipif(not _native.has_pidfds(), reason="without pidfds a signal can be sent to a pid alone")
def test_a_signal_goes_to_the_process_and_never_to_another_one_of_its_pid(ctx, monkeypatch):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.wait_for_end_of, args=(receiver,))
    process.start()
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("sent a signal to a pid"))
    real, process._popen.pid = process._popen.pid, 1
    process.terminate()
    process._popen.pid = real
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGTERM
    process.kill()
    for end in (receiver, sender):
        end.close()


def test_a_signal_to_a_process_that_has_ended_is_no_error(ctx):
    process = ctx.Process(target=targets.leave, args=(3,))
    process.start()
    wait_until(lambda: not is_alive(process.pid))
    process.terminate()
    process.kill()
    process.join(DEADLINE)
    assert process.exitcode == 3


# ---- one connection, many threads ----


def test_joins_go_on_while_another_thread_waits_for_its_start(ctx):
    limited = fastfork.get_context("limited", max_children=2)
    receiver, sender = limited.Pipe(duplex=False)
    first, second = (limited.Process(target=targets.leave_after, args=(receiver, code)) for code in (1, 2))
    third = limited.Process(target=targets.leave, args=(3,))
    first.start()
    second.start()
    with ThreadPoolExecutor(2) as pool:
        started = pool.submit(third.start)
        wait_until(lambda: context._server("limited")._connection._pending)
        joined = pool.submit(second.join, DEADLINE)
        first.terminate()
        first.join(DEADLINE)
        assert first.exitcode == -signal.SIGTERM
        started.result(DEADLINE)
        third.join(DEADLINE)
        assert third.exitcode == 3
        sender.close()
        receiver.close()
        joined.result(DEADLINE)
        assert second.exitcode == 2


def test_a_template_that_dies_while_threads_start_processes_costs_only_the_starts_that_are_under_way(ctx):
    """Each start gives a process, or says what has become of it; the next ones come from another template."""
    enough = threading.Event()
    errors = []

    def work(number):
        codes = set()
        while not enough.is_set():
            process = ctx.Process(target=targets.leave, args=(number,))
            try:
                process.start()
            except ConnectionError as error:
                errors.append(str(error))
            else:
                process.join(DEADLINE)
                codes.add(process.exitcode)
        return codes

    template = forkserver._forkserver
    killed = [None]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, number) for number in range(4)]
        for _ in range(8):
            wait_until(
                lambda: template._connection is not None and template._forkserver_pid not in (None, *killed)
            )
            killed.append(template._forkserver_pid)
            os.kill(killed[-1], signal.SIGKILL)
        enough.set()
        for number, future in enumerate(futures):
            assert future.result(DEADLINE) <= {number, client.EXIT_CODE_LOST}
    assert all("the fork server" in error for error in errors)
    run(ctx, 9)


def test_a_raw_fork_amid_a_start_can_start_processes(ctx, template):
    """The other thread's locks and its half a conversation are left behind."""
    run(ctx, 1)
    os.kill(template._forkserver_pid, signal.SIGSTOP)
    process = ctx.Process(target=targets.leave, args=(2,))
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(process.start)
        wait_until(lambda: template._connection._pending)
        forked = fork(lambda: run(ctx, 3))
        os.kill(template._forkserver_pid, signal.SIGCONT)
        started.result(DEADLINE)
    assert exit_code_of(forked) == 0
    process.join(DEADLINE)
    assert process.exitcode == 2


def test_a_program_whose_template_was_killed_leaves_no_folder(programs):
    outcome = programs.run(
        """
        import fastfork, os, signal
        from fastfork import forkserver

        if __name__ == "__main__":
            process = fastfork.get_context().Process(target=print)
            process.start()
            process.join()
            template = forkserver._forkserver
            os.kill(template._forkserver_pid, signal.SIGKILL)
            os.waitid(os.P_PID, template._forkserver_pid, os.WEXITED | os.WNOWAIT)
            print(os.path.dirname(template._forkserver_address))
        """
    )
    assert not os.path.exists(outcome.lines[-1])


def test_a_want_of_memory_amid_a_wait_costs_no_connection(ctx, template, monkeypatch):
    run(ctx, 1)
    connection = template._connection
    process = ctx.Process(target=targets.leave, args=(5,))
    process.start()
    real = _native.lib.ff_client_receive
    results = [-errno.ENOMEM, -errno.ENOBUFS]

    class Lib:
        def __getattr__(self, name):
            return getattr(real_lib, name)

        def ff_client_receive(self, *arguments):
            return results.pop() if results else real(*arguments)

    real_lib = _native.lib
    monkeypatch.setattr(_native, "lib", Lib())
    for number in (errno.ENOBUFS, errno.ENOMEM):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            process.join(DEADLINE)
    process.join(DEADLINE)
    assert process.exitcode == 5
    assert template._connection is connection
    run(ctx, 2)
