"""What a template's server tells of itself: `fastfork.server_status`."""

from __future__ import annotations

import errno
import os
import time
from typing import NamedTuple

from . import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal


class ServerStatus(NamedTuple):
    """A moment in the life of a template, as its server counts it.

    Counts are since the template began to serve; they are 0 or empty where it does not.
    """

    state: Literal["stopped", "preloading", "serving"]
    """``"stopped"``: there is none; the next start launches one. ``"preloading"``: it was launched and does not serve
    yet. ``"serving"``: it serves, however busy it is."""
    pid: int | None
    """The template's process id; None where there is none, or none that this process knows."""
    uptime: float
    """Seconds for which it has served."""
    starts: int
    """Processes that were started."""
    spare_starts: int
    """Those of them that a process forked ahead has served: see ``spares`` of `fastfork.get_context`."""
    spares: int
    """Processes that were forked ahead and have nothing to do yet."""
    failures: dict[str, int]
    """Starts that failed, by the name of the errno: ``{"EAGAIN": 3}``."""
    live_children: int
    """Processes that it has started and not seen the end of."""
    clients: int
    """Processes, and others, that are connected."""
    refused: dict[str, int]
    """Connections that were refused, by cause: ``"magic"``, ``"version"``, ``"type"``, ``"payload"`` or
    ``"descriptors"`` of a frame that was not sound, ``"options"`` that were not, ``"memory"`` that it lacked, a wrong
    ``"key"``, another ``"user"``, a request that took too much ``"time"`` to come, or not authenticated yet when
    another of too many ``"clients"`` needed the place."""
    accept_failures: dict[str, int]
    """Times that clients had to wait, or to come again, since they could not be accepted, by the name of the errno."""


def status_without_server(state: Literal["stopped", "preloading"], pid: int | None = None) -> ServerStatus:
    """Return the status of a template that does not serve."""
    return ServerStatus(
        state,
        pid,
        uptime=0.0,
        starts=0,
        spare_starts=0,
        spares=0,
        failures={},
        live_children=0,
        clients=0,
        refused={},
        accept_failures={},
    )


class StatusPage:
    """The page of one server, which tells for as long as this is kept, and even when the server is stopped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> ServerStatus:
        """Return what it says now."""
        status = _native.read_status(self._fd)
        return ServerStatus(
            state="serving",
            pid=status.pid,
            uptime=time.clock_gettime(time.CLOCK_MONOTONIC) - status.started,
            starts=status.starts,
            spare_starts=status.spare_starts,
            spares=status.spares,
            failures=_by_errno(status.failures),
            live_children=status.live_children,
            clients=status.clients,
            refused={_native.REFUSAL_NAMES.get(cause, str(cause)): n for cause, n in status.refused.items()},
            accept_failures=_by_errno(status.accept_failures),
        )

    def __del__(
        self, close: Callable[[int], None] = os.close
    ) -> None:  # `os` may have gone before, at the end
        close(self._fd)


def _by_errno(counts: dict[int, int]) -> dict[str, int]:
    """Name the errnos; those that have no number of their own on the page are ``"other"``."""
    return {errno.errorcode.get(number, "other"): count for number, count in counts.items()}
