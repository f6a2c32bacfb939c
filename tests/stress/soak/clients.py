"""The clients of a soak: processes with some threads, each of which starts processes and sees how they end."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import os
import random
import select
import signal
import sys
import threading
import time
import zlib
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.processes import state_of

from . import behaviours, options, servers, vandals
from .account import CLIENT_RESTARTS
from .behaviours import KILLED_BY_CLIENT, STARTS_ANOTHER, Luggage, Plan
from .journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .servers import Server

LONGEST_JOIN = 120
"""Seconds after which a process that has not ended is reported as such; faults last a few."""

PAUSE_AFTER_ERROR = 0.1
"""Seconds: an error comes faster than a process, and the next start would meet the same fault."""

_MAY_CLOSE = sys.version_info >= (3, 11)
"""Before, start() in one thread may stumble over a process that another one is just closing."""

MOST_AT_A_TIME = 4
"""Processes that one thread starts before it waits for them."""

RESTARTS = 1 / 1500
"""How probable it is that a client lets go of its template after one batch of processes."""


class Order(NamedTuple):
    """What a client is told."""

    name: str
    server: str
    template: str | None
    """Whose processes it starts; None: the default one."""
    seed: str
    journal: str
    """The path of the file that it writes to."""
    threads: int
    restarts: bool
    """Whether it restarts its template first of all: so that a short run sees it."""


class Starter:
    """Starts processes and writes down how they end."""

    def __init__(self, name: str, server: Server, journal: Journal) -> None:
        self._name = name
        self._server = server
        self._journal = journal
        self._numbers = itertools.count(1)
        self._spare = _Spare()

    def start(self, plan: Plan) -> tuple[str, Any] | None:
        """Start a process; returns its id and the process, None if that failed."""
        start_id = f"{self._name}.{next(self._numbers)}"
        process = self._make(start_id, plan)
        self._journal.write("start", start_id, plan.exit_code, plan.die_with_client)
        try:
            process.start()
        except Exception as error:
            self._journal.write("error", start_id, repr(error), getattr(error, "errno", None))
            return None
        if plan.die_with_client:
            self._journal.write("pid", start_id, process.pid)
        return start_id, process

    def _make(self, start_id: str, plan: Plan) -> Any:
        payload = _blob()[: plan.payload_size] if plan.payload_size else b""
        connections = self._spare.connections[: plan.fd_count]
        luggage = Luggage(payload, zlib.crc32(payload), connections, self._spare.inode)
        if plan.behaviour == STARTS_ANOTHER:
            whence = self._server.name, self._server.template
            target, arguments = start_another, (start_id, whence, self._journal.path)
        else:
            target, arguments = behaviours.perform, ()
        return self._server.process(
            target, plan, luggage, *arguments, die_with_client=plan.die_with_client, options=plan.options
        )

    def finish(self, start_id: str, process: Any, plan: Plan) -> None:
        """See a process to its end, which the client brings about where that is the plan."""
        try:
            if plan.behaviour in KILLED_BY_CLIENT:
                _kill(process, plan)
            join(process)
            self._journal.write("end", start_id, process.pid, process.exitcode)
            if process.exitcode is not None and _MAY_CLOSE:
                process.close()
        except Exception as error:
            self._journal.write("error", start_id, f"after the start: {error!r}", None)


def join(process: Any) -> None:
    """Wait for the end of a process, second by second: while nobody gets a processor, no more than one is over."""
    for _ in range(LONGEST_JOIN):
        process.join(1)
        if process.exitcode is not None:
            return


@functools.lru_cache(maxsize=1)
def _blob() -> bytes:
    """Return what payloads are cut from."""
    return random.Random(0).randbytes(behaviours.MAX_PAYLOAD)


class _Spare:
    """Open files to send along."""

    def __init__(self) -> None:
        fd = os.open(os.devnull, os.O_RDWR)
        self.inode = os.fstat(fd).st_ino
        self.connections = [Connection(fd)]
        self.connections += [Connection(os.dup(fd)) for _ in range(behaviours.MAX_FDS - 1)]


def _kill(process: Any, plan: Plan) -> None:
    if plan.behaviour == "stops":
        _await_stop(process.pid)
    if plan.value == signal.SIGKILL:
        process.kill()
    else:
        process.terminate()


def _await_stop(pid: int) -> None:
    """Wait until a process has stopped itself, or has come to its end without having been asked."""
    deadline = time.monotonic() + LONGEST_JOIN
    with contextlib.suppress(OSError):
        while state_of(pid) not in "TZ" and time.monotonic() < deadline:
            time.sleep(0.002)


# ---- in a child that is a client itself ----


def start_another(
    plan: Plan, luggage: Luggage, start_id: str, whence: tuple[str, str | None], journal_path: str
) -> None:
    """Start a process from a process, and leave with the exit code that was planned."""
    if not behaviours.is_as_planned(plan, luggage):
        os._exit(behaviours.DAMAGED)
    starter = Starter(start_id, servers.server(*whence), Journal(journal_path))
    inner = Plan("sys.exit", plan.value, 0, 0, 0, die_with_client=plan.die_with_client, options=options.NONE)
    started = starter.start(inner)
    if started is not None:
        starter.finish(*started, inner)
    sys.exit(plan.value)


# ---- a client ----


def run(order: Order, stop: Connection) -> None:
    """Be a client until the other end of the pipe `stop` is closed."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    journal = Journal(order.journal)
    server = servers.server(order.server, order.template)
    is_over = threading.Event()
    null = os.open(os.devnull, os.O_RDWR)
    starters = [Starter(f"{order.name}-{number}", server, journal) for number in range(order.threads)]
    threads = [
        threading.Thread(target=_work, args=(order, number, starter, server, journal, is_over))
        for number, starter in enumerate(starters)
    ]
    threads.append(threading.Thread(target=vandals.run, args=(order.seed, server, null, journal, is_over)))
    for thread in threads:
        thread.start()
    journal.write("ready", order.name)
    _await_end(stop)
    is_over.set()
    for thread in threads:
        thread.join()
    journal.close()


def _await_end(stop: Connection) -> None:
    poller = select.poll()
    poller.register(stop, select.POLLIN)
    poller.poll()


def _work(
    order: Order, number: int, starter: Starter, server: Server, journal: Journal, is_over: threading.Event
) -> None:
    """Start processes, some at a time, and wait for them in any order."""
    chance = random.Random(f"{order.seed}-{number}")
    restart_now = order.restarts and number == 0
    restarts = 0.0 if order.template == servers.STEADY else RESTARTS
    while not is_over.is_set():
        plans = [
            behaviours.draw(chance, with_options=server.has_options)
            for _ in range(chance.randint(1, MOST_AT_A_TIME))
        ]
        started = list(_start_until_error(starter, plans))
        if len(started) < sum(plan.exit_code is not None for plan in plans):
            is_over.wait(PAUSE_AFTER_ERROR)
        chance.shuffle(started)
        if restart_now or chance.random() < restarts:
            restart_now = False
            _restart(server, journal)
        for start_id, process, plan in started:
            starter.finish(start_id, process, plan)


def _start_until_error(starter: Starter, plans: Sequence[Plan]) -> Iterator[tuple[str, Any, Plan]]:
    """Start processes. What comes after an error that was not to come would but meet the same fault."""
    for plan in plans:
        pair = starter.start(plan)
        if pair is not None:
            yield (*pair, plan)
        elif plan.exit_code is not None:
            return


def _restart(server: Server, journal: Journal) -> None:
    """Let go of the template in the middle of everything; an error of it is one of the next start too."""
    journal.write("fault", CLIENT_RESTARTS)
    try:
        server.restart()
    except Exception as error:
        journal.write("restart error", repr(error), getattr(error, "errno", None))
