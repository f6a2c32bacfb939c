"""Deaths of the server and of its client, at each step of a request: the next start works, and no exit code is lost."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from support import targets
from support.kernel import kernel_tells_exit_codes
from support.processes import (
    DEADLINE,
    PROC,
    children_of,
    is_alive,
    marked,
    processes,
    state_of,
    wait_until,
)
from support.spares import have_spares

import fastfork
from fastfork import _native, auth, client, forkserver, lean

from .interposing import CORE
from .wire import unread_bytes

KILLING = [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGHUP]
"""Signals that end a server."""


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T")


def end(pid, number=signal.SIGKILL):
    """End a child of this process, and leave its exit status to whom it belongs."""
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    os.kill(pid, number)
    with contextlib.suppress(
        ProcessLookupError, ChildProcessError
    ):  # another thread may be quicker to reap it
        os.kill(pid, signal.SIGCONT)  # what is stopped dies of SIGKILL alone
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def templates_of(pid):
    """Return the pids of the templates whose parent is a process."""
    return [
        child for child in children_of(pid) if is_alive(child) and "fastfork.template" in command_of(child)
    ]


def command_of(pid):
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_text()
    return ""


def joined(process):
    process.join(DEADLINE)
    return process.exitcode


class LiveChildren:
    """Children that live until they are released."""

    ENDS = (
        (targets.leave_after, 0, 0),
        (targets.leave_after, 5, 5),
        (targets.kill_self_after, signal.SIGKILL, -signal.SIGKILL),
        (targets.kill_self_after, signal.SIGUSR1, -signal.SIGUSR1),
    )

    def __init__(self, server):
        self.receiver, self.sender = server.context.Pipe(duplex=False)
        self.processes = [server.start(target, self.receiver, how) for target, how, _ in self.ENDS]
        self.receiver.close()

    def check(self, *, server_died):
        """See that all live and, once they are released, end as they should.

        When their server has died, an old kernel cannot tell how they end, nor, without pidfds, that they live.
        """
        told = not server_died or kernel_tells_exit_codes()
        if not server_died or _native.has_pidfds():
            assert all(process.is_alive() for process in self.processes), "live children called dead"
        self.sender.close()
        for process, (_, _, code) in zip(self.processes, self.ENDS):
            assert joined(process) in ({code} if told else {code, client.EXIT_CODE_LOST})
            wait_until(lambda process=process: not is_alive(process.pid))

    def close(self):
        self.sender.close()
        for process in self.processes:
            process.kill()
            process.join()
            process.close()


@pytest.fixture
def live(server, monkeypatch):
    monkeypatch.setattr(client, "_REAP_DEADLINE", DEADLINE)  # there are machines whose init takes its time
    children = LiveChildren(server)
    yield children
    children.close()


# ---- the server, by its interface alone ----


@pytest.mark.fault("The server is killed")
@pytest.mark.parametrize("number", KILLING)
def test_a_server_that_is_killed_loses_no_exit_code_and_the_next_start_has_another_one(server, live, number):
    before = server.pid
    end(before, number)
    server.check_starts(2)
    assert server.pid != before
    live.check(server_died=True)
    server.check_starts(2)


@pytest.mark.fault("The server is killed")
def test_children_that_die_with_their_server_keep_their_exit_codes(server, live):
    """They are dead, and the server has not been able to tell so, before it is killed."""
    stop(server.pid)
    live.sender.close()
    for process in live.processes:
        wait_until(lambda process=process: state_of(process.pid) == "Z")
    end(server.pid)
    server.check_starts()
    told = kernel_tells_exit_codes()
    for process, (_, _, code) in zip(live.processes, live.ENDS):
        assert joined(process) in ({code} if told else {code, client.EXIT_CODE_LOST})


def test_without_pidfds_children_of_a_server_that_is_killed_count_as_ended(with_poll, server, live):
    """Nobody can tell that they live, and they go on."""
    end(server.pid)
    assert {joined(process) for process in live.processes} == {client.EXIT_CODE_LOST}
    assert all(is_alive(process.pid) for process in live.processes)
    server.check_starts()
    live.sender.close()
    for process in live.processes:
        wait_until(lambda process=process: not is_alive(process.pid))


@pytest.mark.fault("The server is killed before it has the request")
@pytest.mark.parametrize("number", KILLING)
def test_a_server_that_is_killed_before_it_has_read_the_request(server, live, number):
    """The request is not lost: the next server has it."""
    stop(server.pid)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(server.start, targets.leave, 7)
        wait_until(lambda: has_asked(server))
        end(server.pid, number)
        assert joined(started.result(DEADLINE)) == 7
    live.check(server_died=True)


def has_asked(server):
    """Whether a client waits for a server that is stopped."""
    if server.kind == "fastfork":
        return unread_bytes(server._module._forkserver._connection._sock) > 0
    return Path("/proc/net/unix").read_text().count(f" {server.address}\n") > 1  # and not just the listener


@pytest.mark.fault("The server gets SIGINT")
def test_a_server_does_not_care_for_an_interrupt(server, live):
    before = server.pid
    for _ in range(5):
        os.kill(before, signal.SIGINT)
        server.check_starts()
    assert server.pid == before
    live.check(server_died=False)


@pytest.mark.fault("The server is stopped for a while")
def test_a_server_that_is_stopped_goes_on_where_it_was(server, live):
    before = server.pid
    with ThreadPoolExecutor(4) as pool:
        for code in range(5):
            stop(before)
            starts = [pool.submit(server.start, targets.leave, code + i) for i in range(4)]
            wait_until(lambda: has_asked(server))
            os.kill(before, signal.SIGCONT)
            assert [joined(started.result(DEADLINE)) for started in starts] == [code + i for i in range(4)]
    stop(before)
    live.processes[0].join(0.1)
    assert live.processes[0].exitcode is None
    os.kill(before, signal.SIGCONT)
    assert server.pid == before
    live.check(server_died=False)


@pytest.mark.fault("Many start at once when the server has died")
def test_many_threads_that_find_the_server_dead_start_one_other(server, live):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            end(server.pid)
            at_once = threading.Barrier(8)

            def start(code, at_once=at_once):
                at_once.wait()
                return joined(server.start(targets.leave, code))

            assert list(pool.map(start, range(8))) == list(range(8))
            if server.kind == "fastfork":
                assert templates_of(os.getpid()) == [server.pid]
    live.check(server_died=True)


# ---- the server, at each step of a request ----


STEPS = [
    "before the connection",
    *(f"before message {number} of the challenge" for number in range(6)),
    "after the challenge",
    "amid the request",
    "after the request",
    "after the answer",
]
"""Of a request that is the first one of its client."""


@contextlib.contextmanager
def at(step, action):
    """Have an action done when the client comes to a step of a request for the first time, which it has to."""
    once = iter([action])

    def act(*_arguments):
        next(once, int)()

    def act_amid(connection, *_arguments):
        stall(connection, next(once, int))

    first = forkserver._forkserver._forkserver_pid

    def stop_once(*_arguments):
        if forkserver._forkserver._forkserver_pid == first:
            stop(first)

    with pytest.MonkeyPatch.context() as patch:
        if "message" in step:
            act_at_message(patch, int(step.split()[2]), act)
        else:
            owner, name, hook = {
                "before the connection": (client.Connection, "__init__", act),
                "after the challenge": (client.Connection, "_request", act),
                "amid the request": (client.Connection, "_send", act_amid),
                "after the request": (client.Connection, "_await_answer", act),
                "after the answer": (client.Child, "__init__", act),
            }[step]
            call_before(patch, owner, name, hook)
        if step == "after the request":  # and before the server has read it
            call_before(patch, client.Connection, "_send", stop_once)
        yield
    assert next(once, None) is None


def call_before(patch, owner, name, hook):
    real = getattr(owner, name)

    def call_both(*arguments, **options):
        hook(*arguments)
        return real(*arguments, **options)

    patch.setattr(owner, name, call_both)


def act_at_message(patch, number, act):
    """Act before one of the six messages that client and server send each other in turn."""
    messages = iter(range(1000))

    def count(*_arguments):
        if next(messages) == number:
            act()

    call_before(patch, auth, "_send", count)
    call_before(patch, auth, "_receive", count)


def stall(connection, action):
    """Have the server stopped and the action done once the first part of the request, and no more, is on its way."""
    if action is int:
        return  # done before: this is the request to the next server
    stop(forkserver._forkserver._forkserver_pid)
    with socket.socket(fileno=os.dup(connection._sock)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

    def act_amid():
        wait_until(lambda: unread_bytes(connection._sock) > 0)
        action()

    threading.Thread(target=act_amid).start()


LONG = bytes(60_000)
"""More than what is on its way of a request amid it."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", KILLING)
def test_a_server_that_dies_at_a_step_of_a_request(server, live, number, step):
    before = server.pid
    forget_connection()
    with at(step, lambda: end(before, number)):
        code = joined(server.start(targets.leave_with_length, LONG))
    expected = {len(LONG) % 251}
    if step == "after the answer":
        if not kernel_tells_exit_codes():
            expected.add(client.EXIT_CODE_LOST)
    else:
        assert templates_of(os.getpid()) == [server.pid] != [before]
    assert code in expected
    live.check(server_died=True)
    server.check_starts()


@pytest.mark.parametrize("kind", ["stopped", "interrupted"])
def test_a_server_that_is_disturbed_at_each_step_of_a_request_goes_on(server, live, kind):
    before = server.pid

    def disturb():
        if kind == "interrupted":
            os.kill(before, signal.SIGINT)
            os.kill(before, signal.SIGCONT)
        else:
            stop(before)
            threading.Timer(0.05, os.kill, (before, signal.SIGCONT)).start()

    for step in STEPS:
        forget_connection()
        with at(step, disturb):
            assert joined(server.start(targets.leave_with_length, LONG)) == len(LONG) % 251
    assert server.pid == before
    live.check(server_died=False)


def forget_connection():
    """Have the next request make another connection; the one that there is stays that of its children."""
    forkserver._forkserver._connection = None


@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
def test_a_server_that_dies_as_it_forks_leaves_its_client_with_one_clear_error(tmp_path, monkeypatch, moment):
    """The request is read, there is no answer: nobody can tell whether there is a child. The next start works."""
    (tmp_path / "stops_at_fork.py").write_text(
        "import os, signal\n"
        "def stop():\n"
        f"    if os.path.exists({str(tmp_path / 'stop')!r}): os.kill(os.getpid(), signal.SIGSTOP)\n"
        f"os.register_at_fork({moment}=stop)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    forkserver.set_forkserver_preload(["stops_at_fork"])
    ctx = fastfork.get_context()
    first = ctx.Process(target=targets.leave, args=(3,))
    first.start()
    assert joined(first) == 3
    (tmp_path / "stop").touch()
    before = forkserver._forkserver._forkserver_pid
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(ctx.Process(target=targets.nothing).start)
        wait_until(lambda: state_of(before) == "T")
        os.kill(before, signal.SIGKILL)
        error = starting.exception(DEADLINE)
    assert isinstance(error, BrokenPipeError)
    assert "may or may not" in str(error)
    (tmp_path / "stop").unlink()
    second = ctx.Process(target=targets.leave, args=(4,))
    second.start()
    assert joined(second) == 4


# ---- the server, at each of its own steps ----


DISTURBING = [signal.SIGINT, signal.SIGCONT]
"""Signals by which a server that is stopped goes on as it was."""


STARTING = ["fork", *(["pidfd_open"] if _native.has_pidfds() else []), "sendmsg"]
"""What the server calls from the request to the answer."""


@contextlib.contextmanager
def stopped_at(call, faults, server):
    """Have the server stop before it makes a call, which is what is done within."""
    with faults.stop(call, pid=server.pid, caller=CORE) as fault:
        yield
        wait_until(lambda: fault.failed and state_of(server.pid) == "T")


def disturb(pid, number):
    """Send a server that is stopped a signal, and have it go on, if it still can: whether it has died."""
    if number in KILLING:
        end(pid, number)
        return True
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    return False


@pytest.mark.parametrize("call", STARTING)
@pytest.mark.parametrize("number", [*KILLING, *DISTURBING])
def test_a_server_to_which_something_happens_as_it_starts_a_child(
    without_spares, faults, server, live, number, call
):
    """It has read the request: whoever gets no answer cannot know whether there is a child, and is told so."""
    process = server.context.Process(target=targets.leave, args=(7,))
    with ThreadPoolExecutor(1) as pool:
        with stopped_at(call, faults, server):
            starting = pool.submit(process.start)
        died = disturb(server.pid, number)
        error = starting.exception(DEADLINE)
    if died:
        assert isinstance(error, BrokenPipeError)
        assert "may or may not" in str(error)
    else:
        assert error is None
        assert joined(process) == 7
    live.check(server_died=died)
    server.check_starts(2)


@pytest.mark.parametrize("call", ["waitpid", "sendmsg"])
@pytest.mark.parametrize("number", [*KILLING, *DISTURBING])
def test_a_server_to_which_something_happens_as_it_reports_a_death(
    without_spares, faults, server, live, number, call
):
    """Nobody but the kernel knows how the child ended once the server has reaped it and has not said so."""
    receiver, sender = server.context.Pipe(duplex=False)
    process = server.start(targets.leave_after, receiver, 7)
    receiver.close()
    with stopped_at(call, faults, server):
        sender.close()
    assert state_of_or_none(process.pid) == ("Z" if call == "waitpid" else None)
    died = disturb(server.pid, number)
    told = not died or kernel_tells_exit_codes()
    assert joined(process) in ({7} if told else {7, client.EXIT_CODE_LOST})
    live.check(server_died=died)
    server.check_starts(2)


def state_of_or_none(pid):
    with contextlib.suppress(OSError):
        return state_of(pid)
    return None


# ---- the server, while a process has the request and has not been heard of ----

BEGINNINGS = {
    "forked ahead": {"spares": 2, "options": {}},
    "forked ahead, with options": {"spares": 2, "options": {"umask": 0o77}},
    "with options": {"spares": 0, "options": {"umask": 0o77}},
}
"""Processes that tell their server that they begin; a request without options that finds no spare has none of them."""

RUN = "with open(path, 'a') as file: file.write('run ')"


@pytest.fixture
def beginning(request, with_epoll, faults):
    """Have a server with so many processes forked ahead; what begins has these options."""
    chosen = BEGINNINGS[request.param]
    fastfork.get_context(spares=chosen["spares"], spare_quiet=600)
    server = request.getfixturevalue("server")
    if chosen["spares"] > 0:
        have_spares(server.context, chosen["spares"])
    yield fastfork.ChildOptions(**chosen["options"])
    fastfork.get_context(spares=2, spare_quiet=1)


@contextlib.contextmanager
def deaf(server, faults, options, path):
    """Start a process whose server stops once that has the request; see that its client has one clear error."""
    pid = server.pid
    process = server.context.Process(target=exec, args=(RUN, {"path": str(path)}), options=options)
    with ThreadPoolExecutor(1) as pool, faults.stop("epoll_ctl", pid=pid, caller=CORE):
        starting = pool.submit(process.start)
        try:
            yield
        finally:
            if is_alive(pid):
                end(pid)
        error = starting.exception(DEADLINE)
    assert isinstance(error, BrokenPipeError)
    assert "may or may not" in str(error)


def stopped_child_of(pid, but=None):
    stopped = (process.pid for process in processes() if process.parent == pid and process.state == "T")
    return next((child for child in stopped if child != but), None)


@pytest.mark.parametrize(
    ("beginning", "number"),
    [(kind, signal.SIGKILL) for kind in BEGINNINGS] + [("forked ahead", number) for number in KILLING[1:]],
    indirect=["beginning"],
)
def test_a_server_that_dies_before_a_process_has_begun(beginning, faults, server, tmp_path, number):
    """Nobody hears that it begins, so it does not."""
    before, path = server.pid, tmp_path / "run"
    with (
        faults.stop("sendmsg", pid=before, of_children=True, caller=CORE),
        deaf(server, faults, beginning, path),
    ):
        wait_until(lambda: state_of(before) == "T" and stopped_child_of(before))
        process = stopped_child_of(before)
        end(before, number)
        os.kill(process, signal.SIGCONT)
        wait_until(lambda: not is_alive(process))
    assert not path.exists()
    server.check_starts()


@pytest.mark.parametrize("beginning", ["forked ahead"], indirect=True)
def test_a_dead_server_whose_sockets_another_process_still_holds_is_dead(beginning, faults, server, tmp_path):
    """That one has just been forked: without it nobody could hear that a process begins, nor does anybody now."""
    before, path = server.pid, tmp_path / "run"
    with (
        faults.stop("close_range", pid=before, of_children=True),
        open(os.devnull) as file,
        # No process forked ahead takes so many descriptors.
        lean.start("builtins:bytes", fds=_native.MAX_FDS_PER_MESSAGE * [file.fileno()]),
    ):
        wait_until(lambda: stopped_child_of(before))
        holder = stopped_child_of(before)
        with (
            faults.stop("sendmsg", pid=before, of_children=True, caller=CORE),
            deaf(server, faults, beginning, path),
        ):
            wait_until(lambda: state_of(before) == "T" and stopped_child_of(before, but=holder))
            process = stopped_child_of(before, but=holder)
            end(before)
            os.kill(process, signal.SIGCONT)
            wait_until(lambda: not is_alive(process))
            os.kill(holder, signal.SIGCONT)
    assert not path.exists()
    wait_until(lambda: not is_alive(holder))
    server.check_starts()


@pytest.mark.parametrize("beginning", BEGINNINGS, indirect=True)
def test_a_server_that_dies_before_it_hears_that_a_process_has_begun(beginning, faults, server, tmp_path):
    """It runs once, and its client cannot know: that is what the error says."""
    before, path = server.pid, tmp_path / "run"
    with deaf(server, faults, beginning, path):
        wait_until(lambda: state_of(before) == "T" and path.exists())
        wait_until(lambda: path.read_text() != "")
    server.check_starts()
    assert path.read_text() == "run "


# ---- many who find the server dead ----


MANY = """
import multiprocessing, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import fastfork
from fastfork import forkserver

THREADS = 4


def start_all_at_once(go):
    at_once = threading.Barrier(THREADS)

    def start(code):
        go.wait(60)
        at_once.wait()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=tell_parent_and_leave, args=(sender, code))
        process.start()
        process.join()
        return process.exitcode, receiver.recv()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


def tell_parent_and_leave(sender, code):
    sender.send((os.getppid(), os.getcwd(), sys.argv))
    sys.exit(code)


def work(ready, go, answers, over):
    context.Process(target=int).start()
    ready.release()
    answers.put(start_all_at_once(go))
    over.wait()
    sys.exit(9)


context = fastfork.get_context()

if __name__ == "__main__":
    ready, go, over, answers = context.Semaphore(0), context.Event(), context.Event(), context.SimpleQueue()
    workers = [context.Process(target=work, args=(ready, go, answers, over)) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        ready.acquire()
    before = forkserver._forkserver._forkserver_pid
    os.kill(before, 9)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    threading.Timer(0.1, go.set).start()
    mine = start_all_at_once(go) if sys.argv[1] == "all" else []
    go.wait()
    found = [answer for answers_of_one in [mine] + [answers.get() for _ in workers] for answer in answers_of_one]
    assert sorted(code for code, _ in found) == sorted(list(range(THREADS)) * (len(found) // THREADS)), found
    assert all(told[1:] == (os.getcwd(), sys.argv) for _, told in found), found
    templates = {told[0] for _, told in found}
    assert before not in templates
    over.set()
    for worker in workers:
        worker.join()
    print(len(templates), *(worker.exitcode for worker in workers))
"""


@pytest.mark.parametrize("who", ["all", "children alone"])
def test_many_threads_of_many_processes_that_find_their_server_dead_have_one_other_one(programs, who):
    """Whoever comes first launches it, be that the one that had launched the first one or a process that it forked."""
    outcome = programs.run(MANY, who)
    told = "9 9 9 9 9" if kernel_tells_exit_codes() else "255 255 255 255 255"
    assert outcome.lines == [f"1 {told}"]


CHURN = """
import collections, os, random, resource, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastfork
from fastfork import forkserver

PROCESSES, THREADS = 5, 4
DEADLINE = 60


def outcome_of_start(code):
    process = context.Process(target=os._exit, args=(code,))
    try:
        process.start()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    process.join(DEADLINE)
    ended = process.exitcode
    process.close()
    return "right" if ended == code else f"{ended} for {code}"


def start_in_a_loop(over):
    outcomes = collections.Counter()
    while not over.is_set():
        outcomes[outcome_of_start(sum(outcomes.values()) % 100)] += 1
    outcomes["at last " + outcome_of_start(7)] += 1
    return outcomes


def tell_known(known):
    while True:
        known.value = (forkserver._forkserver._forkserver_address or "").encode()
        time.sleep(0.002)


def work(known, answers, over, end):
    threading.Thread(target=tell_known, args=(known,), daemon=True).start()
    with ThreadPoolExecutor(THREADS) as pool:
        for outcomes in pool.map(start_in_a_loop, [over] * THREADS):
            answers.put(outcomes)
    end.wait()


def launched():
    return [int(pid) for pid in Path("launched").read_text().split()]


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, launched()
        time.sleep(0.002)


def kill_again_and_again(numbers, known, pauses):
    for kills, number in enumerate(numbers):
        before = known[0].value
        time.sleep(pauses.uniform(0, 0.5))
        pid = launched()[kills]
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        os.kill(pid, number)
        # Whoever has not heard of the next one before that dies, too, would make it once more.
        wait_until(lambda: {one.value for one in known}.isdisjoint([before, b""]) and len(launched()) > kills + 1)
        assert len({one.value for one in known}) == 1


context = fastfork.get_context()

if __name__ == "__main__":
    context.set_forkserver_preload(["__main__", "counted"])
    numbers = [int(number) for number in sys.argv[2:]]
    answers, over, end = context.SimpleQueue(), context.Event(), context.Event()
    known = [context.RawArray("c", 200) for _ in range(PROCESSES)]
    workers = [context.Process(target=work, args=(one, answers, over, end)) for one in known]
    for worker in workers:
        worker.start()
    try:
        wait_until(lambda: all(one.value for one in known))
        kill_again_and_again(numbers, known, random.Random(int(sys.argv[1])))
    finally:
        over.set()
        outcomes = sum((answers.get() for _ in range(PROCESSES * THREADS)), collections.Counter())
        end.set()
        for worker in workers:
            worker.join()
    print(len(launched()) - len(numbers))
    for outcome in outcomes:
        print(outcome)
"""

CHURNED = [number for number in KILLING for _ in range(3)]

SAID_OF_DEATHS = (
    "BrokenPipeError: [Errno 32] the fork server died before it answered: the process may or may not",
    "ServerGoneError: [Errno 32] the fork server went away",  # and so did those that were asked then
    "ServerGoneError: [Errno 104] the fork server went away",
    "ServerGoneError: [Errno 104] the fork server died",
    "ServerGoneError: [Errno 111] the fork server is gone",
)
"""How the errors of starts begin that the death of a server may have."""


def test_a_server_that_is_killed_amid_many_starts_has_one_successor_each_time(programs):
    """From all processes that find it dead at any moment, some of which it is about to answer."""
    programs.write(
        "counted.py",
        f"import os\npath = {str(programs.folder / 'launched')!r}\n"
        "with open(path, 'a') as file: file.write(str(os.getpid()) + chr(10))\n",
    )
    seed = random.randrange(1 << 32)
    print("seed", seed)
    outcome = programs.run(CHURN, str(seed), *(str(int(number)) for number in CHURNED))
    launches_but_for_kills, *outcomes = outcome.lines
    assert launches_but_for_kills == "1"
    assert {"right", "at last right"} <= set(outcomes)
    lost = () if kernel_tells_exit_codes() else (f"{client.EXIT_CODE_LOST} for ",)
    for told in set(outcomes) - {"right", "at last right"}:
        assert told.startswith((*SAID_OF_DEATHS, *lost)), told


# ---- the client ----


class Running:
    """A program that runs, and all that descends from it, by a mark in the environment."""

    def __init__(self, programs, source, *arguments, directory, **options):
        self.directory = directory
        self.directory.mkdir()
        self._mark = f"FASTFORK_TEST_OF_DEATH={directory}"
        self.popen = subprocess.Popen(
            [sys.executable, programs.write("program.py", source), *arguments],
            env={**os.environ, "TMPDIR": str(directory), "FASTFORK_TEST_OF_DEATH": str(directory)},
            stdout=subprocess.PIPE,
            bufsize=0,
            **options,
        )

    def read(self):
        """Return a line that it has written, as numbers where these are."""
        assert wait([self.popen.stdout], DEADLINE)
        words = self.popen.stdout.readline().decode().split()
        return [int(word) if word.isdigit() else word for word in words]

    def pids(self):
        """Return the pids of those that still run."""
        return marked(self._mark)

    def sockets(self):
        return [
            path.name for path in self.directory.iterdir() if path.name.startswith(("fastfork-", "pymp-"))
        ]

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def close(self):
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()
        self.popen.stdout.close()


@pytest.fixture
def running(programs):
    """Run a program of this module, whose temporary files have a folder of their own; pytest's have long names."""
    opened = []

    def run(source, *arguments, **options):
        opened.append(Running(programs, source, *arguments, directory=Path(folder, "t"), **options))
        return opened[-1]

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield run
        for program in opened:
            program.close()


CLIENT = """
import multiprocessing, os, signal, subprocess, sys, time
from multiprocessing import shared_memory

import fastfork

def report(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def work(number, *held):
    report(os.getpid())
    multiprocessing.parent_process().join()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    lock, memory = context.Lock(), shared_memory.SharedMemory(create=True, size=100)
    queue, event = context.Queue(), context.Event()
    for number in range(int(sys.argv[2])):
        context.Process(target=work, args=(number, lock, queue, event, memory)).start()
    if sys.argv[2] == "0":
        context.Process(target=int).start()
    report(memory.name)
    time.sleep(600)
"""

METHODS = {"fastfork": "fastfork", "stdlib": "forkserver"}


@pytest.mark.fault("The client is killed")
@pytest.mark.parametrize("children", [0, 3])
def test_a_client_that_is_killed_leaves_nothing(server, running, children):
    """Children that care for their parent leave, then their server does; the resource tracker clears up after all."""
    program = running(CLIENT, METHODS[server.kind], str(children), stderr=subprocess.DEVNULL)
    words = sorted(map(str, (program.read()[0] for _ in range(children + 1))))
    assert len(program.sockets()) == 1
    program.kill()
    wait_until(lambda: program.pids() == [])
    assert program.sockets() == []
    assert not any(Path("/dev/shm", word).exists() for word in words)


FAMILY = """
import os, signal, subprocess, sys, time

import fastfork

def report(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait():
    report(os.getpid())
    time.sleep(600)

def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    wait()

def stopped():
    report(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)

def with_subprocess():
    subprocess.Popen(["/bin/sleep", "600"])
    wait()

def with_shell():
    subprocess.Popen("/bin/sleep 600 & /bin/sleep 600", shell=True)
    wait()

def with_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(600)
    os.wait()
    wait()

def executed():
    report(os.getpid())
    os.execv("/bin/sleep", ["sleep", "600"])

def with_process():
    process = context.Process(target=with_subprocess)
    process.start()
    wait()

def with_process_and_gone():
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=say_and_wait, args=(sender,)).start()
    receiver.recv()
    os.kill(os.getpid(), signal.SIGKILL)

def say_and_wait(sender):
    subprocess.Popen(["/bin/sleep", "600"])
    report(os.getpid())
    sender.send("begun")
    time.sleep(600)

def without_descriptors():
    report(os.getpid())
    os.closerange(0, 65536)
    time.sleep(600)

context = fastfork.get_context(die_with_client=True)

if __name__ == "__main__":
    for name in sys.argv[1:]:
        context.Process(target=globals()[name]).start()
    time.sleep(600)
"""

MEMBERS = {
    "wait": 1,
    "deaf": 1,
    "stopped": 1,
    "with_subprocess": 1,
    "with_shell": 1,
    "with_daemon": 1,
    "executed": 1,
    "with_process": 2,
    "without_descriptors": 1,
}
"""How many lines the children of `FAMILY` write."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_that_are_to_die_with_their_client_do_and_whatever_descends_from_them(running, number):
    program = running(FAMILY, *MEMBERS)
    for _ in range(sum(MEMBERS.values())):
        program.read()
    # Beside those that report: client, template, resource tracker, and five that are started in turn.
    wait_until(lambda: len(program.pids()) >= sum(MEMBERS.values()) + 3 + 5)
    os.kill(program.popen.pid, number)
    wait_until(lambda: program.pids() == [])
    assert program.sockets() == []


def test_a_process_that_is_to_die_with_its_client_does_when_that_is_a_child(running):
    program = running(FAMILY, "with_process_and_gone")
    (inner,) = program.read()
    wait_until(lambda: not is_alive(inner))
    wait_until(lambda: len(program.pids()) == 3)
    assert program.popen.poll() is None


def test_only_children_that_are_to_die_with_their_client_do(running):
    program = running(
        FAMILY.replace("context.Process(target=globals()[name]).start()", "start(name)").replace(
            'if __name__ == "__main__":',
            "def start(name):\n"
            "    kept = fastfork.get_context(template='kept')\n"
            "    kept.Process(target=globals()[name], die_with_client=name == 'with_subprocess').start()\n\n"
            'if __name__ == "__main__":',
        ),
        "with_subprocess",
        "wait",
    )
    first, second = program.read()[0], program.read()[0]
    program.kill()
    wait_until(lambda: len(program.pids()) == 3)  # it, template and resource tracker
    survivor = first if is_alive(first) else second
    assert survivor in program.pids()
    os.kill(survivor, signal.SIGKILL)
    wait_until(lambda: program.pids() == [])
    assert program.sockets() == []


SERVER_DIES = """
import os, sys, time
import multiprocessing

import fastfork

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    process = context.Process(target=int)
    process.start()
    process.join()
    server = fastfork.forkserver if sys.argv[1] == "fastfork" else multiprocessing.forkserver
    pid = server._forkserver._forkserver_pid
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print("killed", flush=True)
"""


@pytest.mark.fault("The server is killed, and its client ends")
def test_a_client_whose_server_was_killed_leaves_nothing(server, running):
    program = running(SERVER_DIES, METHODS[server.kind])
    assert program.read() == ["killed"]
    assert program.popen.wait(DEADLINE) == 0
    wait_until(lambda: program.pids() == [])
    assert program.sockets() == []


@pytest.mark.fault("All are told to end at once")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_whole_process_group_that_is_told_to_end_leaves_nothing(server, running, number):
    program = running(CLIENT, METHODS[server.kind], "3", stderr=subprocess.DEVNULL, start_new_session=True)
    words = sorted(map(str, (program.read()[0] for _ in range(4))))
    assert len(program.sockets()) == 1
    os.killpg(program.popen.pid, number)
    assert program.popen.wait(DEADLINE) == -number
    wait_until(lambda: program.pids() == [])
    assert program.sockets() == []
    if number == signal.SIGTERM:  # of SIGHUP the tracker dies too
        assert not any(Path("/dev/shm", word).exists() for word in words)


STOPPED_PRELOAD = """
import os, sys, time
import fastfork

if __name__ == "__main__":
    print(os.getpid(), flush=True)
    fastfork.get_context(preload=["stops"]).Process(target=int).start()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_template_that_is_told_to_end_amid_its_preload_leaves_nothing(running, programs, number):
    programs.write("stops.py", "import os; print(os.getpid(), flush=True); import time; time.sleep(600)")
    program = running(STOPPED_PRELOAD, stderr=subprocess.DEVNULL, start_new_session=True)
    program.read()
    program.read()
    assert len(program.sockets()) == 1
    os.killpg(program.popen.pid, number)
    wait_until(lambda: program.pids() == [])
    assert program.sockets() == []


def test_a_child_that_is_told_to_end_leaves_its_server_what_is_its_own(server):
    """At any time after its birth: it has the handler of its server for a moment."""
    folder = Path(server.address).parent
    for _ in range(50):
        process = server.start(targets.leave, 5)
        process.terminate()
        assert joined(process) in (5, -signal.SIGTERM)
        process.close()
    assert sorted(path.name for path in folder.iterdir()) == ["s"]
    server.check_starts()


# ---- a terminal ----


TERMINAL = """
import multiprocessing, os, signal, sys, time

import fastfork

def report(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def sleep():  # in steps: a signal just before the system call does not end that, and is seen after it
    for _ in range(6000):
        time.sleep(0.1)

def wait(how):
    if how == "catches":
        try:
            report("ready")
            sleep()
        except KeyboardInterrupt:
            report("child: interrupted")
            sys.exit(3)
    if how == "ignores":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        report("ready")
        multiprocessing.parent_process().join(1)
        sys.exit(4)
    report("ready")
    sleep()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    processes = [
        context.Process(target=wait, args=(sys.argv[2],), name=f"worker-{number}") for number in range(3)
    ]
    for process in processes:
        process.start()
    if sys.argv[2] == "nothing":
        report("ready")
        for process in processes:
            process.join()
    try:
        report("ready")
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        report("client: interrupted")
    for process in processes:
        process.join()
        report(process.name, process.exitcode)
    again = context.Process(target=report, args=("again",))
    again.start()
    again.join()
"""


def run_at_terminal(programs, source, *arguments):
    """Run a program at a terminal, and press ^C once four of it and its children are ready: its status and output."""
    master, slave = os.openpty()
    command = [sys.executable, str(programs.write("program.py", source)), *arguments]
    own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", own, *command],
        cwd=programs.folder,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    output = b""
    with contextlib.suppress(OSError):  # EIO: no process has the terminal any more
        while part := os.read(master, 4096):
            output += part
            if output.count(b"ready") == 4 and b"^C" not in output:
                os.write(master, b"\x03")
                while b"^C" not in output:
                    output += os.read(master, 4096)
    os.close(master)
    return process.wait(DEADLINE), sorted(essential(output.decode()))


def essential(text):
    """Return the lines of a text that tell what happened, and not by which way it came there."""
    lines = (line.replace("^C", "").strip("\r") for line in text.split("\n"))
    return [
        line
        for line in lines
        if line and not line.startswith((" ", "Traceback", "During", "Exception ignored"))
    ]


@pytest.mark.parametrize("how", ["catches", "ignores", "nothing"])
def test_an_interrupt_at_a_terminal_is_that_of_the_standard_library(programs, how):
    mine = run_at_terminal(programs, TERMINAL, "fastfork", how)
    assert mine == run_at_terminal(programs, TERMINAL, "forkserver", how)
    assert ("again" in mine[1]) == (how != "nothing")


INTERRUPTED_PRELOAD = """
import multiprocessing.forkserver, os, sys, time

import fastfork.forkserver

def report(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait_for_the_end(pid):
    deadline = time.monotonic() + 20
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)

def report_modules():
    report("preloaded" if "slow_to_load" in sys.modules else "not preloaded")

if __name__ == "__main__":
    method, when = sys.argv[1:]
    context = multiprocessing.get_context(method)
    server = fastfork.forkserver if method == "fastfork" else multiprocessing.forkserver
    server.set_forkserver_preload(["slow_to_load"])
    try:
        context.Process(target=report_modules).start()
    except KeyboardInterrupt:
        report("client: interrupted")
    if when == "after it":
        wait_for_the_end(server._forkserver._forkserver_pid)
    again = context.Process(target=report_modules)
    again.start()
    again.join()
    report("again", again.exitcode)
"""

SLOW_AT_FIRST = """
import os, pathlib, time
if not pathlib.Path("begun").exists():
    pathlib.Path("begun").touch()
    os.write(1, b"ready\\n" * 4)
    for _ in range(6000):
        time.sleep(0.1)
"""


def run_with_interrupted_preload(programs, method, when):
    programs.write("slow_to_load.py", SLOW_AT_FIRST)
    (programs.folder / "begun").unlink(missing_ok=True)
    return run_at_terminal(programs, INTERRUPTED_PRELOAD, method, when)


def test_an_interrupt_amid_a_preload_is_that_of_the_standard_library(programs):
    """The server dies of it, and the next one preloads anew."""
    mine = run_with_interrupted_preload(programs, "fastfork", "after it")
    assert mine == run_with_interrupted_preload(programs, "forkserver", "after it")
    assert "preloaded" in mine[1]


def test_a_start_just_after_an_interrupt_amid_a_preload_has_what_is_to_be_preloaded(programs):
    for _ in range(3):
        status, lines = run_with_interrupted_preload(programs, "fastfork", "at once")
        assert (status, "preloaded" in lines, "again 0" in lines) == (0, True, True), lines
