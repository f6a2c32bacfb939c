"""Exit codes: of every kind of end, at the moment that the sentinel fires, and after the template's own end."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import wait

import pytest
from support import targets
from support.kernel import kernel_tells_exit_codes
from support.processes import (
    DEADLINE,
    children_of,
    is_alive,
    wait_until,
)

from fastfork import _native, client, forkserver


def exit_code(ctx, target, *arguments):
    process = ctx.Process(target=target, args=arguments)
    process.start()
    process.join(DEADLINE)
    return process.exitcode


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 0),
        (0, 0),
        (1, 1),
        (3, 3),
        (255, 255),
        (256, 0),
        (257, 1),
        (-1, 255),
        (True, 1),
        ("text", 1),
        ("", 1),
    ],
)
def test_sys_exit(ctx, given, expected):
    assert exit_code(ctx, targets.leave, given) == expected


def test_the_text_of_sys_exit_goes_to_standard_error(capfd, ctx):
    assert exit_code(ctx, targets.leave, "so long") == 1
    assert capfd.readouterr().err == "so long\n"


def test_a_function_that_returns_is_a_success(ctx):
    assert exit_code(ctx, targets.square, 3) == 0


def test_an_exception_is_a_one_with_its_traceback_on_standard_error(capfd, ctx):
    assert exit_code(ctx, targets.fail, "no luck") == 1
    error = capfd.readouterr().err
    assert error.startswith("Process FastForkProcess-")
    assert error.endswith("ValueError: no luck\n")


@pytest.mark.parametrize("code", [0, 7, 255])
def test_os_exit(ctx, code):
    assert exit_code(ctx, targets.leave_at_once, code) == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "ABRT", "INT", "USR1", "HUP"])
def test_a_signal_is_its_negative_number(capfd, ctx, name):
    number = getattr(signal, f"SIG{name}")
    code = exit_code(ctx, targets.kill_self, number)
    # Python turns SIGINT into KeyboardInterrupt, and Process that into 1.
    assert code == (1 if name == "INT" else -number)
    assert ("KeyboardInterrupt" in capfd.readouterr().err) == (name == "INT")


@pytest.mark.parametrize(("end", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_terminate_and_kill(ctx, end, number):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.wait_for_end_of, args=(receiver,))
    process.start()
    assert process.is_alive()
    assert process.exitcode is None
    getattr(process, end)()
    process.join(DEADLINE)
    assert process.exitcode == -number
    assert not process.is_alive()
    for connection in (receiver, sender):
        connection.close()


@pytest.fixture
def waiting(ctx):
    """Start a process that leaves with the number that it is sent."""
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.leave_when_told, args=(receiver,))
    process.start()
    receiver.close()
    yield process, sender
    sender.close()
    process.join(DEADLINE)
    process.close()


def test_the_exit_code_is_there_once_the_sentinel_fires(ctx):
    for code in range(100):
        process = ctx.Process(target=targets.leave_at_once, args=(code,))
        process.start()
        assert wait([process.sentinel], DEADLINE) == [process.sentinel]
        assert not process.is_alive()
        assert process.exitcode == code


def test_a_sentinel_does_not_fire_while_the_process_lives(waiting):
    process, sender = waiting
    assert wait([process.sentinel], 0.05) == []
    assert process.is_alive()
    sender.send(5)
    assert wait([process.sentinel], DEADLINE) == [process.sentinel]
    assert process.exitcode == 5


def test_join_with_a_timeout_returns_in_time_and_can_be_repeated(waiting):
    process, sender = waiting
    begun = time.monotonic()
    process.join(0.05)
    assert 0.05 <= time.monotonic() - begun < 5
    assert process.exitcode is None
    process.join(0)
    process.join(-1)
    assert process.is_alive()
    sender.send(6)
    process.join(DEADLINE)
    process.join()
    assert process.exitcode == 6


def test_wait_tells_which_of_many_have_ended(ctx):
    pipes = [ctx.Pipe(duplex=False) for _ in range(6)]
    processes = [ctx.Process(target=targets.leave_when_told, args=(receiver,)) for receiver, _ in pipes]
    for process in processes:
        process.start()
    for chosen in (4, 0, 5, 1, 3, 2):
        alive = [process.sentinel for process in processes if process.exitcode is None]
        pipes[chosen][1].send(chosen)
        assert wait(alive, DEADLINE) == [processes[chosen].sentinel]
        processes[chosen].join()
    assert [process.exitcode for process in processes] == [0, 1, 2, 3, 4, 5]
    for ends in pipes:
        for end in ends:
            end.close()


def test_processes_that_end_in_any_order_have_their_own_codes(ctx):
    processes = [ctx.Process(target=targets.leave, args=(code,)) for code in range(40)]
    for process in processes:
        process.start()
    for process in reversed(processes):
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == list(range(40))


def test_a_process_that_nobody_joins_leaves_no_zombie(ctx, template):
    processes = [ctx.Process(target=targets.nothing) for _ in range(5)]
    for process in processes:
        process.start()
    wait_until(lambda: not children_of(template._forkserver_pid))
    assert [process.exitcode for process in processes] == [0] * 5


def test_a_process_object_that_is_dropped_leaves_nothing(ctx, template):
    receiver, sender = ctx.Pipe(duplex=False)
    ctx.Process(target=targets.send, args=(sender, "dropped")).start()
    assert receiver.recv() == "dropped"
    wait_until(lambda: not children_of(template._forkserver_pid))
    for connection in (receiver, sender):
        connection.close()


def test_close_gives_back_the_descriptors_and_ends_the_use(ctx):
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    process.close()
    with pytest.raises(ValueError, match="process object is closed"):
        process.exitcode  # noqa: B018


def test_close_of_a_live_process_is_an_error(waiting):
    process, sender = waiting
    with pytest.raises(ValueError, match="Cannot close a process while it is still running"):
        process.close()
    sender.send(0)


# ---- without the template ----


def end_template(template):
    os.kill(template._forkserver_pid, signal.SIGKILL)
    os.waitid(os.P_PID, template._forkserver_pid, os.WEXITED | os.WNOWAIT)


def test_processes_that_outlive_their_template_keep_their_exit_codes_where_pidfds_tell(ctx, monkeypatch):
    monkeypatch.setattr(client, "_INIT_DEADLINE", DEADLINE)  # there are machines whose init takes its time
    receiver, sender = ctx.Pipe(duplex=False)
    ends = [(targets.leave_after, 0), (targets.leave_after, 5), (targets.kill_self_after, signal.SIGKILL)]
    processes = [ctx.Process(target=target, args=(receiver, end)) for target, end in ends]
    for process in processes:
        process.start()
    end_template(forkserver._forkserver)
    sender.close()
    for process in processes:
        process.join(DEADLINE)
    receiver.close()
    told = [0, 5, -signal.SIGKILL] if kernel_tells_exit_codes() else [255] * 3
    assert [process.exitcode for process in processes] == told


def test_an_exit_code_is_recovered_without_a_free_descriptor_where_pidfds_tell(ctx, monkeypatch):
    """The record of a zombie in /proc cannot be opened: then its reaping is waited for."""
    monkeypatch.setattr(client, "_INIT_DEADLINE", DEADLINE)
    monkeypatch.setattr(client.Child, "_exit_code_of_zombie", lambda self: None)
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.leave_after, args=(receiver, 5))
    process.start()
    end_template(forkserver._forkserver)
    sender.close()
    process.join(DEADLINE)
    receiver.close()
    assert process.exitcode == (5 if kernel_tells_exit_codes() else 255)


def test_exit_codes_that_the_template_had_told_before_its_end_are_kept(ctx, template):
    processes = [ctx.Process(target=targets.leave, args=(code,)) for code in range(10)]
    for process in processes:
        process.start()
    wait_until(lambda: not children_of(template._forkserver_pid))
    end_template(template)
    assert exit_code(ctx, targets.leave, 77) == 77
    assert [process.exitcode for process in processes] == list(range(10))


@pytest.mark.skipif(not _native.has_pidfds(), reason="without pidfds a sentinel ends with the template")
def test_a_process_that_outlives_its_template_is_still_known_to_live(ctx, waiting):
    process, sender = waiting
    end_template(forkserver._forkserver)
    assert exit_code(ctx, targets.leave, 3) == 3  # from another template
    assert process.is_alive()
    assert wait([process.sentinel], 0) == []
    sender.send(0)
    process.join(DEADLINE)
    assert not process.is_alive()
    assert not is_alive(process.pid)
