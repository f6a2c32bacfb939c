"""What a template tells its client before it serves, through a pipe: how far it has come, and why it gave up.

========= =====================================================================================
``.``     one for each module of the preload, as it begins
``!``     the template is about to serve
``?``     it cannot: a pickle of the errno and its text follows
otherwise why it gave up: a pickle of reason, module and traceback, or stacks from faulthandler
========= =====================================================================================

All of it fits into the pipe: the client reads only when it has to. The template closes its end before its first fork,
when it serves.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading

from . import _native

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Optional

    Failure = tuple[str, Optional[str], str]
    """Reason, module and traceback of a `fastfork.PreloadError`."""

_MODULE = b"."
_READY = b"!"
_CANNOT_SERVE = b"?"
_PICKLE = b"\x80"

_MAX_TRACEBACK = 30_000
"""Bytes of a traceback that are told: its end."""


class Report:
    """The template's end of the pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_inheritable(fd, False)

    def begin_module(self) -> None:
        """Tell that the next module is about to be imported."""
        self._tell(_MODULE)

    def fail(self, reason: str, module: str | None, traceback: str) -> None:
        """Tell why the template gives up."""
        end = traceback.encode("utf-8", "backslashreplace")[-_MAX_TRACEBACK:].decode("utf-8", "ignore")
        self._tell(pickle.dumps((reason, module, end)))

    def be_ready(self) -> None:
        """Tell that the template is about to serve. Its first fork closes the pipe."""
        self._tell(_READY)
        fd, self.fd = self.fd, -1
        _native.close_at_fork(fd)

    def fail_to_serve(self, error: OSError) -> None:
        """Tell why it cannot; nothing once it has forked."""
        if self.fd < 0:
            self.fd = _native.close_at_fork(-1)
        self._tell(_CANNOT_SERVE + pickle.dumps((error.errno, error.strerror)))

    def _tell(self, content: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or a preloaded module has closed the pipe
            os.write(self.fd, content)


class Reader:
    """The client's end of the pipe: what has been told up to now."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()
        self._content = b""
        os.set_blocking(fd, False)

    def is_ready(self) -> bool:
        """Whether the template serves by now, or is about to."""
        return self._after_modules().startswith(_READY)

    def modules_begun(self) -> int:
        """How many modules the preload has come to."""
        content = self._read()
        return len(content) - len(content.lstrip(_MODULE))

    def error_of_serving(self) -> tuple[int, str] | None:
        """Return the errno and its text for which the template cannot serve, if that is so."""
        rest = self._after_modules().lstrip(_READY)
        if not rest.startswith(_CANNOT_SERVE):
            return None
        error: tuple[int, str] = pickle.loads(rest[len(_CANNOT_SERVE) :])
        return error

    def failure(self) -> Failure | None:
        """Why the template gave up, if it was able to say so."""
        rest = self._after_modules()
        if not rest.startswith(_PICKLE):
            return None
        failure: Failure = pickle.loads(rest)
        return failure

    def stacks(self) -> str:
        """Where its threads were when the time limit was over, as far as that has been told."""
        rest = self._after_modules()
        return "" if rest.startswith((_PICKLE, _READY, _CANNOT_SERVE)) else rest.decode("utf-8", "replace")

    def _after_modules(self) -> bytes:
        return self._read().lstrip(_MODULE)

    def _read(self) -> bytes:
        with self._lock, contextlib.suppress(BlockingIOError):
            while self._fd >= 0:
                part = os.read(self._fd, 65536)
                if not part:
                    self.close()
                self._content += part
        return self._content

    def close(self) -> None:
        """Close the pipe; what has been read stays known."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close it in the child of a raw ``os.fork()``, where a thread that is no more may have the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
