"""A client's connection to a template, and the children that it has asked for there.

One connection serves all threads of a process. Whoever needs an answer reads from it, under its lock, and passes on
what belongs to others: so no thread is needed to listen, and a signal handler may start processes too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import struct
import threading
import time

from . import _native, shared_modules
from .auth import authenticate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Union

    Request = Union[_native.ForkRequest, _native.StatusRequest]

EXIT_CODE_LOST = 255
"""What is reported, as by the standard library, when nobody can tell any more how a child ended."""

_AWAITED_PIDFD = -2
"""In the place of a sentinel: it comes with the answer."""

_RECHECK = 0.05
"""Seconds after which a wait for a frame looks again whether it is there: a signal handler that comes in between the
look and the wait may have received it."""

_LOOK = 0.1
"""Seconds after which a wait for a template that does not serve yet asks whether it is worth while."""

_HANDOVER = 0.005
"""Seconds after which a thread that waits for its turn looks whether another one has received what it is after."""

_REAP_DEADLINE = 1.0
"""Seconds that a server may take to report a child that is dead."""

_ABANDON_DEADLINE = 1.0
"""Seconds that a server may take to say whether it has started a child that is to be ended at once: later on, it is
ended when this process next hears from the server."""

_INIT_DEADLINE = 10.0
"""Seconds that init may take to reap a child whose server is dead: it tells how the child ended then, if not before."""


_MAX_POSTED = 65536
"""Bytes of payload that are under way at once: the buffer of a socket takes more."""

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred`` of unix(7): pid, uid, gid."""


class ServerGoneError(ConnectionResetError):
    """The server went away before it had the whole request: no child was started."""


class Child:
    """A process that was forked from a template for this client.

    Attributes
    ----------
    pid:
        Its process id.
    sentinel:
        A descriptor that becomes readable when it ends: its pidfd, or a socket where there are no pidfds. -1 for one
        that was posted for.
    exit_code:
        Negative for a signal; None until its end is known.
    usage:
        Its CPU time in milliseconds and the most that it had resident, as getrusage(2) has it; None where that is not
        known.
    lacking:
        The errno for which its pidfd did not come, where one was asked for; 0 where it did.

    """

    def __init__(self, connection: Connection, pid: int, sentinel: int, *, is_pidfd: bool) -> None:
        self.pid = pid
        self.sentinel = sentinel
        self.exit_code: int | None = None
        self.usage: tuple[int, int] | None = None
        self.lacking = 0
        self._connection = connection
        self._is_pidfd = is_pidfd
        self._client_pid = os.getpid()
        self._guard = threading.RLock()  # a signal handler may wait for the child too
        self._waiters = 0
        self._closed = False

    def wait(self, timeout: float | None) -> int | None:
        """Wait for the end, at most `timeout` seconds (None: no limit).

        Returns the exit code, negative for a signal, or None when the time is over.
        """
        if os.getpid() != self._client_pid:
            return self.exit_code  # after a raw fork: the child is the parent's, and so may be the lock
        with self._guard:
            if self.exit_code is not None or self._closed:
                return self.exit_code
            self._waiters += 1
        try:
            return self._wait(None if timeout is None else time.monotonic() + timeout)
        finally:
            with self._guard:
                self._waiters -= 1
                self._close_if_unused()

    def _wait(self, deadline: float | None) -> int | None:
        while self.exit_code is None:
            try:
                is_dead = _native.wait_readable(self.sentinel, _remaining(deadline))
            except InterruptedError:
                continue  # the signal's Python handler has run by now
            if not is_dead or not self._connection.fetch_exit(self, _remaining(deadline)):
                return None
        return self.exit_code

    def close(self) -> None:
        """Close the sentinel, once no other thread waits on it: its number may soon mean another file."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closed and self._waiters == 0:
            sentinel, self.sentinel = self.sentinel, -1
            if sentinel >= 0:
                os.close(sentinel)

    def recover_exit_code(self) -> int:
        """Find out how the child ended without its server, which has died."""
        if not self._is_pidfd:
            return EXIT_CODE_LOST
        poller = select.poll()
        poller.register(self.sentinel, 0)  # a hang-up: it has been reaped
        deadline = time.monotonic() + _INIT_DEADLINE
        is_reaped, code = self._is_reaped(), self._exit_code_without_server()
        while code is None and not is_reaped and time.monotonic() < deadline:
            poller.poll(_RECHECK * 1000)
            is_reaped, code = self._is_reaped(), self._exit_code_without_server()
        return EXIT_CODE_LOST if code is None else code

    def _is_reaped(self) -> bool:
        try:
            signal.pidfd_send_signal(self.sentinel, 0)
        except ProcessLookupError:
            return True
        return False

    def _exit_code_without_server(self) -> int | None:
        code = self._exit_code_of_zombie()
        return _native.pidfd_exit_code(self.sentinel) if code is None else code

    def _exit_code_of_zombie(self) -> int | None:
        """Return the exit code of a child that init has not reaped yet, from its last field in proc_pid_stat(5).

        That is 0 to those who may not look at the process, of a set-uid program, say; the namespace is kept from them,
        too.
        """
        try:
            os.readlink(f"/proc/{self.pid}/ns/pid")
            with open(f"/proc/{self.pid}/stat", "rb") as stream:
                status = int(stream.read().split()[-1])
            signal.pidfd_send_signal(self.sentinel, 0)  # the pid was still its own, and no other process's
        except OSError:
            return None
        return os.waitstatus_to_exitcode(status)

    def send_signal(self, number: int) -> None:
        """Send a signal to the child; it may have ended, and its pid may be another's by now."""
        if os.getpid() != self._client_pid:
            self._send_signal(number)  # after a raw fork: a thread that is no more may have the lock
            return
        with self._guard:
            self._send_signal(number)

    def _send_signal(self, number: int) -> None:
        if self._closed or self.exit_code is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._is_pidfd:
                signal.pidfd_send_signal(self.sentinel, number)
            elif (self.sentinel < 0 or not _native.is_hung_up(self.sentinel)) and not self._has_lost_pid():
                os.kill(self.pid, number)

    def send_signal_to_group(self, number: int) -> None:
        """Send a signal to the process group that the child leads, or has led: somebody may be in it still."""
        if self._connection.is_over() or not self._has_lost_pid():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _has_lost_pid(self) -> bool:
        """Whether another process is seen to have its pid by now, which no process gets while anybody is in its group.

        A child that is not known to have ended may have been reaped a moment ago; the server is its parent.
        """
        if self.exit_code is not None:
            return _exists(self.pid)
        parent, server = _parent_of(self.pid), self._connection.server_pid
        return parent is not None and server is not None and parent != server

    def kill(self) -> None:
        """End the child, which nobody has been told of, at once and without a trace."""
        self.send_signal(signal.SIGKILL)
        self.close()


class Claim:
    """What somebody has asked for: from before the request is sent until its child is in their hands.

    A signal handler that raises may come in at the end of any call, and what that call was to return is lost. Whoever
    is to have a child makes a claim first, outermost, and gives it up when they come to nothing.

    Attributes
    ----------
    request:
        The connection, the number of the request there, and the request; None before there is one, and once it has
        been answered.
    child:
        The child; None before the server has said so.

    """

    def __init__(self) -> None:
        self.request: tuple[Connection, int, Request] | None = None
        self.child: Child | None = None

    def give_up(self, deadline: float) -> None:
        """End the child; wait for it until `deadline` (by time.monotonic()) if it is still to come."""
        if self.request is not None:
            connection, request_id, request = self.request
            if request.has_begun:
                connection.abandon_request(request_id, deadline)
            else:
                connection.withdraw_request(request_id)
        if self.child is not None:
            self.child.kill()


def give_up_all(claims: Iterable[Claim]) -> None:
    """End what has come and what is to come of claims, and wait a moment for the latter."""
    listed = list(claims)
    for claim in listed:
        claim.give_up(0.0)
    deadline = time.monotonic() + _ABANDON_DEADLINE
    for claim in listed:
        claim.give_up(deadline)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _open(
    sock: socket.socket, address: str, authkey: bytes, keep_waiting: Callable[[], None], timeout: float | None
) -> None:
    """Connect, wait for the template to serve, and authenticate."""
    sock.settimeout(timeout)
    try:
        _connect(sock, address)
        _await_challenge(sock, keep_waiting, timeout)
        authenticate(sock, authkey)
    except (BlockingIOError, socket.timeout) as error:
        if timeout is None:
            raise
        raise _timed_out(timeout) from error
    sock.settimeout(None)


def _connect(sock: socket.socket, address: str) -> None:
    """Connect. A signal amid a wait for room in the backlog ends it, and Python takes that for a success."""
    is_connected = False
    while not is_connected:
        sock.connect(address)
        with contextlib.suppress(OSError):  # ENOTCONN
            sock.getpeername()
            is_connected = True


def _await_challenge(sock: socket.socket, keep_waiting: Callable[[], None], timeout: float | None) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    is_there = False
    while not is_there:
        remaining = _remaining(deadline)
        if remaining == 0:
            raise _timed_out(timeout)
        with contextlib.suppress(InterruptedError):
            is_there = _native.wait_readable(
                sock.fileno(), _LOOK if remaining is None else min(remaining, _LOOK)
            )
        if not is_there:
            keep_waiting()
            if _is_dead(_listener_of(sock)):
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, "the fork server is dead, and its socket is not"
                )


def _listener_of(sock: socket.socket) -> int:
    """Return the pid of the process that has listened last on the socket that this one is connected to, or 0.

    A process that a preloaded module has forked may keep the socket of a dead template. Whoever connects to it would
    wait for ever.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)


def _is_dead(pid: int) -> bool:
    """Whether a process has ended: a zombie has, where there is a /proc to tell."""
    if pid == 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return not _exists(pid)


def _parent_of(pid: int) -> int | None:
    """Return the parent of a process; None where nobody tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _timed_out(timeout: float | None) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"the fork server did not answer within {timeout:g} s")


class Connection:
    """An authenticated connection of this process to the template that listens at `address`.

    Parameters
    ----------
    address:
        The path of its socket.
    authkey:
        What both ends prove that they know.
    keep_waiting:
        Called now and then while the template does not answer yet; it may raise.
    timeout:
        Seconds that the template may take to answer; None for no limit.
    server_pid:
        The pid of the template; None where that is not known.

    Raises `AuthenticationError` when the template has another authkey, `OSError` or `EOFError` when it is not
    there or goes away meanwhile, `TimeoutError` when the time is over.
    """

    def __init__(
        self,
        address: str,
        authkey: bytes,
        keep_waiting: Callable[[], None],
        timeout: float | None = None,
        server_pid: int | None = None,
    ) -> None:
        self.address = address
        self.authkey = authkey
        self.server_pid = server_pid
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._answers: dict[int, Child | OSError | int] = {}
        self._pending: dict[int, int] = {}
        """Requests that are not answered, and the sentinels for their children."""
        self._abandoned: set[int] = set()
        self._forgotten: set[int] = set()
        self._doomed: dict[int, Child] = {}
        """Children of requests that were abandoned, by these: they are to be ended."""
        self._posted: dict[int, int] = {}
        """Requests that nobody waits for yet, and the sizes of their payloads."""
        self._is_reset = False  # its end has come with the last request, if not more, unread
        self._refusal: int | None = None  # why the server has ended it
        self._receiver = _native.Receiver()
        self._last_id = 0
        self._is_receiving = False
        self._at_end: Callable[[], None] | None = None
        self._broken = True  # until there is a socket
        self._has_pidfds = _native.has_pidfds()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            _open(sock, address, authkey, keep_waiting, timeout)
            self._sock = sock.detach()
        self._broken = False

    def is_usable(self) -> bool:
        """Whether the template is still at the other end."""
        return not self._broken and not _native.is_hung_up(self._sock)

    def start(
        self,
        payload: bytes,
        fds: Sequence[int],
        claim: Claim,
        *,
        die_with_client: bool = False,
        has_options: bool = False,
    ) -> Child:
        """Have a child forked that gets `payload` (bytes) and duplicates of `fds`; `claim` is whose it is.

        With `die_with_client` the server kills it, and all below it, once this connection ends. With `has_options` both
        parameters begin with what `ChildOptions.encode` has returned.

        Raises `ServerGoneError` when the request did not reach the server, `BrokenPipeError` when the server went away
        before it answered and a child may or may not have been started, and `OSError` with the errno of what failed.
        """
        flags = _native.FORK_DIE_WITH_CLIENT if die_with_client else 0
        if has_options:
            flags |= _native.FORK_OPTIONS
        if self._has_pidfds:
            return self._start(flags | _native.FORK_PIDFD, payload, fds, claim, _AWAITED_PIDFD)
        # Not a pipe: that would not end as long as any process that has just been forked holds a copy of it.
        ours, held = socket.socketpair()
        with ours, held:
            return self._start(flags | _native.FORK_HELD, payload, [held.fileno(), *fds], claim, ours)

    def start_with_stream(self, status_fd: int, fds: Sequence[int], *, die_with_client: bool = False) -> None:
        """Have a child forked whose pid and exit code the server writes to `status_fd`, as native int64."""
        flags = _native.FORK_DIE_WITH_CLIENT if die_with_client else 0
        claim = Claim()
        try:
            self._start(flags | _native.FORK_HELD | _native.FORK_STREAM, b"", [status_fd, *fds], claim)
        except BaseException:
            claim.give_up(0.0)
            raise

    def _start(
        self,
        flags: int,
        payload: bytes,
        fds: Sequence[int],
        claim: Claim,
        sentinel: int | socket.socket = -1,
    ) -> Child:
        request = _native.ForkRequest(flags | shared_modules.loaded(), payload, fds)
        try:
            with self._lock:
                return self._with_sentinel(self._request(request, sentinel, None, claim))
        finally:
            self._close_if_over()

    def _with_sentinel(self, child: Child | int) -> Child:
        assert isinstance(child, Child)
        if child.lacking:
            # Without its pidfd nobody could wait for it.
            child.kill()
            raise OSError(child.lacking, os.strerror(child.lacking))
        return child

    def post(self, payload: bytes, fds: Sequence[int], claim: Claim, flags: int = 0) -> int:
        """Ask for a child as `start` does, and do not wait for the answer: the number of the request.

        Raises `ServerGoneError` when it did not reach the server, `OSError` when it could not be sent.
        """
        request = _native.ForkRequest(flags, payload, fds)
        sentinel = _AWAITED_PIDFD if flags & _native.FORK_PIDFD else -1
        try:
            with self._lock:
                if not self._is_receiving:
                    self._make_room(len(payload))
                request_id = self._number(request, sentinel, claim)
                self._send(request, request_id)
                self._posted[request_id] = len(payload)
                return request_id
        finally:
            self._close_if_over()

    def _make_room(self, size: int) -> None:
        """Take what has come; wait until the server has taken so many requests that this one does not block.

        A server that cannot get rid of its answers takes no requests: who then waits in a send waits for ever.
        """
        self._take_all(0.0)
        self._forget_taken()
        while self._posted and sum(self._posted.values()) + size > _MAX_POSTED and not self._broken:
            self._take_frame(_RECHECK)
            self._forget_taken()

    def _forget_taken(self) -> None:
        self._posted = {number: size for number, size in self._posted.items() if number in self._pending}

    def await_posted(self, request_id: int, claim: Claim) -> Child:
        """Wait for the child that was posted for. Raises as `start`."""
        try:
            with self._lock:
                return self._with_sentinel(self._await_answer(request_id, None, claim))
        finally:
            self._close_if_over()

    def answer_to(self, request_id: int) -> Child | OSError | None:
        """Return the child that was posted for, or why there is none; None as long as the server has not said so."""
        answer = self._answers.pop(request_id, None)
        assert not isinstance(answer, int)
        if answer is None and self._broken:
            if self._refusal is not None:
                return _refusal(self._refusal)
            if self._is_reset and request_id == self._last_id:
                return ServerGoneError(errno.ECONNRESET, "the fork server went away")
            return BrokenPipeError(
                errno.EPIPE, "the fork server died, and with it what became of the request"
            )
        return answer

    def take_frames(self, timeout: float = 0.0) -> None:
        """Take what the server has sent up to now; wait at most `timeout` seconds for the first of it.

        Where another thread does so it is left to it.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._broken and self._take_frame(timeout):
                self._take_all(0.0)
        except OSError:
            if not self._broken:
                raise
        finally:
            self._lock.release()
            self._close_if_over()

    def forget_request(self, request_id: int) -> None:
        """Keep no answer to a request that was posted; a child that comes of it goes on."""
        with self._lock:
            if self._answers.pop(request_id, None) is None and request_id in self._pending:
                self._forgotten.add(request_id)
        self._close_if_over()

    def abandon_request(self, request_id: int, deadline: float) -> None:
        """Give up a request: a child that comes of it is ended, since the program does not know of it.

        That is done when its answer is received; wait for it until `deadline` (by time.monotonic()).
        """
        self._abandoned.add(request_id)  # another thread may be about to receive it
        self._end_abandoned(request_id)
        if request_id in self._abandoned and self._lock.acquire(
            timeout=max(0.0, deadline - time.monotonic())
        ):
            try:
                self._receive_abandoned(request_id, deadline)
                if request_id not in self._pending:
                    self._end_abandoned(request_id)
                    self._abandoned.discard(request_id)
                self._end_doomed()
            finally:
                self._lock.release()
        self._close_if_over()

    def withdraw_request(self, request_id: int) -> None:
        """Give up a request that has not been sent: no answer comes."""
        self._close_sentinel(request_id)
        self._close_if_over()

    def _receive_abandoned(self, request_id: int, deadline: float) -> None:
        try:
            while request_id in self._pending and time.monotonic() < deadline:
                self._take_frame(_RECHECK)
        except OSError:
            if not self._broken:
                raise

    def _end_abandoned(self, request_id: int) -> None:
        answer = self._answers.get(request_id)
        if isinstance(answer, Child):
            self._doomed[request_id] = answer
        elif isinstance(answer, int):
            os.close(answer)
        if answer is not None:
            self._answers.pop(request_id, None)
            self._abandoned.discard(request_id)

    def _end_doomed(self) -> None:
        """End children that were abandoned.

        Those of calls have no pidfds: what the server has told of their ends up to now is taken first.
        """
        try:
            while self._doomed and not self._broken and self._receive_and_pass_on(0.0):
                pass
        except OSError:
            if not self._broken:
                raise
        for request_id, child in list(self._doomed.items()):
            child.kill()
            self._doomed.pop(request_id, None)

    def status_page(self, timeout: float) -> int | None:
        """Return a descriptor of the server's status page; None while another thread waits for an answer.

        Raises `TimeoutError` when the server does not answer within `timeout` seconds.
        """
        if not self._lock.acquire(timeout=_RECHECK):
            return None
        claim = Claim()
        try:
            fd = self._request(_native.StatusRequest(), -1, timeout, claim)
        except BaseException:
            claim.give_up(0.0)
            raise
        finally:
            self._lock.release()
            self._close_if_over()
        assert isinstance(fd, int)
        return fd

    def _request(
        self, request: Request, sentinel: int | socket.socket, timeout: float | None, claim: Claim
    ) -> Child | int:
        request_id = self._number(request, sentinel, claim)
        self._send(request, request_id)
        return self._await_answer(request_id, timeout, claim)

    def _number(self, request: Request, sentinel: int | socket.socket, claim: Claim) -> int:
        """Return the number of a request that is about to be sent; its sentinel is this object's from now on."""
        request_id = next(self._ids) & 0xFFFFFFFF
        self._pending[request_id] = sentinel if isinstance(sentinel, int) else sentinel.detach()
        claim.request = self, request_id, request
        self._last_id = request_id
        return request_id

    def _send(self, request: Request, request_id: int) -> None:
        if self._broken:  # by whoever had the turn before this one
            self._close_sentinel(request_id)
            raise ServerGoneError(errno.EPIPE, "the fork server went away")
        try:
            request.send(self._sock, request_id)
        except OSError as error:
            if not request.error:
                raise  # a signal handler's
            self._close_sentinel(request_id)
            is_gone = request.error in (errno.EPIPE, errno.ECONNRESET)
            if is_gone or request.may_be_sent_in_part():
                self._break()
            if is_gone:
                raise ServerGoneError(error.errno, "the fork server went away") from error
            raise

    def _close_sentinel(self, request_id: int) -> None:
        sentinel = self._pending.pop(request_id, -1)
        if sentinel >= 0:
            os.close(sentinel)

    def _await_answer(self, request_id: int, timeout: float | None, claim: Claim) -> Child | int:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while request_id not in self._answers:
                if _remaining(deadline) == 0:
                    raise _timed_out(timeout)
                self._take_frame(_RECHECK)
        except ConnectionResetError as error:
            # The kernel says so where the server has left something unread: the last request, if not more.
            if request_id == self._last_id:
                raise ServerGoneError(error.errno, "the fork server went away") from error
            raise
        except BrokenPipeError as error:
            message = "the fork server died before it answered: the process may or may not have been started"
            raise BrokenPipeError(error.errno, message) from error
        answer = self._answers[request_id]
        if isinstance(answer, Child):
            claim.child = answer
        del self._answers[request_id]
        claim.request = None
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _take_frame(self, timeout: float | None) -> bool:
        """Receive one frame and pass it on: whether there was one. A connection that has ended raises."""
        was_receiving, self._is_receiving = self._is_receiving, True
        try:
            is_there = self._receive_and_pass_on(timeout)
            if self._doomed:
                self._end_doomed()
            return is_there
        finally:
            self._is_receiving = was_receiving

    def _receive_and_pass_on(self, timeout: float | None) -> bool:
        if self._broken:  # by a signal handler, or another thread
            raise self._why_it_is_over()
        try:
            frame = self._receiver.receive(self._sock, timeout)
        except InterruptedError:
            return True
        except OSError:
            if self._receiver.error:  # else it passes, or is a signal handler's
                self._is_reset = self._receiver.error == errno.ECONNRESET
                self._break()
            raise
        if frame is None:
            return False
        if frame.type == _native.FRAME_REFUSED:
            self._refusal = frame.value
            self._break()
            raise self._why_it_is_over()
        # A signal handler that receives frames too, or raises, may come in anywhere here: each step can be repeated.
        if frame.type == _native.FRAME_EXITED:
            self._take_exit(frame)
        else:
            self._take_answer(frame)
        self._receiver.done(frame)
        return True

    def _why_it_is_over(self) -> OSError:
        if self._refusal is None:
            return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return _refusal(self._refusal)

    def _take_exit(self, frame: _native.Frame) -> None:
        child = self._children.get(frame.id)
        if child is not None:
            child.usage = frame.cpu_ms, frame.peak_memory
            child.exit_code = frame.value
            self._children.pop(frame.id, None)

    def _take_answer(self, frame: _native.Frame) -> None:
        sentinel = self._pending.get(frame.id)
        if sentinel is not None:
            self._keep_answer(frame, sentinel)
        if frame.id in self._forgotten:
            self._answers.pop(frame.id, None)
            self._forgotten.discard(frame.id)
        if frame.id in self._abandoned:
            self._end_abandoned(frame.id)

    def _keep_answer(self, frame: _native.Frame, sentinel: int) -> None:
        answer = self._answer_in(frame, sentinel)
        child = answer if isinstance(answer, Child) else None
        try:
            # No calls in these lines: from CPython 3.12 on no signal handler comes in between.
            del self._pending[frame.id]
            if child is not None:
                self._children[frame.id] = child
            self._answers[frame.id] = answer
        except KeyError:
            return  # it came in before them
        if frame.type == _native.FRAME_FAILED and sentinel >= 0:
            os.close(sentinel)

    def _answer_in(self, frame: _native.Frame, sentinel: int) -> Child | OSError | int:
        if frame.type == _native.FRAME_FAILED:
            return _failure(frame)
        if frame.type == _native.FRAME_STATUS:
            return frame.fd if frame.fd >= 0 else OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        child = Child(self, frame.value, frame.fd if frame.fd >= 0 else sentinel, is_pidfd=frame.fd >= 0)
        if child.sentinel == _AWAITED_PIDFD:
            child.lacking = frame.unsent or errno.EMFILE  # this process had no room for it
        return child

    def fetch_exit(self, child: Child, timeout: float | None) -> bool:
        """Get the exit code of a child that is dead: whether it was there within `timeout` seconds (None: no limit).

        The server reaps the child and reports it a moment after its death shows; for that moment this waits even
        when `timeout` is 0, so that a process whose sentinel is ready is never taken for a live one.
        """
        deadline = time.monotonic() + (_REAP_DEADLINE if timeout is None else max(timeout, _REAP_DEADLINE))
        if self._acquire_for(child, deadline):
            try:
                self._receive_until_told(child, deadline)
            except OSError:
                if not self._broken:
                    raise
            finally:
                self._lock.release()
        if child.exit_code is None and self._broken:
            child.exit_code = child.recover_exit_code()
        self._close_if_over()
        return child.exit_code is not None or timeout is None

    def _acquire_for(self, child: Child, deadline: float) -> bool:
        """Take the lock, unless whoever has it receives the child's exit, or the time is over."""
        while not self._lock.acquire(timeout=_HANDOVER):
            if child.exit_code is not None or time.monotonic() >= deadline:
                return False
        return True

    def _receive_until_told(self, child: Child, deadline: float) -> None:
        while child.exit_code is None and not self._broken:
            remaining = max(0.0, deadline - time.monotonic())
            if not self._take_frame(min(remaining, _RECHECK)) and remaining == 0:
                return

    def has_live_children(self) -> bool:
        """Whether one of its children lives.

        Of those without a sentinel only the server can tell, so it gets a moment to do so.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._take_all(_LOOK if any(child.sentinel < 0 for child in self._children.values()) else 0)
            finally:
                self._lock.release()
        return any(child.wait(0) is None for child in list(self._children.values()))

    def retire(self, at_end: Callable[[], None]) -> None:
        """Close as soon as no child is left whose exit is to come, and then call `at_end`."""
        self._at_end = at_end
        self._close_if_over()

    def _close_if_over(self) -> None:
        """Close if this is retired and nothing is to come. Whoever has had the lock looks once it has let go of it."""
        if self._at_end is None or not self._lock.acquire(blocking=False):
            return
        try:
            if self._is_receiving or self._pending or self._answers or self._children:
                return
            at_end, self._at_end = self._at_end, None
            self._break()
        finally:
            self._lock.release()
        if at_end is not None:
            at_end()

    def fileno(self) -> int:
        """Return a descriptor that is readable when the server has sent something; what that is may be another's."""
        return self._sock

    def is_over(self) -> bool:
        """Whether it has ended: nothing comes from it any more."""
        return self._broken

    def drain(self) -> None:
        """Take what a server that has gone still sent, and close."""
        with self._lock:
            self._take_all(None)

    def _take_all(self, timeout: float | None) -> None:
        try:
            while not self._broken and self._take_frame(timeout):
                pass
        except OSError:
            if not self._broken:
                raise

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._children.clear()
            for request_id in list(self._pending):
                self._close_sentinel(request_id)
            os.close(self._sock)

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # `os` may have gone before, at the end
        if not self._broken:
            close(self._sock)

    def abandon(self) -> None:
        """Close this process's end alone: that of its parent, after a raw `os.fork()`, goes on."""
        if not self._broken:
            self._broken = True
            os.close(self._sock)


def _failure(frame: _native.Frame) -> OSError:
    who = "the fork server"
    if frame.option:
        from .options import name_of_option

        who = f"the process cannot be started with the option {name_of_option(frame.option)}"
    return OSError(frame.value, f"{who}: {os.strerror(frame.value)}")


def _refusal(cause: int) -> OSError:
    text = f"the fork server refused the request: {_native.REFUSALS.get(cause, f'cause {cause}')}"
    is_for_memory = _native.REFUSAL_NAMES.get(cause) == "memory"
    return OSError(errno.ENOMEM, text) if is_for_memory else ConnectionAbortedError(errno.EPROTO, text)
