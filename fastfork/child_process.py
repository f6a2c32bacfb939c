"""A child of this process, such as a template that it has launched: whether it lives, its end, its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from . import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK = 0.005
"""Seconds between two looks at a process where there are no pidfds."""


class ChildProcess:
    """A child of this process, held by a pidfd where the kernel has them: its pid may soon be another's.

    Attributes
    ----------
    pid:
        Its process id.
    exit_code:
        Negative for a signal; None before `has_ended` or `wait` has found it dead, and where somebody else has
        reaped it.

    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._has_ended = False
        self._pidfd = _open_pidfd(pid)

    def has_ended(self) -> bool:
        """Whether it is dead; reaps it then."""
        if not self._has_ended:
            self._reap(os.WNOHANG)
        return self._has_ended

    def wait(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds (None: no limit) for its end: whether it has come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.has_ended():
            if deadline is None:
                self._reap(0)
            elif time.monotonic() >= deadline:
                return False
            else:
                self._pause(deadline - time.monotonic())
        return True

    def kill(self) -> None:
        """End it, unless it has ended."""
        if self.has_ended():
            return
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # another thread has reaped it

    def _pause(self, seconds: float) -> None:
        if self._pidfd < 0:
            time.sleep(min(_LOOK, max(0.0, seconds)))
            return
        with contextlib.suppress(InterruptedError):  # the signal's Python handler has run by now
            _native.wait_readable(self._pidfd, seconds)

    def _reap(self, options: int) -> None:
        kind, number = (os.P_PID, self.pid) if self._pidfd < 0 else (os.P_PIDFD, self._pidfd)
        try:
            result = os.waitid(kind, number, os.WEXITED | options)
        except ChildProcessError:
            self._has_ended = True  # somebody else has reaped it
            return
        if result is not None:
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            self.exit_code = code
            self._has_ended = True

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # `os` may have gone before, at the end
        if self._pidfd >= 0:
            close(self._pidfd)


def _open_pidfd(pid: int) -> int:
    """Return a pidfd that can be waited for (Linux 5.4), or -1."""
    if not _native.has_pidfds():
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        os.close(pidfd)
        return -1
    return pidfd
