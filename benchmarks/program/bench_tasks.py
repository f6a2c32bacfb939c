"""The functions that run in the measured processes. It imports little, as each child may pay for it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PID_SIZE = 4
"""Bytes of a pid as `report` writes it."""
TIME_SIZE = 8
"""Bytes of a moment as `arrive` writes it."""


def nop() -> None:
    """Do nothing: what remains is the cost of the process."""


def take(_sent: object) -> None:
    """Do nothing with what has been sent."""


_tasks = 0
"""How many tasks this process has had."""


def count_tasks(number: int) -> tuple[int, int, int]:
    """Do next to nothing: return `number`, how many tasks this process has had by now, and its pid."""
    global _tasks
    _tasks += 1
    return number, _tasks, os.getpid()


def echo(data: bytes, _fds: list[int]) -> bytes:
    """Return the bytes of a lean call."""
    return data


def answer(replies: Connection[Any, Any], number: int, code: int) -> None:
    """Send the square of `number` and exit with `code`, to prove that a real child ran this."""
    replies.send(number * number)
    replies.close()
    sys.exit(code)


def loaded_modules(replies: Connection[Any, Any]) -> None:
    """Send the names of all modules that this process has imported."""
    replies.send(sorted(sys.modules))
    replies.close()


def meet(report_path: str, release_path: str) -> int:
    """Report this process's pid in one fifo, wait for one byte from the other, and return the pid.

    A worker that waits here takes no second task, so as many tasks as a pool has workers reach them all.
    """
    release = os.open(release_path, os.O_RDONLY)
    try:
        pid = report(report_path)
        os.read(release, 1)
    finally:
        os.close(release)
    return pid


def report(path: str) -> int:
    """Write this process's pid into a fifo, and return it."""
    return _write(path, os.getpid(), PID_SIZE)


def arrive(path: str) -> None:
    """Write the moment at which this line is reached into a fifo: nanoseconds of the clock that all processes share."""
    now = time.monotonic_ns()
    _write(path, now, TIME_SIZE)


def _write(path: str, number: int, size: int) -> int:
    fifo = os.open(path, os.O_WRONLY)
    try:
        os.write(fifo, number.to_bytes(size, "little"))
    finally:
        os.close(fifo)
    return number
