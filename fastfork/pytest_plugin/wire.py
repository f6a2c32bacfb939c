"""What the processes say to each other: commands to templates, notes to pytest's process, records in a journal."""

from __future__ import annotations

import marshal
import os
import pickle
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Commands to a template: (verb, ...).
RUN = "run"  # index, slot: fork a process for the test
PREPARE = "prepare"  # index, slot, keys of Wide, depth: set up these wide fixtures for the test
LEAVE = "leave"  # index, slot, next index or -1: tear down what the next test does not need
SPAWN = "spawn"  # group, depth, and a descriptor: fork a template
SIGNAL = "signal"  # slot, number: send a signal to the test in it; SIGKILL to all of its group
END = "end"  # leave: no more tests

# Notes to pytest's process.
ENDED = 1  # slot, index, flags: a test has told all
EXITED = 2  # slot, index, wait status, leftovers: its process has been reaped
DONE = 3  # slot, index, -, fixtures that have failed and those not come to: a template has prepared or left
NOT_FORKED = 4  # slot (-1: a template), index or group, errno
TEMPLATE_EXITED = 5  # -1, group, wait status

FAILED = 1
"""Flag of ENDED: one of the reports is a failure."""
STOPS = 2
"""Flag of ENDED: the session is to stop."""

# Records in a journal.
REPORT = 1
WARNING = 2
STOP = 3
EXTRAS = 4
LEFTOVERS = 5
SECONDS = 6

_NOTE = struct.Struct("=Biii")
_RECORD = struct.Struct("=BI")
_PID = struct.Struct("=I")
_HEAD_SIZE = _PID.size + 1

PHASES = ("setup", "call", "teardown")

MAX_MESSAGE = 1 << 16
"""Bytes of a command or a note."""


class Note:
    """What a process has told pytest's."""

    __slots__ = ("index", "kind", "rest", "slot", "value")

    def __init__(self, message: bytes) -> None:
        self.kind, self.slot, self.index, self.value = _NOTE.unpack_from(message)
        self.rest: Any = marshal.loads(message[_NOTE.size :]) if len(message) > _NOTE.size else None


def note(kind: int, slot: int, index: int, value: int, rest: Any = None) -> bytes:
    """Write a note."""
    head = _NOTE.pack(kind, slot, index, value)
    return head if rest is None else head + marshal.dumps(rest)


def command(*words: Any) -> bytes:
    """Write a command."""
    return marshal.dumps(words)


def read_command(message: bytes) -> Any:
    """Read a command."""
    return marshal.loads(message)


def pack(value: Any) -> bytes:
    """Serialise what a record holds: by marshal, the fastest, and by pickle what that does not know."""
    try:
        return b"m" + marshal.dumps(value)
    except ValueError:
        return b"p" + pickle.dumps(value)


def unpack(data: bytes) -> Any:
    """Read what a record holds."""
    return marshal.loads(data[1:]) if data[:1] == b"m" else pickle.loads(data[1:])


class Journal:
    """What a process writes down about its test, in memory that outlives it: nothing of it is lost in a crash.

    It begins with the pid of the process and the phase of the test; its records follow.

    Parameters
    ----------
    fd:
        A memory file, empty. Borrowed.

    """

    __slots__ = ("_end", "_fd", "_owner")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._owner = os.getpid()
        os.pwrite(fd, _PID.pack(self._owner) + b"\0", 0)
        self._end = _HEAD_SIZE

    def is_mine(self) -> bool:
        """Whether this is the process that began it, and no fork of that by the test."""
        return os.getpid() == self._owner

    def enter(self, phase: int) -> None:
        """Note that a phase of the test begins, by its number in `PHASES`."""
        if self.is_mine():
            os.pwrite(self._fd, bytes((phase,)), _PID.size)

    def add(self, kind: int, value: Any) -> None:
        """Add a record."""
        if not self.is_mine():
            return
        data = pack(value)
        record = _RECORD.pack(kind, len(data)) + data
        while record:
            written = os.pwrite(self._fd, record, self._end)
            self._end += written
            record = record[written:]


def journal_pid(fd: int) -> int:
    """Return the pid of the process that has begun a journal; 0 if none has."""
    head = os.pread(fd, _PID.size, 0)
    pid: int = _PID.unpack(head)[0] if len(head) == _PID.size else 0
    return pid


def journal_phase(fd: int) -> str:
    """Return the phase in which a test is, or has ended."""
    phase = os.pread(fd, 1, _PID.size)
    return PHASES[phase[0]] if phase else PHASES[0]


def journal_records(fd: int) -> Iterator[tuple[int, Any]]:
    """Read the records of a journal; one that was not written to its end is left out."""
    data = read_all(fd)
    position = _HEAD_SIZE
    while position + _RECORD.size <= len(data):
        kind, size = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        if position + size > len(data):
            return
        yield kind, unpack(data[position : position + size])
        position += size


def read_all(fd: int) -> bytes:
    """Read a file from its beginning, leaving its offset alone."""
    size = os.fstat(fd).st_size
    parts = []
    position = 0
    while position < size:
        part = os.pread(fd, size - position, position)
        if not part:
            break
        parts.append(part)
        position += len(part)
    return b"".join(parts)
