"""Each system call fails with each errno that its manual page names: who asked is told or waits, the server goes on."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing.forkserver import read_signed
from pathlib import Path

import pytest
from support import targets
from support.kernel import kernel_tells_exit_codes
from support.processes import DEADLINE, descriptors, exit_code_of, fork, is_alive, state_of, wait_until
from support.spares import have_spares, make_a_pace

import fastfork
from fastfork import _native, forkserver
from fastfork.client import EXIT_CODE_LOST

from .interposing import ALWAYS, CORE, Faults
from .other_client import OtherClient
from .wire import header, send_with_fds

ERRNOS = {
    "access": "EACCES EBADF EFAULT EINVAL EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS ETXTBSY",
    "accept": "EAGAIN EBADF ECONNABORTED EFAULT EHOSTDOWN EHOSTUNREACH EINTR EINVAL EMFILE ENETDOWN"
    " ENETUNREACH ENFILE ENOBUFS ENOMEM ENONET ENOPROTOOPT ENOSR ENOTSOCK EOPNOTSUPP EPERM EPROTO"
    " EPROTONOSUPPORT ESOCKTNOSUPPORT ETIMEDOUT",
    "bind": "EACCES EADDRINUSE EADDRNOTAVAIL EBADF EFAULT EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR"
    " ENOTSOCK EROFS",
    "calloc": "ENOMEM",
    "chdir": "EACCES EFAULT EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR",
    "chmod": "EACCES EFAULT EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS",
    "close": "EBADF EDQUOT EINTR EIO ENOSPC",
    "close_range": "EINVAL EMFILE ENOMEM ENOSYS",
    "connect": "EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF ECONNREFUSED EFAULT"
    " EINPROGRESS EINTR EISCONN ENETUNREACH ENOTSOCK EPERM EPROTOTYPE ETIMEDOUT",
    "dup2": "EBADF EBUSY EMFILE",
    "epoll_create1": "EINVAL EMFILE ENFILE ENOMEM",
    "epoll_ctl": "EBADF EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM",
    "epoll_wait": "EBADF EFAULT EINTR EINVAL",
    "fcntl": "EACCES EAGAIN EBADF EINVAL EMFILE EPERM",
    "fopen": "EACCES EBADF EBUSY EFAULT EINTR EINVAL EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODEV ENOENT"
    " ENOMEM ENOTDIR ENXIO EOVERFLOW EPERM ETXTBSY",
    "fork": "EAGAIN ENOMEM ENOSYS",
    "ftruncate": "EBADF EFBIG EINTR EINVAL EIO EPERM",
    "getentropy": "EFAULT EIO ENOSYS",
    "getpriority": "EINVAL ESRCH",
    "getrlimit": "EFAULT EINVAL",
    "getsockopt": "EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK",
    "ioctl": "EBADF EFAULT EINVAL ENOTTY",
    "kill": "EINVAL EPERM ESRCH",
    "listen": "EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP",
    "madvise": "EACCES EAGAIN EBADF EINVAL EIO ENOMEM EPERM",
    "malloc": "ENOMEM",
    "memfd_create": "EFAULT EINVAL EMFILE ENFILE ENOMEM ENOSYS EPERM",
    "mkdir": "EACCES EDQUOT EEXIST EFAULT EINVAL ELOOP EMLINK ENAMETOOLONG ENOENT ENOMEM ENOSPC ENOTDIR EPERM"
    " EROFS",
    "mmap": "EACCES EAGAIN EBADF EEXIST EINVAL ENFILE ENODEV ENOMEM EOVERFLOW EPERM ETXTBSY",
    "open": "EACCES EBADF EBUSY EDQUOT EEXIST EFAULT EFBIG EINTR EINVAL EIO EISDIR ELOOP EMFILE ENAMETOOLONG"
    " ENFILE ENODEV ENOENT ENOMEM ENOSPC ENOTDIR ENXIO EOVERFLOW EPERM EROFS ETXTBSY",
    "opendir": "EACCES EBADF EMFILE ENFILE ENOENT ENOMEM ENOTDIR",
    "pidfd_open": "EINVAL EMFILE ENFILE ENODEV ENOMEM ESRCH",
    "pidfd_send_signal": "EBADF EINVAL EPERM ESRCH",
    "pipe2": "EFAULT EINVAL EMFILE ENFILE ENOPKG",
    "poll": "EFAULT EINTR EINVAL ENOMEM",
    "prctl": "EINVAL",
    "read": "EAGAIN EBADF EFAULT EINTR EINVAL EIO EISDIR",
    "readdir": "EBADF EFAULT EINVAL ENOENT ENOTDIR",
    "recv": "EAGAIN EBADF ECONNREFUSED EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK",
    "recvmsg": "EAGAIN EBADF ECONNREFUSED EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK",
    "rename": "EACCES EBUSY EDQUOT EFAULT EINVAL EISDIR ELOOP EMLINK ENAMETOOLONG ENOENT ENOMEM ENOSPC ENOTDIR"
    " ENOTEMPTY EPERM EROFS EXDEV",
    "send": "EACCES EAGAIN EALREADY EBADF ECONNRESET EDESTADDRREQ EFAULT EINTR EINVAL EISCONN EMSGSIZE ENOBUFS"
    " ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE",
    "sendmsg": "EACCES EAGAIN EALREADY EBADF ECONNRESET EDESTADDRREQ EFAULT EINTR EINVAL EISCONN EMSGSIZE"
    " ENOBUFS ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE ETOOMANYREFS",
    "sched_getaffinity": "EFAULT EINVAL EPERM ESRCH",
    "sched_setaffinity": "EFAULT EINVAL EPERM ESRCH",
    "setpriority": "EACCES EINVAL EPERM ESRCH",
    "setrlimit": "EFAULT EINVAL EPERM",
    "setsid": "EPERM",
    "setsockopt": "EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK",
    "signalfd": "EBADF EINVAL EMFILE ENFILE ENODEV ENOMEM",
    "socket": "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT",
    "socketpair": "EAFNOSUPPORT EFAULT EMFILE ENFILE EOPNOTSUPP EPROTONOSUPPORT",
    "vfork": "EAGAIN ENOMEM ENOSYS",
    "waitid": "EAGAIN ECHILD EINTR EINVAL ESRCH",
    "waitpid": "EINTR EINVAL ESRCH",
    "write": "EAGAIN EBADF EDESTADDRREQ EDQUOT EFAULT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE",
}
"""What may go wrong: the manual pages' errnos, less ENOSYS where it selects another call
(see NEW_CALLS), and less ECHILD of waitpid(), by which somebody else has reaped the child."""

BRIEF = {errno.EAGAIN, errno.EEXIST, errno.EINTR}
"""Errnos of what is over at once: a call that is made again, or with another name, is not for ever answered so."""

GONE = {errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}
"""Errnos of what has come to its end: a connection, or whoever listened."""

BRIEFLY = 3
"""Times that a call fails with one of them."""

RATE = 500
"""Calls in a second that no server makes in vain unless it spins: then it makes a hundred times as many."""

A_WHILE = 0.1
"""Seconds over which calls are counted."""


def numbers(call):
    return [getattr(errno, name) for name in ERRNOS[call].split()]


def times_of(error, times):
    """Return how often a call is to fail that would fail `times` times."""
    return min(times, BRIEFLY) if error in BRIEF else times


def times_in_client(moment, error):
    """Return how often a call is to fail in a client: once where another template is started for that."""
    return 1 if moment == "connected" or error in GONE else times_of(error, ALWAYS)


def turns_in_client(moment, is_first):
    """Return how many of the calls that an attempt makes are to fail, each in its turn: one is enough for most errnos
    where an attempt takes long."""
    return 3 if moment == "connected" or (moment == "connecting" and is_first) else 1


@contextlib.contextmanager
def failing(faults, call, error, *, times=ALWAYS, **where):
    """Have a call fail that then has to have been made."""
    try:
        with faults.fail(call, error, times=times_of(error, times), **where) as fault:
            yield fault
        assert fault.failed > 0, "it was not called"
    except Exception as failure:
        raise AssertionError(f"{call}(): {errno.errorcode[error]}: {failure!r}") from failure


TEMPORARY = {
    "recvmsg": {errno.EAGAIN, errno.EINTR, errno.ENOMEM},
    "sendmsg": {errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM},
}
"""Errnos that say nothing against a connection: what has failed is done again."""


def wait_without_spinning(fault, error):
    """Wait until a call that fails has been made several times, and see that it is not made all the time."""
    if error in BRIEF:
        wait_until(lambda: fault.failed >= BRIEFLY)
    else:
        wait_until(lambda: fault.failed >= BRIEFLY and fault.age > A_WHILE)
        assert fault.made / fault.age < RATE, "it spins"


@contextlib.contextmanager
def raising(error):
    """See that what is done raises an `OSError` with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at
        yield caught
    assert errno.errorcode[caught.value.errno] == errno.errorcode[error]


# ---- in the server, while it serves ----


@pytest.mark.fault("fork() fails in the server")
def test_fork(faults, server):
    with server.unharmed(), OtherClient(server) as other:
        for error in numbers("fork"):
            with failing(faults, "fork", error, pid=server.pid):
                with raising(error):
                    server.start()
                assert other.start() == errno.errorcode[error]
            server.check_starts()
            assert other.start() == 3
        if server.kind == "fastfork":
            assert fastfork.server_status().failures == {
                errno.errorcode[error]: 2 for error in numbers("fork")
            }


@pytest.mark.fault("accept() fails in the server")
def test_accept4(faults, server):
    check_accept(faults, server, "accept4")


def test_accept_of_a_kernel_without_accept4(faults, server):
    with faults.fail("accept4", errno.ENOSYS, pid=server.pid):
        check_accept(faults, server, "accept")


def check_accept(faults, server, call):
    """See that whoever comes waits, the others go on, and the server does not spin."""
    with server.unharmed(), OtherClient(server) as other:
        assert other.start() == 3
        for error in numbers("accept"):
            with OtherClient(server) as newcomer, failing(faults, call, error, pid=server.pid) as fault:
                newcomer.ask(4)
                wait_without_spinning(fault, error)
                assert other.start() == 3
                assert error in BRIEF or not newcomer.has_answer()
                fault.lift()
                assert newcomer.answer() == 4


@pytest.mark.parametrize("call", ["getsockopt", "getentropy"])
def test_why_a_client_cannot_be_taken_in_is_counted(faults, server, call):
    for error in set(numbers(call)) - {errno.ENOSYS}:  # it has random bytes from elsewhere then
        before = fastfork.server_status()
        with failing(faults, call, error, pid=server.pid, caller=CORE, times=1), server.connect() as sock:
            assert sock.recv(1) == b""
        after = fastfork.server_status()
        counted = collections.Counter(after.accept_failures) - collections.Counter(before.accept_failures)
        assert counted == {errno.errorcode[error]: 1}
        assert after.refused == before.refused


@pytest.mark.parametrize("call", ["getsockopt", "getentropy", "calloc"])
def test_a_client_that_cannot_be_taken_in(faults, server, call):
    """It is told so, or waits, and nobody else notices."""
    with server.unharmed(), OtherClient(server) as other:
        assert other.start() == 3
        for error in numbers(call):
            with OtherClient(server) as newcomer:
                with failing(faults, call, error, pid=server.pid, caller=CORE, times=1):
                    outcome = newcomer.start()
                    assert outcome == 3 or getattr(errno, outcome) in {error, *GONE}
                    assert other.start() == 3
                assert newcomer.start() == 3


def test_a_client_that_comes_back_and_cannot_be_taken_in(faults, server):
    """It takes that for no reason to end the server, which is its own, and others' too."""
    pid = server.pid
    with OtherClient(server) as other:
        assert other.start() == 3
        for error in numbers("getsockopt"):
            cut_off = failing(faults, "recvmsg", errno.EBADF, pid=pid, times=1)
            turned_away = failing(faults, "getsockopt", error, pid=pid, caller=CORE, times=1)
            with cut_off, turned_away, contextlib.suppress(OSError):
                server.start()
            server.check_starts()
            assert other.start() == 3
            assert server.pid == pid


def test_epoll_ctl_for_a_new_client(with_epoll, faults, server):
    with server.unharmed(), OtherClient(server) as other:
        assert other.start() == 3
        for error in numbers("epoll_ctl"):
            struck = failing(faults, "epoll_ctl", error, pid=server.pid)
            with OtherClient(server) as newcomer, struck as fault:
                newcomer.ask(4)
                wait_without_spinning(fault, error)
                assert other.start() == 3
                fault.lift()
                assert newcomer.answer() == 4


def test_epoll_ctl_for_a_client_that_is_to_be_written_to(with_epoll, faults, server):
    with server.unharmed(), OtherClient(server) as other:
        assert other.start() == 3
        for error in numbers("epoll_ctl"):
            # A socket that takes nothing for a moment is watched for that to change.
            full = faults.fail("sendmsg", errno.EAGAIN, pid=server.pid, times=1)
            with full, failing(faults, "epoll_ctl", error, pid=server.pid, times=2):
                assert other.start() == 3


@pytest.mark.fault("epoll_wait() fails in the server")
def test_epoll_wait(with_epoll, faults, server):
    check_wait(faults, server, "epoll_wait")


def test_poll(with_poll, faults, server):
    check_wait(faults, server, "poll")


def check_wait(faults, server, call):
    """See that the server rests, and then serves what has come meanwhile."""
    with server.unharmed(), OtherClient(server) as other:
        for error in numbers(call):
            with failing(faults, call, error, pid=server.pid) as fault:
                other.ask(4)
                wait_without_spinning(fault, error)
                fault.lift()
                assert other.answer() == 4


@pytest.mark.fault("recvmsg() fails in the server")
def test_recvmsg(faults, server):
    check_transfer(faults, server, "recvmsg", turns=1 if server.kind == "stdlib" else 2)


def test_sendmsg(faults, server):
    check_transfer(faults, server, "sendmsg", turns=2)  # that a child was started, and that it has ended


def check_transfer(faults, server, call, turns):
    """See that a request succeeds or its client is told, that the other one goes on, and no exit code is lost.

    Parameters
    ----------
    turns:
        How often the server makes the call for a request: each time once, it fails.

    """
    with server.unharmed(), OtherClient(server) as other, OtherClient(server) as struck:
        for error in numbers(call):
            for turn in range(turns):
                assert other.start() == 3
                struck.hold()
                with failing(faults, call, error, pid=server.pid, skip=turn, times=1):
                    check_told(call, error, struck.start(4), 4)
                    check_told(call, error, struck.release(5), 5)


def check_told(call, error, outcome, code):
    """See that a client has learnt an exit code, or that its connection has ended where the error is one for that."""
    if outcome == code:
        return
    assert error not in TEMPORARY[call], outcome
    if outcome == EXIT_CODE_LOST:
        assert not kernel_tells_exit_codes()
    else:
        assert getattr(errno, outcome) in {error, *GONE}


def test_a_refusal_that_could_not_be_sent_at_once(without_spares, faults, server):
    """When it has been sent the connection ends: nothing else happens that would remind the server of it."""
    with server.unharmed():
        for error in TEMPORARY["sendmsg"]:
            with server.connect() as sock:
                server.authenticate(sock)
                with failing(faults, "sendmsg", error, pid=server.pid, times=1):
                    sock.sendall(header(magic=0))
                    assert _native.receive_frame(sock.fileno(), DEADLINE).type == _native.FRAME_REFUSED
                assert sock.recv(1) == b""


def test_a_client_that_goes_while_it_cannot_be_watched(with_epoll, without_spares, faults, server):
    """Its place is free all the same: nothing else happens that would remind the server of it."""
    with server.unharmed():
        clients = fastfork.server_status().clients
        with failing(faults, "epoll_ctl", errno.ENOMEM, pid=server.pid) as unwatched:
            with server.connect():
                wait_until(lambda: unwatched.failed >= BRIEFLY)
            wait_until(lambda: fastfork.server_status().clients == clients)


def test_pidfd_open(with_epoll, faults, server):
    with server.unharmed():
        for error in numbers("pidfd_open"):
            with failing(faults, "pidfd_open", error, pid=server.pid), raising(error):
                server.start(signal.pause)
            server.check_starts()


def test_pidfd_open_once_without_a_descriptor(with_epoll, faults, server):
    """What is kept for that is given up, and taken again."""
    with server.unharmed():
        for _ in range(2):
            with failing(faults, "pidfd_open", errno.EMFILE, pid=server.pid, times=1):
                server.check_starts()


def test_close_range(faults, server, ask):
    """It is called in the child, which closes one by one then."""

    def kinds():
        return sorted(name.partition(":[")[0] for name in ask(targets.send_descriptors).values())

    undisturbed = kinds()
    with server.unharmed():
        for error in numbers("close_range"):
            with failing(faults, "close_range", error, pid=server.pid, of_children=True):
                assert kinds() == undisturbed


BEGIN_AND_LEAVE_WHEN_TOLD = "connection.send(None); raise SystemExit(connection.recv())"


def test_a_sentinel_ends_while_a_process_that_was_just_forked_still_holds_it(
    with_poll, without_spares, faults, server
):
    """Without pidfds it is what tells whether a pid is still its process's, and may be signalled."""
    ours, theirs = server.context.Pipe()
    with server.unharmed(), ours:
        with theirs:
            ending = server.start(exec, BEGIN_AND_LEAVE_WHEN_TOLD, {"connection": theirs})
        ours.recv()
        with faults.stop("close_range", pid=server.pid, of_children=True):
            stopped = server.start(targets.leave, 4)
            try:
                wait_until(lambda: state_of(stopped.pid) == "T")
                ours.send(3)
                ending.join(DEADLINE)
                assert (ending.is_alive(), ending.exitcode) == (False, 3)
            finally:
                os.kill(stopped.pid, signal.SIGCONT)
        stopped.join()
        assert stopped.exitcode == 4


@pytest.mark.parametrize("of_children", [False, True])
def test_close(faults, server, of_children):
    """It closes whatever it says."""
    with server.unharmed():
        for error in numbers("close"):
            with failing(faults, "close", error, pid=server.pid, of_children=of_children, caller=CORE):
                server.check_starts(2)


def test_waitid(faults, server):
    """Each child is asked by itself then."""
    with server.unharmed(), OtherClient(server) as other:
        for error in numbers("waitid"):
            with failing(faults, "waitid", error, pid=server.pid):
                assert other.start() == 3


def test_waitpid(faults, server):
    with server.unharmed(), OtherClient(server) as other:
        for error in numbers("waitpid"):
            with failing(faults, "waitpid", error, pid=server.pid) as fault:
                other.ask(4)
                wait_without_spinning(fault, error)
                fault.lift()
                assert other.answer() == 4


def test_read(faults, server):
    """What tells of signals and of the end of all clients."""
    with server.unharmed(), OtherClient(server) as other:
        for error in numbers("read"):
            with failing(faults, "read", error, pid=server.pid, times=BRIEFLY) as fault:
                wait_until(lambda: other.start() == 3 and fault.failed == BRIEFLY)


def test_pwritev2(with_epoll, faults, template):
    check_stream(faults, template, "pwritev2")


def test_write_without_pwritev2(with_epoll, faults, template):
    with faults.fail("pwritev2", errno.ENOSYS, pid=template._forkserver_pid):
        check_stream(faults, template, "write")


def check_stream(faults, template, call):
    """See that what cannot be written is missing, and that never an exit code is read as a pid."""
    for error in numbers("write"):
        with failing(faults, call, error, pid=template._forkserver_pid, times=1):
            status_r, data_w = forkserver.connect_to_new_process([])
            os.close(data_w)
            with contextlib.suppress(EOFError):
                pid = read_signed(status_r)
                assert pid > 1
                assert read_signed(status_r) == 1
            os.close(status_r)


@pytest.mark.parametrize("call", ["malloc", "calloc"])
def test_memory(faults, server, call):
    with server.unharmed():
        with failing(faults, call, errno.ENOMEM, pid=server.pid, caller=CORE), raising(errno.ENOMEM):
            server.start(targets.nothing, bytes(30_000))
        server.check_starts()


@pytest.mark.parametrize("call", ["getsockopt", "setsockopt"])
def test_a_descriptor_that_cannot_be_kept_from_lingering(faults, server, call):
    """It is closed all the same: that waits where its peer has not taken everything, and only then."""
    with server.unharmed(), OtherClient(server) as other, socket.create_server(("127.0.0.1", 0)) as listener:
        assert other.start() == 3
        for error in numbers(call):
            with server.connect() as sock, socket.create_connection(listener.getsockname()) as lingering:
                server.authenticate(sock)
                lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
                with failing(faults, call, error, pid=server.pid, caller=CORE):
                    send_with_fds(sock, header(magic=0), [lingering.fileno()])
                    while sock.recv(1000):  # the refusal
                        pass
                    assert other.start() == 3


# ---- in the server, when a client that its processes die with has gone ----

TREE = """
import os, subprocess, time

pids = [os.getpid(), subprocess.Popen(["/bin/sleep", "600"]).pid]
reader, writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(writer, b"%d" % os.getpid())
        time.sleep(600)
    os._exit(0)
os.wait()
connection.send([*pids, int(os.read(reader, 100))])
time.sleep(600)
"""
"""A process, one of its own, and one whose parent has ended."""

CALLS_FOR_A_TREE = {
    # Nothing else reaches the process that the server has forked: it is tried again.
    "kill": (BRIEFLY, set()),
    # Nothing else tells who is below it: it is tried again, but for what the kernel says where it never tells that.
    "access": (BRIEFLY, {errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EPERM}),
    "fopen": (BRIEFLY, {errno.ENOENT}),
    "open": (BRIEFLY, {errno.ENOENT}),
    "opendir": (BRIEFLY, set()),
    "read": (BRIEFLY, set()),
    "readdir": (BRIEFLY, set()),
    # Signals go by pid then, as on an old kernel.
    "pidfd_open": (ALWAYS, {errno.ESRCH}),
    "pidfd_send_signal": (ALWAYS, {errno.ESRCH}),
}
"""How often each fails, and what is left out: what the kernel says only of those who have died is one."""


@pytest.mark.parametrize("call", CALLS_FOR_A_TREE)
def test_calls_for_a_tree(faults, server, call):
    """All of it dies."""
    times, excepted = CALLS_FOR_A_TREE[call]
    with server.unharmed():
        for error in set(numbers(call)) - excepted:
            with (
                client_with_a_tree(server) as (client, pids),
                failing(faults, call, error, pid=server.pid, caller=CORE, times=times),
            ):
                end_client(client)
                wait_until(lambda pids=pids: not any(map(is_alive, pids)))


def test_a_process_that_cannot_become_the_root_of_its_tree(faults, server):
    """It does not adopt who loses its parent below it: that one goes on, and all others die."""
    with server.unharmed():
        for error in numbers("prctl"):
            with (
                failing(faults, "prctl", error, pid=server.pid, of_children=True, caller=CORE),
                client_with_a_tree(server) as (client, pids),
            ):
                end_client(client)
                wait_until(lambda pids=pids: not any(map(is_alive, pids[:2])))
                assert is_alive(pids[2])


@contextlib.contextmanager
def client_with_a_tree(server):
    """Have a process that has started one which is to die with it: its pid, and those of all below."""
    receiver, sender = server.context.Pipe(duplex=False)

    def work():
        arguments = (TREE, {"connection": sender})
        server.context.Process(target=exec, args=arguments, die_with_client=True).start()
        signal.pause()

    with receiver, sender:
        client = fork(work)
        pids = receiver.recv()
        try:
            yield client, pids
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def end_client(pid):
    os.kill(pid, signal.SIGKILL)
    assert exit_code_of(pid) == -signal.SIGKILL


# ---- in the server, with processes forked ahead of requests ----


@pytest.fixture
def with_spares():
    """Spares that last for longer than a busy machine takes over the next start."""
    fastfork.get_context(spares=2, spare_quiet=2)
    yield
    fastfork.get_context(spares=0, spare_quiet=1)


CALLS_FOR_SPARES = [
    "epoll_ctl",
    "fork",
    "getpriority",
    "malloc",
    "calloc",
    "pidfd_open",
    "recv",
    "sched_getaffinity",
    "sendmsg",
    "socketpair",
    "waitid",
    "waitpid",
]

ALSO_WITHOUT_SPARES = {"fork", "malloc", "calloc", "pidfd_open"}
"""Those with whose error a start without a spare fails: no fork can serve instead."""


@pytest.mark.parametrize("call", CALLS_FOR_SPARES)
def test_calls_for_spares(with_epoll, with_spares, faults, server, call, tmp_path):
    """Whatever becomes of the spare, the process that was asked for runs once and ends as it should, or the error is
    that of a start without one, and the process has run once at the most.
    """
    notes, has_ended = tmp_path / "notes", {}
    with server.unharmed():
        for error in numbers(call):
            have_spares(server.context, 2)
            with failing(faults, call, error, pid=server.pid, caller=CORE, times=2) as fault:
                for code in range(1, 5):
                    note = f"{errno.errorcode[error]} {code}"
                    arguments = (notes, note, code)
                    process = server.context.Process(target=targets.note_and_leave, args=arguments)
                    outcome = exit_code_or_errno(process)
                    assert outcome in {code, error} if call in ALSO_WITHOUT_SPARES else outcome == code
                    has_ended[note] = outcome == code
                # No spare is forked anew where a busy machine has made the starts come slowly.
                wait_until(lambda fault=fault: fault.failed or make_a_pace(server.context))
            server.check_starts(2)
    runs = collections.Counter(notes.read_text().splitlines())
    for note, ended in has_ended.items():
        assert runs.pop(note, 0) in ({1} if ended else {0, 1}), note
    assert not runs


def exit_code_or_errno(process):
    try:
        process.start()
    except OSError as error:
        return error.errno
    process.join()
    return process.exitcode


# ---- in a process with options, before it runs ----

CALLS_FOR_OPTIONS = {
    "chdir": ("cwd", {"cwd": "/"}),
    "dup2": ("stdin", {"stdin": subprocess.DEVNULL}),
    "malloc": ("env", {"env": {"A": "1"}}),
    "open": ("stdout", {"stdout": subprocess.DEVNULL}),
    "sched_setaffinity": ("affinity", {"affinity": os.sched_getaffinity(0)}),
    "setpriority": ("nice", {"nice": 10}),
    "setrlimit": ("rlimits[RLIMIT_CORE]", {"rlimits": {resource.RLIMIT_CORE: 0}}),
    "setsid": ("new_session", {"new_session": True}),
}
"""What is called for which option."""


@pytest.mark.parametrize("call", CALLS_FOR_OPTIONS)
def test_calls_for_options(faults, server, ctx, call):
    """The start raises an error that names the option, no process is left, and the next start works."""
    option, values = CALLS_FOR_OPTIONS[call]
    options = fastfork.ChildOptions(**values)
    with server.unharmed():
        for error in numbers(call):
            process = ctx.Process(target=targets.leave, args=(3,), options=options)
            with (
                failing(faults, call, error, pid=server.pid, of_children=True, caller=CORE),
                raising(error) as caught,
            ):
                process.start()
            assert f"the option {option}: " in str(caught.value)
            process.start()
            process.join()
            assert process.exitcode == 3


CALLS_OF_THE_SERVER_FOR_OPTIONS = ["calloc", "epoll_ctl", "fork", "malloc", "pidfd_open", "socketpair"]


@pytest.mark.parametrize("call", CALLS_OF_THE_SERVER_FOR_OPTIONS)
def test_calls_of_the_server_for_options(with_epoll, without_spares, faults, server, ctx, call):
    """The start raises their error or works, no process is left, and the next start works."""

    def outcome_of_a_start():
        options = fastfork.ChildOptions(umask=0o77, cwd="/")
        return exit_code_or_errno(ctx.Process(target=targets.leave, args=(3,), options=options))

    with server.unharmed():
        for error in numbers(call):
            with failing(faults, call, error, pid=server.pid, caller=CORE):
                assert outcome_of_a_start() in (3, error)
            assert outcome_of_a_start() == 3


def test_a_process_that_cannot_tell_that_it_begins(without_spares, faults, server, ctx):
    """It does not run: whoever asked for it would not hear of it."""
    options = fastfork.ChildOptions(umask=0o77)
    with server.unharmed():
        for error in set(numbers("sendmsg")) - {errno.EINTR}:  # then it is made again
            process = ctx.Process(target=targets.leave, args=(3,), options=options)
            with (
                failing(faults, "sendmsg", error, pid=server.pid, of_children=True, caller=CORE),
                raising(errno.EPIPE),
            ):
                process.start()
            server.check_starts()


# ---- in the server, when it starts ----


@pytest.fixture
def few_descriptors():
    """A soft limit that the server raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard // 2), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def error_of_start(process):
    """Return errno and text of the error of a start, and keep nothing of what has met with it."""
    try:
        process.start()
    except OSError as error:
        return error.errno, error.strerror
    return None


def could_not_serve(error):
    return f"the fork server could not begin to serve: {os.strerror(error)}"


CALLS_OF_A_START = [
    "calloc",
    "epoll_create1",
    "epoll_ctl",
    "fcntl",
    "getrlimit",
    "pipe2",
    "setrlimit",
    "signalfd",
]

NOT_NEEDED = {"getrlimit", "setrlimit"}
"""Those that a server does without: it then has as many descriptors as it was started with."""


@pytest.mark.parametrize("call", CALLS_OF_A_START)
def test_start_of_the_server(with_epoll, faults, few_descriptors, capfd, ctx, call):
    """The start raises that errno, after one launch, or the server does without; and the next start works."""
    check_starts_of_the_server(faults, capfd, ctx, call)


@pytest.mark.parametrize("call", ["calloc", "fcntl", "pipe2", "setrlimit"])
def test_start_of_a_server_that_polls(with_poll, faults, few_descriptors, capfd, ctx, call):
    check_starts_of_the_server(faults, capfd, ctx, call)


def check_starts_of_the_server(faults, capfd, ctx, call):
    before = descriptors()
    for error in numbers(call):
        process = ctx.Process(target=targets.leave, args=(3,))
        with failing(faults, call, error, caller=CORE):
            if call in NOT_NEEDED:
                assert exit_code_or_errno(process) == 3
            else:
                assert error_of_start(process) == (error, could_not_serve(error))
                assert capfd.readouterr().err.count("Traceback") == 1
        process.close()
        fastfork.stop()
        assert descriptors() == before
    process = ctx.Process(target=targets.leave, args=(4,))
    process.start()
    process.join()
    assert process.exitcode == 4


@pytest.mark.parametrize("call", ["ftruncate", "madvise", "memfd_create", "mmap"])
def test_status_page(faults, ctx, call):
    """The server does without: who asks for it is told why."""
    for error in numbers(call):
        with failing(faults, call, error, caller=CORE):
            process = ctx.Process(target=targets.leave, args=(3,))
            process.start()
            process.join()
            assert process.exitcode == 3
            with raising(error):
                fastfork.server_status()
        fastfork.stop()


def test_status_page_that_cannot_be_opened_for_reading_alone(faults, ctx):
    """It is sealed, where the kernel can: then a client gets the descriptor that there is."""
    for error in (errno.EMFILE, errno.ENOENT):
        with failing(faults, "open", error, caller=CORE):
            process = ctx.Process(target=targets.leave, args=(3,))
            process.start()
            process.join()
            assert process.exitcode == 3
            assert fastfork.server_status().starts == 1
        fastfork.stop()


# ---- an old kernel ----

PROGRAM_OF_AN_OLD_KERNEL = """
import sys

import fastfork
from fault.interposing import CORE, Faults
from support import targets

if __name__ == "__main__":
    faults = Faults.of_this_process()
    missing = [faults.fail(call, 38, caller=CORE) for call in sys.argv[1:]]
    context = fastfork.get_context()
    receiver, sender = context.Pipe(duplex=False)
    held = context.Process(target=targets.leave_when_told, args=(receiver,))
    held.start()
    for code in range(3):
        process = context.Process(target=sys.exit, args=(code,))
        process.start()
        process.join()
        assert process.exitcode == code
    sender.send(5)
    held.join(60)
    print(held.exitcode, all(fault.failed for fault in missing))
"""

NEW_CALLS = ["accept4", "close_range", "epoll_create1", "memfd_create", "pidfd_open", "pipe2", "signalfd"]
"""What a kernel may not have, and then something else is done."""


@pytest.mark.parametrize("call", NEW_CALLS)
def test_without_a_call(with_epoll, programs, library, tmp_path, call):
    assert errno.ENOSYS == 38
    environment = environment_for(library, tmp_path)
    assert programs.run(PROGRAM_OF_AN_OLD_KERNEL, call, environment=environment).lines == ["5 True"]


def test_without_any_of_these_calls(with_epoll, programs, library, tmp_path):
    calls = [call for call in NEW_CALLS if call != "signalfd"]  # comes after epoll_create1()
    environment = environment_for(library, tmp_path)
    assert programs.run(PROGRAM_OF_AN_OLD_KERNEL, *calls, environment=environment).lines == ["5 True"]


def environment_for(library, tmp_path):
    """Return the variables of a program that makes its own calls fail."""
    faults = Faults(tmp_path / "faults")
    return {**faults.environment(library), "PYTHONPATH": str(Path(__file__).parents[1])}


# ---- in a client ----

CLIENT = """
import json, os, sys, traceback

import fastfork
from fastfork import _native, forkserver
from fault.interposing import Faults
from support import targets
from support.processes import descriptors, exit_code_of, fork

context = fastfork.get_context()
faults = Faults.of_this_process()


def started():
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=targets.leave_when_told, args=(receiver,))
    process.start()
    return process, sender


def end(process, sender):
    sender.send(5)
    process.join()
    code = process.exitcode
    process.close()
    sender.close()
    return code


def attempt(process):
    try:
        process.start()
        process.join()
    except OSError as error:
        return error.errno
    return 0


def code_of(process):
    if process.pid is None:
        return None
    process.join()
    return process.exitcode


def strike(call, error, skip, times):
    process = context.Process(target=sys.exit, args=(7,))
    with faults.fail(call, error, pid=os.getpid(), skip=skip, times=times) as fault:
        outcome = attempt(process)
        failed = fault.failed
    code = code_of(process)
    process.close()
    return failed, outcome, code


def tell(fault, **facts):
    call, error, skip, times = fault
    print(json.dumps({"error": error, "skip": skip, **facts}), flush=True)


# A client that has a connection, and a child that lives meanwhile.
def connected(*fault):
    held = started()
    before = len(descriptors())
    failed, outcome, code = strike(*fault)
    assert end(*started()) == 5
    more = len(descriptors()) - before
    tell(fault, failed=failed, outcome=outcome, code=code, held=end(*held), more=more)


# A client that has none yet.
def connecting(*fault):
    assert exit_code_of(fork(lambda: tell_errors(connect, fault))) == 0


def tell_errors(action, arguments):
    try:
        action(*arguments)
    except BaseException:
        traceback.print_exc()
        raise


def connect(*fault):
    first = strike(*fault)  # which also makes what a process has once for all its children
    before = len(descriptors())
    second = strike(*fault)
    more = len(descriptors()) - before
    for failed, outcome, code in (first, second):
        tell(fault, failed=failed, outcome=outcome, code=code, held=None, more=more)
    assert end(*started()) == 5


# A client whose template is still to be started.
def launching(*fault):
    before = len(descriptors())
    failed, outcome, code = strike(*fault)
    forkserver._forkserver._stop()
    more = len(descriptors()) - before + len(os.listdir(os.environ["TMPDIR"]))
    tell(fault, failed=failed, outcome=outcome, code=code, held=None, more=more)


if __name__ == "__main__":
    moment, cases = globals()[sys.argv[1]], json.loads(sys.argv[2])
    assert end(*started()) == 5
    if moment is launching:
        forkserver._forkserver._stop()
    for case in cases:
        moment(*case)
    assert end(*started()) == 5
"""

CLIENT_OF_A_KILLED_SERVER = """
import os, signal, sys

import fastfork
from fastfork import _native, forkserver
from fault.interposing import CORE, Faults
from support import targets

context = fastfork.get_context()
faults = Faults.of_this_process()


def code_after_the_death_of_the_server(error):
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=targets.leave_when_told, args=(receiver,))
    process.start()
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    with faults.fail("ioctl", error, pid=os.getpid(), caller=CORE):
        assert process.is_alive()
        sender.send(5)
        process.join()
    return process.exitcode


if __name__ == "__main__":
    print(*(code_after_the_death_of_the_server(int(error)) for error in sys.argv[1:]))
"""


def test_a_kernel_that_does_not_tell_how_a_reaped_process_ended(with_epoll, programs, library, tmp_path):
    """Linux before 6.15: when its server has been killed it is known to live, and its exit code mostly not."""
    errors = map(str, numbers("ioctl"))
    outcome = programs.run(CLIENT_OF_A_KILLED_SERVER, *errors, environment=environment_for(library, tmp_path))
    codes = [int(code) for code in outcome.lines[0].split()]
    assert len(codes) == len(numbers("ioctl"))
    assert set(codes) <= {5, EXIT_CODE_LOST}


FORK_OF_A_LAUNCH = "vfork" if sys.version_info >= (3, 10) else "fork"

CLIENT_IS_TOLD = {
    "connected": ["poll", "recvmsg", "sendmsg"],
    "connecting": ["connect", "pipe2", "recv", "send", "socket"],
    "launching": [
        *("bind", "chmod", "listen", "mkdir", "pidfd_open", "pipe2", "rename", "socket"),
        FORK_OF_A_LAUNCH,
    ],
}
"""What a client calls, by how far it is."""


@pytest.mark.parametrize(
    ("moment", "call"), [(moment, call) for moment, calls in CLIENT_IS_TOLD.items() for call in calls]
)
def test_client(programs, library, tmp_path, monkeypatch, moment, call):
    """It gets one clear error or goes on, nothing is left of the attempt, and the next start works."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    if call == "pidfd_open":
        monkeypatch.delenv("FASTFORK_BACKEND", raising=False)
    cases = [
        (call, error, turn, times_in_client(moment, error))
        for error in numbers(call)
        for turn in range(turns_in_client(moment, error == numbers(call)[0]))
    ]
    outcome = programs.run(CLIENT, moment, json.dumps(cases), environment=environment_for(library, tmp_path))
    told = [json.loads(line) for line in outcome.lines]
    assert len(told) >= len(cases)
    assert any(case["failed"] for case in told)
    for case in told:
        check_case(call, **case)


def check_case(call, *, error, failed, outcome, code, held, more, **_rest):
    name = errno.errorcode[error]
    can_be_told = error in TEMPORARY.get(call, BRIEF) or kernel_tells_exit_codes()
    assert outcome in (0, error, *GONE), name
    assert code in (None, 7) or not can_be_told, name
    assert held in (None, 5) or not can_be_told, name
    assert more == 0, name
