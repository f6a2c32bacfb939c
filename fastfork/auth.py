"""The client's side of multiprocessing.connection's mutual challenge.

Written out because every CPython from 3.9 must speak what 3.12 began to: HMAC-SHA-256, named in the message
(see "Authentication Handshake Protocol Description" in multiprocessing/connection.py of 3.12 and later).
"""

from __future__ import annotations

import hmac
import os
import struct
from multiprocessing import AuthenticationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_PREFIX = struct.Struct("!i")
_MAX_MESSAGE = 256
_CHALLENGE = b"#CHALLENGE#"
_WELCOME = b"#WELCOME#"
_FAILURE = b"#FAILURE#"
_DIGEST = b"{sha256}"
_RANDOM_SIZE = 40


def authenticate(sock: socket.socket, authkey: bytes) -> None:
    """Prove to the server that `authkey` is known here, and have it prove the same.

    Raises `AuthenticationError` when either side does not know the key, `EOFError` when the server goes away.
    """
    _answer_challenge(sock, authkey)
    _deliver_challenge(sock, authkey)


def _answer_challenge(sock: socket.socket, authkey: bytes) -> None:
    message = _receive(sock)
    if not message.startswith(_CHALLENGE + _DIGEST):
        raise AuthenticationError(f"protocol error, expected a challenge: {message!r}")
    _send(sock, _DIGEST + _digest(authkey, message[len(_CHALLENGE) :]))
    if _receive(sock) != _WELCOME:
        raise AuthenticationError("digest sent was rejected")


def _deliver_challenge(sock: socket.socket, authkey: bytes) -> None:
    challenge = _DIGEST + os.urandom(_RANDOM_SIZE)
    _send(sock, _CHALLENGE + challenge)
    if not hmac.compare_digest(_receive(sock), _DIGEST + _digest(authkey, challenge)):
        _send(sock, _FAILURE)
        raise AuthenticationError("digest received was wrong")
    _send(sock, _WELCOME)


def _digest(authkey: bytes, message: bytes) -> bytes:
    return hmac.new(authkey, message, "sha256").digest()


def _send(sock: socket.socket, message: bytes) -> None:
    sock.sendall(_PREFIX.pack(len(message)) + message)


def _receive(sock: socket.socket) -> bytes:
    (size,) = _PREFIX.unpack(_receive_exactly(sock, _PREFIX.size))
    if not 0 < size <= _MAX_MESSAGE:
        raise AuthenticationError(f"protocol error, a message of {size} bytes")
    return _receive_exactly(sock, size)


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the fork server closed the connection during authentication")
        data += part
    return data
