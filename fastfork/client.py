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
import threading
import time

from . import _native
from .auth import authenticate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_CODE_LOST = 255
"""What is reported, as by the standard library, when nobody can tell any more how a child ended."""

_AWAITED_PIDFD = -2
"""In the place of a sentinel: it comes with the answer."""

_RECHECK = 0.05
"""Seconds after which a wait for a frame looks again whether it is there: a signal handler that comes in between the
look and the wait may have received it."""

_REAP_DEADLINE = 1.0
"""Seconds that a server may take to report a child that is dead, or init to reap one whose server is dead."""


class ServerGoneError(ConnectionResetError):
    """The server went away before it had the whole request: no child was started."""


class Child:
    """A process that was forked from a template for this client.

    Attributes
    ----------
    pid:
        Its process id.
    sentinel:
        A descriptor that becomes readable when it ends: its pidfd, or a pipe where the kernel has no pidfds.

    """

    def __init__(self, connection: Connection, pid: int, sentinel: int, *, is_pidfd: bool) -> None:
        self.pid = pid
        self.sentinel = sentinel
        self.exit_code: int | None = None
        self._connection = connection
        self._is_pidfd = is_pidfd
        self._client_pid = os.getpid()
        self._guard = threading.Lock()
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
        if self._closed and self._waiters == 0 and self.sentinel >= 0:
            os.close(self.sentinel)
            self.sentinel = -1

    def recover_exit_code(self) -> int:
        """Find out how the child ended without its server, which has died."""
        if not self._is_pidfd:
            return EXIT_CODE_LOST
        code = self._exit_code_of_zombie()
        if code is None:
            poller = select.poll()
            poller.register(self.sentinel, 0)  # a hang-up: it has been reaped, and its exit code is there
            poller.poll(_REAP_DEADLINE * 1000)
            code = _native.pidfd_exit_code(self.sentinel)
        return EXIT_CODE_LOST if code is None else code

    def _exit_code_of_zombie(self) -> int | None:
        """Return the exit code of a child that init has not reaped yet, from its last field in proc_pid_stat(5)."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stream:
                status = int(stream.read().split()[-1])
            signal.pidfd_send_signal(self.sentinel, 0)  # the pid was still its own, and no other process's
        except OSError:
            return None
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End the child, which nobody has been told of, at once and without a trace."""
        with contextlib.suppress(ProcessLookupError):
            if self._is_pidfd:
                signal.pidfd_send_signal(self.sentinel, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        self.close()


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class Connection:
    """An authenticated connection of this process to the template that listens at `address`.

    Raises `AuthenticationError` when the template has another authkey, `OSError` or `EOFError` when it is not
    there or goes away meanwhile.
    """

    def __init__(self, address: str, authkey: bytes) -> None:
        self.address = address
        self.authkey = authkey
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._answers: dict[int, Child | OSError] = {}
        self._sentinels: dict[int, int] = {}
        self._abandoned: set[int] = set()
        self._early_exits: dict[int, int] = {}
        self._last_id = 0
        self._is_receiving = False
        self._broken = True  # until there is a socket
        self._has_pidfds = _native.has_pidfds()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(address)
            authenticate(sock, authkey)
            self._sock = sock.detach()
        self._broken = False

    def is_usable(self) -> bool:
        """Whether the template is still at the other end."""
        return not self._broken and not _native.is_hung_up(self._sock)

    def start(self, payload: bytes, fds: Sequence[int]) -> Child:
        """Have a child forked that gets `payload` (bytes) and duplicates of `fds`.

        Raises `ServerGoneError` when the request did not reach the server, `BrokenPipeError` when the server went away
        before it answered and a child may or may not have been started, and `OSError` with the errno of what failed.
        """
        if self._has_pidfds:
            return self._request(_native.FORK_PIDFD, payload, fds, _AWAITED_PIDFD)
        sentinel, held = os.pipe()
        try:
            return self._request(_native.FORK_HELD, payload, [held, *fds], sentinel)
        finally:
            os.close(held)

    def start_with_stream(self, status_fd: int, fds: Sequence[int]) -> None:
        """Have a child forked whose pid and exit code the server writes to `status_fd`, as native int64."""
        self._request(_native.FORK_HELD | _native.FORK_STREAM, b"", [status_fd, *fds])

    def _request(self, flags: int, payload: bytes, fds: Sequence[int], sentinel: int = -1) -> Child:
        with self._lock:
            request_id = next(self._ids) & 0xFFFFFFFF
            self._sentinels[request_id] = sentinel
            self._last_id = request_id
            self._send(request_id, flags, payload, fds)
            return self._await_answer(request_id)

    def _send(self, request_id: int, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        try:
            _native.send_request(self._sock, request_id, flags, payload, fds)
        except OSError as error:
            self._close_sentinel(request_id)
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                if error.errno != errno.EBADF and len(fds) > _native.MAX_FDS_PER_MESSAGE:
                    self._break()  # the first of two messages may be out
                raise
            self._break()
            raise ServerGoneError(error.errno, "the fork server went away") from error

    def _close_sentinel(self, request_id: int) -> None:
        sentinel = self._sentinels.pop(request_id)
        if sentinel >= 0:
            os.close(sentinel)

    def _await_answer(self, request_id: int) -> Child:
        try:
            while request_id not in self._answers:
                self._take_frame(_RECHECK)
        except ConnectionResetError as error:
            # The kernel says so where the server has left something unread: the last request, if not more.
            if request_id == self._last_id:
                raise ServerGoneError(error.errno, "the fork server went away") from error
            raise
        except BrokenPipeError as error:
            message = "the fork server died before it answered: the process may or may not have been started"
            raise BrokenPipeError(error.errno, message) from error
        except BaseException:
            if not self._broken:
                self._abandoned.add(request_id)
            raise
        answer = self._answers.pop(request_id)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _take_frame(self, timeout: float | None) -> bool:
        """Receive one frame and pass it on: whether there was one. A connection that has ended raises."""
        was_receiving, self._is_receiving = self._is_receiving, True
        try:
            return self._receive_and_pass_on(timeout)
        finally:
            self._is_receiving = was_receiving

    def _receive_and_pass_on(self, timeout: float | None) -> bool:
        try:
            frame = _native.receive_frame(self._sock, timeout)
        except InterruptedError:
            return True
        except OSError:
            self._break()
            raise
        if frame is None:
            return False
        if frame.type == _native.FRAME_EXITED:
            self._take_exit(frame)
        elif frame.type == _native.FRAME_REFUSED:
            self._break()
            cause = _native.REFUSALS.get(frame.value, f"cause {frame.value}")
            raise ConnectionAbortedError(errno.EPROTO, f"the fork server refused the request: {cause}")
        else:
            self._take_answer(frame)
        return True

    def _take_exit(self, frame: _native.Frame) -> None:
        child = self._children.pop(frame.id, None)
        if child is not None:
            child.exit_code = frame.value
        elif frame.id in self._sentinels:
            # What a signal handler, this one, has interrupted holds the frame that tells of the start.
            self._early_exits[frame.id] = frame.value

    def _take_answer(self, frame: _native.Frame) -> None:
        if frame.type == _native.FRAME_FAILED:
            self._close_sentinel(frame.id)
            self._abandoned.discard(frame.id)
            self._answers[frame.id] = OSError(frame.value, f"the fork server: {os.strerror(frame.value)}")
            return
        sentinel = self._sentinels.pop(frame.id)
        child = Child(self, frame.value, frame.fd if frame.fd >= 0 else sentinel, is_pidfd=frame.fd >= 0)
        if frame.id in self._abandoned:
            # Its start was interrupted by an exception: the program does not know of it.
            self._abandoned.discard(frame.id)
            child.kill()
            return
        if child.sentinel == _AWAITED_PIDFD:
            # It got lost for want of a descriptor, here or in the server: without it nobody could wait for the child.
            child.sentinel = -1
            child.kill()
            self._answers[frame.id] = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return
        if frame.id in self._early_exits:
            child.exit_code = self._early_exits.pop(frame.id)
        else:
            self._children[frame.id] = child
        self._answers[frame.id] = child

    def fetch_exit(self, child: Child, timeout: float | None) -> bool:
        """Get the exit code of a child that is dead: whether it was there within `timeout` seconds (None: no limit).

        The server reaps the child and reports it a moment after its death shows; for that moment this waits even
        when `timeout` is 0, so that a process whose sentinel is ready is never taken for a live one.
        """
        limit = _REAP_DEADLINE if timeout is None else max(timeout, _REAP_DEADLINE)
        deadline = time.monotonic() + limit
        if not self._lock.acquire(timeout=limit):
            return timeout is None
        if self._is_receiving and timeout is not None:
            # A signal handler: the frame may be in the hands of what it has interrupted.
            deadline -= limit - timeout
        try:
            while child.exit_code is None and not self._broken:
                remaining = max(0.0, deadline - time.monotonic())
                if not self._take_frame(min(remaining, _RECHECK)) and remaining == 0:
                    return timeout is None
        except OSError:
            pass  # the connection has ended: every child of it is settled below
        finally:
            self._lock.release()
        if child.exit_code is None:
            child.exit_code = child.recover_exit_code()
        return True

    def drain(self) -> None:
        """Take what a server that has gone still sent, and close."""
        with self._lock, contextlib.suppress(OSError):
            while not self._broken:
                self._take_frame(None)

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._children.clear()
            for request_id in list(self._sentinels):
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
