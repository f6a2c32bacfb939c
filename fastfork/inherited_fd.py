"""A descriptor in a pickle, for a child that inherits it: what multiprocessing calls a ``DupFd``.

A template imports this module, or each child that is sent a connection, a queue or a pool's task would.
"""

from __future__ import annotations

from . import forkserver


class InheritedFd:
    """A descriptor, by its place among those that the child inherits."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        """Return the descriptor, which is the caller's from now on; in the child."""
        fds = forkserver.get_inherited_fds()
        assert fds is not None
        return fds[self.index]
