"""What a process has open and which processes descend from it, as /proc tells; waiting with a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Seen = TypeVar("_Seen")

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


def wait_until(condition: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Wait for what no descriptor tells; `AssertionError` when it has not come after `timeout` seconds.

    The longer it takes, the less often it is looked for: a look may go through all processes.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < timeout, f"waited {timeout} s in vain"
        time.sleep(min(max(0.002, waited / 20), 0.05))


def settled(look: Callable[[], _Seen], wanted: _Seen, timeout: float = DEADLINE) -> _Seen:
    """Wait until a look sees what is wanted; return what the last one has seen, for the test to assert.

    Another look would not do: what has come may be over by then.
    """
    seen = []

    def is_wanted() -> bool:
        seen.append(look())
        return seen[-1] == wanted

    with contextlib.suppress(AssertionError):
        wait_until(is_wanted, timeout)
    return seen[-1]


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Return the open descriptors of a process and what they stand for, less the one that this takes itself."""
    folder = f"{PROC}/{pid}/fd"
    found = {}
    for entry in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found[int(entry)] = os.readlink(f"{folder}/{entry}")
    return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def page_faults(pid: int) -> int:
    """Return how often a process has come to a page that was not there, or not its own yet, and needed no disk."""
    return int(_content(pid, "stat").rpartition(b")")[2].split()[7])


def processes() -> Iterator[Process]:
    """Yield every process of the machine."""
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield read_process(int(entry))


def read_process(pid: int) -> Process:
    """Return the line of a process. Raises `OSError` when there is none."""
    state, parent, _ = _content(pid, "stat").rpartition(b")")[2].split(None, 2)
    return Process(pid, int(parent), state.decode())


def _content(pid: int, name: str) -> bytes:
    """Return what a file of a process says. Every test looks at all processes, several times: so no file object."""
    fd = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = [os.read(fd, _PIECE)]
        while pieces[-1]:
            pieces.append(os.read(fd, _PIECE))
        return b"".join(pieces)
    finally:
        os.close(fd)


_PIECE = 1 << 16
"""Bytes that are read at once."""


def state_of(pid: int) -> str:
    """Return the letter that proc_pid_stat(5) has for what a process is about. Raises `OSError` when there is none."""
    return read_process(pid).state


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of a process, zombies among them."""
    return [process.pid for process in processes() if process.parent == pid]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return state_of(pid) != "Z"
    except OSError:
        return False


def descendants() -> set[Process]:
    """Return this process's children, and whatever else carries the mark of this run."""
    own = os.getpid()
    mark = f"{MARK}={os.environ[MARK]}"
    return {
        process
        for process in processes()
        if process.pid != own and (process.parent == own or _has_variable(process.pid, mark))
    }


def marked(variable: str) -> list[int]:
    """Return the pids of the processes that were executed with an environment variable, as in ``NAME=value``.

    Zombies have none any more, and this process is not among them.
    """
    own = os.getpid()
    return [
        process.pid for process in processes() if process.pid != own and _has_variable(process.pid, variable)
    ]


def _has_variable(pid: int, variable: str) -> bool:
    try:
        return variable.encode() in _content(pid, "environ").split(b"\0")
    except OSError:
        return False


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process stopped, and let it go on at last."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(pid) == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


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
