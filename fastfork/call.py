"""A request that a child answers, as its client sees it: what it is sent, what it says, how it ends.

No Process object is about, and nothing waits: whoever holds a call waits for its socket, on which the answer comes and
whose end tells that of the child.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time

from . import _native, forkserver, message
from .client import Claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .client import Child, Connection
    from .forkserver import ForkServer
    from .message import Part

_STEP = 0.05
"""Seconds after which a wait for the end of a child looks again: another thread may have been told of it."""

_START_DEADLINE = 1.0
"""Seconds that a server may take to say whether it has started a child that is to be ended at once: later on, it is
ended when somebody else starts one."""

_NO_PARTS: list[Part] = []
_NO_OPTIONS: tuple[bytes, list[int]] = (b"", [])


class Call:
    """A request that a child answers.

    Parameters
    ----------
    server:
        What stands for the template.
    payload:
        What the child is to do: see `fastfork.answering`.
    parts:
        What it is sent on its channel, besides.
    fds:
        Descriptors for it.
    dies_with_client:
        Whether the child, and all below it, is killed when this process ends.
    options:
        What `ChildOptions.encode` has returned; with `payload` at most MAX_PAYLOAD bytes.
    claim:
        Given up by the caller when they come to nothing; None in a thread where no signal handler runs.

    Raises `OSError` when it cannot be sent, and what the start of a template raises.

    Attributes
    ----------
    sock:
        The channel, which does not block.
    reader:
        What the child has said up to now.

    """

    def __init__(
        self,
        server: ForkServer,
        payload: bytes,
        parts: Sequence[Part] = (),
        fds: Sequence[int] = (),
        *,
        dies_with_client: bool = True,
        options: tuple[bytes, list[int]] = _NO_OPTIONS,
        claim: Claim | None = None,
    ) -> None:
        flags = _native.FORK_DIE_WITH_CLIENT if dies_with_client else 0
        self.reader = message.Reader()
        self.unsent = message.pack(0, parts) if parts else _NO_PARTS
        self._child: Child | None = None
        self._error: OSError | None = None
        self._due: tuple[int, bool] | None = None
        self.sock, theirs = socket.socketpair()
        try:
            self.sock.setblocking(False)
            self._connection, self._id = server.post(
                payload, [theirs.fileno(), *fds], flags, Claim() if claim is None else claim, options
            )
        except BaseException:
            self.sock.close()
            raise
        finally:
            theirs.close()

    def send(self) -> bool:
        """Send what the channel takes: whether all is sent. A child that is dead takes all."""
        try:
            self.unsent = message.send_some(self.sock.fileno(), self.unsent)
        except OSError:  # the end of its channel tells more
            self.unsent = _NO_PARTS
        return not self.unsent

    def read(self) -> bool:
        """Read what the child has said: whether that is all. Raises `EOFError` if it has ended without an answer."""
        try:
            return self.reader.read(self.sock)
        except ConnectionResetError as error:  # it has left some of what it was sent unread
            raise EOFError(str(error)) from error

    def child(self) -> Child | None:
        """Return what is known of the child; None before the server has said so. Raises `OSError` if there is none."""
        if self._child is None and self._error is None:
            answer = self._connection.answer_to(self._id)
            if isinstance(answer, OSError):
                self._error = answer
            else:
                self._child = answer
                self._send_due()
        if self._error is not None:
            raise self._error
        return self._child

    @property
    def connection(self) -> Connection:
        """The connection on which the server tells of the child."""
        return self._connection

    def has_ended(self) -> bool:
        """Whether the child's end is known by now, or never will be. Raises `OSError` if there was no child."""
        child = self.child()
        return child is not None and (child.exit_code is not None or self._connection.is_over())

    def update(self) -> bool:
        """Take what the server has sent up to now: whether it has told the child's end."""
        self._connection.take_frames()
        return self.has_ended()

    def wait(self, timeout: float | None) -> Child | None:
        """Wait at most `timeout` seconds (None: no limit) for the child's end to be told; None if it was not.

        Raises `OSError` where there was no child. The exit code is None where the server has died before it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.update():
            remaining = _STEP if deadline is None else min(deadline - time.monotonic(), _STEP)
            if remaining <= 0:
                return None
            self._connection.take_frames(remaining)
        return self.child()

    def kill(self, number: int, *, whole_group: bool = False) -> None:
        """Send a signal to the child, or to its process group if it leads one; it may have ended.

        A child that is not known yet gets the last such signal when it is: see `is_due_a_signal`.
        """
        with contextlib.suppress(OSError):
            self.update()
        child = self._child
        if child is None:
            self._due = (number, whole_group)
            return
        if whole_group:
            child.send_signal_to_group(number)
        if not self._connection.is_over():
            child.send_signal(number)

    def is_due_a_signal(self) -> bool:
        """Whether `kill` waits for the child to be known: `update` is to be called until it is."""
        return self._due is not None and self._error is None

    def _send_due(self) -> None:
        if self._child is not None and self._due is not None:
            (number, whole_group), self._due = self._due, None
            self.kill(number, whole_group=whole_group)

    def forget(self) -> None:
        """Have nothing more to do with it: the child comes to its end by itself."""
        self.sock.close()
        if self._child is None and self._error is None:
            self._connection.forget_request(self._id)

    def abandon(self) -> None:
        """End the child, at once and without a trace."""
        self.sock.close()
        deadline = time.monotonic() + _START_DEADLINE
        with contextlib.suppress(OSError):
            while self.child() is None and time.monotonic() < deadline:
                self._connection.take_frames(_STEP)
            if self.child() is None:
                self._connection.abandon_request(self._id, deadline)
            else:
                self.kill(signal.SIGKILL)


def default_server(template: str | None = None) -> ForkServer:
    """Return what stands for a template; see `fastfork.get_context`."""
    from .context import _server, get_context

    get_context(template)
    return forkserver._forkserver if template is None else _server(template)
