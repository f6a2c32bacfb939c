"""What a task and its caller say to each other: messages on a stream socket, each of a kind and some parts.

    kind and number of parts    a uint32 each
    size of each part           a uint64 each, bytes
    the parts

Descriptors may come along with the first byte. Parts are sent from where they are and received to where they stay, so
that a large one is not copied on its way through a process.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Union

    Part = Union[bytes, bytearray, memoryview]
    """Bytes; a memoryview is one of bytes, in one piece."""

_HEAD = struct.Struct("=II")
_SIZE_BYTES = 8
_MAX_VECTORS = 1024
"""Buffers that writev(2) takes: IOV_MAX of Linux."""

_MAX_PARTS = 1 << 24
"""More than a message ever has: somebody else has written to the socket."""

_FIRST_READ = 65536
"""Bytes that are asked for before it is known how many there are: most messages are smaller."""


def pack(kind: int, parts: Sequence[Part]) -> list[Part]:
    """Return what a message is on its way: a head, and then its parts as they are."""
    sizes = struct.pack(f"={len(parts)}Q", *map(len, parts))
    return [_HEAD.pack(kind, len(parts)) + sizes, *parts]


def send(fd: int, kind: int, parts: Sequence[Part]) -> None:
    """Send a message on a socket that blocks. Raises `OSError`."""
    send_rest(fd, pack(kind, parts))


def send_rest(fd: int, rest: list[Part]) -> None:
    """Send what is left of a message on a socket that blocks. Raises `OSError`."""
    while rest:
        rest = without(rest, os.writev(fd, rest[:_MAX_VECTORS]))


def send_some(fd: int, rest: list[Part]) -> list[Part]:
    """Send what a socket takes that does not block: what is left. Raises `OSError`."""
    try:
        while rest:
            rest = without(rest, os.writev(fd, rest[:_MAX_VECTORS]))
    except BlockingIOError:
        pass
    return rest


def without(parts: list[Part], size: int) -> list[Part]:
    """Return `parts` less their first `size` bytes."""
    for index, part in enumerate(parts):
        if size < len(part):
            return [memoryview(part)[size:], *parts[index + 1 :]] if size else parts[index:]
        size -= len(part)
    return []


def receive(fd: int) -> list[bytes | bytearray]:
    """Receive a message on a socket that blocks: its parts. Raises `EOFError` and `OSError`."""
    import socket

    reader = Reader()
    sock = socket.socket(fileno=fd)
    try:
        reader.read(sock)
    finally:
        sock.detach()
    return reader.parts


class Reader:
    """Gathers one message.

    Attributes
    ----------
    kind:
        Its kind, once it is whole.
    parts:
        Its parts, once it is whole: what is small as bytes, the others as bytearrays.

    """

    def __init__(self) -> None:
        self.kind = 0
        self.parts: list[bytes | bytearray] = []
        self._early = b""
        self._missing: list[memoryview] = []
        self._knows_size = False

    def read(self, sock: socket.socket) -> bool:
        """Read what there is: whether the message is whole.

        On a socket that does not block that is what has come up to now, on another one all. Raises `EOFError` at the
        end of the stream, `OSError`, `MemoryError` where there is no room for it, and `ValueError` and `OverflowError`
        for what is no message.
        """
        try:
            while not self._is_whole():
                if self._knows_size:
                    self._read_missing(sock)
                else:
                    self.take(sock.recv(_FIRST_READ))
        except BlockingIOError:
            return False
        return True

    def take(self, content: bytes) -> bool:
        """Take the beginning of the message: whether it is whole."""
        if not content:
            raise EOFError("the stream ends amid a message")
        content = self._early + content if self._early else content
        size = _head_size(content)
        if size > len(content):
            self._early = content
            return False
        self._early = b""
        self._begin(content, size)
        return self._is_whole()

    def _is_whole(self) -> bool:
        return self._knows_size and not self._missing

    def _begin(self, content: bytes, start: int) -> None:
        self.kind, count = _HEAD.unpack_from(content)
        for size in struct.unpack_from(f"={count}Q", content, _HEAD.size):
            here = content[start : start + size]
            start += size
            if len(here) == size:
                self.parts.append(here)
            else:
                self._expect(here, size)
        self._knows_size = True

    def _expect(self, here: bytes, size: int) -> None:
        part = bytearray(size)
        part[: len(here)] = here
        self.parts.append(part)
        self._missing.append(memoryview(part)[len(here) :])

    def _read_missing(self, sock: socket.socket) -> None:
        size = sock.recv_into(self._missing[0])
        if not size:
            raise EOFError("the stream ends amid a message")
        self._missing[0] = self._missing[0][size:]
        if not self._missing[0]:
            del self._missing[0]


def _head_size(content: bytes) -> int:
    if len(content) < _HEAD.size:
        return _HEAD.size
    _kind, count = _HEAD.unpack_from(content)
    if count > _MAX_PARTS:
        raise ValueError("what has come is no message")
    size: int = _HEAD.size + count * _SIZE_BYTES
    return size
