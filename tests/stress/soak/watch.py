"""What templates hold while they serve: descriptors, memory, children, and whether that grows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.support.processes import PROC, children_of, descriptors, processes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

WARM_UP = 15.0
"""Seconds of a template's life that do not count: its first requests of each kind."""

FEWEST_SAMPLES = 40
"""Samples after which the life of a template is long enough to tell a trend."""

MOST_GROWTH_PER_CLIENT = 10
"""Descriptors: the clients of a template come and go, and so do the connections of their vandals and what those send.
That nothing is left of them is seen at the end, when there are no clients."""

MOST_GROWTH_OF_MEMORY = 1 << 20  # bytes, of the resident and of the private memory

MOST_GROWTH_WHILE_IDLE = {"resident": 1 << 20, "private": 1 << 18}
"""Bytes of each kind of memory that a template may keep of a whole run, once it has no client any more. In a short run
it serves about a thousand starts: some hundred bytes that each of them leaves show."""

REST = 1.0
"""Seconds for which a template that is at rest holds the same."""

PROBATION = 1.0
"""Seconds that a process must have listened alone to be taken for a template."""

LONGEST_ZOMBIE = 120.0
"""Seconds that a dead child may wait for its template, which may be stopped, or get no processor, for a while."""

_LISTENS = 0x10000
"""The flag of a listening socket in proc_net_unix(5)."""


class Sample(NamedTuple):
    """What one template held at one time."""

    time: float
    descriptors: int
    resident: int  # bytes
    private: int  # bytes: its own memory, that which children still share included
    children: int


class Idle(NamedTuple):
    """What a template held while nobody wanted anything of it."""

    pid: int
    starts: int | None
    """How many it had served; None where it does not tell."""
    sample: Sample


@dataclasses.dataclass
class Life:
    """A template, from when it was first seen."""

    pid: int
    begin: float
    samples: list[Sample] = dataclasses.field(default_factory=list)
    zombies: dict[int, float] = dataclasses.field(default_factory=dict)
    """Dead children that have not been reaped, and since when."""

    def growth(self) -> tuple[int, int, int] | None:
        """How many descriptors, bytes of resident and of private memory more than after the warm-up it has at its end.

        None where the life was too short to tell. Descriptors are compared by their least number, since others come
        and go, the memory by its median.
        """
        steady = [sample for sample in self.samples if sample.time >= self.begin + WARM_UP]
        if len(steady) < FEWEST_SAMPLES:
            return None
        quarter = len(steady) // 4
        first, last = steady[:quarter], steady[-quarter:]
        return (
            min(sample.descriptors for sample in last) - min(sample.descriptors for sample in first),
            int(_median(s.resident for s in last) - _median(s.resident for s in first)),
            int(_median(s.private for s in last) - _median(s.private for s in first)),
        )


def _median(values: Iterable[int]) -> float:
    return statistics.median(values)


class Watch:
    """The templates whose sockets lie in one folder, and that have so many clients at most."""

    def __init__(self, folder: Path, clients: int) -> None:
        self._clients = clients
        self._folder = str(folder)
        self._templates: dict[int, int] = {}
        """The templates that are known, by the inode of the socket that each listens on."""
        self._candidates: dict[int, tuple[int, float]] = {}
        """Those that may be templates, likewise, and since when."""
        self.lives: dict[int, Life] = {}
        self.problems: list[str] = []
        self.steady: int | None = None
        """The template that nothing is done to."""
        self.may_be_left: set[str] = set()
        """The folders of templates that were killed."""

    def templates(self) -> list[int]:
        """Return the pids of the templates that live now, the oldest first."""
        listening = _listening_sockets(self._folder).keys()
        self._templates = {
            inode: pid for inode, pid in self._templates.items() if inode in listening and _holds(pid, inode)
        }
        if unknown := listening - self._templates.keys():
            self._look_for(unknown, time.monotonic())
        return sorted(self._templates.values(), key=_birth)

    def listens(self, pid: int) -> bool:
        """Whether a process listens as templates do, one that is not known yet among them."""
        return any(_holds(pid, inode) for inode in _listening_sockets(self._folder))

    def others(self) -> list[int]:
        """Return the pids of those that something may be done to."""
        return [pid for pid in self.templates() if pid != self.steady]

    def _look_for(self, inodes: set[int], now: float) -> None:
        """Find out who listens on these sockets: who does so alone, and goes on.

        A client that launches a template, and a child that is born, hold its socket for a moment.
        """
        before, self._candidates = self._candidates, {}
        for inode, pid in _holders(inodes).items():
            candidate, since = before.get(inode, (0, now))
            self._candidates[inode] = pid, since if candidate == pid else now
            if candidate == pid and now - since >= PROBATION:
                self._templates[inode] = pid

    def serving(self) -> list[int]:
        """Return the pids of those that something may be done to and that have a connection to somebody."""
        others = self.others()
        listening = {f"socket:[{inode}]" for inode in self._templates}
        return [
            pid
            for pid in others
            if any(name.startswith("socket:") and name not in listening for name in _open_files(str(pid)))
        ]

    def expects_death_of(self, pid: int) -> None:
        """Note that a process is about to be killed: what it listens on it cannot remove any more.

        Its client does so for a template, unless that is killed as well.
        """
        self.may_be_left.update(_folders_of(pid, self._folder))

    def known(self) -> set[int]:
        """Return the pids of the templates that lived when it was last looked."""
        return set(self._templates.values())

    def sample(self, now: float) -> None:
        """Look at every template."""
        table = list(processes())
        for pid in self.templates():
            with contextlib.suppress(OSError):
                life = self.lives.setdefault(pid, Life(pid, now))
                children = [process for process in table if process.parent == pid]
                life.samples.append(measure(pid, now, len(children)))
                self._note_zombies(life, {child.pid for child in children if child.state == "Z"}, now)

    def _note_zombies(self, life: Life, zombies: set[int], now: float) -> None:
        life.zombies = {pid: life.zombies.get(pid, now) for pid in zombies}
        for pid, since in life.zombies.items():
            if now - since > LONGEST_ZOMBIE:
                self.problems.append(f"template {life.pid} has left its child {pid} a zombie")
                life.zombies[pid] = now + 1e9

    def forget_zombies(self) -> None:
        """Count anew how long they wait."""
        for life in self.lives.values():
            life.zombies.clear()

    def check_growth(self) -> None:
        """See that no template has grown."""
        limits = (MOST_GROWTH_PER_CLIENT * self._clients, MOST_GROWTH_OF_MEMORY, MOST_GROWTH_OF_MEMORY)
        for life in self.lives.values():
            growth = life.growth()
            if growth is not None and any(grown > limit for grown, limit in zip(growth, limits)):
                descriptors, resident, private = growth
                self.problems.append(
                    f"template {life.pid} has grown: descriptors {descriptors:+}, resident memory {resident:+} bytes, "
                    f"private memory {private:+} bytes"
                )


def await_rest(pid: int, most_descriptors: float, timeout: float) -> None:
    """Wait until a template has no children and not too many descriptors, and nothing changes for a while.

    Where it has reaped a child it may be about to close what was that one's. Raises `AssertionError` after `timeout`
    seconds.
    """
    held, since = -1, 0.0

    def is_at_rest() -> bool:
        nonlocal held, since
        before, held = held, len(descriptors(pid))
        if held != before or held > most_descriptors or children_of(pid):
            since = time.monotonic()
        return time.monotonic() - since >= REST

    wait_until(is_at_rest, timeout)


def idle(pid: int, starts: int | None) -> Idle:
    """Return what a template holds that nobody wants anything of. Raises `OSError` when it has ended."""
    return Idle(pid, starts, measure(pid, time.monotonic(), len(children_of(pid))))


def changes(before: Idle, after: Idle) -> list[str]:
    """Return what is wrong with a template that is not as it was, or that has not parted from its children."""
    if before.pid != after.pid:
        return [f"the steady template is {after.pid} and not {before.pid}"]
    first, last = before.sample, after.sample
    problems = []
    if last.children > 0:
        problems.append(f"the idle template has {last.children} children")
    if last.descriptors != first.descriptors:
        problems.append(f"the idle template has {last.descriptors} descriptors and not {first.descriptors}")
    for kind, limit in MOST_GROWTH_WHILE_IDLE.items():
        grown = getattr(last, kind) - getattr(first, kind)
        if grown > limit:
            problems.append(f"the idle template has {grown} bytes of {kind} memory more")
    return problems


def measure(pid: int, now: float, children: int) -> Sample:
    """Return what a process holds. Raises `OSError` when it has ended."""
    memory = {}
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) * 1024
    return Sample(
        now,
        len(os.listdir(PROC / str(pid) / "fd")),
        memory["Rss"],
        memory["Anonymous"],
        children,
    )


def _folders_of(pid: int, within: str) -> list[str]:
    """Return the folders of the sockets that a process listens on: left behind by one that is killed."""
    inodes = _listening_sockets(within)
    names = set(_open_files(str(pid))) if inodes else set()
    return [os.path.dirname(path) for inode, path in inodes.items() if f"socket:[{inode}]" in names]


def _listening_sockets(folder: str) -> dict[int, str]:
    """Return the inodes of the sockets that somebody listens on in this folder, and their paths."""
    found = {}
    for line in (PROC / "net/unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7].startswith(folder) and int(fields[3], 16) & _LISTENS:
            found[int(fields[6])] = fields[7]
    return found


def _holders(inodes: set[int]) -> dict[int, int]:
    """Return by whom each of these sockets is held, if that is one process alone."""
    names = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, set[int]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            for name in _open_files(entry):
                if name in names:
                    found.setdefault(names[name], set()).add(int(entry))
    return {inode: pids.pop() for inode, pids in found.items() if len(pids) == 1}


def _holds(pid: int, inode: int) -> bool:
    return f"socket:[{inode}]" in _open_files(str(pid))


def _open_files(pid: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for fd in os.listdir(PROC / pid / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(PROC / pid / "fd" / fd)


def _birth(pid: int) -> int:
    """Return when a process was started, in ticks; now, for one that has ended."""
    with contextlib.suppress(OSError):
        return int((PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    return 1 << 62
