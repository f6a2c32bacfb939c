"""What all processes of a run have in common, by inheritance."""

from __future__ import annotations

import gc
import os
import signal
import socket

from . import internals
from .needs import Needs
from .slot import Slot, high
from .test_process import Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from .settings import Settings


class Run:
    """The tests, the slots, and the way to pytest's process."""

    def __init__(self, session: pytest.Session, settings: Settings, slots: int) -> None:
        self.session = session
        self.config = session.config
        self.items: Sequence[pytest.Item] = session.items
        self.settings = settings
        self.needs = Needs(self.items, settings)
        self.slots = [Slot(number) for number in range(slots)]
        self.null_fd = high(os.open(os.devnull, os.O_RDWR))
        self.stderr_fd = high(os.dup(2))
        self.crash_fd = high(os.open(os.devnull, os.O_RDWR))
        self.captured = internals.captured_descriptors(self.config)
        self.prepared: dict[int, internals.Prepared] = {}
        self.reporter = Reporter(self.config)
        self.interrupt_handler = signal.getsignal(signal.SIGINT)
        self.collects_garbage = gc.isenabled()
        self.notes, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sender = socket.socket(fileno=high(sender.detach()))

    def send(self, note: bytes) -> None:
        """Tell pytest's process something."""
        self._sender.send(note)

    def close(self) -> None:
        """Close all descriptors, in pytest's process."""
        for slot in self.slots:
            slot.close()
        for fd in (self.null_fd, self.stderr_fd, self.crash_fd):
            os.close(fd)
        self.notes.close()
        self._sender.close()
