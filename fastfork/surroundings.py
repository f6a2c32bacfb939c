"""What a process hands on to all that it starts, and what no description of a template says."""

from __future__ import annotations

import os
from multiprocessing import process

_PROC = "/proc/self/"


def look() -> tuple[object, ...]:
    """Return what a template that were launched now would have from this process, in a form that can be compared.

    Environment, niceness, processors, limits, umask, session, what standard output and error are, and whom else it may
    be killed with: a process group, or a process that is to die with its client. Where the system does not tell of one
    it is left out. Nothing is imported for it, as a template looks, too, and nothing set.
    """
    return (
        sorted(os.environb.items()),
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        _lines_of("limits", ""),
        _lines_of("status", "Umask:"),
        os.getsid(0),
        os.getpgrp(),
        bool(getattr(process.current_process(), "_die_with_client", False)),
        [_identity(fd) for fd in (1, 2)],
    )


def _lines_of(name: str, beginning: str) -> list[str]:
    try:
        with open(_PROC + name) as stream:
            return [line for line in stream if line.startswith(beginning)]
    except OSError:
        return []


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
