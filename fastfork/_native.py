"""The C core as Python sees it: the only importer of the extension. -errno becomes `OSError`.

Nothing that cffi hands out leaves this module.
"""

from __future__ import annotations

import errno
import math
import os
import struct
import sys

from ._core import ffi, lib

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

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
FRAME_STATUS: int = lib.FF_FRAME_STATUS

FORK_PIDFD: int = lib.FF_FORK_PIDFD
FORK_HELD: int = lib.FF_FORK_HELD
FORK_STREAM: int = lib.FF_FORK_STREAM
FORK_DIE_WITH_CLIENT: int = lib.FF_FORK_DIE_WITH_CLIENT
FORK_OPTIONS: int = lib.FF_FORK_OPTIONS
FIRST_MODULE: int = lib.FF_FIRST_MODULE

OPTION_STDIN: int = lib.FF_OPTION_STDIN
OPTION_STDOUT: int = lib.FF_OPTION_STDOUT
OPTION_STDERR: int = lib.FF_OPTION_STDERR
OPTION_NEW_SESSION: int = lib.FF_OPTION_NEW_SESSION
OPTION_UMASK: int = lib.FF_OPTION_UMASK
OPTION_CWD: int = lib.FF_OPTION_CWD
OPTION_ENV: int = lib.FF_OPTION_ENV
OPTION_NICE: int = lib.FF_OPTION_NICE
OPTION_AFFINITY: int = lib.FF_OPTION_AFFINITY
OPTION_RLIMIT: int = lib.FF_OPTION_RLIMIT
STREAM_FD: int = lib.FF_STREAM_FD
STREAM_NULL: int = lib.FF_STREAM_NULL
STREAM_STDOUT: int = lib.FF_STREAM_STDOUT
MAX_CPUS: int = lib.FF_MAX_CPUS
MAX_RLIMITS: int = lib.FF_MAX_RLIMITS

REFUSALS: dict[int, str] = {
    lib.FF_REFUSED_MAGIC: "not a fastfork frame",
    lib.FF_REFUSED_VERSION: "another version of the protocol",
    lib.FF_REFUSED_TYPE: "a frame type or flag that a client may not send",
    lib.FF_REFUSED_PAYLOAD: f"a payload of more than {MAX_PAYLOAD} bytes",
    lib.FF_REFUSED_FDS: "more or fewer descriptors than announced, or too many",
    lib.FF_REFUSED_MEMORY: "the server has no memory for the request",
    lib.FF_REFUSED_TIME: f"a request that was begun and not ended within {lib.FF_REQUEST_MS / 1000:g} s",
    lib.FF_REFUSED_OPTIONS: "a block of options that is none",
}
"""Why a server refuses a request, by the value of a REFUSED frame."""

REFUSAL_NAMES: dict[int, str] = {
    lib.FF_REFUSED_MAGIC: "magic",
    lib.FF_REFUSED_VERSION: "version",
    lib.FF_REFUSED_TYPE: "type",
    lib.FF_REFUSED_PAYLOAD: "payload",
    lib.FF_REFUSED_FDS: "descriptors",
    lib.FF_REFUSED_MEMORY: "memory",
    lib.FF_REFUSED_KEY: "key",
    lib.FF_REFUSED_USER: "user",
    lib.FF_REFUSED_CLIENTS: "clients",
    lib.FF_REFUSED_TIME: "time",
    lib.FF_REFUSED_OPTIONS: "options",
}
"""Why a server refuses a connection, in a word each."""

HAS_IMMORTAL_OBJECTS: bool = sys.version_info[:2] >= (3, 12)
# Extensions built for the stable ABI of 3.11 and older count immortal objects too. Until 3.13 that takes the count
# into its upper half, where it does no harm; from 3.14 on there is none, and the value leaves room on both sides.
_IMMORTAL_COUNT = 0xC0000000 if sys.version_info[:2] >= (3, 14) else 0xFFFFFFFF

_POLLERR = 0x08  # also: a pipe that nobody reads any more
_POLLHUP = 0x10


_FRAME = struct.Struct("=IHHIiIIi")
"""``struct ff_frame`` and the descriptor that came along."""


class Frame:
    """A frame from the server.

    Attributes
    ----------
    fd:
        The descriptor that came along, or -1.
    cpu_ms, peak_memory:
        Of an EXITED frame: the child's CPU time and the most that it had resident, as getrusage(2) has it.
    option:
        Of a FAILED frame: the kind of the option that could not be applied, or 0.
    unsent:
        Of a STARTED frame: the errno for which the server could not send the pidfd, or 0.

    """

    __slots__ = ("content", "cpu_ms", "fd", "id", "peak_memory", "type", "value")

    def __init__(self, content: bytes) -> None:
        self.content = content
        _, _, self.type, self.id, self.value, self.cpu_ms, self.peak_memory, self.fd = _FRAME.unpack(content)

    @property
    def option(self) -> int:
        """The same place in the frame as `cpu_ms`."""
        return self.cpu_ms

    @property
    def unsent(self) -> int:
        """The same place in the frame as `cpu_ms`."""
        return self.cpu_ms


class Request:
    """A request as the child that serves it sees it. The child owns the descriptors.

    Attributes
    ----------
    options:
        ``1 << kind`` for each kind of option that has been applied, but for limits.
    env:
        The environment, if that was among them: each variable with a null character behind it.

    """

    __slots__ = ("env", "fds", "options", "payload")

    def __init__(self, payload: bytes, fds: list[int], options: int, env: bytes) -> None:
        self.payload = payload
        self.fds = fds
        self.options = options
        self.env = env

    def has(self, kind: int) -> bool:
        """Whether an option has been applied."""
        return bool(self.options >> kind & 1)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


_settled_backend: int | None = None


def _backend() -> int:
    """Return the backend that the environment asks for: ``FASTFORK_BACKEND=poll`` forces the portable one."""
    if _settled_backend is not None:
        return _settled_backend
    return lib.FF_BACKEND_POLL if os.environ.get("FASTFORK_BACKEND") == "poll" else lib.FF_BACKEND_AUTO


def settle_backend() -> None:
    """Keep the backend that this process has, whatever becomes of its environment: its template has it, too."""
    global _settled_backend
    _settled_backend = _backend()


_kernel_has_pidfds = False
"""Whether the kernel has been seen to have them. It keeps them; want of a descriptor to see it with passes."""


def has_pidfds() -> bool:
    """Whether processes can be held by descriptor here."""
    global _kernel_has_pidfds
    if _backend() == lib.FF_BACKEND_POLL:
        return False
    if not _kernel_has_pidfds:
        _kernel_has_pidfds = _can_open_pidfd()
    return _kernel_has_pidfds


def _can_open_pidfd() -> bool:
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
    max_children:
        How many children may live at once: further requests wait until one of them has ended. 0: any number.
    max_spares:
        How many children may be forked ahead of requests while these come fast.
    spare_quiet:
        Seconds without a request after which these go again.
    modules:
        What this process has of `shared_modules`.

    """

    def __init__(
        self,
        listener_fd: int,
        alive_fd: int,
        authkey: bytes,
        max_children: int = 0,
        max_spares: int = 0,
        spare_quiet: float = 1.0,
        modules: int = 0,
    ) -> None:
        key = ffi.from_buffer("unsigned char[]", authkey)
        config = ffi.new(
            "struct ff_config *",
            {
                "listener_fd": listener_fd,
                "alive_fd": alive_fd,
                "authkey": key,
                "authkey_size": len(authkey),
                "backend": _backend(),
                "max_children": max_children,
                "max_spares": max_spares,
                "spare_quiet_ms": _milliseconds(spare_quiet),
                "modules": modules,
            },
        )
        server = ffi.new("struct ff_server **")
        _check(lib.ff_server_new(config, server))
        self._server = server[0]

    def serve(self, load_modules: Callable[[int], None]) -> Request | None:
        """Serve. Returns None at the end and, in each child, its request: the caller then runs it.

        `load_modules` is called with what clients have of `shared_modules` and this process has not, each once.

        Raises `OSError` when the event loop cannot be set up or fails.
        """
        request = ffi.new("struct ff_request *")
        while (served := _check(lib.ff_python_serve(self._server, request))) == _SERVED_MODULES:
            load_modules(request.modules)
        return None if served == _SERVED_ALL else _begin(served, self._server, request)

    def close(self) -> None:
        """Close the descriptors and free the memory. Not for a child: there is nothing left to close there."""
        server, self._server = self._server, ffi.NULL
        if server:
            lib.ff_server_free(server)


# cffi makes each of these when it is first asked for: every child would.
_SERVED_ALL, _SERVED_SPARE, _SERVED_UNFIT = lib.FF_SERVED_ALL, lib.FF_SERVED_SPARE, lib.FF_SERVED_UNFIT
_SERVED_MODULES = lib.FF_SERVED_MODULES
_await_spare_request = lib.ff_spare_await
_AGAIN = -errno.EAGAIN


def _begin(served: int, server: Any, request: Any) -> Request:
    """Begin as a child: its request, which one that was forked ahead of it waits for. It may end here."""
    if served == _SERVED_SPARE:
        result = _AGAIN
        while result == _AGAIN:  # a signal's Python handler runs in between
            result = _await_spare_request(server, -1, request)
        if not _check(result):
            os._exit(0)
    elif served == _SERVED_UNFIT:
        os._exit(0)  # the client has been told; of this process it never hears
    return _read_request(request)


def close_at_fork(fd: int) -> int:
    """Have a `Server` close `fd` before it next forks; -1: nothing.

    Returns what was to be closed and has not been, which is the caller's again; or -1.
    """
    return int(lib.ff_python_close_at_fork(fd))


def keep_from_forks(fd: int) -> None:
    """Have no process hold `fd` that is forked in this one, but for those which a `Server` forks; -1: nothing.

    Raises `OSError` when there is no memory for it.
    """
    _check(lib.ff_fork_keep(fd))


def remove_address_at_end(path: str) -> None:
    """Have SIGTERM and SIGHUP remove the socket at `path`, and its folder, before they end this process.

    Where one of them is ignored or has a handler, that stays. Children are not concerned.

    Raises `OSError` when the path is too long or in no folder.
    """
    _check(lib.ff_address_remove_at_end(os.fsencode(path)))


def _read_request(request: Any) -> Request:
    return Request(
        ffi.buffer(request.payload, request.payload_size)[:],
        [request.fds[i] for i in range(request.fd_count)],
        request.options,
        ffi.buffer(request.env, request.env_size)[:] if request.env_size else b"",
    )


def rehearsed_request(payload: bytes, fds: Sequence[int]) -> Request:
    """Return a request that no client has sent, in the way in which `Server.serve` returns one."""
    content = ffi.from_buffer("unsigned char[]", payload)
    numbers = ffi.new("int[]", fds)
    size, count = len(payload), len(fds)
    request = ffi.new("struct ff_request *", [content, size, numbers, count])
    return _begin(lib.FF_SERVED_CHILD, ffi.NULL, request)


class ForkRequest:
    """A request for a child, ready to be sent.

    Attributes
    ----------
    error:
        The errno with which sending it has failed; 0 as long as it has not.
    has_begun:
        Whether it has come to the point where it is sent.

    """

    def __init__(self, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        self.error = 0
        self.has_begun = False
        self._flags = flags
        self._payload = payload
        self._fds = ffi.new("int[]", list(fds))
        self._fd_count = len(fds)

    def send(self, sock: int, request_id: int) -> None:
        """Send it on a connection: `OSError` when that cannot be done whole."""
        send, size = lib.ff_client_send, len(self._payload)
        self.has_begun = True  # from CPython 3.12 on no signal handler comes in before the call
        result = send(sock, request_id, self._flags, self._payload, size, self._fds, self._fd_count)
        self.error = -result
        _check(result)

    def may_be_sent_in_part(self) -> bool:
        """Whether the server may have got the beginning, after `send` has failed."""
        return self._fd_count > MAX_FDS_PER_MESSAGE and self.error != errno.EBADF


class StatusRequest:
    """A request for the status page."""

    def __init__(self) -> None:
        self.error = 0
        self.has_begun = False

    def send(self, sock: int, request_id: int) -> None:
        """Send it on a connection: `OSError` when that cannot be done."""
        self.has_begun = True
        result = lib.ff_client_ask_status(sock, request_id)
        self.error = -result
        _check(result)

    def may_be_sent_in_part(self) -> bool:
        """Whether the server may have got the beginning."""
        return False


def send_request(sock: int, request_id: int, flags: int, payload: bytes, fds: Sequence[int]) -> None:
    """Send one fork request on a connection, as `ForkRequest.send`."""
    ForkRequest(flags, payload, fds).send(sock, request_id)


_PASSING = (errno.EINTR, errno.ENOMEM, errno.ENOBUFS)
"""What may stand in the way of receiving, and leaves a connection as it was."""


class Receiver:
    """Receives frames, and keeps each one until it has been dealt with.

    A signal handler that raises comes in between any two steps of Python: the frame is then there still.

    Attributes
    ----------
    error:
        The errno with which the connection has ended; 0 as long as it has not.

    """

    def __init__(self) -> None:
        self.error = 0
        self._bytes = ffi.new("unsigned char[]", _FRAME.size)
        self._frame = ffi.cast("struct ff_frame *", self._bytes)
        self._fd = ffi.cast("int *", self._bytes + ffi.sizeof("struct ff_frame"))

    def receive(self, sock: int, timeout: float | None) -> Frame | None:
        """Receive one frame; None when none came within `timeout` seconds (None: no limit).

        It is the same one again until it is `done`. Raises `BrokenPipeError` at the end of the stream,
        `InterruptedError` when a signal came in first.
        """
        if not self._frame.magic:
            self._fd[0] = -1
            result = lib.ff_client_receive(sock, _milliseconds(timeout), self._frame, self._fd)
            if result < 0 and -result not in _PASSING:
                self.error = -result
            if not _check(result):
                return None
        return Frame(bytes(ffi.buffer(self._bytes)))

    def done(self, frame: Frame) -> None:
        """Forget the frame, unless a signal handler has done so and received another one."""
        if bytes(ffi.buffer(self._bytes)) == frame.content:
            self._frame.magic = 0


def receive_frame(sock: int, timeout: float | None) -> Frame | None:
    """Receive one frame, as `Receiver.receive`."""
    return Receiver().receive(sock, timeout)


class Status:
    """What a server's status page tells; see ``struct ff_status``."""

    __slots__ = (
        "accept_failures",
        "clients",
        "failures",
        "live_children",
        "pid",
        "refused",
        "spare_starts",
        "spares",
        "started",
        "starts",
    )

    def __init__(self, page: Any) -> None:
        self.pid: int = page.pid
        self.started: float = page.started
        self.starts: int = page.starts
        self.live_children: int = page.live_children
        self.clients: int = page.clients
        self.spares: int = page.spares
        self.spare_starts: int = page.spare_starts
        self.failures = _nonzero(page.failures)
        self.refused = _nonzero(page.refused)
        self.accept_failures = _nonzero(page.accept_failures)


def _nonzero(counts: Sequence[int]) -> dict[int, int]:
    return {index: count for index, count in enumerate(counts) if count}


def read_status(fd: int) -> Status:
    """Read the status page that came with a STATUS frame, whatever its server does or has become.

    Raises `OSError` when the descriptor is no status page.
    """
    status = ffi.new("struct ff_status *")
    _check(lib.ff_status_read(fd, status))
    return Status(status)


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


def install_nursery() -> None:
    """Have the children of this process put their first new small objects side by side on fresh pages.

    Raises `OSError` (EOPNOTSUPP) where other allocators are in use than CPython's own, such as tracemalloc's, and for
    builds without a GIL.
    """
    _check(lib.ff_python_install_nursery(sys.version_info >= (3, 12)))


def collapse(begin: int, size: int) -> None:
    """Move `size` bytes of this process's memory, from the address `begin` on, into huge pages, as far as they fit in.

    Raises `OSError`: EINVAL or ENOSYS where the kernel cannot or is not to, ENOMEM where there are no huge pages.
    """
    _check(lib.ff_huge_collapse(begin, size))


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
