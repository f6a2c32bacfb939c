"""multiprocessing.forkserver, by fastfork: the same names, signatures and meaning.

`ForkServer` stands for one template in a tree of processes: it starts the template when it is first needed, is shared
by all children of the tree, and starts another one when it has died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
import time
import weakref
from multiprocessing import resource_tracker

from .config import TemplateConfig
from .preparation import imports_of_main, main_module_of, preparation_data

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from .client import Child, Connection
    from .launch import LaunchedTemplate

    Answer = TypeVar("Answer")

__all__ = [
    "MAXFDS_TO_SEND",
    "ForkServer",
    "connect_to_new_process",
    "ensure_running",
    "get_inherited_fds",
    "set_forkserver_preload",
]

MAXFDS_TO_SEND = 256
"""Descriptors that a caller may pass to one child."""

_GRACE = 0.5
"""Seconds that a template which takes no connections has to end by itself."""

_ATTEMPTS = 3
"""Templates that a request is sent to, one after another, while they die before they have it."""

_SHARED_MODULES = (
    "multiprocessing.connection",
    "multiprocessing.pool",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "multiprocessing.managers",
    "multiprocessing.shared_memory",
    "multiprocessing.sharedctypes",
    "concurrent.futures.process",
)
"""Modules of the standard library whose presence in a client tells that its children will import them."""


class ForkServer:
    """One template in a tree of processes, and this process's way to it.

    Parameters
    ----------
    name:
        The template's name; None for the default one.
    nested:
        ``"share"``: children of the template ask it for children of their own. ``"own"``: each starts another one.

    """

    def __init__(self, name: str | None = None, nested: str = "share") -> None:
        self.name = name
        self.nested = nested
        self.takes_over = (
            ""  # start methods that run on fastfork in the whole tree: see installation.take_over()
        )
        self._forkserver_address: str | None = None
        self._forkserver_alive_fd: int | None = None
        self._forkserver_authkey: bytes | None = None
        self._forkserver_pid: int | None = None
        self._inherited_fds: list[int] | None = None
        self._lock = threading.RLock()
        self._preload_modules: list[str] = ["__main__"]
        self._preload_on_error = "ignore"
        self._launched: LaunchedTemplate | None = None
        self._connection: Connection | None = None
        self._knows_forks = False

    # ---- the standard library's interface ----

    def set_forkserver_preload(self, modules_names: list[str], *, on_error: str = "ignore") -> None:
        """Set the modules that the template imports before it serves.

        Parameters
        ----------
        modules_names:
            Module names; ``"__main__"`` stands for the client's main module. They take effect when the template is
            next started.
        on_error:
            What an exception in one of them does: ``"ignore"`` nothing, ``"warn"`` an `ImportWarning` on the
            template's standard error, ``"fail"`` a `PreloadError` in each ``start()``.

        Raises `TypeError` for anything but a list of strings and `ValueError` for another `on_error`.

        """
        if not all(type(name) is str for name in modules_names):
            raise TypeError("module_names must be a list of strings")
        if on_error not in ("ignore", "warn", "fail"):
            raise ValueError(f"on_error must be 'ignore', 'warn', or 'fail', not {on_error!r}")
        self._preload_modules = list(modules_names)
        self._preload_on_error = on_error

    def get_inherited_fds(self) -> list[int] | None:
        """Return the descriptors that this process got from its parent; None if no template started it."""
        return self._inherited_fds

    def connect_to_new_process(self, fds: Sequence[int]) -> tuple[int, int]:
        """Have a child forked, in the manner of the standard library.

        Parameters
        ----------
        fds:
            Descriptors for the child, at most `MAXFDS_TO_SEND`.

        Returns a pair of descriptors ``(status_r, data_w)``: the child's pid and later its exit code can be read from
        the first by `read_signed`; the pickled preparation data and process object are to be written to the second.

        Raises `ValueError` for too many descriptors, `OSError` when the fork failed, `AuthenticationError` when the
        template has another authkey.

        """
        status_r, status_w = os.pipe()
        data_r, data_w = os.pipe()
        try:
            self._start_with_stream(status_w, data_r, fds)
        except BaseException:
            os.close(status_r)
            os.close(data_w)
            raise
        finally:
            os.close(status_w)
            os.close(data_r)
        return status_r, data_w

    def ensure_running(self) -> None:
        """Make sure that the template is running. Any process of the tree may call it at any time.

        Raises `OSError` when it cannot be started.
        """
        self._watch_forks()
        with self._lock:
            _tracker_fd()
            if not self._is_running():
                self._forget()
                self._launch()

    # ---- fastfork's own ----

    def start(self, payload: bytes, sentinel: int, fds: Sequence[int]) -> Child:
        """Have a child forked that runs `payload`.

        Parameters
        ----------
        payload:
            The pickled preparation data and process object, or nothing: then the child reads them from `sentinel`.
        sentinel:
            A descriptor that ends when this process does.
        fds:
            Descriptors for the child, at most `MAXFDS_TO_SEND`.

        Raises as `connect_to_new_process`.

        """
        return self._request(fds, lambda to: to.start(payload, self._with_own_fds(sentinel, fds)))

    def _start_with_stream(self, status_w: int, data_r: int, fds: Sequence[int]) -> None:
        self._request(fds, lambda to: to.start_with_stream(status_w, self._with_own_fds(data_r, fds)))

    def _request(self, fds: Sequence[int], send: Callable[[Connection], Answer]) -> Answer:
        """Send a request to the template, and again to the next one when this one is gone before it has it."""
        from .client import ServerGoneError

        for _ in range(_ATTEMPTS - 1):
            try:
                return send(self._connect(fds))
            except ServerGoneError:
                continue
        return send(self._connect(fds))

    def _with_own_fds(self, sentinel: int, fds: Sequence[int]) -> list[int]:
        alive_fd = self._forkserver_alive_fd
        assert alive_fd is not None
        return [sentinel, alive_fd, _tracker_fd(), *fds]

    def adopt(self, config: TemplateConfig, alive_fd: int, fds: list[int]) -> None:
        """In a child: know the template that it was forked from, and what came along."""
        self.name = config.name
        self.nested = config.nested
        self.takes_over = config.takes_over
        self._preload_modules = config.preload
        self._preload_on_error = config.on_error
        self._forkserver_alive_fd = alive_fd
        self._inherited_fds = fds
        if config.nested == "share":
            self._forkserver_address = config.address
            self._forkserver_authkey = config.authkey

    def _connect(self, fds: Sequence[int]) -> Connection:
        """Return a connection to the running template that was made with the authkey as it now is."""
        if len(fds) > MAXFDS_TO_SEND:
            raise ValueError(f"too many fds: {len(fds)}, at most {MAXFDS_TO_SEND} can be passed to a process")
        self._watch_forks()
        with self._lock:
            self.ensure_running()
            connection = self._connection
            if connection is None or connection.authkey != self._forkserver_authkey:
                connection = self._open_connection()
            return connection

    def _open_connection(self) -> Connection:
        from .client import Connection

        address, authkey = self._forkserver_address, self._forkserver_authkey
        assert address is not None
        assert authkey is not None
        try:
            self._connection = Connection(address, authkey)
        except (ConnectionError, FileNotFoundError, EOFError) as error:
            self._raise_preload_error()
            if self._launched is None:
                raise
            raise self._server_gone() from error
        return self._connection

    def _server_gone(self) -> OSError:
        """Let go of a template of this process's own that takes no connections: the error that says so."""
        from .client import ServerGoneError

        assert self._forkserver_pid is not None
        code = _reap(self._forkserver_pid)
        self._forget()
        return ServerGoneError(errno.ECONNRESET, f"the fork server died before it served (exit code {code})")

    def _raise_preload_error(self) -> None:
        """Raise `PreloadError` if a failed preload made the template leave; the next start launches another one."""
        error = None if self._launched is None else self._launched.preload_error()
        if error is not None:
            self._stop()
            raise error

    def _is_running(self) -> bool:
        if self._forkserver_address is None:
            return False
        if self._connection is not None and self._connection.is_usable():
            return True
        pid = self._forkserver_pid
        if pid is not None and not _is_live_child(pid):
            return False
        if pid is not None and self._connection is None:
            return True  # it may still be preloading: connecting would wait for that
        return self._can_reconnect()

    def _can_reconnect(self) -> bool:
        try:
            self._open_connection()
        except (ConnectionError, FileNotFoundError, EOFError):
            return False
        return True

    def _launch(self) -> None:
        from .launch import launch

        self._watch_forks()
        data = preparation_data("ignore")
        config = TemplateConfig(
            preload=self._preload_modules,
            on_error=self._preload_on_error,
            name=self.name,
            nested=self.nested,
            takes_over=_forkserver.takes_over,
            main=main_module_of(data),
            main_imports=imports_of_main(),
            sys_path=data["sys_path"],
            sys_argv=data["sys_argv"],
            modules=[name for name in _SHARED_MODULES if name in sys.modules],
        )
        self._launched = launch(config)
        self._forkserver_pid = self._launched.pid
        self._forkserver_alive_fd = self._launched.alive_fd
        self._forkserver_authkey = config.authkey
        self._forkserver_address = config.address  # last: another thread's os.fork() may come in between

    def _forget(self) -> None:
        """Let go of a template that has died or was left; what it still said about children is kept."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drain()
        if self._launched is not None:
            self._launched.remove_address()
            self._launched.close()
        elif self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
        self._launched = None
        self._forkserver_address = None
        self._forkserver_authkey = None
        self._forkserver_alive_fd = None
        self._forkserver_pid = None

    def _stop(self) -> None:
        """Stop the template that this process started, and wait for its end; used by CPython's tests."""
        with self._lock:
            launched = self._launched
            if launched is None:
                return
            launched.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(launched.pid, 0)
            self._forget()

    def _watch_forks(self) -> None:
        """Learn of forks of this process from now on. Not from the beginning: the hook would run in all children."""
        if not self._knows_forks:
            self._knows_forks = True
            os.register_at_fork(after_in_child=functools.partial(_reset, weakref.ref(self)))

    def after_fork_in_child(self) -> None:
        """Become usable after a raw ``os.fork()``: the connection and the template's death are the parent's."""
        self._lock = threading.RLock()
        self._forkserver_pid = None
        self._launched = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()


def _reset(reference: weakref.ref[ForkServer]) -> None:
    server = reference()
    if server is not None:
        server.after_fork_in_child()


def _reap(pid: int) -> int | None:
    """Reap a child of this process that is about to end, and end it if it is not so after `_GRACE` seconds.

    Returns its exit code, None if somebody else has reaped it.
    """
    deadline = time.monotonic() + _GRACE
    try:
        while time.monotonic() < deadline:
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


def _tracker_fd() -> int:
    """Return the descriptor of the running resource tracker; start it if need be.

    `resource_tracker.ensure_running()` would write to it, and so wake it up, each time that a process is started.
    """
    from . import _native

    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is None or _native.is_hung_up(tracker._fd):
        tracker.ensure_running()
    fd: int = tracker._fd
    return fd


def _is_live_child(pid: int) -> bool:
    """Whether a child of this process lives; reaps it if not."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False  # somebody else has reaped it


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
