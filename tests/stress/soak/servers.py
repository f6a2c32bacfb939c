"""The fork servers that a soak can run on, by one interface."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import socket
import struct
from typing import TYPE_CHECKING, Any

from .options import NONE, child_options

if TYPE_CHECKING:
    from collections.abc import Callable

PRELOAD = ["tests.stress.soak.clients"]

STEADY = "steady"
"""The name of the template that nothing is done to."""

_FD_COUNT = 20
"""Where the number of descriptors stands in a request of fastfork's."""


class Server:
    """A fork server as its clients see it."""

    name: str
    loses_exit_codes: bool
    """Whether nobody can tell how a child ended that has outlived its template."""
    keeps_connections: bool
    """Whether a template has a connection to each of its clients, once it serves."""
    works_after_fork: bool
    """Whether a process that was forked without multiprocessing can start others."""
    has_options: bool
    """Whether processes can have options."""
    has_templates: bool
    """Whether a process can have several templates, by name."""

    def __init__(self, template: str | None, context: Any) -> None:
        self.template = template
        self.context = context

    def process(
        self, target: Callable[..., object], *arguments: object, die_with_client: bool, options: str = NONE
    ) -> Any:
        """Make a process that is yet to be started."""
        raise NotImplementedError

    def restart(self) -> bool:
        """Let go of the template and start another one: whether there is such a thing."""
        return False

    def authenticate(self, sock: socket.socket, key: bytes) -> None:
        """Go through the challenge on a connected socket; nothing where the server has none."""

    def request(self, payload: bytes, fd_count: int) -> bytes:
        """Return the bytes that ask for a child."""
        raise NotImplementedError

    @property
    def _forkserver(self) -> Any:
        """What stands for the template in this process."""
        raise NotImplementedError

    @property
    def address(self) -> str | None:
        """The path of the template's socket; None while there is none."""
        return self._forkserver._forkserver_address

    @property
    def authkey(self) -> bytes | None:
        return getattr(self._forkserver, "_forkserver_authkey", None)

    @property
    def pid(self) -> int | None:
        """The template's; None where this process has not launched it."""
        return self._forkserver._forkserver_pid

    @property
    def starts(self) -> int | None:
        """How many processes the template has started; None where it does not tell."""
        return None

    def stop(self) -> None:
        """Stop the template that this process has started."""
        self._forkserver._stop()


class Fastfork(Server):
    """fastfork, on the backend that ``FASTFORK_BACKEND`` chooses."""

    name = "fastfork"
    keeps_connections = True
    works_after_fork = True
    has_options = True
    has_templates = True

    def __init__(self, template: str | None) -> None:
        from fastfork import ChildOptions, get_context
        from tests.support.kernel import kernel_tells_exit_codes

        self._child_options = ChildOptions
        super().__init__(template, get_context(template, preload=PRELOAD, spares=2))
        self.loses_exit_codes = not kernel_tells_exit_codes()

    @property
    def _forkserver(self) -> Any:
        from fastfork.context import _server

        return _server(self.template)

    @property
    def starts(self) -> int | None:
        import fastfork

        return fastfork.server_status(self.template).starts

    def process(
        self, target: Callable[..., object], *arguments: object, die_with_client: bool, options: str = NONE
    ) -> Any:
        return self.context.Process(
            target=target,
            args=arguments,
            die_with_client=die_with_client,
            options=self._child_options(**child_options(options)) if options else None,
        )

    def restart(self) -> bool:
        import fastfork

        fastfork.restart(self.template)
        return True

    def authenticate(self, sock: socket.socket, key: bytes) -> None:
        from fastfork.auth import authenticate

        authenticate(sock, key)

    def request(self, payload: bytes, fd_count: int) -> bytes:
        from fastfork import _native

        ours, theirs = socket.socketpair()
        with ours, theirs:
            _native.send_request(ours.fileno(), 1, 0, payload, [])
            frame = bytearray(theirs.recv(2 * _native.MAX_PAYLOAD, socket.MSG_DONTWAIT))
        struct.pack_into("=I", frame, _FD_COUNT, fd_count)
        return bytes(frame)


class StandardLibrary(Server):
    """multiprocessing's own fork server."""

    name = "stdlib"
    loses_exit_codes = True
    keeps_connections = False
    works_after_fork = False
    has_options = False
    has_templates = False

    def __init__(self, template: str | None) -> None:
        multiprocessing.set_forkserver_preload(PRELOAD)
        super().__init__(template, multiprocessing.get_context("forkserver"))

    @property
    def _forkserver(self) -> Any:
        return multiprocessing.forkserver._forkserver

    def process(
        self, target: Callable[..., object], *arguments: object, die_with_client: bool, options: str = NONE
    ) -> Any:
        return self.context.Process(target=target, args=arguments)

    def request(self, payload: bytes, fd_count: int) -> bytes:
        return bytes([fd_count]) * 30  # no more than its first byte means anything


SERVERS = {server.name: server for server in (Fastfork, StandardLibrary)}


@functools.cache
def server(name: str, template: str | None = None) -> Server:
    """Return this process's way to a template, None for the default one, of the fork server called `name`."""
    return SERVERS[name](template)
