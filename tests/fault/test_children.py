"""Children that end in every way there is: the right exit code each time, and nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from support import ends, targets
from support.processes import DEADLINE, PROC, state_of, wait_until

DEADLY = sorted(
    signal.valid_signals()
    - {
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
        *(signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH),
    }
)
"""The signals whose default action is to end the process."""

RUNS_EXIT_FUNCTIONS = sys.version_info >= (3, 13)
"""Whether multiprocessing's children run what is registered with `atexit`."""

ENDS = {
    "SIGSEGV by a null pointer": (-signal.SIGSEGV, ends.write_to_null),
    "abort()": (-signal.SIGABRT, ends.abort),
    "a signal, in a session of its own": (-signal.SIGTERM, ends.become_a_session_and_die_of, signal.SIGTERM),
    "os._exit": (9, os._exit, 9),
    "os._exit(-1)": (255, os._exit, -1),
    "os._exit in unpickling": (9, targets.nothing, ends.LeavesWhenLoaded(9)),
    "os._exit in unpickling of much": (9, targets.nothing, ends.LeavesWhenLoaded(9), bytes(1 << 16)),
    "os._exit in __del__": (9, ends.drop, 9),
    "os._exit in a thread": (9, ends.leave_in_thread, 9),
    "os._exit in a finalizer": (9, ends.leave_in_finalizer, 9),
    "os._exit in a function of atexit": (9 * RUNS_EXIT_FUNCTIONS, ends.leave_in_exit_function, 9),
    "os._exit in a signal handler": (9, ends.leave_in_signal_handler, 9),
    "sys.exit()": (0, sys.exit),
    "sys.exit(None)": (0, sys.exit, None),
    "sys.exit(False)": (0, sys.exit, False),
    "sys.exit(-7)": (249, sys.exit, -7),
    "sys.exit(2 ** 31 - 1)": (255, sys.exit, 2**31 - 1),
    "sys.exit(2 ** 31)": (1, sys.exit, 2**31),
    "sys.exit(2 ** 100)": (1, sys.exit, 2**100),
    "sys.exit(-2 ** 31)": (0, sys.exit, -(2**31)),
    "sys.exit of an int that claims to be another": (6, sys.exit, ends.OddInteger(6)),
    "sys.exit of a text": (1, sys.exit, "so long"),
    "sys.exit of no text": (1, sys.exit, ""),
    "sys.exit of a surrogate": (1, sys.exit, "\ud800"),
    "sys.exit of bytes": (1, sys.exit, b"so long"),
    "sys.exit of a float": (1, sys.exit, 0.0),
    "sys.exit of a tuple": (1, sys.exit, (3, 4)),
    "sys.exit of a tuple of one, which Python unpacks": (3, sys.exit, (3,)),
    "sys.exit of an exception": (1, sys.exit, ValueError("so long")),
    "sys.exit of what cannot be printed": (1, ends.leave_with_unprintable),
    "sys.exit in a thread": (0, ends.leave_in_other_thread, 3),
    "sys.exit amid threads": (3, ends.leave_with_threads, 3),
    "sys.exit amid signals": (3, ends.leave_amid_signals, 3),
    "SystemExit, the class": (0, ends.raise_one, SystemExit),
    "an exception": (1, ends.raise_one, ValueError),
    "an exception that cannot be printed": (1, ends.raise_one, ends.UnprintableError),
    "an exception that cannot be pickled": (1, ends.raise_unloadable),
    "an exception of no ordinary kind": (1, ends.raise_one, ends.NotAnException),
    "an exception in a thread": (0, ends.raise_in_thread),
    "an exception in unpickling": (1, targets.nothing, targets.RaisesWhenLoaded()),
    "an exception in a finalizer": (3, ends.fail_in_exit_function, 3),
    "KeyboardInterrupt": (1, ends.raise_one, KeyboardInterrupt),
    "GeneratorExit": (1, ends.raise_one, GeneratorExit),
    "MemoryError": (1, ends.raise_one, MemoryError),
    "RecursionError": (1, ends.recurse),
    "a module that is not there": (1, targets.nothing, ends.ImportsWhenLoaded("no_such_module_anywhere")),
    "no standard streams": (3, ends.leave_without_streams, 3),
    "an exception without standard streams": (1, ends.fail_without_streams),
    "closed standard streams": (3, ends.close_streams_and_leave, 3),
    "an exception with closed standard streams": (1, ends.close_streams_and_fail),
    "closed standard descriptors": (3, ends.close_standard_descriptors_and_leave, 3),
    "a full standard output": (1, ends.print_to_nobody, "/dev/full"),
    "a closed pipe as standard output": (1, ends.print_to_closed_pipe),
    "no descriptors": (3, ends.close_all_and_leave, 3),
    "no descriptors, and a return": (0, ends.close_all),
    "no descriptors, and an exception": (1, ends.close_all_and_fail),
    "no descriptors, and a signal": (-signal.SIGTERM, ends.close_all_and_die_of, signal.SIGTERM),
    "another program": (5, ends.execute, "/bin/sh", "-c", "exit 5"),
    "another program that dies of a signal": (
        -signal.SIGKILL,
        ends.execute,
        "/bin/sh",
        "-c",
        "kill -KILL $$",
    ),
    "another program with all descriptors": (5, ends.execute_with_all_descriptors, "/bin/sh", "-c", "exit 5"),
    "another program that is not there": (1, ends.execute, "/no/such/program"),
    "a fork, both of which leave by sys.exit": (3, ends.fork_and_leave, 3, 4),
}
"""Exit code, target and arguments by what happens. The codes are those of the standard library."""


@pytest.fixture(autouse=True)
def _quiet(capfd):
    """What the children write to standard error is looked at where it matters."""


def joined(process):
    process.join(DEADLINE)
    return process.exitcode


EXIT_CODES = {how: end[0] for how, end in ENDS.items()}


@pytest.mark.fault("A child ends in an odd way")
def test_exit_codes_one_after_another(server):
    assert {how: joined(server.start(*target)) for how, (_, *target) in ENDS.items()} == EXIT_CODES
    server.check_starts()


@pytest.mark.fault("A child ends in an odd way")
def test_exit_codes_of_all_at_once(server):
    processes = {how: server.start(*target) for how, (_, *target) in ENDS.items()}
    assert {how: joined(process) for how, process in processes.items()} == EXIT_CODES
    server.check_starts()


@pytest.mark.fault("A child dies of a signal")
def test_every_signal_that_a_child_sends_itself(server):
    processes = {number: server.start(ends.die_of, number) for number in DEADLY}
    assert {number: joined(process) for number, process in processes.items()} == {
        number: -number for number in DEADLY
    }


@pytest.mark.fault("A child dies of a signal")
def test_every_signal_from_outside_in_whatever_the_child_is_doing_then(server):
    """It may not even have begun with Python: what it does then is the default, or `KeyboardInterrupt`."""
    numbers = [
        number for number in DEADLY if number not in (signal.SIGPIPE, signal.SIGXFSZ)
    ]  # Python ignores them
    processes = {number: server.start(ends.close_all_and_wait) for number in numbers}
    for number, process in processes.items():
        os.kill(process.pid, number)
    for number, process in processes.items():
        possible = {-number, 1} if number == signal.SIGINT else {-number}
        assert joined(process) in possible, number


COMPARED = f"""
import multiprocessing, sys

sys.path.insert(0, {str(Path(ends.__file__).parents[1])!r})
import fastfork
from support import ends

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for target, *arguments in [
        (sys.exit, "so long"),
        (sys.exit, (3, 4)),
        (ends.leave_with_unprintable,),
        (ends.raise_one, ends.UnprintableError),
        (ends.raise_one, ends.NotAnException),
        (ends.raise_unloadable,),
        (ends.raise_one, KeyboardInterrupt),
    ]:
        process = context.Process(target=target, args=arguments, name="worker")
        process.start()
        process.join()
        print(process.exitcode)
"""


def test_standard_error_is_that_of_the_standard_library(programs):
    path = programs.write("program.py", COMPARED)
    mine, standard = (programs.python(str(path), method) for method in ("fastfork", "forkserver"))
    assert (mine.status, mine.lines) == (standard.status, standard.lines)
    assert told(mine.stderr) == told(standard.stderr)


def told(text):
    """The exceptions and messages of a text, without the way that led there and without addresses."""
    return [re.sub("0x[0-9a-f]+", "0x", line) for line in text.splitlines() if re.match(r"\S", line)]


@pytest.mark.fault("A child ends in an odd way")
def test_a_child_of_a_huge_exit_code_leaves_the_server_reachable(server):
    """`os._exit()` raises, and nothing may unwind into what the template does at its own end."""
    assert joined(server.start(sys.exit, 2**40)) == 1
    assert Path(server.address).exists()
    assert joined(server.start(ends.leave_as_own_child_does, server.context, 3)) == 3


@pytest.mark.fault("A child dies while its arguments are on their way")
def test_a_child_that_dies_while_its_parent_still_sends_its_arguments(server):
    much = bytes(10 << 20)
    assert joined(server.start(targets.nothing, ends.LeavesWhenLoaded(9), much)) == 9
    assert joined(server.start(targets.nothing, targets.RaisesWhenLoaded(), much)) == 1
    assert joined(server.start(targets.leave_with_length, much)) == len(much) % 251
    server.check_starts()


@pytest.mark.fault("A child ends in an odd way")
def test_os_exit_in_an_import(server, tmp_path, monkeypatch):
    (tmp_path / "leaves.py").write_text("import os; os._exit(9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert joined(server.start(targets.nothing, ends.ImportsWhenLoaded("leaves"))) == 9


# ---- stopped ----


@pytest.mark.fault("A child is stopped")
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([signal.SIGCONT], 3),
        ([signal.SIGKILL], -signal.SIGKILL),
        ([signal.SIGTERM, signal.SIGCONT], -signal.SIGTERM),
    ],
)
def test_a_stopped_child_lives_until_it_goes_on_or_is_killed(server, numbers, expected):
    process = server.start(ends.stop_self_and_leave, 3)
    wait_until(lambda: state_of(process.pid) == "T")
    assert process.is_alive()
    assert wait([process.sentinel], 0.05) == []
    process.join(0.05)
    assert process.exitcode is None
    server.check_starts(3)
    for number in numbers:
        os.kill(process.pid, number)
    assert joined(process) == expected


@pytest.mark.fault("A child is stopped")
def test_a_child_that_is_stopped_again_and_again(server):
    receiver, sender = server.context.Pipe(duplex=False)
    process = server.start(targets.leave_after, receiver, 3)
    for _ in range(20):
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(process.pid) == "T")
        assert process.is_alive()
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: state_of(process.pid) != "T")
    for end in (receiver, sender):
        end.close()
    assert joined(process) == 3


# ---- what the child becomes, and what it leaves behind ----


@pytest.mark.fault("A child becomes another program")
@pytest.mark.parametrize("execute", [ends.execute, ends.execute_with_all_descriptors])
def test_a_child_that_has_become_another_program_lives_and_can_be_killed(server, execute):
    process = server.start(execute, "/bin/sleep", "600")
    wait_until(lambda: "sleep" in (PROC / str(process.pid) / "comm").read_text())
    assert process.is_alive()
    assert wait([process.sentinel], 0.05) == []
    server.check_starts(2)
    process.terminate()
    assert joined(process) == -signal.SIGTERM


@pytest.mark.fault("A child leaves a daemon behind")
def test_a_daemon_that_holds_all_descriptors_of_a_child_keeps_nothing_back(server, tmp_path):
    receiver, sender = server.context.Pipe(duplex=False)
    process = server.start(ends.leave_a_daemon_behind, receiver, 3, str(tmp_path))
    receiver.close()
    assert wait([process.sentinel], DEADLINE) == [process.sentinel]
    assert joined(process) == 3
    server.check_starts(3)
    assert not (tmp_path / "done").exists()
    sender.close()
    wait_until((tmp_path / "done").exists)


@pytest.mark.fault("A child closes all its descriptors")
def test_a_child_without_descriptors_is_known_to_live(server):
    process = server.start(ends.close_all_and_wait)
    wait_until(lambda: not os.listdir(PROC / str(process.pid) / "fd"))
    assert process.is_alive()
    assert wait([process.sentinel], 0.05) == []
    server.check_starts(2)
    process.kill()
    assert joined(process) == -signal.SIGKILL


@pytest.mark.fault("A child closes all its descriptors")
def test_a_child_without_descriptors_that_starts_a_process_gets_a_clear_error(server):
    assert joined(server.start(ends.close_all_and_start, server.context)) == errno.EBADF


# ---- results that cannot travel ----


@pytest.mark.fault("A result cannot be pickled")
@pytest.mark.parametrize("target", [ends.raise_unloadable, ends.raise_one])
def test_a_pool_outlives_exceptions_that_cannot_be_pickled_or_printed(server, target):
    arguments = (ends.UnprintableError,) if target is ends.raise_one else ()
    with server.context.Pool(2) as pool:
        for _ in range(4):
            with contextlib.suppress(Exception):
                pool.apply_async(target, arguments).get(DEADLINE)
        assert pool.apply_async(targets.square, (7,)).get(DEADLINE) == 49
        pool.close()
        pool.join()


def test_an_executor_outlives_exceptions_that_cannot_be_pickled(server):
    with ProcessPoolExecutor(2, mp_context=server.context) as executor:
        futures = [executor.submit(ends.raise_unloadable) for _ in range(4)]
        for future in futures:
            assert future.exception(DEADLINE) is not None
        assert executor.submit(targets.square, 7).result(DEADLINE) == 49
