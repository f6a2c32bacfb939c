"""The account of a soak: every start, how it had to end and how it did, and which fault explains a difference."""

from __future__ import annotations

import collections
import dataclasses
import errno
import itertools
import math
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from .journal import owner_of
from .options import UNFIT_ERRNO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .watch import Idle

LONGEST_START = 150.0
"""Seconds after which a start that has come to no end is a problem."""

ROOT = "root"
"""The client that starts the others."""

EXIT_CODE_LOST = 255

RECENT = 1.0
"""Seconds before a start from which on faults are named beside its problem."""


class FaultKind(NamedTuple):
    """A fault that may show in starts, and how."""

    name: str
    errnos: frozenset[int] = frozenset()
    """What a start may fail with while it lasts."""
    loses_exit_codes: bool = False
    """Whether children may end with `EXIT_CODE_LOST` where nobody can tell how they ended."""


TEMPLATE_KILLED = FaultKind(
    "a template is killed", frozenset({errno.EPIPE, errno.ECONNRESET}), loses_exit_codes=True
)
TEMPLATE_STOPPED = FaultKind("a template is stopped for a while")
TEMPLATE_LIMITED = FaultKind("a template has no descriptors for a while", frozenset({errno.EMFILE}))
CLIENT_LIMITED = FaultKind("a client has no descriptors for a while", frozenset({errno.EMFILE}))
CLIENT_KILLED = FaultKind("a client is killed")
CHILD_KILLED = FaultKind("a child is killed")

CLIENT_RESTARTS = "a client restarts its template"
"""A fault of which nobody may notice anything, like those of `vandals`."""


@dataclasses.dataclass
class Fault:
    """A fault that was made to happen."""

    kind: FaultKind
    begin: float
    end: float = math.inf
    client: str | None = None
    """The only client that it may show in; None: all of them."""

    def was_during(self, begin: float, end: float) -> bool:
        return self.begin <= end and begin <= self.end


class Start(NamedTuple):
    """A start that has not come to its end."""

    id: str
    exit_code: int | None
    """What it has to end with; None: it has to fail, with `UNFIT_ERRNO`."""
    die_with_client: bool
    begin: float


class Account:
    """What all clients have written down, judged."""

    def __init__(self, *, loses_exit_codes: bool) -> None:
        self.starts = 0
        self.right = 0
        self.explained: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.faults: collections.Counter[str] = collections.Counter()
        self.steady: tuple[Idle, Idle] | None = None
        """What the template that nothing is done to held before there were clients and after."""
        self.undisturbed: set[str] = set()
        """The names of the clients of that template: in their starts no fault of a template may show."""
        self.ready: set[str] = set()
        """The names of the clients that have begun."""
        self._loses_exit_codes = loses_exit_codes
        self._open: dict[str, Start] = {}
        self._pids: dict[str, int] = {}
        self._lasting: list[Fault] = []
        self._killed: dict[int, list[Fault]] = {}
        self._ended_early: set[str] = set()

    # ---- faults ----

    def fault(self, kind: FaultKind, now: float, client: str | None = None) -> Fault:
        """Note that a fault begins now, before it does; its end is to be set when it is over."""
        made = Fault(kind, now, client=client)
        self.faults[kind.name] += 1
        self._lasting.append(made)
        return made

    def kills_child(self, pid: int, now: float) -> Fault:
        """Note that a child is about to be killed; its end is to be set once the signal is sent.

        One that was forked ahead may get a request in between.
        """
        return self._kills(pid, Fault(CHILD_KILLED, now))

    def _kills(self, pid: int, kill: Fault) -> Fault:
        self.faults[kill.kind.name] += 1
        self._killed.setdefault(pid, []).append(kill)
        return kill

    def kills_client(self, name: str, pid: int, now: float) -> list[tuple[str, int]]:
        """Note that a client is about to be killed; returns those of its children that have to go with it."""
        self._kills(pid, Fault(CLIENT_KILLED, now, end=now))
        self._ended_early.add(name)
        return [
            (start.id, self._pids[start.id])
            for start in self._open.values()
            if start.die_with_client and start.id in self._pids and _is_thread_of(owner_of(start.id), name)
        ]

    def kills_template(self, pid: int, now: float) -> Fault:
        """Note that a template is about to be killed; its end is to be set when it is dead."""
        kill = self.fault(TEMPLATE_KILLED, now)
        self._killed.setdefault(pid, []).append(kill)
        return kill

    def killed_template_since(self, pid: int, begin: float) -> bool:
        """Whether that very template was killed, and was not dead before `begin`."""
        return any(kill.kind is TEMPLATE_KILLED and kill.end >= begin for kill in self._killed.get(pid, ()))

    # ---- what clients have written ----

    def take(self, entry: list[Any]) -> None:
        """Take one entry of a client's journal."""
        kind, *values, now = entry
        getattr(self, f"_take_{kind.replace(' ', '_')}")(*values, now)

    def _take_ready(self, client: str, _now: float) -> None:
        self.ready.add(client)

    def _take_start(self, start_id: str, exit_code: int | None, die_with_client: bool, now: float) -> None:
        self.starts += 1
        self._open[start_id] = Start(start_id, exit_code, die_with_client, now)

    def _take_pid(self, start_id: str, pid: int, _now: float) -> None:
        self._pids[start_id] = pid

    def _take_end(self, start_id: str, pid: int, exit_code: int | None, now: float) -> None:
        start = self._close(start_id)
        if exit_code == start.exit_code is not None:
            self.right += 1
            return
        cause = self._cause_of_end(start, pid, exit_code, now)
        if cause is None:
            self._problem(start, f"exit code {exit_code} and not {start.exit_code}", now)
        else:
            self._ended_early.add(start_id)
            self.explained[
                f"exit code {exit_code if exit_code != -signal.SIGKILL else 'SIGKILL'}: {cause}"
            ] += 1

    def _take_error(self, start_id: str, what: str, number: int | None, now: float) -> None:
        start = self._close(start_id)
        if start.exit_code is None and number == UNFIT_ERRNO:
            self.right += 1
            return
        cause = self._cause_of_error(start, number, now)
        if cause is None or number is None:
            self._problem(start, what, now)
        else:
            self.explained[f"{errno.errorcode[number]}: {cause}"] += 1
            if number == errno.EMFILE:  # where its descriptor got lost it had begun, and was killed
                self._ended_early.add(start_id)

    def _take_fault(self, name: str, _now: float) -> None:
        self.faults[name] += 1

    def _take_restart_error(self, what: str, number: int | None, now: float) -> None:
        if not any(number in fault.kind.errnos for fault in self._faults_between(now - LONGEST_START, now)):
            self.problems.append(f"restart() raised {what}")

    # ---- judgement ----

    def _cause_of_end(self, start: Start, pid: int, exit_code: int | None, now: float) -> str | None:
        kills = self._killed.get(pid, ()) if exit_code == -signal.SIGKILL else ()
        for kill in kills:
            if kill.was_during(start.begin, now):
                return kill.kind.name
        if exit_code == EXIT_CODE_LOST and self._loses_exit_codes:
            faults = self._faults_of(start, now)
            return next((fault.kind.name for fault in faults if fault.kind.loses_exit_codes), None)
        return None

    def _cause_of_error(self, start: Start, number: int | None, now: float) -> str | None:
        faults = self._faults_of(start, now)
        return next((fault.kind.name for fault in faults if number in fault.kind.errnos), None)

    def _faults_of(self, start: Start, end: float) -> Iterator[Fault]:
        """Yield the faults that may show in a start that has ended by then."""
        owner = owner_of(start.id)
        for fault in self._faults_between(start.begin, end):
            if fault.client is not None:
                is_possible = _is_thread_of(owner, fault.client)
            else:
                is_possible = _client_of(owner) not in self.undisturbed
            if is_possible:
                yield fault

    def _faults_between(self, begin: float, end: float) -> Iterator[Fault]:
        return (fault for fault in self._lasting if fault.was_during(begin, end))

    def late(self, now: float) -> list[Start]:
        """Return the starts of clients, not those of clients themselves, that have come to no end for too long."""
        old = itertools.takewhile(lambda start: now - start.begin > LONGEST_START, self._open.values())
        return [
            start for start in old if owner_of(start.id) != ROOT and not self._has_lost_its_client(start.id)
        ]

    def settle(self, now: float) -> None:
        """Close the account: what is open now was lost with its client, or is a problem."""
        for start in list(self._open.values()):
            if self._has_lost_its_client(start.id):
                self._close(start.id)
                self.explained["no end: its client was killed"] += 1
            else:
                self._problem(self._close(start.id), "no end", now)

    def _has_lost_its_client(self, start_id: str) -> bool:
        """Whether its client was killed, or the client of that one, and so on."""
        owner = owner_of(start_id)
        if not owner:
            return False
        return (
            owner in self._ended_early
            or _client_of(owner) in self._ended_early
            or (owner in self._open and self._has_lost_its_client(owner))
            or self._has_lost_its_client(owner)
        )

    def _close(self, start_id: str) -> Start:
        self._pids.pop(start_id, None)
        return self._open.pop(start_id)

    def _problem(self, start: Start, what: str, now: float) -> None:
        since = ", ".join(
            f"{fault.kind.name} {now - fault.begin:.2f} s before"
            for fault in self._faults_between(start.begin - RECENT, now)
        )
        self.problems.append(
            f"start {start.id}, {now - start.begin:.2f} s ago: {what} ({since or 'no fault'})"
        )


def _client_of(owner: str) -> str:
    """Return the client that a thread, or a child at whatever depth, belongs to."""
    return owner.partition("-")[0]


def _is_thread_of(owner: str, client: str) -> bool:
    """Whether this is a thread of the client, such as c3-0 of c3, and not a child of it, such as c3-0.17."""
    return _client_of(owner) == client and "." not in owner
