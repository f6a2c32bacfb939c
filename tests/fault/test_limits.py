"""Real limits, reached: who asked is told which, the server waits and goes on, and once lifted the next start works."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
from support import targets
from support.control_groups import control_group, hierarchies
from support.processes import DEADLINE, PROC, descriptors, wait_until

import fastfork
from fastfork import _native

from .other_client import OtherClient
from .wire import Request, send_with_fds, unread_bytes, work


@contextlib.contextmanager
def limited(pid, kind, value):
    """Lower a soft limit of a process for a while."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (soft, hard))


@contextlib.contextmanager
def raising(error):
    """See that what is done raises an `OSError` with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[error]


def lowest_free_descriptor(pid):
    """Return the number that the next descriptor gets: with it as the limit, there is no next one."""
    taken = descriptors(pid)
    return next(number for number in itertools.count() if number not in taken)


def voluntary_switches(pid):
    """Return how often a process has given its processor away, to wait for something."""
    status = (PROC / str(pid) / "status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def processor_seconds(pid):
    """Return how long a process has run."""
    return int((PROC / str(pid) / "schedstat").read_text().split()[0]) / 1e9


def check_rests(pid):
    """See that a process that cannot go on waits, and looks again now and then, but does not spin."""
    begin, used, waits = time.monotonic(), processor_seconds(pid), voluntary_switches(pid)
    wait_until(lambda: voluntary_switches(pid) >= waits + 10)  # some are of what it does before
    elapsed = time.monotonic() - begin
    assert processor_seconds(pid) - used < elapsed / 2, "it spins"
    assert (voluntary_switches(pid) - waits) / elapsed < 200, "it spins"


# ---- of the server ----


@pytest.mark.fault("The server is out of descriptors")
def test_descriptors_of_the_server(server):
    with server.unharmed(), OtherClient(server) as other, OtherClient(server) as newcomer:
        assert other.start() == 3
        with limited(server.pid, resource.RLIMIT_NOFILE, lowest_free_descriptor(server.pid)):
            with raising(errno.EMFILE):
                server.start()
            assert other.start() == "EMFILE"
            newcomer.ask(4)
            check_rests(server.pid)
            assert not newcomer.has_answer()
        assert newcomer.answer() == 4
        assert other.start() == 3


@pytest.mark.fault("The server may have no descriptors any more")
def test_fewer_descriptors_than_the_server_has(server):
    with server.unharmed(), OtherClient(server) as other, OtherClient(server) as newcomer:
        assert other.start() == 3
        with limited(server.pid, resource.RLIMIT_NOFILE, 0):
            newcomer.ask(4)
            other.ask(4)
            check_rests(server.pid)
        assert newcomer.answer() == 4
        assert other.answer() in (4, "EMFILE")
        assert other.start() == 3


@pytest.mark.fault("The server is out of address space")
def test_memory_of_the_server(server):
    """Its children inherit that: they end with an error of their own."""
    with server.unharmed(), OtherClient(server) as other:
        assert other.start() == 3
        with limited(server.pid, resource.RLIMIT_AS, 0):
            for size in (1, 1000, 60_000):
                assert exit_code_or_error(server, bytes(size)) in (0, 1, errno.ENOMEM)
            assert other.start() in (3, 1, "ENOMEM")
        assert other.start() == 3


def exit_code_or_error(server, argument):
    try:
        process = server.start(targets.nothing, argument)
    except OSError as error:
        return error.errno
    process.join(DEADLINE)
    return process.exitcode


LARGE = bytes(50_000)
"""The payload of a request amid which clients stall."""

LARGER = bytes(60_000)
"""What a start brings that is to show whether there is memory: a gap that is wide enough they would have taken."""

HALF = len(LARGE) // 2

CROWD = 200
"""Clients that stall amid such a request: there is less memory than they would take."""

MORE = 8
"""Clients that do so when there is none."""


def test_requests_for_which_the_server_has_no_memory(server):
    """Who asks when there is none is told so, and so is who was amid a request; who had been given some is served."""
    assert fastfork.server_status().failures == {}
    with contextlib.ExitStack() as stack:
        request = stack.enter_context(Request(server, work(5) + LARGE[len(work(5)) :]))
        crowd = [server.authenticate(stack.enter_context(server.connect())) for _ in range(CROWD)]
        stall(request, crowd[0])
        with limited(server.pid, resource.RLIMIT_AS, 0):
            amid = stall_until_refused(server, request, crowd)
            refused = fastfork.server_status().failures
        for sock in amid:
            sock.sendall(request.bytes[HALF:])
        answers = [answer_to(request, sock) for sock in amid]
        assert set(answers) == {5, errno.ENOMEM}
        assert refused == {"ENOMEM": 1}
        assert fastfork.server_status().failures == {"ENOMEM": 1 + answers.count(errno.ENOMEM)}
        server.check_starts(2)


def stall_until_refused(server, request, crowd):
    """Have one client after another stall amid its request, until there is no memory, and some more: return them.

    The first one does so already.
    """
    stalled = 1
    while exit_code_or_error(server, LARGER) != errno.ENOMEM:
        stalled += 1
        assert stalled < CROWD - MORE, "the server has memory for all"
        stall(request, crowd[stalled - 1])
    for sock in crowd[stalled : stalled + MORE]:
        stall(request, sock)
    return crowd[: stalled + MORE]


def stall(request, sock):
    send_with_fds(sock, request.bytes[:HALF], request.fds)
    wait_until(lambda: unread_bytes(sock) == 0)


def answer_to(request, sock):
    """Return the exit code of the child, or the errno of why there is none."""
    answer = _native.receive_frame(sock.fileno(), DEADLINE)
    assert answer.id == request.id
    if answer.type == _native.FRAME_STARTED:
        answer = _native.receive_frame(sock.fileno(), DEADLINE)
    return answer.value


@pytest.fixture
def pids_cgroup():
    """A control group that limits how many processes there are: a folder of its file system."""
    for root in hierarchies("pids"):
        with control_group(root, [("pids.max", "max")]) as path:
            if path is not None:
                yield path
                return
    pytest.skip("no control group for pids that this user may make")


@pytest.mark.fault("The server's control group is full")
def test_control_group_of_the_server(pids_cgroup, server):
    limit = pids_cgroup / "pids.max"
    with server.unharmed(), OtherClient(server) as other:
        (pids_cgroup / "cgroup.procs").write_text(str(server.pid))
        for _ in range(3):
            limit.write_text("1")
            with raising(errno.EAGAIN):
                server.start()
            assert other.start() == "EAGAIN"
            limit.write_text("max")
            server.check_starts()
            assert other.start() == 3
        (pids_cgroup.parent / "cgroup.procs").write_text(str(server.pid))


# ---- of the user ----

PROCESSES_OF_A_USER = """
import errno, multiprocessing, multiprocessing.forkserver, os, resource, sys

import fastfork

IS_FASTFORK = sys.argv[1] == "fastfork"
context = fastfork.get_context() if IS_FASTFORK else multiprocessing.get_context("forkserver")
module = fastfork.forkserver if IS_FASTFORK else multiprocessing.forkserver


def started(target, *arguments):
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def limit(pid, value):
    resource.prlimit(pid, resource.RLIMIT_NPROC, (value, hard))


def error_of_start():
    try:
        started(sys.exit)
    except OSError as error:
        return errno.errorcode.get(error.errno)
    except EOFError:
        return "EOFError"
    return None


def leave_after(receiver, code):
    receiver.poll(None)
    sys.exit(code)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    limit(0, 0)
    print("launch", error_of_start())
    limit(0, soft)
    receiver, sender = context.Pipe(duplex=False)
    held = started(leave_after, receiver, 5)
    server = module._forkserver._forkserver_pid
    limit(server, 0)
    print("start", error_of_start(), error_of_start())
    limit(server, soft)
    again = started(sys.exit, 3)
    again.join()
    sender.close()
    held.join()
    print("again", again.exitcode, held.exitcode, server == module._forkserver._forkserver_pid)
"""

NOBODY = 65534


@pytest.mark.fault("The user has too many processes")
def test_processes_of_a_user(server, programs, tmp_path):
    path = programs.write("program.py", PROCESSES_OF_A_USER)
    folder = tmp_path / "of nobody"
    folder.mkdir()
    command = [sys.executable, str(path), server.kind]
    if os.getuid() == 0:
        shutil.chown(folder, NOBODY, NOBODY)
        command = [*as_nobody(), *command]
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    outcome = programs.command(*command, environment=environment)
    assert outcome.lines[-1].endswith("True"), "server died"
    assert outcome.lines == ["launch EAGAIN", "start EAGAIN EAGAIN", "again 3 5 True"]
    assert outcome.stderr == ""


def as_nobody():
    """Return how to run a command as another user, who can read what root's interpreter is made of."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv to become another user with")
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *ids, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]


# ---- of a client ----

DESCRIPTORS_OF_A_CLIENT = """
import errno, os, resource, sys

import fastfork
from fastfork import forkserver

context = fastfork.get_context()


def start():
    process = context.Process(target=sys.exit, args=(7,))
    try:
        process.start()
    except OSError as error:
        return errno.errorcode.get(error.errno)
    process.join()
    code = process.exitcode
    process.close()
    return code


def fill():
    fillers = []
    try:
        while True:
            fillers.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return fillers


def start_with(free):
    fillers = fill()
    for _ in range(free):
        os.close(fillers.pop())
    outcome = start()
    for filler in fillers:
        os.close(filler)
    return outcome


if __name__ == "__main__":
    assert start() == 7
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for free in range(int(sys.argv[2])):
        if sys.argv[1] == "launching":
            forkserver._forkserver._stop()
        before = len(os.listdir("/proc/self/fd"))
        outcome = start_with(free)
        if sys.argv[1] == "launching":
            forkserver._forkserver._stop()
        print(outcome, len(os.listdir("/proc/self/fd")) - before)
    print(start())
"""


@pytest.mark.parametrize(("moment", "most"), [("connected", 8), ("launching", 24)])
def test_descriptors_of_a_client(programs, moment, most):
    """However many it lacks, it is told EMFILE, and nothing is left of the attempt."""
    *lines, last = programs.run(DESCRIPTORS_OF_A_CLIENT, moment, str(most)).lines
    told = lines.count("EMFILE 0")
    assert 0 < told < most
    assert lines == ["EMFILE 0"] * told + ["7 0"] * (most - told)
    assert last == "7"


# ---- of file systems ----


@pytest.fixture
def mounting():
    """How to run a program that can mount what no other process sees."""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options, "--propagation=private"]
        trial = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
            subprocess.run(trial, capture_output=True, check=True)
            return command
    pytest.skip("no mount namespace that this user may make")


START = """
import errno, multiprocessing, os, subprocess, sys

import fastfork

context = fastfork.get_context() if sys.argv[1] == "fastfork" else multiprocessing.get_context("forkserver")


def start(code, nested=False):
    process = context.Process(target=start_nested if nested else sys.exit, args=(code,))
    try:
        process.start()
    except OSError as error:
        return errno.errorcode.get(error.errno)
    process.join()
    return process.exitcode


def start_nested(code):
    sys.exit(start(code))


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)

"""

FULL_SHARED_MEMORY = (
    START
    + """
if __name__ == "__main__":
    mount("-t", "tmpfs", "-o", "nr_inodes=1", "none", "/dev/shm")
    print(start(3), start(4, nested=True))
    try:
        context.Lock()
    except OSError as error:
        print(errno.errorcode[error.errno])
    mount("-t", "tmpfs", "none", "/dev/shm")
    process = context.Process(target=print, args=(context.Lock().acquire(),))
    process.start()
    process.join()
"""
)

NO_WRITABLE_DIRECTORY = (
    START
    + """
BASES = [path for path in ("/tmp", "/var/tmp", "/usr/tmp", "/dev/shm", os.getcwd()) if os.path.isdir(path)]


def remount(mode):
    for base in BASES:
        mount("-o", "remount,bind," + mode, base)


if __name__ == "__main__":
    for base in BASES:
        mount("--bind", base, base)
    os.chdir(os.getcwd())  # to where it is mounted now
    remount("ro")
    print(start(3))
    remount("rw")
    print(start(3))
    remount("ro")
    print(start(3), start(4, nested=True))
    if sys.argv[1] == "stdlib":
        remount("rw")  # it cannot end quietly otherwise
"""
)

NO_ROOM_ANYWHERE = (
    START
    + """
import tempfile

BASES = [path for path in (os.getcwd(), "/tmp", "/var/tmp", "/usr/tmp", "/dev/shm") if os.path.isdir(path)]


def stop_and_forget():
    fastfork.forkserver._forkserver._stop()
    tempfile.tempdir = None


def fill():
    for base in BASES:
        mount("-t", "tmpfs", "-o", "nr_inodes=1", "none", base)
        if base == BASES[0]:
            os.chdir(base)  # to where it is mounted now, and before another mount hides that


def empty():
    os.chdir("/")
    for base in reversed(BASES):
        subprocess.run(["umount", base], check=True)
    os.chdir(BASES[0])


if __name__ == "__main__":
    print(start(3))  # which imports what a mount may hide
    for forget in (fastfork.forkserver._forkserver._stop, stop_and_forget):
        forget()
        fill()
        outcome = start(3), start(3)
        empty()
        print(*outcome, start(3))
"""
)

FULL_TEMPORARY_DIRECTORY = (
    START
    + """
import tempfile


def without_a_trace(inodes):
    mount("-t", "tmpfs", "-o", "nr_inodes=" + str(inodes), "none", "full")
    tempfile.tempdir = None  # forget which one could be written to
    outcome = start(3)
    fastfork.forkserver._forkserver._stop()
    left = os.listdir("full")
    subprocess.run(["umount", "full"], check=True)
    return outcome, left


if __name__ == "__main__":
    os.mkdir("full")
    os.environ["TMPDIR"] = os.path.abspath("full")
    for inodes in range(1, 5):
        print(*without_a_trace(inodes))
"""
)


@pytest.mark.fault("/dev/shm is full")
def test_full_shared_memory(server, mounting, programs):
    path = programs.write("program.py", FULL_SHARED_MEMORY)
    outcome = programs.command(*mounting, sys.executable, str(path), server.kind)
    assert outcome.stderr == ""
    assert outcome.lines == ["3 4", "ENOSPC", "True"]


@pytest.mark.fault("No directory can be written to")
def test_read_only_temporary_directories(server, mounting, programs):
    """There is no place for a socket; for one that is there, none is needed."""
    path = programs.write("program.py", NO_WRITABLE_DIRECTORY)
    environment = {"XDG_RUNTIME_DIR": None, "TMPDIR": None, "PYTHONDONTWRITEBYTECODE": "1"}
    outcome = programs.command(*mounting, sys.executable, str(path), server.kind, environment=environment)
    assert outcome.stderr == ""
    first, *rest = outcome.lines
    assert first in (["EROFS"] if server.kind == "fastfork" else ["EROFS", "ENOENT"])
    assert rest == ["3", "3 4"]


def test_no_room_in_any_temporary_directory(mounting, programs):
    """There is no place for a socket, whether or not it is known by then where there was one."""
    path = programs.write("program.py", NO_ROOM_ANYWHERE)
    environment = {"XDG_RUNTIME_DIR": None, "TMPDIR": None, "PYTHONDONTWRITEBYTECODE": "1"}
    outcome = programs.command(*mounting, sys.executable, str(path), "fastfork", environment=environment)
    assert outcome.stderr == ""
    assert outcome.lines == ["3"] + ["ENOSPC ENOSPC 3"] * 2


def test_full_temporary_directory(mounting, programs):
    """Another one is taken, and nothing is left in the full one."""
    path = programs.write("program.py", FULL_TEMPORARY_DIRECTORY)
    outcome = programs.command(*mounting, sys.executable, str(path), "fastfork")
    assert outcome.stderr == ""
    assert outcome.lines == ["3 []"] * 4
