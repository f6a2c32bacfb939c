"""Clients that behave badly: they stall, talk nonsense, ask and go away. Nobody else may notice."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import random
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from .journal import Journal
    from .servers import Server

LONGEST_PAUSE = 0.6  # seconds
PATIENCE = 5.0  # seconds that a vandal waits for a server
MOST_CONNECTIONS = 12
"""Connections that a vandal keeps: then it closes the oldest."""

_MOST_UNREAD = 8
_WRONG_FIELDS = {"magic": 0, "version": 4, "type": 6, "value": 12, "payload": 16, "descriptors": 20}
"""What can be wrong with a header: the field's place."""


class LeavesWhenLoaded:
    """Unpickling it ends the process."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (0,)


_WORK = pickle.dumps({}) + pickle.dumps(LeavesWhenLoaded())


def run(seed: str, server: Server, null: int, journal: Journal, is_over: threading.Event) -> None:
    """Misbehave in one way after another until it is over; `null` is an open file to send along."""
    chance = random.Random(f"{seed}-vandal")
    kept: collections.deque[socket.socket] = collections.deque()
    while not is_over.wait(chance.uniform(0, LONGEST_PAUSE)):
        name = chance.choice(list(WAYS))
        with contextlib.suppress(OSError, EOFError):
            kept.append(WAYS[name](_Visit(chance, server, null)))
            journal.write("fault", f"a client {name}")
        while len(kept) > chance.randint(0, MOST_CONNECTIONS):
            kept.popleft().close()
    for sock in kept:
        sock.close()


class _Visit:
    """One connection of a vandal."""

    def __init__(self, chance: random.Random, server: Server, null: int) -> None:
        self.chance = chance
        self._server = server
        self._null = null

    def connect(self) -> socket.socket:
        address = self._server.address
        if address is None:
            raise FileNotFoundError("there is no template now")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(PATIENCE)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def enter(self, key: bytes | None = None) -> socket.socket:
        """Connect and go through the handshake."""
        sock = self.connect()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            self._server.authenticate(sock, key or self._server.authkey or b"")
            on_failure.pop_all()
        return sock

    def request(self, payload: bytes = b"", fd_count: int = 0) -> bytes:
        return self._server.request(payload, fd_count)

    def send(self, sock: socket.socket, data: bytes, fd_count: int = 0) -> socket.socket:
        socket.send_fds(sock, [data], [self._null] * fd_count)
        return sock


def _stay_silent(visit: _Visit) -> socket.socket:
    return visit.connect()


def _stall_in_the_handshake(visit: _Visit) -> socket.socket:
    message = struct.pack("!i", visit.chance.randint(1, 256)) + bytes(16)
    return visit.send(visit.connect(), message[: visit.chance.randint(1, len(message))])


def _talk_nonsense(visit: _Visit) -> socket.socket:
    return visit.send(visit.connect(), visit.chance.randbytes(visit.chance.randint(1, 5000)))


def _try_another_key(visit: _Visit) -> socket.socket:
    with contextlib.suppress(Exception):
        visit.enter(b"another key").close()
    return visit.connect()


def _stall_in_a_header(visit: _Visit) -> socket.socket:
    request = visit.request()
    return visit.send(visit.enter(), request[: visit.chance.randint(0, len(request) - 1)], 1)


def _stall_in_a_payload(visit: _Visit) -> socket.socket:
    request = visit.request(bytes(visit.chance.randint(2, 60_000)), fd_count=3)
    return visit.send(visit.enter(), request[: visit.chance.randint(24, len(request) - 1)], 3)


def _send_a_wrong_header(visit: _Visit) -> socket.socket:
    request = bytearray(visit.request())
    place = visit.chance.choice(list(_WRONG_FIELDS.values()))
    request[place : place + 4] = visit.chance.choice((bytes(4), b"\xff" * 4, visit.chance.randbytes(4)))
    return visit.send(visit.enter(), bytes(request))


def _send_wrong_descriptors(visit: _Visit) -> socket.socket:
    announced, sent = visit.chance.sample(range(12), 2)
    return visit.send(visit.enter(), visit.request(_WORK, announced), sent)


def _go_away_before_the_answer(visit: _Visit) -> socket.socket:
    sock = visit.send(visit.enter(), visit.request(_WORK, fd_count=3), 3)
    sock.close()
    return sock


def _read_no_answers(visit: _Visit) -> socket.socket:
    sock = visit.enter()
    for _ in range(visit.chance.randint(1, _MOST_UNREAD)):
        visit.send(sock, visit.request(_WORK, fd_count=3), 3)
    return sock


WAYS: dict[str, Callable[[_Visit], socket.socket]] = {
    "stays silent": _stay_silent,
    "stalls in the handshake": _stall_in_the_handshake,
    "talks nonsense": _talk_nonsense,
    "tries another key": _try_another_key,
    "stalls in a header": _stall_in_a_header,
    "stalls in a payload": _stall_in_a_payload,
    "sends a wrong header": _send_a_wrong_header,
    "sends wrong descriptors": _send_wrong_descriptors,
    "goes away before the answer": _go_away_before_the_answer,
    "reads no answers": _read_no_answers,
}
