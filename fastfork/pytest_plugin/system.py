"""Processes and their descriptors, as Linux tells of them. Elsewhere there is nothing to tell."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_CHILD_SUBREAPER = 36


def _find_prctl() -> Callable[..., int] | None:
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    prctl.restype = ctypes.c_int
    found: Callable[..., int] = prctl
    return found


_prctl = _find_prctl()


def adopt_orphans(adopt: bool = True) -> None:
    """Become the parent of all descendants whose own parent ends, or cease to."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def child_pids() -> list[int]:
    """Return the children of this process that its main thread has forked or adopted; zombies are among them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def descriptors() -> dict[int, str]:
    """Return the descriptors of this process and what they are open on."""
    found = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return {}
    for number in numbers:
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return found


def is_another_groups_terminal(stream: object) -> bool:
    """Whether reading from a stream would stop this process: it is a terminal that another process group has."""
    try:
        return os.tcgetpgrp(stream.fileno()) != os.getpgrp()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_group(pid: int) -> None:
    """Kill a process and those of its group, if it leads one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    kill(pid)


def signal_name(number: int) -> str:
    """Return the name of a signal, as far as it has one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
