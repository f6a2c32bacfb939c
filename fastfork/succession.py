"""Where the successor of a template that has died is found, by all who knew it, without a word between them.

Address and key of each template follow from those of the one before it, by a hash that only those can make who know
that key. So whoever finds his template dead looks there. The first one to come makes the folder, which only one can,
and launches the successor; the others join it, once it has taken over the socket: whoever made that may be stopped.

Of several successors that have died one after another the folders may be gone, so that those who have known different
ones of them make different folders. Each of them looks at the others' once he has made his own, so that one of two
who are at it at the same moment sees the other one. Who sees a later one leaves it to that. Who sees none but an
earlier one waits whether that is left to him too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import select
import socket
import time

from .address import folder_after, has_template, listen_in_new, remove, socket_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def give_back(self) -> None:
        """Have somebody else claim a claimed place."""
        with contextlib.ExitStack() as on_failure:
            self.claimed(on_failure)


def find(address: str, authkey: bytes) -> Place | None:
    """Find the successor of the template that had this address and this key, or claim its place.

    None where there is neither: a folder cannot be made, or whoever has made it does not go on.
    """
    chain = [(address, authkey), *_successors(address, authkey)]
    number = 1
    while number < len(chain):
        address, authkey = chain[number]
        found = _claim_or_await(address)
        if isinstance(found, socket.socket):
            claimed = Place(address, authkey, found)
            later = next((n for n in range(number + 1, len(chain)) if _is_listened_at(chain[n][0])), None)
            if later is None:
                return _unless_joined(claimed, chain[:number])
            claimed.give_back()
            number = later
        elif found is _DEAD:
            number += 1
        else:
            return Place(address, authkey, None) if found is _LISTENS else None
    return None


def _successors(address: str, authkey: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield address and key of each template that may have come after this one."""
    for _ in range(_GENERATIONS):
        folder = folder_after(address, _digest(authkey, b"fastfork: where the successor is").hex())
        authkey = _digest(authkey, b"fastfork: the key of the successor")
        address = socket_in(folder)
        yield address, authkey


def _unless_joined(claimed: Place, earlier: list[tuple[str, bytes]]) -> Place:
    """Give a claimed place back for one of those before it, if there is a template at that now."""
    deadline = time.monotonic() + _BIRTH
    for address, authkey in earlier:
        if _look(address, deadline) is _LISTENS:
            claimed.give_back()
            return Place(address, authkey, None)
    return claimed


_LISTENS, _DEAD = "listens", "dead"


def _claim_or_await(address: str) -> socket.socket | str | None:
    """Make the folder of an address and listen there, or wait until a template does; None where neither comes to be."""
    deadline = time.monotonic() + _BIRTH
    while True:
        try:
            return listen_in_new(os.path.dirname(address))
        except FileExistsError:  # or a template that leaves is about to remove it
            found = _look(address, deadline)
        except OSError:
            return None
        if found is not None or time.monotonic() >= deadline:
            return found
        time.sleep(_LOOK)


_SOMEBODY_LISTENS = (0, errno.EAGAIN)
"""What a connect says of that: with EAGAIN he has no time for another connection."""


def _look(address: str, deadline: float) -> str | None:
    with _non_blocking_socket() as sock:
        error = sock.connect_ex(address)
        if error == 0:
            _await_template(address, sock, deadline)
    if error == errno.ECONNREFUSED:
        return _DEAD
    return _LISTENS if error in _SOMEBODY_LISTENS and has_template(address) else None


def _is_listened_at(address: str) -> bool:
    """Whether there is a template at an address, or somebody has claimed that."""
    with _non_blocking_socket() as sock:
        return sock.connect_ex(address) in _SOMEBODY_LISTENS


def _non_blocking_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def _await_template(address: str, sock: socket.socket, deadline: float) -> None:
    """Wait until a template has the socket that this one is connected to, or nobody has it any more."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while not has_template(address) and time.monotonic() < deadline and not poller.poll(_LOOK * 1000):
        pass


def _digest(authkey: bytes, purpose: bytes) -> bytes:
    return hmac.digest(authkey, purpose, hashlib.sha256)
