"""What processes have cost so far, counted by whoever reaped them, so that measuring does not disturb them.

The kernel adds a reaped child's page faults and CPU time to its parent's "children" counters: the whole
life of the child, from fork to the last moment of its exit, whichever start method it came from. The
counters of this process come from `getrusage` (CPU to the microsecond), those of its living descendants (a
fork server, a resource tracker) from /proc (CPU to the clock tick, so over many processes only).
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def usage() -> tuple[int, float, float] | None:
    """Minor faults and CPU seconds of all reaped children, and CPU seconds of the whole tree.

    None where the system has no /proc to ask.
    """
    if not os.path.exists("/proc/self/stat"):
        return None
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    faults = children.ru_minflt
    child_cpu = children.ru_utime + children.ru_stime
    tree_cpu = child_cpu + own.ru_utime + own.ru_stime
    for stat in _descendants(os.getpid()):
        faults += stat.child_faults
        child_cpu += stat.child_cpu
        tree_cpu += stat.child_cpu + stat.own_cpu
    return faults, child_cpu, tree_cpu


class _Stat:
    """The fields of /proc/<pid>/stat that matter here. CPU times are in seconds."""

    def __init__(self, text: str) -> None:
        # The name, in parentheses, may contain anything; the third field, the state, follows the last one.
        fields = text.rpartition(")")[2].split()
        self.parent = int(fields[1])
        self.child_faults = int(fields[8])
        self.own_cpu = (int(fields[11]) + int(fields[12])) * _TICK
        self.child_cpu = (int(fields[13]) + int(fields[14])) * _TICK


def _descendants(ancestor: int) -> Iterator[_Stat]:
    stats = _all_stats()
    generation = {ancestor}
    while generation:
        children = {pid: stat for pid, stat in stats.items() if stat.parent in generation}
        yield from children.values()
        generation = set(children)


def _all_stats() -> dict[int, _Stat]:
    texts = {int(name): _read_stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: _Stat(text) for pid, text in texts.items() if text}


def _read_stat(name: str) -> str:
    """The text of /proc/<name>/stat; empty if the process has ended since the directory was read."""
    try:
        with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
