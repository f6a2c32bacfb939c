"""What a template tells its client before it serves, through a pipe: how far it has come, and why it gave up.

========= =====================================================================================
``.``     one for each module of the preload, as it begins
``!``     the template is about to serve; nothing follows
otherwise why it gave up: a pickle of reason, module and traceback, or stacks from faulthandler
========= =====================================================================================

All of it fits into the pipe: the client reads only when it has to.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Optional

    Failure = tuple[str, Optional[str], str]
    """Reason, module and traceback of a `fastfork.PreloadError`."""

_MODULE = b"."
_READY = b"!"
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
        """Tell that the template is about to serve."""
        self._tell(_READY)
        with contextlib.suppress(OSError):
            os.close(self.fd)

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
        return self._read().lstrip(_MODULE) == _READY

    def modules_begun(self) -> int:
        """How many modules the preload has come to."""
        content = self._read()
        return len(content) - len(content.lstrip(_MODULE))

    def failure(self) -> Failure | None:
        """Why the template gave up, if it was able to say so."""
        rest = self._read().lstrip(_MODULE)
        if not rest.startswith(_PICKLE):
            return None
        failure: Failure = pickle.loads(rest)
        return failure

    def stacks(self) -> str:
        """Where its threads were when the time limit was over, as far as that has been told."""
        rest = self._read().lstrip(_MODULE)
        return "" if rest.startswith((_PICKLE, _READY)) else rest.decode("utf-8", "replace")

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
