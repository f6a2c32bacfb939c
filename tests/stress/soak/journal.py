"""What a client writes down: one line for each thing that happens, whole even if the client is killed right after it.

    ["ready", name, time]                                       the client has all that it needs, and begins
    ["start", id, expected exit code, die_with_client, time]    a start is about to be made
    ["pid", id, pid, time]                                      it was, of a process that would outlive its client
    ["end", id, pid, exit code, time]                           the process has ended; None: it has not, for too long
    ["error", id, what, errno, time]                            the start, or the wait for its end, has raised
    ["fault", kind, time]                                       the client has done something odd
    ["restart error", what, errno, time]                        it has let go of its template, and that has raised

An id is the client's name and a number. A child that starts processes itself is a client whose name is the id of its
own start: ``c3.17`` is the 17th start of the client c3, ``c3.17.1`` the first of that child.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def owner_of(start_id: str) -> str:
    """Return the name of the client that made a start."""
    return start_id.rpartition(".")[0]


class Journal:
    """A journal to write to. The threads of a client, and its children, share the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, *entry: object) -> None:
        """Write one entry; the time is added."""
        os.write(self._fd, json.dumps([*entry, time.monotonic()]).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


class Reader:
    """A journal to read, as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def entries(self) -> list[Any]:
        """Return the entries that have come since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
