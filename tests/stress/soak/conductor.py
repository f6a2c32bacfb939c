"""The run of a soak: it keeps the clients going, makes faults, reads what clients write down, watches the templates."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.processes import marked, processes, state_of, wait_until

from . import clients, report, watch
from .account import LONGEST_START, ROOT, Account
from .clients import LONGEST_JOIN, Order, join
from .faults import Faults
from .journal import Reader
from .servers import STEADY
from .servers import server as server_called
from .watch import Watch

if TYPE_CHECKING:
    from .report import Options
    from .watch import Idle

TICK = 0.1  # seconds
SAMPLES = 1.0  # seconds from one look at the templates to the next
PROGRESS = 10.0  # seconds
STANDSTILL = 1200
"""Ticks without an entry in any journal after which the run is given up: where the clients get no processor, there are
few ticks either."""

LONGEST_TICK = 5.0
"""Seconds after which a tick was a pause: whoever had to do something meanwhile had no processor for it either."""

USUAL_LIMIT = 1024  # descriptors

IDLE_STARTS = 30

LONGEST_REST = 60.0
"""Seconds that a template may take to part from what it has of its clients and of what it has forked ahead."""

LAST_STRETCH = 0.1
"""The part of a run, its last, in which no template is killed."""


@dataclasses.dataclass
class Client:
    """A client that runs."""

    place: int
    """Its place among the clients: whoever comes after it gets that, and is served by the same template."""
    name: str
    pid: int
    pidfd: int
    reader: Reader
    process: Any
    """What started it from the template; None for one that was forked from the conductor."""
    start_id: str


class Conductor:
    """One run."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._server = server_called(options.on)
        self._steady = server_called(options.on, STEADY)
        self._account = Account(loses_exit_codes=self._server.loses_exit_codes)
        self._watch = Watch(Path(tempfile.gettempdir()), options.clients)
        self._clients: list[Client] = []
        self._readers: list[Reader] = []
        self._numbers = itertools.count(1)
        self._ended_by_signal = False
        self._problems_shown = 0
        self._ticks_without_entry = 0
        self._last_pause = float("-inf")
        self._begin = time.monotonic()
        stop_r, stop_w = os.pipe()
        self._stop_r, self._stop_w = Connection(stop_r, writable=False), Connection(stop_w, readable=False)

    def run(self) -> dict[str, Any]:
        """Run until there have been enough starts for long enough; returns the summary."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever has started this may have it ignored
        _have_usual_limit()
        before = self._idle(math.inf)
        self._watch.steady = before.pid
        with self._stop_w:  # whatever happens, the clients end
            seconds = self._run_clients()
        if self._server.has_templates:
            self._server.stop()
        self._check_steady(before)
        self._steady.stop()
        self._account.problems += [f"the conductor has left its child {pid} a zombie" for pid in zombies()]
        return report.summary(self._options, self._account, self._watch, seconds)

    def _run_clients(self) -> float:
        """Keep clients going until there have been enough starts, and end them; returns the seconds of the former."""
        self._begin = time.monotonic()
        faults = Faults(
            self._account,
            self._watch,
            lambda: self._clients,
            seed=self._options.seed,
            seconds=self._options.minutes * 60,
            keeps_connections=self._server.keeps_connections,
            is_ending=lambda: is_in_last_stretch(
                self._options, self._account.starts, time.monotonic() - self._begin
            ),
        )
        try:
            self._go_on(faults)
        except Exception:
            self._account.problems.append(f"the conductor itself has failed: {traceback.format_exc()}")
        seconds = time.monotonic() - self._begin
        self._finish(faults)
        return seconds

    def _end(self, *_arguments: object) -> None:
        self._ended_by_signal = True

    # ---- the run ----

    def _go_on(self, faults: Faults) -> None:
        next_sample = next_progress = latest = self._begin
        while not self._is_over():
            latest = self._note_pause(latest, faults)
            if not faults.has_stopped_a_template:  # it is for the conductor to have it go on
                self._replace_clients()
            self._read_journals()
            faults.make()
            now = time.monotonic()
            if now >= next_sample:
                next_sample = now + SAMPLES
                self._watch.sample(now)
            if now >= next_progress:
                next_progress = now + PROGRESS
                self._check_late_starts(now)
                self._show_progress(now)
            time.sleep(TICK)

    def _note_pause(self, before: float, faults: Faults) -> float:
        """Allow for a pause since `before`, if there was one; returns the time now."""
        now = time.monotonic()
        if now - before > LONGEST_TICK:
            self._last_pause = now
            self._watch.forget_zombies()
            faults.allow_for_pause(now - before)
        return now

    def _show_progress(self, now: float) -> None:
        print(report.progress(self._options, self._account, self._watch, now - self._begin))
        for problem in self._account.problems[self._problems_shown :]:
            print(f"        {problem}")
        self._problems_shown = len(self._account.problems)
        sys.stdout.flush()

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._ticks_without_entry > STANDSTILL:
            self._account.problems.append(f"nothing has happened for {STANDSTILL} ticks: given up")
            return True
        is_enough = (
            self._account.starts >= self._options.starts and now - self._begin >= self._options.minutes * 60
        )
        return is_enough or self._ended_by_signal

    def _read_journals(self) -> None:
        self._ticks_without_entry += 1
        for reader in self._readers:
            for entry in reader.entries():
                self._ticks_without_entry = 0
                self._account.take(entry)

    def _check_late_starts(self, now: float) -> None:
        if now - self._last_pause < LONGEST_START:
            return
        for start in self._account.late(now):
            self._account.take(["end", start.id, 0, None, now])
            self._show_stacks()

    def _show_stacks(self) -> None:
        """Have each client write the stacks of its threads to standard error."""
        for client in self._clients:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(client.pidfd, signal.SIGUSR2)

    # ---- clients ----

    def _replace_clients(self) -> None:
        for client in [client for client in self._clients if _has_ended(client, 0)]:
            self._part_from(client, 0)
        while len(self._clients) < self._options.clients and self._start_client():
            pass

    def _start_client(self) -> bool:
        """Start a client, by turns from the template and by a fork of this process: whether that went well."""
        number = next(self._numbers)
        place = next(free for free in itertools.count() if free not in {c.place for c in self._clients})
        is_steady = self._server.has_templates and place % 4 in (0, 3)
        order = Order(
            name=f"c{number}",
            server=self._options.on,
            template=STEADY if is_steady else None,
            seed=f"{self._options.seed}-{number}",
            journal=str(self._folder / f"c{number}.journal"),
            threads=self._options.threads,
            restarts=number % 4 == 2 and not is_steady,
        )
        if is_steady:
            self._account.undisturbed.add(order.name)
        process, start_id = None, f"{ROOT}.{number}"
        if number % 2 or not self._server.works_after_fork:
            process = self._start_from_template(order, start_id)
            if process is None:
                return False
        pid = self._fork(order) if process is None else process.pid
        reader = Reader(Path(order.journal))
        self._readers.append(reader)
        self._clients.append(Client(place, order.name, pid, os.pidfd_open(pid), reader, process, start_id))
        return True

    def _start_from_template(self, order: Order, start_id: str) -> Any:
        server = server_called(order.server, order.template)
        process = server.process(clients.run, order, self._stop_r, die_with_client=False)
        self._account.take(["start", start_id, 0, False, time.monotonic()])
        try:
            process.start()
        except Exception as error:
            self._account.take(
                ["error", start_id, repr(error), getattr(error, "errno", None), time.monotonic()]
            )
            return None
        return process

    def _fork(self, order: Order) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                self._stop_w.close()
                clients.run(order, self._stop_r)
                code = 0
            finally:
                os._exit(code)
        return pid

    def _part_from(self, client: Client, expected: int) -> None:
        """Take leave of a client that has ended."""
        self._clients.remove(client)
        self._read_journals()
        now = time.monotonic()
        if client.process is None:
            code = os.waitstatus_to_exitcode(os.waitpid(client.pid, 0)[1])
            if code not in (expected, -signal.SIGKILL):
                self._account.problems.append(f"client {client.name} has ended with {code}")
        else:
            join(client.process)
            self._account.take(["end", client.start_id, client.pid, client.process.exitcode, now])
            client.process.close()
        os.close(client.pidfd)

    # ---- the end ----

    def _finish(self, faults: Faults) -> None:
        """Have the clients finish what they are at, and close the account."""
        faults.end()
        self._stop_w.close()
        deadline = time.monotonic() + 2 * LONGEST_JOIN
        for client in list(self._clients):
            if not _has_ended(client, max(0.0, deadline - time.monotonic())):
                self._give_up(client)
            self._part_from(client, 0)
        faults.check_all_orphans()
        _continue_stopped(self._options.mark)
        self._read_journals()
        self._account.settle(time.monotonic())
        self._watch.check_growth()

    def _give_up(self, client: Client) -> None:
        self._show_stacks()
        time.sleep(1)  # for the stacks to be written
        self._account.problems.append(f"client {client.name} does not end")
        self._account.kills_client(client.name, client.pid, time.monotonic())
        signal.pidfd_send_signal(client.pidfd, signal.SIGKILL)
        _has_ended(client, LONGEST_JOIN)

    # ---- the steady template ----

    def _idle(self, descriptors_before: float) -> Idle:
        """Return what the steady template holds when it has started some processes and nobody wants more of it."""
        for _ in range(IDLE_STARTS):
            process = self._steady.process(time.sleep, 0, die_with_client=False)
            process.start()
            process.join(LONGEST_JOIN)
            assert process.exitcode == 0
            process.close()
        pid = self._steady.pid
        assert pid is not None
        starts = self._steady.starts  # before it rests: it has to send what tells
        with contextlib.suppress(AssertionError):  # what it has then is told
            watch.await_rest(pid, descriptors_before, LONGEST_REST)
        return watch.idle(pid, starts)

    def _check_steady(self, before: Idle) -> None:
        """See that the steady template is what it was before it had clients, and that all others have gone."""
        try:
            wait_until(lambda: not self._watch.others())
            after = self._idle(before.sample.descriptors)
        except Exception as error:
            self._account.problems.append(
                f"the steady template is not left alone, or not as it was: {error!r}"
            )
            return
        self._account.steady = before, after
        self._account.problems += watch.changes(before, after)


def _has_ended(client: Client, timeout: float) -> bool:
    poller = select.poll()
    poller.register(client.pidfd, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


def is_in_last_stretch(options: Options, starts: int, seconds: float) -> bool:
    """Whether the last stretch of a run has come that has made so many starts in so many seconds."""
    part = 1 - LAST_STRETCH
    return starts >= part * options.starts and seconds >= part * options.minutes * 60


def zombies() -> list[int]:
    """Return the pids of the dead children of this process: templates that it has launched, and clients."""
    return [process.pid for process in processes() if process.parent == os.getpid() and process.state == "Z"]


def _have_usual_limit() -> None:
    """Have a soft limit of descriptors below the hard one: a template then has more than it gives to its children.

    So what limits a template for a while is no matter of theirs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL_LIMIT, hard // 2), hard))


def _continue_stopped(mark: str) -> None:
    """Let go on what has stopped itself and has lost the client that would have killed it."""
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            if state_of(pid) == "T":
                os.kill(pid, signal.SIGCONT)
