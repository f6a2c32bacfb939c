"""The functions that run in the measured processes. It imports little, as each child may pay for it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PID_SIZE = 4
"""Bytes of a pid as `meet` reports it."""


def nop() -> None:
    """Do nothing: what remains is the cost of the process."""


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
    pid = os.getpid()
    release = os.open(release_path, os.O_RDONLY)
    report = os.open(report_path, os.O_WRONLY)
    try:
        os.write(report, pid.to_bytes(PID_SIZE, "little"))
        os.read(release, 1)
    finally:
        os.close(report)
        os.close(release)
    return pid
