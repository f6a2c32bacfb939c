"""The C core as Python sees it: the only importer of the extension. -errno becomes `OSError`.

Nothing that cffi hands out leaves this module.
"""

from __future__ import annotations

import errno
import math
import os
import sys

from ._core import ffi, lib

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FDS: int = lib.FF_MAX_FDS
"""Descriptors that one request carries."""
MAX_FDS_PER_MESSAGE: int = lib.FF_MAX_FDS_PER_MESSAGE
"""Descriptors up to which a request is one message, sent whole or not at all."""
MAX_PAYLOAD: int = lib.FF_MAX_PAYLOAD
"""Bytes that one request carries."""

FRAME_STARTED: int = lib.FF_FRAME_STARTED
FRAME_FAILED: int = lib.FF_FRAME_FAILED
FRAME_EXITED: int = lib.FF_FRAME_EXITED
FRAME_REFUSED: int = lib.FF_FRAME_REFUSED

FORK_PIDFD: int = lib.FF_FORK_PIDFD
FORK_HELD: int = lib.FF_FORK_HELD
FORK_STREAM: int = lib.FF_FORK_STREAM

REFUSALS: dict[int, str] = {
    lib.FF_REFUSED_MAGIC: "not a fastfork frame",
    lib.FF_REFUSED_VERSION: "another version of the protocol",
    lib.FF_REFUSED_TYPE: "a frame type or flag that a client may not send",
    lib.FF_REFUSED_PAYLOAD: f"a payload of more than {MAX_PAYLOAD} bytes",
    lib.FF_REFUSED_FDS: "more or fewer descriptors than announced, or too many",
    lib.FF_REFUSED_MEMORY: "the server has no memory for the request",
}
"""Why a server refuses a request, by the value of a REFUSED frame."""

HAS_IMMORTAL_OBJECTS: bool = sys.version_info[:2] >= (3, 12)
# Extensions built for the stable ABI of 3.11 and older count immortal objects too. Until 3.13 that takes the count
# into its upper half, where it does no harm; from 3.14 on there is none, and the value leaves room on both sides.
_IMMORTAL_COUNT = 0xC0000000 if sys.version_info[:2] >= (3, 14) else 0xFFFFFFFF

_POLLERR = 0x08  # also: a pipe that nobody reads any more
_POLLHUP = 0x10


class Frame:
    """A frame from the server; `fd` is the descriptor that came along, or -1."""

    __slots__ = ("fd", "id", "type", "value")

    def __init__(self, frame_type: int, frame_id: int, value: int, fd: int) -> None:
        self.type = frame_type
        self.id = frame_id
        self.value = value
        self.fd = fd


class Request:
    """A request as the child that serves it sees it. The child owns the descriptors."""

    __slots__ = ("fds", "payload")

    def __init__(self, payload: bytes, fds: list[int]) -> None:
        self.payload = payload
        self.fds = fds


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _backend() -> int:
    """Return the backend that the environment asks for: ``FASTFORK_BACKEND=poll`` forces the portable one."""
    return lib.FF_BACKEND_POLL if os.environ.get("FASTFORK_BACKEND") == "poll" else lib.FF_BACKEND_AUTO


def has_pidfds() -> bool:
    """Whether processes can be held by descriptor here."""
    if _backend() == lib.FF_BACKEND_POLL:
        return False
    fd = lib.ff_pidfd_open(os.getpid())
    if fd < 0:
        return False
    os.close(fd)
    return True


class Server:
    """A server for fork requests; any process can run one, or several after one another.

    Parameters
    ----------
    listener_fd:
        A listening AF_UNIX stream socket. The server owns it.
    alive_fd:
        The server leaves when this reads end-of-file; -1 for never. The server owns it.
    authkey:
        What both ends of each connection prove that they know; 1 to 256 bytes.

    """

    def __init__(self, listener_fd: int, alive_fd: int, authkey: bytes) -> None:
        key = ffi.from_buffer("unsigned char[]", authkey)
        config = ffi.new(
            "struct ff_config *",
            {
                "listener_fd": listener_fd,
                "alive_fd": alive_fd,
                "authkey": key,
                "authkey_size": len(authkey),
                "backend": _backend(),
            },
        )
        server = ffi.new("struct ff_server **")
        _check(lib.ff_server_new(config, server))
        self._server = server[0]

    def serve(self) -> Request | None:
        """Serve. Returns None at the end and, in each child, its request: the caller then runs it.

        Raises `OSError` when the event loop cannot be set up or fails.
        """
        request = ffi.new("struct ff_request *")
        if not _check(lib.ff_python_serve(self._server, request)):
            return None
        return Request(
            ffi.buffer(request.payload, request.payload_size)[:],
            [request.fds[i] for i in range(request.fd_count)],
        )

    def close(self) -> None:
        """Close the descriptors and free the memory. Not for a child: there is nothing left to close there."""
        server, self._server = self._server, ffi.NULL
        if server:
            lib.ff_server_free(server)


def send_request(sock: int, request_id: int, flags: int, payload: bytes, fds: Sequence[int]) -> None:
    """Send one fork request on a connection: `OSError` when it cannot be sent whole."""
    array = ffi.new("int[]", list(fds))
    _check(lib.ff_client_send(sock, request_id, flags, payload, len(payload), array, len(fds)))


def receive_frame(sock: int, timeout: float | None) -> Frame | None:
    """Receive one frame; None when none came within `timeout` seconds (None: no limit).

    Raises `ConnectionResetError` at the end of the stream, `InterruptedError` when a signal came in first.
    """
    frame = ffi.new("struct ff_frame *")
    fd = ffi.new("int *", -1)
    if not _check(lib.ff_client_receive(sock, _milliseconds(timeout), frame, fd)):
        return None
    return Frame(frame.type, frame.id, frame.value, fd[0])


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Wait at most `timeout` seconds (None: no limit) for `fd` to be readable or at its end.

    Raises `InterruptedError` when a signal came in first.
    """
    return _check(lib.ff_wait_readable(fd, _milliseconds(timeout))) != 0


def is_hung_up(fd: int) -> bool:
    """Whether the other end of a socket or pipe has been closed."""
    return bool(_check(lib.ff_wait_readable(fd, 0)) & (_POLLHUP | _POLLERR))


def pidfd_exit_code(pidfd: int) -> int | None:
    """Return the exit code of a process that has been reaped, from its pidfd; None where it cannot be told."""
    code = ffi.new("int *")
    return code[0] if lib.ff_pidfd_exit_code(pidfd, code) == 0 else None


def immortalize_heap() -> int:
    """Make every object that now exists immortal: its reference count is no longer written. How many were not.

    Raises `OSError` (ENOSYS) where that is not possible: it takes CPython 3.12 or later with a GIL.
    """
    if not HAS_IMMORTAL_OBJECTS:
        raise OSError(errno.ENOSYS, "this CPython has no immortal objects")
    return _check(lib.ff_python_immortalize(_IMMORTAL_COUNT))


def measure_floor(rounds: int) -> list[float]:
    """Time `rounds` bare ``fork + _exit + waitpid`` cycles of this process in C: seconds of each."""
    seconds = ffi.new("double[]", rounds)
    _check(lib.ff_measure_floor(rounds, seconds))
    return list(seconds)


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """Return the core's HMAC-SHA-256 of `text`, for comparison with `hmac`."""
    digest = ffi.new("unsigned char[32]")
    lib.ff_hmac_sha256(key, len(key), text, len(text), digest)
    return bytes(ffi.buffer(digest))


def _milliseconds(seconds: float | None) -> int:
    """Return poll()'s timeout: rounded up, so that a wait never ends early and then spins."""
    return -1 if seconds is None else min(math.ceil(max(seconds, 0.0) * 1000), 2**31 - 1)
