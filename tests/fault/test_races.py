"""Races: threads, shutdown, forks, signal handlers, a client's death and the reuse of pids lead to no wrong code."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait

import pytest
from support import targets
from support.processes import DEADLINE, PROC, exit_code_of, fork, marked, settled, state_of, wait_until

from fastfork import _native, forkserver

from .interposing import CORE

METHODS = {"fastfork": "fastfork", "stdlib": "forkserver"}

THREADS = 8


# ---- threads ----


class WrongCodeError(Exception):
    """A thread has seen an exit code that the process cannot have."""


class Shared:
    """A process that threads share, how it may end, and the exit codes that they have seen."""

    def __init__(self, server, receiver, number):
        self.code = number % 100
        self.waits = number % 3 == 0
        target = (targets.leave_after, receiver) if self.waits else (targets.leave,)
        self.process = server.context.Process(target=target[0], args=(*target[1:], self.code))
        self.signals = set()
        self.seen = set()
        self.is_closed = False
        self.process.start()

    def possible_codes(self):
        return {-number for number in self.signals} | (set() if self.waits else {self.code})

    def use(self, choice):
        """Do something with the process, which another thread may have closed meanwhile."""
        try:
            getattr(self, choice)()
        except (ValueError, AssertionError, AttributeError, OSError):
            if not self.is_closed:
                raise

    def terminate(self):
        self.signals.add(signal.SIGTERM)
        self.process.terminate()

    def kill(self):
        self.signals.add(signal.SIGKILL)
        self.process.kill()

    def join(self):
        if self.signals or not self.waits:
            self.process.join(DEADLINE)
            self.look()

    def join_for_a_moment(self):
        self.process.join(0.001)

    def poll(self):
        if not self.process.is_alive():
            self.look()

    def wait(self):
        if wait([self.process.sentinel], 0.001) and not self.is_closed:
            self.look()

    def look(self):
        """Look at the exit code of the process, which has ended; none is known amid another thread's close()."""
        code = self.process.exitcode
        if code is not None or not self.is_closed:
            self.check(code)

    def close(self):
        code = self.process.exitcode
        if code is not None:
            self.check(code)
            self.is_closed = True
            self.process.close()

    def check(self, code):
        if code not in self.possible_codes():
            raise WrongCodeError(code, self.possible_codes())
        self.seen.add(code)

    def finish(self):
        if not self.is_closed:
            if self.waits:
                self.terminate()
            self.join()
            self.process.close()
        assert len(self.seen) == 1, self.seen


CHOICES = {"terminate": 2, "kill": 1, "join": 6, "join_for_a_moment": 6, "poll": 10, "wait": 6, "close": 2}


@pytest.mark.fault("Eight threads share processes")
def test_threads_that_do_everything_to_shared_processes(server):
    """Each exit code that any thread sees is one that the process can have, and all see the same one."""
    receiver, sender = server.context.Pipe(duplex=False)
    numbers = iter(range(1 << 30))
    shared = [Shared(server, receiver, next(numbers)) for _ in range(12)]
    everything = list(shared)

    def work(seed):
        generator = random.Random(seed)
        operations = 0
        while operations < 300:
            operations += 1
            if generator.random() < 0.08:
                made = Shared(server, receiver, next(numbers))
                everything.append(made)
                shared[generator.randrange(len(shared))] = made
            else:
                (choice,) = generator.choices(list(CHOICES), CHOICES.values())
                generator.choice(shared).use(choice)
        return operations

    with ThreadPoolExecutor(THREADS) as pool:
        operations = sum(pool.map(work, range(THREADS)))
    assert operations == 300 * THREADS
    for one in everything:
        one.finish()
    for end in (receiver, sender):
        end.close()


@pytest.mark.fault("Eight threads share processes")
def test_threads_that_all_join_each_process(server):
    with ThreadPoolExecutor(THREADS) as pool:
        for code in range(60):
            process = server.start(targets.leave, code)
            at_once = threading.Barrier(THREADS)

            def join(_number, process=process, at_once=at_once):
                at_once.wait()
                process.join(DEADLINE)
                return process.exitcode

            assert set(pool.map(join, range(THREADS))) == {code}
            process.close()


# ---- the end of the interpreter ----


SHUTDOWN = """
import atexit, multiprocessing, os, sys, threading, weakref
from multiprocessing import util

import fastfork

def run(code=3):
    try:
        process = context.Process(target=os._exit, args=(code,))
        process.start()
        process.join(60)
        told = "works" if process.exitcode == code else f"exit code {process.exitcode}"
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
    os.write(1, (told + "\\n").encode())

class RunsWhenDropped:
    def __del__(self, run=run):
        run()

def keep_running(runs):
    for _ in range(100000):
        process = context.Process(target=os._exit, args=(3,))
        process.start()
        process.join()
        runs.set()

def in_daemon_thread():
    runs = threading.Event()
    threading.Thread(target=keep_running, args=(runs,), daemon=True).start()
    if runs.wait(60):
        os.write(1, b"runs\\n")

def in_thread():
    def wait_and_run():
        threading.main_thread().join()
        run()
    threading.Thread(target=wait_and_run).start()

def in_atexit():
    atexit.register(run)

def in_finalize():
    weakref.finalize(RunsWhenDropped, run)

def in_finalizer():
    util.Finalize(None, run, exitpriority=0)

def in_late_finalizer():
    util.Finalize(None, run, exitpriority=-1000)

def in_del():
    global held
    held = RunsWhenDropped()

def in_del_of_cycle():
    held = RunsWhenDropped()
    held.cycle = held

def in_exception_hook():
    sys.excepthook = lambda *_: run()
    raise ValueError

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[3] == "running":
        run()
    globals()["in_" + sys.argv[2]]()
"""

ALWAYS_WORKS = ["thread", "atexit", "finalizer", "late_finalizer", "exception_hook", "finalize"]
TOO_LATE = ["del", "del_of_cycle"]


@pytest.mark.fault("A start while the interpreter shuts down")
@pytest.mark.parametrize("when", ["running", "first"])
@pytest.mark.parametrize("where", [*ALWAYS_WORKS, *TOO_LATE])
def test_a_start_while_the_interpreter_shuts_down_works_or_says_why_not(server, programs, where, when):
    path = programs.write("program.py", SHUTDOWN)
    outcome = programs.python(str(path), METHODS[server.kind], where, when)
    assert outcome.lines[: when == "running"] == ["works"] * (when == "running")
    (told,) = outcome.lines[when == "running" :]
    assert outcome.stderr == ""
    assert outcome.status == (1 if where == "exception_hook" else 0)
    if where in ALWAYS_WORKS:
        assert told == "works"
    else:
        assert told == "works" or "shut" in told.lower()


@pytest.mark.fault("A start while the interpreter shuts down")
@pytest.mark.parametrize("when", ["running", "first"])
def test_a_daemon_thread_that_starts_processes_does_not_hold_up_the_end(server, programs, when):
    path = programs.write("program.py", SHUTDOWN)
    for _ in range(5):
        outcome = programs.python(str(path), METHODS[server.kind], "daemon_thread", when)
        assert outcome.stderr == ""
        assert outcome.lines == ["works"] * (when == "running") + ["runs"]
        assert outcome.status == 0


# ---- raw forks ----


def start_and_join(ctx, code):
    process = ctx.Process(target=targets.leave, args=(code,))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == code


@pytest.mark.fault("The client forks while another thread is in a start")
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_fork_while_another_thread_waits_for_its_process(server, is_connected):
    """The thread, which is not there in the forked process, holds what it takes for a start; the server is stopped."""
    if not is_connected and server.kind == "fastfork":
        forkserver._forkserver._connection = None
    os.kill(server.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(server.pid) == "T")
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start_and_join, server.context, 7)
        (thread,) = pool._threads
        wait_until(lambda: waits_for_answer(thread.native_id))
        forked = fork(lambda: start_and_join(server.context, 8))
        os.kill(server.pid, signal.SIGCONT)
        assert exit_code_of(forked) == 0
        started.result(DEADLINE)
    server.check_starts(2)


def waits_for_answer(thread_id):
    """Whether a thread waits in the kernel, and for longer than for its turn among the threads."""
    status = PROC / "self" / "task" / str(thread_id) / "status"

    def switches():
        fields = dict(line.split(":\t") for line in status.read_text().splitlines())
        return fields["State"][0], fields["voluntary_ctxt_switches"]

    before = switches()
    time.sleep(0.02)
    return before[0] == "S" and switches() == before


@pytest.mark.fault("The client forks while another thread launches the server")
def test_a_fork_while_another_thread_waits_for_the_preload(server, tmp_path, monkeypatch):
    released, begun = tmp_path / "released", tmp_path / "begun"
    (tmp_path / "slow_to_load.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(released)!r}).exists(): time.sleep(0.005)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # early releases of 3.13 do not tell sys.path (gh-117378)
    server._module._forkserver._stop()
    server._module.set_forkserver_preload(["slow_to_load"])
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start_and_join, server.context, 7)
        wait_until(begun.exists)
        forked = fork(lambda: start_and_join(server.context, 8))
        released.touch()
        assert exit_code_of(forked) == 0
        started.result(DEADLINE)
    server._module.set_forkserver_preload(["__main__"])


# ---- signal handlers ----


STORM = """
import multiprocessing, os, signal, sys

import fastfork

ENOUGH = 60
handled = {signal.SIGALRM: 0, signal.SIGUSR1: 0}

def run(code, interrupt=None):
    process = context.Process(target=os._exit, args=(code,))
    process.start()
    if interrupt:
        os.kill(os.getpid(), interrupt)
    process.join(60)
    assert process.exitcode == code, (code, process.exitcode)
    process.close()

def handle_alarm(number, frame):
    handled[number] += 1
    run(5, signal.SIGUSR1)
    if handled[number] < ENOUGH:
        signal.setitimer(signal.ITIMER_REAL, 0.002)

def handle_within(number, frame):
    handled[number] += 1
    run(6)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    run(1)
    signal.signal(signal.SIGALRM, handle_alarm)
    signal.signal(signal.SIGUSR1, handle_within)
    signal.setitimer(signal.ITIMER_REAL, 0.002)
    while handled[signal.SIGALRM] < ENOUGH:
        run(3)
        processes = [context.Process(target=os._exit, args=(code,)) for code in range(3)]
        for process in processes:
            process.start()
        for code, process in enumerate(processes):
            while process.is_alive():
                pass
            assert process.exitcode == code
            process.close()
    print(handled[signal.SIGUSR1] == ENOUGH)
"""


@pytest.mark.fault("A signal handler starts processes")
def test_a_storm_of_handlers_that_start_processes_and_interrupt_each_other(server, programs):
    outcome = programs.run(STORM, METHODS[server.kind])
    assert outcome.lines == ["True"]


ESCAPES = """
import multiprocessing, os, signal, sys, time

import fastfork

class Escape(Exception):
    pass

def escape(number, frame):
    raise Escape

def run(code):
    process = context.Process(target=os._exit, args=(code,))
    process.start()
    process.join(60)
    assert process.exitcode == code, (code, process.exitcode)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    run(1)
    signal.signal(signal.SIGALRM, escape)
    escapes = 0
    for round in range(150):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + round % 30 * 0.0001)
            run(3)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Escape:
            escapes += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    for code in range(20):
        run(code)
    print(escapes > 0)
"""


@pytest.mark.fault("A signal handler raises amid a start")
def test_handlers_that_raise_amid_starts_and_waits_leave_the_server_usable(server, programs):
    path = programs.write("program.py", ESCAPES)
    outcome = programs.python(str(path), METHODS[server.kind])
    assert (outcome.status, outcome.lines) == (0, ["True"]), outcome.stderr


# ---- the client dies while the server comes up ----


DIES = """
import multiprocessing.forkserver, sys, time

import fastfork.forkserver

if __name__ == "__main__":
    server = fastfork.forkserver if sys.argv[1] == "fastfork" else multiprocessing.forkserver
    server.set_forkserver_preload(["slow_to_load"], **({"timeout": 1} if "limited" in sys.argv else {}))
    server.ensure_running()
    print("launched", flush=True)
    if "starts" in sys.argv:
        multiprocessing.get_context(sys.argv[1]).Process(target=int).start()
    time.sleep(600)
"""

SLOW = """
import os, pathlib, time
pathlib.Path("begun").write_text(f"{os.getpid()}.")
while not pathlib.Path("released").exists(): time.sleep(0.002)
"""


@pytest.fixture
def client_that_dies(programs, tmp_path):
    """Run a client whose server waits in its preload; returns it, and a function that tells what is left of it."""
    clients = []

    def run(kind, *arguments):
        programs.write("slow_to_load.py", SLOW)
        sockets = tmp_path / "t"
        sockets.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "TMPDIR": str(sockets),
            "PYTHONPATH": str(programs.folder),
            "FASTFORK_TEST_OF_RACES": str(tmp_path),
        }
        command = [sys.executable, programs.write("program.py", DIES), METHODS[kind], *arguments]
        clients.append(
            subprocess.Popen(command, cwd=programs.folder, env=environment, stdout=subprocess.PIPE)
        )
        clients[-1].stdout.readline()

        def left():
            return marked(f"FASTFORK_TEST_OF_RACES={tmp_path}"), list(sockets.iterdir())

        return clients[-1], left

    yield run
    for one in clients:
        one.kill()
        one.wait()
        one.stdout.close()


@pytest.mark.fault("The client dies while the server preloads")
@pytest.mark.parametrize("arguments", [(), ("starts",)])
@pytest.mark.parametrize("moment", ["launched", "begun", "released", "just after"])
def test_a_client_that_dies_while_its_server_preloads_leaves_nothing(
    server, client_that_dies, programs, moment, arguments
):
    dying, left = client_that_dies(server.kind, *arguments)
    if moment != "launched":
        wait_until((programs.folder / "begun").exists)
    if moment in ("released", "just after"):
        (programs.folder / "released").touch()
    delay = random.SystemRandom().uniform(0, 0.1) if moment == "just after" else 0
    time.sleep(delay)
    dying.kill()
    (programs.folder / "released").touch()
    assert settled(left, ([], [])) == ([], []), f"killed {delay} s after"


CALLS_AFTER_A_PRELOAD = [
    "calloc",
    "getrlimit",
    "epoll_create1",
    "signalfd",
    "pipe2",
    "epoll_ctl",
    "epoll_wait",
    "accept4",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "fork",
]
"""What a server calls for the first time once it has preloaded, up to the first child that it forks."""


@pytest.mark.parametrize("call", CALLS_AFTER_A_PRELOAD)
def test_a_client_that_dies_as_its_server_begins_to_serve_leaves_nothing(
    with_epoll, faults, client_that_dies, programs, call
):
    dying, left = client_that_dies("fastfork", "starts")
    begun = programs.folder / "begun"
    wait_until(lambda: begun.exists() and begun.read_text().endswith("."))
    template = int(begun.read_text()[:-1])
    try:
        with faults.stop(call, pid=template, caller=CORE):
            (programs.folder / "released").touch()
            wait_until(lambda: state_of(template) == "T")
            dying.kill()
            dying.wait()
    finally:
        os.kill(template, signal.SIGCONT)
    assert settled(left, ([], [])) == ([], [])


@pytest.mark.parametrize("arguments", [(), ("starts",), ("limited",), ("limited", "starts")])
def test_a_preload_that_hangs_does_not_outlive_its_client(client_that_dies, programs, arguments):
    dying, left = client_that_dies("fastfork", *arguments)
    wait_until((programs.folder / "begun").exists)
    dying.kill()
    found = settled(left, ([], []), timeout=20)
    (programs.folder / "released").touch()
    assert found == ([], [])


# ---- pids that are used again ----


def unshared():
    """Return a command that runs another one in a pid namespace of its own, or None where that is not allowed."""
    if shutil.which("unshare") is None:
        return None
    for options in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *options, "--pid", "--fork", "--mount-proc", "--kill-child"]
        probe = "echo 100 > /proc/sys/kernel/ns_last_pid"
        if (
            subprocess.run([*command, "/bin/sh", "-c", probe], check=False, capture_output=True).returncode
            == 0
        ):
            return command
    return None


UNSHARED = unshared()

VICTIMS = """
import multiprocessing, os, signal, subprocess, sys, time

import fastfork

def take(pid):
    \"\"\"Have the next fork of this pid namespace get the pid.\"\"\"
    with open("/proc/sys/kernel/ns_last_pid", "w") as stream:
        stream.write(str(pid - 1))

def run(code):
    process = context.Process(target=os._exit, args=(code,))
    process.start()
    process.join()
    assert process.exitcode == code

def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

def wait_for_end(pid):
    deadline = time.monotonic() + 60
    while exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.0005)

def victim_with(pid, script="read line; exit 6"):
    \"\"\"Return a process that has the pid, which was another one's: a shell with the script.\"\"\"
    while True:
        take(pid)
        command = ["/bin/sh", "-c", script]
        victim = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        if victim.pid == pid:
            return victim
        victim.kill()
        victim.wait()

def check_unharmed(victim, what):
    victim.stdin.close()
    code = victim.wait()
    assert code == 6, f"{what} has killed another process: {code}"
"""

REUSE = (
    VICTIMS
    + """
ROUNDS = int(sys.argv[2])

def start(code):
    process = context.Process(target=os._exit, args=(code,))
    process.start()
    return process

def check_no_wrong_kill(end):
    \"\"\"The process has ended, and nobody has asked for its exit code, when another one gets its pid.\"\"\"
    old = start(4)
    wait_for_end(old.pid)
    victim = victim_with(old.pid)
    getattr(old, end)()
    assert victim.poll() is None and exists(victim.pid)
    assert not old.is_alive()
    old.join()
    assert old.exitcode == 4, old.exitcode
    getattr(old, end)()
    old.close()
    check_unharmed(victim, f"{end}()")

def check_codes():
    \"\"\"Processes get the pids of others that have ended, and whose exit codes are asked for later.\"\"\"
    held, pids = [start(0)], set()
    wanted = held[0].pid
    for number in range(1, ROUNDS):
        take(wanted)
        held.append(start(number % 200))
        pids.add(held[-1].pid)
        if len(held) == 50:
            check_and_close(held, number - 49)
    assert len(pids) < ROUNDS / 10, len(pids)

def check_and_close(held, number):
    for process in held:
        process.join()
        assert process.exitcode == number % 200, (process.exitcode, number)
        process.terminate()
        process.close()
        number += 1
    held.clear()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    start(0).join()
    if sys.argv[3] == "codes":
        check_codes()
    else:
        for _ in range(ROUNDS):
            check_no_wrong_kill(sys.argv[3])
    print("done")
"""
)

needs_pid_namespace = pytest.mark.skipif(
    UNSHARED is None,
    reason="no pid namespace whose ns_last_pid can be written: needs root or user namespaces",
)


@needs_pid_namespace
@pytest.mark.fault("A pid is used again")
@pytest.mark.parametrize(("what", "rounds"), [("codes", 2000), ("terminate", 20), ("kill", 20)])
def test_a_pid_that_is_used_again_leads_to_no_wrong_code_and_no_wrong_kill(server, programs, what, rounds):
    program = programs.write("program.py", REUSE)
    outcome = programs.command(
        *UNSHARED, sys.executable, str(program), METHODS[server.kind], str(rounds), what
    )
    assert (outcome.status, outcome.lines) == (0, ["done"]), outcome.stderr
    assert outcome.stderr == ""


REUSE_OF_A_CALL_S = (
    VICTIMS
    + """
from fastfork import lean

def leave_pid(data, fds):
    os.write(fds[0], str(os.getpid()).encode())

def leave_behind(data, fds):
    os.setpgid(0, 0)
    left = os.fork()
    if left == 0:
        signal.pause()
    os.write(fds[0], str(left).encode())

def check_abandoned():
    \"\"\"The server forks for a call that was given up, and tells of it and of its end before anybody reads that.\"\"\"
    release_r, release_w = context.Pipe(duplex=False)
    occupier = context.Process(target=release_r.recv)
    occupier.start()
    try:
        lean.call("__main__:leave_pid", fds=[pid_w], timeout=0.05, template="one")
    except TimeoutError:
        pass
    release_w.send("go")
    pid = int(os.read(pid_r, 20))
    wait_for_end(pid)
    victim = victim_with(pid)
    run(0)
    check_unharmed(victim, "a call that was given up")

def check_group():
    \"\"\"The process of a call is known to have ended, and nobody is left in its process group.\"\"\"
    call = lean.start("__main__:leave_pid", fds=[pid_w], template="one")._call
    pid = call.wait(None).pid
    victim = victim_with(pid)
    call.kill(signal.SIGKILL, whole_group=True)
    call.sock.close()
    check_unharmed(victim, "a signal to a process group")

def check_untold():
    \"\"\"The server has reaped the process of a call, and has not come to tell it.\"\"\"
    call = lean.start("__main__:leave_pid", fds=[pid_w], template="one")._call
    while call.child() is None:
        call.connection.take_frames(0.01)
    call.connection.take_frames = lambda *_: None
    pid = call.child().pid
    wait_for_end(pid)
    victim = victim_with(pid)
    call.kill(signal.SIGKILL, whole_group=True)
    call.sock.close()
    check_unharmed(victim, "a signal to a call")

def check_left():
    \"\"\"Whoever a process has left in its process group is reached by a signal to that.\"\"\"
    call = lean.start("__main__:leave_behind", fds=[pid_w], template="one")._call
    assert call.wait(None).exit_code == 0
    left = int(os.read(pid_r, 20))
    call.kill(signal.SIGKILL, whole_group=True)
    call.sock.close()
    assert os.waitpid(left, 0)[1] == signal.SIGKILL  # this process is the init of its namespace

if __name__ == "__main__":
    context = fastfork.get_context("one", max_children=1, spares=0)
    pid_r, pid_w = os.pipe()
    run(0)
    globals()["check_" + sys.argv[1]]()
    print("done")
"""
)


@needs_pid_namespace
@pytest.mark.parametrize("what", ["abandoned", "group", "untold", "left"])
def test_a_call_whose_pid_is_used_again_leads_to_no_wrong_kill(programs, what):
    program = programs.write("program.py", REUSE_OF_A_CALL_S)
    outcome = programs.command(*UNSHARED, sys.executable, str(program), what)
    assert (outcome.status, outcome.lines) == (0, ["done"]), outcome.stderr


TEMPLATE_REUSE = (
    VICTIMS
    + """
from fastfork import forkserver

if __name__ == "__main__":
    context = fastfork.get_context()
    run(1)
    template = forkserver._forkserver._forkserver_pid
    os.kill(template, 9)
    os.waitpid(template, 0)  # as programs do that wait for any child
    victim = victim_with(template, sys.argv[1])
    if sys.argv[1] == "exit 5":
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
    if len(sys.argv) > 2:
        forkserver._forkserver._stop()
    run(2)
    victim.stdin.close()
    print(victim.wait())
"""
)


@needs_pid_namespace
@pytest.mark.skipif(not _native.has_pidfds(), reason="without pidfds nobody can tell whose pid it is")
@pytest.mark.parametrize("stops", [(), ("stops",)])
@pytest.mark.parametrize(("command", "code"), [("exit 5", 5), ("read line; exit 6", 6)])
def test_a_process_that_has_the_pid_of_a_dead_template_keeps_its_exit_status(programs, command, code, stops):
    program = programs.write("program.py", TEMPLATE_REUSE)
    outcome = programs.command(*UNSHARED, sys.executable, str(program), command, *stops)
    assert (outcome.status, outcome.lines) == (0, [str(code)]), outcome.stderr
