"""What a process has open and which processes descend from it, as /proc tells; waiting with a deadline."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE = 60.0
"""Seconds that anything may take; only a failure takes as long."""

MARK = "FASTFORK_TESTS"
"""The environment variable by which all that the tests started is known, whoever its parent is by now."""

PROC = Path("/proc")


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    parent: int
    state: str
    command: str


def wait_until(condition: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Wait for what no descriptor tells; `AssertionError` when it has not come after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain"
        time.sleep(0.002)


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Return the open descriptors of a process and what they stand for, less the one that this takes itself."""
    found = {}
    for entry in os.listdir(PROC / str(pid) / "fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(entry)] = os.readlink(PROC / str(pid) / "fd" / entry)
    return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def processes() -> Iterator[Process]:
    """Yield every process of the machine."""
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield _read(int(entry))


def _read(pid: int) -> Process:
    stat = (PROC / str(pid) / "stat").read_text()
    state, parent = stat.rpartition(")")[2].split()[:2]
    command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return Process(pid, int(parent), state, command[:200])


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of a process, zombies among them."""
    return [process.pid for process in processes() if process.parent == pid]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return _read(pid).state != "Z"
    except OSError:
        return False


def descendants() -> set[Process]:
    """Return this process's children, and whatever else carries the mark of this run."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    return {
        process
        for process in processes()
        if process.pid != os.getpid() and (process.parent == os.getpid() or _has_mark(process.pid, mark))
    }


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        return mark in (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False


def fork(action: Callable[[], object]) -> int:
    """Fork this process: the child does `action` and ends, with status 0 unless that raised. Returns its pid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the threads of pytest's own
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


def exit_code_of(pid: int) -> int:
    """Wait for a child of this process; return its exit code, negative for a signal."""
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
