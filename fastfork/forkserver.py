"""multiprocessing.forkserver, by fastfork: the same names, signatures and meaning.

`ForkServer` stands for one template in a tree of processes: it starts the template when it is first needed, is shared
by all children of the tree, and starts another one when it has died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
import time
import weakref
from multiprocessing import resource_tracker

from .config import TemplateConfig
from .preparation import imports_of_main, main_module_of, preparation_data, shared_part

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from .client import Child, Claim, Connection
    from .launch import LaunchedTemplate
    from .retirement import Retired
    from .status import ServerStatus, StatusPage
    from .succession import Place

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

_RETRY = 0.005
"""Seconds after which a template that dropped a connection before it was authenticated is tried again."""

_DROP_DEADLINE = 10.0
"""Seconds for which a template that drops all connections is tried again."""

_STOP_DEADLINE = 5.0
"""Seconds that `ForkServer.stop` waits for a template: others may use it on."""

_LEFTOVER_DEADLINE = 1.0
"""Seconds that `ForkServer._stop` waits for a template with live children."""

_STATUS_DEADLINE = 5.0
"""Seconds that a server may take to hand out its status page."""

ATTEMPTS = 3
"""Templates that a request is sent to, one after another, while they die before they have it."""


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
        self._preload_timeout: float | None = None
        self._preload_on_threads = "warn"
        self.prepared: dict[str, Any] | None = None
        """The preparation data, less the name, that the running template has: requests need not repeat it."""
        self.calls: list[tuple[str, bytes]] = []  # what the template calls after its preload
        self.max_children = 0
        self.spares = 2
        self.spare_quiet = 1.0
        self.die_with_client = False
        self._launched: LaunchedTemplate | None = None
        self._config: TemplateConfig | None = None  # of the running template
        self._died: TemplateConfig | None = None  # of one whose successor is to be found
        self._connection: Connection | None = None
        self._retired: list[Retired] = []
        self._page: StatusPage | None = None
        self._knows_forks = False
        self._preloads_ended = 0  # by stop(), before they served

    # ---- the standard library's interface ----

    def set_forkserver_preload(
        self,
        modules_names: list[str],
        *,
        on_error: str = "ignore",
        timeout: float | None = None,
        on_threads: str = "warn",
    ) -> None:
        """Set the modules that the template imports before it serves.

        Parameters
        ----------
        modules_names:
            Module names; ``"__main__"`` stands for the client's main module. They take effect when the template is
            next started.
        on_error:
            What an exception in one of them does: ``"ignore"`` nothing, ``"warn"`` an `ImportWarning` on the
            template's standard error, ``"fail"`` a `PreloadError` in each ``start()``.
        timeout:
            Seconds that all of them may take; then each ``start()`` raises a `PreloadError` that tells where they
            were. None for no limit.
        on_threads:
            What threads do that they leave running: ``"warn"`` a `RuntimeWarning` on the template's standard error,
            ``"refuse"`` a `PreloadError` in each ``start()``, ``"ignore"`` nothing.

        Raises `TypeError` for anything but a list of strings and a number of seconds, `ValueError` for another
        `on_error` or `on_threads` and for a time that is not positive.

        """
        if not all(type(name) is str for name in modules_names):
            raise TypeError("module_names must be a list of strings")
        if on_error not in ("ignore", "warn", "fail"):
            raise ValueError(f"on_error must be 'ignore', 'warn', or 'fail', not {on_error!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"the time limit of a preload must be positive, not {timeout!r}")
        if on_threads not in ("ignore", "warn", "refuse"):
            raise ValueError(f"on_threads must be 'ignore', 'warn', or 'refuse', not {on_threads!r}")
        self._preload_modules = list(modules_names)
        self._preload_on_error = on_error
        self._preload_timeout = timeout
        self._preload_on_threads = on_threads

    def change_preload(self, modules_names: list[str] | None, **options: Any) -> None:
        """Set some of what `set_forkserver_preload` sets: what is None stays as it is."""
        current: dict[str, Any] = {
            "on_error": self._preload_on_error,
            "timeout": self._preload_timeout,
            "on_threads": self._preload_on_threads,
        }
        current.update((name, value) for name, value in options.items() if value is not None)
        self.set_forkserver_preload(
            self._preload_modules if modules_names is None else modules_names, **current
        )

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
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as after_all:
            status_r, status_w = os.pipe()
            on_failure.callback(os.close, status_r)
            after_all.callback(os.close, status_w)
            data_r, data_w = os.pipe()
            on_failure.callback(os.close, data_w)
            after_all.callback(os.close, data_r)
            self._start_with_stream(status_w, data_r, fds)
            on_failure.pop_all()
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
                self._succeed_or_launch()

    # ---- fastfork's own ----

    def ensure_launched(self) -> dict[str, Any]:
        """Make sure that there has been a template: the preparation data that it has. Raises as above."""
        if self.prepared is None:
            self.ensure_running()
        return self.prepared or {}

    def start(
        self,
        payload: bytes,
        sentinel: int,
        fds: Sequence[int],
        claim: Claim,
        *,
        die_with_client: bool = False,
        options: tuple[bytes, list[int]] = (b"", []),
    ) -> Child:
        """Have a child forked that runs `payload`.

        Parameters
        ----------
        payload:
            The pickled preparation data and process object, or nothing: then the child reads them from `sentinel`.
        sentinel:
            A descriptor that ends when this process does.
        fds:
            Descriptors for the child, at most `MAXFDS_TO_SEND`.
        claim:
            Whose the child is: to be given up when this, or what follows until they have it, fails.
        die_with_client:
            Whether the child, and all below it, is to be killed when this process ends.
        options:
            What `ChildOptions.encode` has returned. Its descriptors are counted with `fds`.

        Raises as `connect_to_new_process`, and `OSError` when an option cannot be applied.

        """
        block, streams = options

        def send(to: Connection, alive_fd: int) -> Child:
            return to.start(
                block + payload,
                [*streams, sentinel, alive_fd, _tracker_fd(), *fds],
                claim,
                die_with_client=die_with_client,
                has_options=bool(block),
            )

        return self._request([*streams, *fds], send)

    def post(
        self,
        payload: bytes,
        fds: Sequence[int],
        flags: int,
        claim: Claim,
        options: tuple[bytes, list[int]] = (b"", []),
    ) -> tuple[Connection, int]:
        """Have a child forked as `start` does, and do not wait until it is there.

        Parameters
        ----------
        payload:
            What the child is to do, of a kind that `fastfork.child` knows.
        fds:
            Descriptors for the child, at most `MAXFDS_TO_SEND` and one: before the second, it gets what ties it to the
            template and to the resource tracker.
        flags:
            ``ff_fork_flags``.
        claim:
            As for `start`.
        options:
            As for `start`. That one cannot be applied is the answer to the request.

        Returns the connection and the number of the request there. Raises as `connect_to_new_process`.

        """
        block, streams = options
        if block:
            from ._native import FORK_OPTIONS

            flags |= FORK_OPTIONS

        def send(to: Connection, alive_fd: int) -> tuple[Connection, int]:
            own_fds = [*streams, fds[0], alive_fd, _tracker_fd(), *fds[1:]]
            return to, to.post(block + payload, own_fds, claim, flags)

        return self._request([*streams, *fds[1:]], send)

    def _start_with_stream(self, status_w: int, data_r: int, fds: Sequence[int]) -> None:
        def send(to: Connection, alive_fd: int) -> None:
            own_fds = [data_r, alive_fd, _tracker_fd(), *fds]
            to.start_with_stream(status_w, own_fds, die_with_client=self.die_with_client)

        self._request(fds, send)

    def _request(self, fds: Sequence[int], send: Callable[[Connection, int], Answer]) -> Answer:
        """Send a request to the template, and again to the next one when this one is gone before it has it."""
        from .client import ServerGoneError

        if len(fds) > MAXFDS_TO_SEND:
            raise ValueError(f"too many fds: {len(fds)}, at most {MAXFDS_TO_SEND} can be passed to a process")
        attempts = 0
        while True:
            ended = self._preloads_ended
            try:
                return self._request_once(send)
            except ServerGoneError:
                # One that stop() has ended, in another thread, is nobody's failure.
                attempts += ended == self._preloads_ended
                if attempts == ATTEMPTS:
                    raise

    def _request_once(self, send: Callable[[Connection, int], Answer]) -> Answer:
        alive_fds: list[int] = []
        try:
            return send(self._connect(alive_fds), alive_fds[0])
        finally:
            for fd in alive_fds:
                os.close(fd)

    def adopt(self, config: TemplateConfig, alive_fd: int, fds: list[int]) -> None:
        """In a child: know the template that it was forked from, and what came along."""
        self.name = config.name
        self.nested = config.nested
        self.takes_over = config.takes_over
        self._preload_modules = config.preload
        self._preload_on_error = config.on_error
        self._preload_timeout = config.preload_timeout
        self._preload_on_threads = config.on_threads
        self.max_children = config.max_children
        self.spares = config.max_spares
        self.spare_quiet = config.spare_quiet
        self.calls = config.calls
        self._forkserver_alive_fd = alive_fd
        self._inherited_fds = fds
        if config.nested == "share":
            self._config = config
            self.prepared = config.prepared
            self._forkserver_address = config.address
            self._forkserver_authkey = config.authkey

    def _connect(self, alive_fds: list[int]) -> Connection:
        """Return a connection to the running template, made with the authkey as it now is.

        A duplicate of its alive descriptor is added to `alive_fds`, and the caller's: another thread may let go of the
        template at any time.
        """
        self._watch_forks()
        with self._lock:
            self.ensure_running()
            connection = self._connection
            if connection is None or connection.authkey != self._forkserver_authkey:
                connection = self._open_connection()
            assert self._forkserver_alive_fd is not None
            # One call, so that no signal handler that raises comes in between: one that got lost would keep the
            # template from its end.
            alive_fds.extend(map(os.dup, [self._forkserver_alive_fd]))
            return connection

    def _open_connection(self, timeout: float | None = None) -> Connection:
        """Connect to the template, as soon as it serves and for as long as it lives.

        A server that is full drops connections that are not authenticated yet, so that is no sign of its death.
        """
        refused_since = dropped_since = None
        while True:
            try:
                self._connection = self._new_connection(timeout)
                return self._connection
            except (ConnectionRefusedError, FileNotFoundError):
                refused_since = refused_since or time.monotonic()
                self._check_template(refused_since)
            except (ConnectionError, EOFError) as error:
                dropped_since = dropped_since or time.monotonic()
                self._check_template(None)
                if time.monotonic() - dropped_since > _DROP_DEADLINE:
                    message = "the fork server drops every connection: it is full, or it serves another user"
                    raise ConnectionAbortedError(errno.ECONNABORTED, message) from error
            time.sleep(_RETRY)

    def _new_connection(self, timeout: float | None) -> Connection:
        from .client import Connection

        assert self._forkserver_address is not None
        assert self._forkserver_authkey is not None
        return Connection(
            self._forkserver_address,
            self._forkserver_authkey,
            self._keep_waiting,
            timeout,
            self._forkserver_pid,
        )

    def _keep_waiting(self) -> None:
        """Raise `ConnectionResetError` if the template is dead, by the time limit of its preload or otherwise."""
        launched = self._launched
        if launched is None:
            return
        launched.keep_limit()
        if launched.process.has_ended():
            raise ConnectionResetError(errno.ECONNRESET, "the fork server died")

    def _check_template(self, refused_since: float | None) -> None:
        """Raise what a connection has failed of, unless it is worth while to try again."""
        from .client import ServerGoneError

        launched = self._launched
        if launched is None:
            if refused_since is not None:
                raise ServerGoneError(errno.ECONNREFUSED, "the fork server is gone")
            return
        error = launched.preload_error() or launched.serving_error()
        if error is not None:
            self._end_unserved(launched)
            try:
                raise error
            finally:
                del error  # it would keep this frame, and so what is known of the template
        if launched.process.has_ended():
            raise self._death_of(launched)
        if refused_since is not None and time.monotonic() - refused_since > _GRACE:
            raise self._unreachable(launched)

    def _end_unserved(self, launched: LaunchedTemplate) -> None:
        """Let go of a template that has given up before it served, or never will."""
        if not launched.process.wait(_GRACE):
            launched.process.kill()
            launched.process.wait(None)
        self._forget_unserved()

    def _death_of(self, launched: LaunchedTemplate) -> OSError:
        """Let go of a template that has died before it took a connection: the error that says so."""
        from .client import ServerGoneError

        module = launched.module_being_preloaded()
        last = "" if module is None else f"; the last module that it began to preload was {module!r}"
        if launched.is_successor:  # others go on from there to the next one
            self._forget()
        else:
            self._forget_unserved()
        code = launched.process.exit_code
        return ServerGoneError(
            errno.ECONNRESET, f"the fork server died before it served (exit code {code}{last})"
        )

    def _unreachable(self, launched: LaunchedTemplate) -> OSError:
        """Let go of a template that lives and whose socket is gone: the error that says so."""
        from .client import ServerGoneError

        if launched.is_ready():
            self._retire()  # it may have children
        else:
            self._end_unserved(launched)
        return ServerGoneError(errno.ECONNREFUSED, "the fork server's socket is gone")

    def _is_running(self) -> bool:
        if self._forkserver_address is None:
            return False
        if self._connection is not None and self._connection.is_usable():
            return True
        if self._launched is not None:
            if self._launched.process.has_ended():
                return False
            if self._connection is None:
                return True  # it may still be preloading: connecting would wait for that
        return self._can_reconnect()

    def _can_reconnect(self) -> bool:
        from .client import ServerGoneError

        try:
            self._open_connection()
        except ServerGoneError:
            return False
        return True

    def _succeed_or_launch(self) -> None:
        """Find the successor of the template that has died, or be the one to launch it; or launch another one."""
        died, self._died = self._died, None
        place = None
        wishes = self._wishes()
        if died is not None and died.has_successors and died.says(wishes):
            from . import succession

            place = succession.find(died.address, died.authkey)
        if died is None or place is None:
            self._launch(self._new_config(wishes))
        elif place.is_claimed():
            self._launch(died.again(), place)
        else:
            self._join(died.again(), place)

    def _wishes(self) -> dict[str, object]:
        """Return what this process would have its template be, but for what a client tells it."""
        from . import levers, surroundings

        return {
            "preload": self._preload_modules,
            "on_error": self._preload_on_error,
            "preload_timeout": self._preload_timeout,
            "on_threads": self._preload_on_threads,
            "max_children": self.max_children,
            "max_spares": self.spares if levers.is_enabled("spares") else 0,
            "spare_quiet": self.spare_quiet,
            "name": self.name,
            "nested": self.nested,
            "takes_over": _forkserver.takes_over,
            "calls": self.calls,
            "surroundings": surroundings.look(),
        }

    def _new_config(self, wishes: dict[str, object]) -> TemplateConfig:
        from . import shared_modules

        data = preparation_data("ignore")
        return TemplateConfig(
            **wishes,
            has_successors=True,
            prepared=shared_part(data),
            is_prepared=False,
            main=main_module_of(data),
            main_imports=imports_of_main(),
            sys_path=data["sys_path"],
            sys_argv=data["sys_argv"],
            modules=shared_modules.loaded(),
        )

    def _launch(self, config: TemplateConfig, place: Place | None = None) -> None:
        from .retirement import Retired

        self._watch_forks()
        launched = self._start_template(config, place)
        if self._forkserver_address is None:
            self._know(config, launched.alive_fd, launched)
        else:  # a signal handler has launched one meanwhile
            launched.close()
            self._retired.append(Retired(launched, None))

    def _join(self, config: TemplateConfig, place: Place) -> None:
        """Use a template that another process has launched, and that ends with that one's last user.

        Its children get a descriptor in place of what would tell it that it is needed: no pipe is behind it.
        """
        config.address, config.authkey = place.address, place.authkey
        alive_fd = os.open(os.devnull, os.O_WRONLY)
        if self._forkserver_address is None:
            self._know(config, alive_fd, None)
        else:
            os.close(alive_fd)

    def _know(self, config: TemplateConfig, alive_fd: int, launched: LaunchedTemplate | None) -> None:
        """Know of a template, by one call: no signal handler and no fork finds a half of it."""
        vars(self).update(
            _launched=launched,
            _config=config,
            prepared=config.prepared,
            _forkserver_pid=None if launched is None else launched.pid,
            _forkserver_alive_fd=alive_fd,
            _forkserver_authkey=config.authkey,
            _forkserver_address=config.address,
        )

    def _start_template(self, config: TemplateConfig, place: Place | None) -> LaunchedTemplate:
        from .launch import launch

        return launch(config, place)

    def _forget(self) -> None:
        """Let go of a template that has died; what it still said about children is kept."""
        died = self._config or self._died
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drain()
        if self._launched is not None:
            self._launched.remove_address()
        self._let_go()
        self._died = died

    def _forget_unserved(self) -> None:
        """The same, of one that nobody else can know: the next one is launched as the program is by then."""
        self._forget()
        self._died = None

    def _retire(self) -> Retired:
        """Let go of a template that lives: it leaves with the last child."""
        from .retirement import Retired

        connection, self._connection = self._connection, None
        launched = self._launched
        self._let_go()
        retired = Retired(launched, connection)
        self._retired.append(retired)
        return retired

    def _let_go(self) -> None:
        if self._launched is not None:
            self._launched.close()
        elif self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
        self._launched = None
        self._config = self._died = None
        self._page = None
        self.prepared = None
        self._forkserver_address = None
        self._forkserver_authkey = None
        self._forkserver_alive_fd = None
        self._forkserver_pid = None

    def _reap_retired(self) -> None:
        self._retired = [retired for retired in self._retired if not retired.is_over()]

    def stop(self) -> None:
        """Start no more processes from the template; see `fastfork.stop`."""
        self._leave_template(patience=0)

    def _leave_template(self, patience: float) -> None:
        """Let go of the template, and wait for its end: `patience` seconds where it has live children."""
        self._end_preload()
        with self._lock:
            self._reap_retired()
            if self._forkserver_address is None:
                return
            is_in_use = self._connection is not None and self._connection.has_live_children()
            retired = self._retire()
        retired.await_end(patience if is_in_use else _STOP_DEADLINE)
        with self._lock:
            self._reap_retired()

    def _end_preload(self) -> None:
        """End a template that does not serve yet, so that nobody has to wait for it."""
        launched = self._launched
        if launched is not None and not launched.is_ready():
            self._preloads_ended += 1
            launched.process.kill()

    def status(self) -> ServerStatus:
        """Return what the template's server tells of itself; see `fastfork.server_status`."""
        from .client import ServerGoneError
        from .status import status_without_server

        launched = self._launched
        if self._forkserver_address is None or (launched is not None and launched.process.has_ended()):
            return status_without_server("stopped")
        if launched is not None and not launched.is_ready():
            return status_without_server("preloading", launched.pid)
        try:
            return self._known_page(launched is not None).read()
        except ServerGoneError:
            return status_without_server("stopped")

    def _known_page(self, is_own: bool) -> StatusPage:
        page, connection = self._page, self._connection
        is_alive = is_own or (connection is not None and connection.is_usable())
        return page if page is not None and is_alive else self._ask_for_page()

    def _ask_for_page(self) -> StatusPage:
        from .status import StatusPage

        if not self._lock.acquire(timeout=_STATUS_DEADLINE):
            raise TimeoutError(
                errno.ETIMEDOUT, "another thread waits for the fork server to take a connection"
            )
        try:
            connection = self._connection
            if connection is None or not connection.is_usable():
                connection = self._open_connection(_STATUS_DEADLINE)
            fd = connection.status_page(_STATUS_DEADLINE)
            if fd is None:
                fd = self._page_by_another_connection()
            self._page = StatusPage(fd)
            return self._page
        finally:
            self._lock.release()

    def _page_by_another_connection(self) -> int:
        """Ask for the status page where other threads wait for the answer to a start."""
        connection = self._new_connection(_STATUS_DEADLINE)
        try:
            fd = connection.status_page(_STATUS_DEADLINE)
        finally:
            connection.abandon()
        assert fd is not None
        return fd

    def _stop(self) -> None:
        """Stop the template of this process, unless it is its parent's; used by CPython's tests when they are done.

        Their leftover children may be on their way out, so the template gets a while to end with them. It does not
        hold up its caller for longer, as the standard library's would not: such a child may wait for ever.
        """
        if self._inherited_fds is None:
            self._leave_template(patience=_LEFTOVER_DEADLINE)
        else:
            with self._lock:
                self._reap_retired()

    def _watch_forks(self) -> None:
        """Learn of forks of this process from now on. Not from the beginning: the hook would run in all children."""
        if not self._knows_forks:
            os.register_at_fork(after_in_child=functools.partial(_reset, weakref.ref(self)))
            self._knows_forks = True

    def after_fork_in_child(self) -> None:
        """Become usable after a raw ``os.fork()``: the connection and the template's death are the parent's."""
        self._lock = threading.RLock()
        self._forkserver_pid = None
        launched, self._launched = self._launched, None
        if launched is not None:
            launched.abandon()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
        retired, self._retired = self._retired, []
        for template in retired:
            template.abandon()

    def let_go_in_child(self) -> None:
        """Be no client of the template that the parent of this process has, after `after_fork_in_child`."""
        if self._forkserver_address is not None and self._launched is None:
            self._let_go()


def _reset(reference: weakref.ref[ForkServer]) -> None:
    server = reference()
    if server is not None:
        server.after_fork_in_child()


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


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
