"""What clients say to a fork server, cut up into bytes and descriptors, so that they can stop or go wrong anywhere."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
import sys
import termios
from fcntl import ioctl
from multiprocessing.forkserver import read_signed
from typing import NamedTuple

from support.processes import DEADLINE

from fastfork import _native

FRAME = struct.Struct("=IHHIiII")
FIELDS = ("magic", "version", "type", "id", "value", "payload", "fds")


def header(**fields):
    """Return a frame that asks for a child without payload or descriptors, but for the fields given."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _native.send_request(ours.fileno(), 1, 0, b"", [])
        sound = dict(zip(FIELDS, FRAME.unpack(theirs.recv(FRAME.size))))
    return FRAME.pack(*{**sound, **fields}.values())


class _LeaveAtOnce:
    """What ends the process that unpickles it."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return os._exit, (self.code,)


def work(code=0):
    """Return what makes a child leave at once with an exit code."""
    return pickle.dumps({}) + pickle.dumps(_LeaveAtOnce(code))


class Request:
    """A request for one child, as its server's protocol has it: so many bytes, so many descriptors.

    What the child is to do comes with the request (fastfork alone), or by `tell()`, through a pipe. One more
    descriptor goes along, a `Witness`.
    """

    def __init__(self, server, payload=b"", request_id=1, extra_fds=0):
        self.id = request_id
        data_r, self._data_w = os.pipe()
        self.witness = Witness()
        self._own = [data_r]
        self._status_r = -1
        if server.kind == "fastfork":
            self.fds = [data_r, *server.common_fds] + [self.witness.fd] * (1 + extra_fds)
            self._payload = payload
            self.set_flags(0)
        else:
            self._status_r, status_w = os.pipe()
            self._own += [status_w]
            self.fds = [data_r, status_w, *server.common_fds] + [self.witness.fd] * (1 + extra_fds)
            self.bytes = bytes([len(self.fds)])

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.give_away()
        self.witness.close()
        os.close(self._data_w)
        if self._status_r >= 0:
            os.close(self._status_r)

    def send(self, sock):
        """Send it whole."""
        send_with_fds(sock, self.bytes, self.fds)

    def set_flags(self, flags):
        """Ask with flags (fastfork's ff_fork_flags)."""
        fields = {"id": self.id, "value": flags, "payload": len(self._payload), "fds": len(self.fds)}
        self.bytes = header(**fields) + self._payload

    def renumber(self, request_id):
        """Ask once more with another id, where requests have any."""
        self.id = request_id
        if self._status_r < 0:
            self.set_flags(0)

    def exit_code(self, sock):
        """Return the exit code of the child, once the server has told that it was started and that it ended."""
        if self._status_r >= 0:
            read_signed(self._status_r)
            return read_signed(self._status_r)
        started, exited = (_native.receive_frame(sock.fileno(), DEADLINE) for _ in range(2))
        assert (started.type, started.id) == (_native.FRAME_STARTED, self.id)
        assert (exited.type, exited.id) == (_native.FRAME_EXITED, self.id)
        return exited.value

    def tell(self, code=0):
        """Make the child leave with an exit code."""
        os.write(self._data_w, work(code))

    def give_away(self):
        """Close what was sent, so that only the server and its child have it."""
        while self._own:
            os.close(self._own.pop())
        self.witness.give_away()


class Witness:
    """A descriptor for a server, by which is seen whether anybody still has it open."""

    def __init__(self):
        self._read_end, self.fd = os.pipe()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.give_away()
        self.close()

    def give_away(self):
        """Close this process's own copy."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def is_open(self, timeout=DEADLINE):
        """Whether somebody has it open still, after `timeout` seconds."""
        poller = select.poll()
        poller.register(self._read_end, select.POLLIN)
        return not poller.poll(timeout * 1000)

    def close(self):
        os.close(self._read_end)


def send_with_fds(sock, data, fds):
    """Send all of `data`, and descriptors with its first byte."""
    rest = data[socket.send_fds(sock, [data], fds) :]
    if rest:
        sock.sendall(rest)


def unread_bytes(sock):
    """Return how many of the bytes that were sent on a socket the other end has not taken yet."""
    return int.from_bytes(ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class EnoughSaidError(Exception):
    """The client says no more."""


class Mumbler:
    """A socket that passes on so many bytes (None: all), and descriptors with the first of them, and then no more."""

    def __init__(self, sock, limit):
        self._sock = sock
        self._limit = limit
        self.recv = sock.recv
        self.said = 0

    def sendall(self, data, fds=()):
        part = data if self._limit is None else data[: self._limit - self.said]
        if part:
            send_with_fds(self._sock, part, fds)
        self.said += len(part)
        if len(part) < len(data):
            raise EnoughSaidError


def say(server, sock, limit, request):
    """Say the first `limit` bytes (None: all) of what asks for one child, from the handshake on; return how many."""
    mumbler = Mumbler(sock, limit)
    with contextlib.suppress(EnoughSaidError):
        server.authenticate(mumbler)
        mumbler.sendall(request.bytes, request.fds)
    return mumbler.said


class Part(NamedTuple):
    """How much of a request a client sends."""

    fds: int
    size: int
    """Bytes."""
    fds_at_once: int = 1
    """Descriptors with one message, and with one byte of it."""


def send_part(sock, request, part):
    """Send part of a request: its descriptors first, with as many bytes as they take, and then the other bytes."""
    fds = request.fds[: part.fds]
    messages = [fds[begin : begin + part.fds_at_once] for begin in range(0, len(fds), part.fds_at_once)]
    for byte, some in zip(request.bytes, messages):
        socket.send_fds(sock, [bytes([byte])], some)
    sock.sendall(request.bytes[len(messages) : part.size])


def serve_newcomer(server):
    """See that a client that has just come gets a child and its exit code."""
    with server.connect() as sock, Request(server) as request:
        request.send(server.authenticate(sock))
        request.tell(5)
        assert request.exit_code(sock) == 5
