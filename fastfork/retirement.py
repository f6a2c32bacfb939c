"""A template that its client has let go of: it serves what is left of the others, and leaves."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .client import Connection
    from .launch import LaunchedTemplate

_LEAVE_GRACE = 0.2
"""Seconds that a template may take to end once the last child of this process has been told of: for so long the end
of that child is held up, to leave no zombie. It takes longer where other processes still use the template."""


class Retired:
    """A template that this process starts no more processes from.

    Parameters
    ----------
    launched:
        The template, where it is a child of this process.
    connection:
        The connection on which the exits of its children arrive, if there is one.

    """

    def __init__(self, launched: LaunchedTemplate | None, connection: Connection | None) -> None:
        self._launched = launched
        self._connection = connection
        if connection is not None:
            connection.retire(self._await_end_briefly)

    def is_over(self) -> bool:
        """Whether there is nothing left of it; reaps its process then."""
        if self._launched is None:
            return self._connection is None or self._connection.is_over()
        if not self._launched.process.has_ended():
            return False
        self._launched.remove_address()
        return True

    def await_end(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the end of its process, where that is a child of this one."""
        if self._launched is not None:
            self._launched.process.wait(timeout)

    def _await_end_briefly(self) -> None:
        self.await_end(_LEAVE_GRACE)

    def abandon(self) -> None:
        """Close this process's end alone: that of its parent, after a raw `os.fork()`, goes on."""
        if self._connection is not None:
            self._connection.abandon()
