"""Children that end in every way there is: the right exit code each time, and nobody else notices."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from pickle import PicklingError

import pytest
from support import ends, targets
from support.processes import DEADLINE, PROC, state_of, wait_until
from support.spares import have_spares

import fastfork
from fastfork import popen

STOPPING = [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU]
"""The signals whose default action is to stop the process."""

HARMLESS = [signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH]
"""Those by which nothing happens."""

IGNORED = [signal.SIGPIPE, signal.SIGXFSZ]
"""Those that Python ignores."""

DEADLY = sorted(signal.valid_signals() - {*STOPPING, *HARMLESS})
"""Those whose default action is to end the process."""

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


DEADLY_FROM_OUTSIDE = [number for number in DEADLY if number not in IGNORED]


@pytest.mark.fault("A child dies of a signal before it has begun")
def test_every_signal_from_outside_as_soon_as_the_child_is_there(server):
    """It may not even have begun with Python: what it does then is the default, or `KeyboardInterrupt`."""
    processes = {}
    for number in DEADLY_FROM_OUTSIDE:
        processes[number] = server.start(ends.close_all_and_wait)
        os.kill(processes[number].pid, number)
    for number, process in processes.items():
        possible = {-number, 1} if number == signal.SIGINT else {-number}
        assert joined(process) in possible, "signal lost"


@pytest.mark.fault("A child dies of a signal")
def test_every_signal_from_outside_while_the_child_waits(server):
    processes = {number: server.start(ends.close_all_and_wait) for number in DEADLY_FROM_OUTSIDE}
    for number, process in processes.items():
        wait_until(lambda process=process: not os.listdir(PROC / str(process.pid) / "fd"))
        os.kill(process.pid, number)
    assert {number: joined(process) for number, process in processes.items()} == {
        number: 1 if number == signal.SIGINT else -number for number in DEADLY_FROM_OUTSIDE
    }


@pytest.mark.fault("A child gets a signal that does not end it")
def test_signals_that_do_not_end_a_child_leave_its_exit_code_alone(server):
    numbers = [*HARMLESS, *IGNORED]
    receiver, sender = server.context.Pipe(duplex=False)
    themselves = [server.start(ends.signal_self_and_leave, number, 3) for number in numbers]
    ready = server.context.Semaphore(0)
    others = [server.start(ends.say_and_leave_after, ready, receiver, 5) for _ in numbers]
    receiver.close()
    for _ in others:
        assert ready.acquire(timeout=DEADLINE)
    for number, process in zip(numbers, others):
        os.kill(process.pid, number)
    assert all(process.is_alive() for process in others)
    sender.close()
    assert [joined(process) for process in themselves] == [3] * len(numbers)
    assert [joined(process) for process in others] == [5] * len(numbers)


# ---- by every way in which a child is born ----


SIGNALS = {f"signal {number}": (-number, ends.die_of, number) for number in DEADLY}

WAYS = {
    "one after another": {},
    "with options": {"options": fastfork.ChildOptions(umask=0o77)},
    "to die with their client": {"die_with_client": True},
    "with what comes through a pipe": {},
    "all at once": {},
}
"""Keywords of the processes by the way in which they are started."""

MUCH = bytes(2 * popen.MAX_INLINE_PAYLOAD)

NEARLY_ALL = 0.9
"""How many are served by spares where there is one for each: the request to one that is slow to begin is for a fork."""


@pytest.fixture(params=[0, 8], ids=["forked on request", "forked ahead"])
def spares(request):
    """How many processes the template forks ahead, and keeps."""
    fastfork.get_context(spares=request.param, spare_quiet=600)
    yield request.param
    fastfork.get_context(spares=2, spare_quiet=1)


def start_in_turn(processes, spares):
    """Start processes, each of which finds a spare where there are to be any; return how many of them were spares."""
    served = 0
    for process in processes:
        if spares and fastfork.server_status().spares == 0:
            have_spares(fastfork.get_context())
        served += spares_taken_by(process.start)
    return served


def spares_taken_by(start):
    before = fastfork.server_status().spare_starts
    start()
    return fastfork.server_status().spare_starts - before


@pytest.mark.parametrize("way", WAYS)
def test_exit_codes_by_every_way_of_birth(ctx, spares, way):
    expected = {**ENDS, **SIGNALS}
    processes = {
        how: ctx.Process(target=target, args=arguments, **WAYS[way])
        for how, (_, target, *arguments) in expected.items()
    }
    for process in processes.values() if way == "with what comes through a pipe" else ():
        process.much = MUCH  # it travels with the process's other attributes
    if spares:
        have_spares(ctx, spares)
    if way == "all at once":
        served = spares_taken_by(lambda: fastfork.start_all(processes.values()))
        assert (served > 0) == (spares > 0)
    else:
        served = start_in_turn(processes.values(), spares)
        assert served >= NEARLY_ALL * len(processes) if spares else served == 0
    assert {how: joined(process) for how, process in processes.items()} == {
        how: end[0] for how, end in expected.items()
    }


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
@pytest.mark.parametrize("stopping", STOPPING)
def test_a_stopped_child_lives_until_it_goes_on_or_is_killed(server, stopping, numbers, expected):
    process = server.start(ends.stop_self_and_leave, stopping, 3)
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


UNLOADABLE = {
    "an exception that cannot be pickled": (MaybeEncodingError, ends.raise_unloadable),
    "an exception that cannot be printed": (ends.UnprintableError, ends.raise_one, ends.UnprintableError),
    "a result that cannot be pickled": (MaybeEncodingError, ends.return_unloadable),
}
"""What the caller of a pool is told, target and arguments by what cannot travel."""


def pids_of(pool):
    return {process.pid for process in pool._pool}


@pytest.mark.fault("A result cannot be pickled")
@pytest.mark.parametrize("what", UNLOADABLE)
def test_a_pool_outlives_results_that_cannot_be_pickled_or_printed(server, what):
    told, target, *arguments = UNLOADABLE[what]
    with server.context.Pool(2) as pool:
        before = pids_of(pool)
        for _ in range(4):
            with pytest.raises(told):
                pool.apply_async(target, arguments).get(DEADLINE)
        assert pool.apply_async(targets.square, (7,)).get(DEADLINE) == 49
        assert pids_of(pool) == before
        pool.close()
        pool.join()


@pytest.mark.fault("A result cannot be pickled")
@pytest.mark.parametrize("what", UNLOADABLE)
def test_an_executor_outlives_results_that_cannot_be_pickled_or_printed(server, what):
    _, target, *arguments = UNLOADABLE[what]
    told = ends.UnprintableError if target is ends.raise_one else (TypeError, PicklingError)
    with ProcessPoolExecutor(2, mp_context=server.context) as executor:
        futures = [executor.submit(target, *arguments) for _ in range(4)]
        for future in futures:
            with pytest.raises(told):
                future.result(DEADLINE)
        before = set(executor._processes)
        assert executor.submit(targets.square, 7).result(DEADLINE) == 49
        assert set(executor._processes) == before
