"""A place for one test process: the descriptors that it shares with pytest's process, made before either template.

All of them are numbers that every process of a run knows, so a command need only name the slot. They are out of the
way of tests that close or count low descriptors.
"""

from __future__ import annotations

import fcntl
import os
import resource
import tempfile

_HIGH = 512
"""From here on descriptors are put, where the limit allows it."""


class Slot:
    """Memory files for the journal, the captured output and the traceback of a crash; a pipe that says go."""

    __slots__ = ("crash", "err", "go_reader", "go_writer", "journal", "number", "out")

    def __init__(self, number: int) -> None:
        self.number = number
        self.journal = _memory_file("journal")
        self.out = _memory_file("out")
        self.err = _memory_file("err")
        self.crash = _memory_file("crash")
        self.go_reader, self.go_writer = (high(fd) for fd in os.pipe())

    def clear(self) -> None:
        """Make it ready for the next test."""
        for fd in (self.journal, self.out, self.err, self.crash):
            if os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (self.journal, self.out, self.err, self.crash, self.go_reader, self.go_writer):
            os.close(fd)


def high(fd: int) -> int:
    """Move a descriptor to a high number; it is close-on-exec."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = _HIGH if limit == resource.RLIM_INFINITY or limit > 2 * _HIGH else limit // 2
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    finally:
        os.close(fd)


def _memory_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return high(os.memfd_create(f"fastfork-{name}", os.MFD_CLOEXEC))
    with tempfile.TemporaryFile() as file:
        return high(os.dup(file.fileno()))
