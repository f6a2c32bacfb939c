"""What is done to clients, children and templates during a soak."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import resource
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.support.processes import PROC, read_process

from . import account as accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .account import Account, Fault
    from .conductor import Client
    from .watch import Watch

INTERVALS = {
    accounts.CHILD_KILLED: 0.25,
    accounts.CLIENT_KILLED: 12.0,
    accounts.CLIENT_LIMITED: 12.0,
    accounts.TEMPLATE_LIMITED: 20.0,
    accounts.TEMPLATE_STOPPED: 20.0,
    accounts.TEMPLATE_KILLED: 120.0,
}
"""Seconds from one fault of a kind to the next, on average."""

TIMES_AT_LEAST = 5
"""A short run is to see each kind of fault about so often."""

RETRY = 0.3
"""Seconds after which a fault is tried again that has found nobody: a short run has no other time for it."""

KILLING = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""What a template is killed by. It clears up after itself where it can."""

LONGEST_STOP = 1.5  # seconds
LONGEST_LIMIT = 0.5  # seconds
MOST_SPARE_DESCRIPTORS = 5
"""Descriptors that a template may still open when it is limited, at most."""

STANDARD_STREAMS = 3
"""A client that may have no more cannot open any. So it launches no template either, which would stay limited."""

ORPHANS_DEADLINE = 20.0
"""Seconds that a process may outlive its client with which it was to die; its template may be stopped meanwhile."""

DEATH_DEADLINE = (
    10.0  # seconds, for the kernel to end a process that was killed, which has its children till then
)


class Orphan(NamedTuple):
    """A process that has to go with the client that was killed."""

    due: float
    start_id: str
    pid: int
    pidfd: int
    template: int
    since: float


class Faults:
    """The faults that the conductor makes, each at its time."""

    def __init__(
        self,
        account: Account,
        watch: Watch,
        clients: Callable[[], Sequence[Client]],
        *,
        seed: int,
        seconds: float,
        keeps_connections: bool,
        is_ending: Callable[[], bool],
    ) -> None:
        self._account = account
        self._watch = watch
        self._clients = clients
        self._keeps_connections = keeps_connections
        self._is_ending = is_ending
        self._chance = random.Random(f"{seed}-faults")
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._orphans: list[Orphan] = []
        self._stopped = 0
        self._intervals = {
            kind: min(interval, seconds / TIMES_AT_LEAST) for kind, interval in INTERVALS.items()
        }
        now = time.monotonic()
        self._due = {kind: now + self._pause(kind) for kind in self._intervals}
        self._makers: dict[accounts.FaultKind, Callable[[], None]] = {
            accounts.CHILD_KILLED: self._kill_child,
            accounts.CLIENT_KILLED: self._kill_client,
            accounts.CLIENT_LIMITED: self._limit_client,
            accounts.TEMPLATE_LIMITED: self._limit_template,
            accounts.TEMPLATE_STOPPED: self._stop_template,
            accounts.TEMPLATE_KILLED: self._kill_template,
        }

    def _pause(self, kind: accounts.FaultKind) -> float:
        return self._intervals[kind] * self._chance.uniform(0.5, 1.5)

    def make(self) -> None:
        """Make the faults whose time has come, and end those that have lasted long enough."""
        self._end_until(time.monotonic())
        for kind, due in self._due.items():
            if time.monotonic() >= due:
                self._due[kind] = time.monotonic() + self._pause(kind)
                try:
                    self._makers[kind]()
                except (ProcessLookupError, FileNotFoundError, IndexError):  # it has just ended
                    self._due[kind] = time.monotonic() + RETRY
        self._check_orphans(time.monotonic())

    def allow_for_pause(self, seconds: float) -> None:
        """Let those that have to end soon have these seconds besides."""
        self._orphans = [orphan._replace(due=orphan.due + seconds) for orphan in self._orphans]

    def end(self) -> None:
        """End all faults that last."""
        self._end_until(float("inf"))

    def check_all_orphans(self) -> None:
        """Wait for the processes that have to go with their clients."""
        while self._orphans:
            self._check_orphans(time.monotonic())
            time.sleep(0.05)

    def _end_until(self, now: float) -> None:
        while self._undo and self._undo[0][0] <= now:
            heapq.heappop(self._undo)[2]()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._numbers), action))

    # ---- children and clients ----

    def _kill_child(self) -> None:
        template = self._chance.choice(self._watch.templates())
        clients = {client.pid for client in self._clients()}
        children = [pid for pid in _children(template) if pid not in clients]
        victim = self._chance.choice(children)
        pidfd = os.pidfd_open(victim)
        try:
            if victim in _children(template):  # and no other process that has got its pid
                self._watch.expects_death_of(victim)
                kill = self._account.kills_child(victim, time.monotonic())
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                kill.end = time.monotonic()
        finally:
            os.close(pidfd)

    def _kill_client(self) -> None:
        client = self._chance.choice(self._clients())
        self._watch.expects_death_of(client.pid)
        now = time.monotonic()
        for start_id, pid in self._account.kills_client(client.name, client.pid, now):
            with contextlib.suppress(OSError):
                self._watch_orphan(start_id, pid, now)
        signal.pidfd_send_signal(client.pidfd, signal.SIGKILL)

    def _watch_orphan(self, start_id: str, pid: int, now: float) -> None:
        """Watch a process, unless it has outlived its template: without that nobody can end it."""
        with contextlib.ExitStack() as unless_watched:
            pidfd = os.pidfd_open(pid)
            unless_watched.callback(os.close, pidfd)
            template = read_process(pid).parent
            if self._watch.listens(template):
                self._orphans.append(Orphan(now + ORPHANS_DEADLINE, start_id, pid, pidfd, template, now))
                unless_watched.pop_all()

    def _check_orphans(self, now: float) -> None:
        for orphan in list(self._orphans):
            has_ended = _has_ended(orphan.pidfd, 0)
            if has_ended or now >= orphan.due:
                self._orphans.remove(orphan)
                if not has_ended:
                    self._end_orphan(orphan)
                os.close(orphan.pidfd)

    def _end_orphan(self, orphan: Orphan) -> None:
        """End what should have ended long ago; without its template nobody could do it earlier."""
        if not self._account.killed_template_since(orphan.template, orphan.since - DEATH_DEADLINE):
            self._account.problems.append(
                f"start {orphan.start_id} (pid {orphan.pid}) has not died with its client in {ORPHANS_DEADLINE:.0f} s"
            )
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(orphan.pidfd, signal.SIGKILL)

    def _limit_client(self) -> None:
        client = self._chance.choice(
            [client for client in self._clients() if client.name in self._account.ready]
        )
        fault = self._account.fault(accounts.CLIENT_LIMITED, time.monotonic(), client.name)
        self._limit(client.pid, STANDARD_STREAMS, fault)

    # ---- templates ----

    def _limit_template(self) -> None:
        """Limit a template that serves. What it is given before is what its children get."""
        watch = self._watch
        pid = self._chance.choice(watch.serving() if self._keeps_connections else watch.others())
        open_now = len(os.listdir(PROC / str(pid) / "fd"))
        fault = self._account.fault(accounts.TEMPLATE_LIMITED, time.monotonic())
        self._limit(pid, open_now + self._chance.randint(0, MOST_SPARE_DESCRIPTORS), fault)

    def _limit(self, pid: int, limit: int, fault: Fault) -> None:
        """Let a process have no more descriptors than that for a while."""
        pidfd = os.pidfd_open(pid)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))

        def undo() -> None:
            if not _has_ended(pidfd, 0):
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            os.close(pidfd)
            fault.end = time.monotonic()

        self._later(self._chance.uniform(0.1, LONGEST_LIMIT), undo)

    @property
    def has_stopped_a_template(self) -> bool:
        """Whether one is stopped now: who asks it for anything waits until it goes on."""
        return self._stopped > 0

    def _stop_template(self) -> None:
        pid = self._chance.choice(self._watch.others())
        fault = self._account.fault(accounts.TEMPLATE_STOPPED, time.monotonic())
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        self._stopped += 1

        def undo() -> None:
            self._stopped -= 1
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)
            fault.end = time.monotonic()

        self._later(self._chance.uniform(0.1, LONGEST_STOP), undo)

    def _kill_template(self) -> None:
        """Kill a template, unless the run is about to end: what lives on grows old enough for its growth to show."""
        if self._is_ending():
            return
        pid = self._chance.choice(self._watch.others())
        number = self._chance.choice(KILLING)
        pidfd = os.pidfd_open(pid)
        if number == signal.SIGKILL:
            self._watch.expects_death_of(pid)
        fault = self._account.kills_template(pid, time.monotonic())
        signal.pidfd_send_signal(pidfd, number)
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)  # what is stopped dies of SIGKILL alone
        _has_ended(pidfd, DEATH_DEADLINE)
        fault.end = time.monotonic()
        os.close(pidfd)


def _children(pid: int) -> list[int]:
    """Return the children of a process that has one thread."""
    return [int(child) for child in (PROC / str(pid) / "task" / str(pid) / "children").read_text().split()]


def _has_ended(pidfd: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout * 1000))
