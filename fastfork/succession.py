"""Where the successor of a template that has died is found, by all who knew it, without a word between them.

Address and key of each template follow from those of the one before it, by a hash that only those can make who know
that key. So whoever finds his template dead looks there. The first one to come makes the folder, which only one can,
and launches the successor; the others join it, once it has taken over the socket: whoever made that may be stopped.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import select
import socket
import time

from .address import folder_after, has_template, listen_in_new, remove, socket_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib

_GENERATIONS = 16
"""Successors that are looked at, each of which has died before the next one."""

_BIRTH = 10.0
"""Seconds that whoever has made a folder may take until a template has its socket: that is the start of an interpreter,
but the machine may be busy."""

_LOOK = 0.005
"""Seconds between two looks at a folder without a template."""


class Place:
    """Where a template is, or is to be.

    Attributes
    ----------
    address, authkey:
        Of the template.

    """

    def __init__(self, address: str, authkey: bytes, listener: socket.socket | None) -> None:
        self.address = address
        self.authkey = authkey
        self._listener = listener

    def is_claimed(self) -> bool:
        """Whether its folder is this process's, which is to launch a template there; otherwise there is one."""
        return self._listener is not None

    def claimed(self, on_failure: contextlib.ExitStack) -> socket.socket:
        """Return the socket of a claimed place, which listens; `on_failure` closes it and gives the place back."""
        assert self._listener is not None
        on_failure.callback(remove, self.address)
        return on_failure.enter_context(self._listener)


def find(address: str, authkey: bytes) -> Place | None:
    """Find the successor of the template that had this address and this key, or claim its place.

    None where there is neither: a folder cannot be made, or whoever has made it does not go on.
    """
    for _ in range(_GENERATIONS):
        folder = folder_after(address, _digest(authkey, b"fastfork: where the successor is").hex())
        authkey = _digest(authkey, b"fastfork: the key of the successor")
        address = socket_in(folder)
        found = _claim_or_await(folder, address)
        if isinstance(found, socket.socket):
            return Place(address, authkey, found)
        if found is not _DEAD:
            return Place(address, authkey, None) if found is _LISTENS else None
    return None


_LISTENS, _DEAD = "listens", "dead"


def _claim_or_await(folder: str, address: str) -> socket.socket | str | None:
    """Make the folder and listen there, or wait until a template does; None where neither comes to be."""
    deadline = time.monotonic() + _BIRTH
    while True:
        try:
            return listen_in_new(folder)
        except FileExistsError:  # or a template that leaves is about to remove it
            found = _look(address, deadline)
        except OSError:
            return None
        if found is not None or time.monotonic() >= deadline:
            return found
        time.sleep(_LOOK)


def _look(address: str, deadline: float) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        error = sock.connect_ex(address)
        if error == 0:
            _await_template(address, sock, deadline)
    if error == errno.ECONNREFUSED:
        return _DEAD
    is_there = error in (0, errno.EAGAIN)  # EAGAIN: it has no time for another connection
    return _LISTENS if is_there and has_template(address) else None


def _await_template(address: str, sock: socket.socket, deadline: float) -> None:
    """Wait until a template has the socket that this one is connected to, or nobody has it any more."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while not has_template(address) and time.monotonic() < deadline and not poller.poll(_LOOK * 1000):
        pass


def _digest(authkey: bytes, purpose: bytes) -> bytes:
    return hmac.digest(authkey, purpose, hashlib.sha256)
