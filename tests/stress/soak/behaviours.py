"""What the processes of a soak do: each has a plan, drawn at random, and the exit code that follows from it."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import zlib
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, NamedTuple

from . import options

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

DAMAGED = 99
"""The exit code of a process that finds its payload, its descriptors or its options not to be what was sent."""

MAX_CODE = 90
MAX_PAYLOAD = 1 << 20  # bytes
MAX_FDS = 100
_PAYLOADS = (0, 0, 1 << 10, 1 << 10, 1 << 16, 1 << 16, 1 << 17, MAX_PAYLOAD)  # bytes, at most
_FDS = (0, 0, 0, 0, 1, 10, 10, MAX_FDS)  # at most
_OPTIONS = (*[options.NONE] * 12, *[options.SOUND] * 3, options.UNFIT)

LONGEST_DEAF_WAIT = 150
"""Seconds after which a process that waits to be killed gives up."""

_FATAL_SIGNALS = (
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGSEGV,
    signal.SIGABRT,
    signal.SIGHUP,
    signal.SIGUSR1,
)


class Plan(NamedTuple):
    """What one process is to do."""

    behaviour: str
    value: int
    """An exit code or the number of a signal."""
    seconds: float
    """How long it takes before it does so."""
    payload_size: int
    fd_count: int
    die_with_client: bool
    options: str
    """One of `options`."""

    @property
    def exit_code(self) -> int | None:
        """What it has to end with, if nothing happens to it; None: its start has to fail."""
        if self.options == options.UNFIT:
            return None
        if self.behaviour == "raises":
            return 1
        return -self.value if self.behaviour in ("dies of a signal", *KILLED_BY_CLIENT) else self.value


class Luggage(NamedTuple):
    """What a process gets with its plan, to see that all of it arrives."""

    payload: bytes
    checksum: int
    connections: Sequence[Connection]
    inode: int


# ---- drawing ----


def draw(chance: random.Random, *, with_options: bool) -> Plan:
    """Draw a plan; `with_options`: some processes have options."""
    (behaviour,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return Plan(
        behaviour=behaviour,
        value=_draw_value(chance, behaviour),
        seconds=chance.choice((0, 0, 0, 0, chance.uniform(0, 0.1), chance.uniform(0, 0.3))),
        payload_size=int(chance.choice(_PAYLOADS) * chance.random()),
        fd_count=chance.randint(0, chance.choice(_FDS)),
        die_with_client=behaviour == "waits deaf" or chance.random() < 0.3,
        options=chance.choice(_OPTIONS) if with_options else options.NONE,
    )


def _draw_value(chance: random.Random, behaviour: str) -> int:
    if behaviour == "dies of a signal":
        return int(chance.choice(_FATAL_SIGNALS))
    if behaviour in KILLED_BY_CLIENT:
        return int(
            signal.SIGKILL if behaviour == "stops" else chance.choice((signal.SIGKILL, signal.SIGTERM))
        )
    return chance.choice((0, chance.randint(0, MAX_CODE)))


# ---- in the process ----


def perform(plan: Plan, luggage: Luggage) -> None:
    """Do what the plan says: the end of this process, but for what returns."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not is_as_planned(plan, luggage):
        os._exit(DAMAGED)
    time.sleep(plan.seconds)
    BEHAVIOURS[plan.behaviour](plan.value)


def is_as_planned(plan: Plan, luggage: Luggage) -> bool:
    """Whether everything has arrived, and this process is what it was to be."""
    return options.hold(plan.options) and _is_whole(luggage)


def _is_whole(luggage: Luggage) -> bool:
    return zlib.crc32(luggage.payload) == luggage.checksum and all(
        os.fstat(connection.fileno()).st_ino == luggage.inode for connection in luggage.connections
    )


def _raise(_value: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the traceback is nobody's concern
    raise ValueError("as planned")


def _die(number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)  # the run may have been started to ignore some
    os.kill(os.getpid(), number)
    signal.pause()


def _wait_to_be_killed(_number: int) -> None:
    """Wait as long as the client lives: without it nobody would come."""
    parent = parent_process()
    assert parent is not None
    for _ in range(LONGEST_DEAF_WAIT):
        if wait([parent.sentinel], 1):
            break
    os._exit(0)


def _wait_deaf_to_be_killed(_number: int) -> None:
    """Wait whether or not the client lives: one that has asked for that takes this process with it."""
    for _ in range(LONGEST_DEAF_WAIT):
        time.sleep(1)


def _stop(_number: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fork_twice(code: int) -> None:
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(0)
    sys.exit(code)


def _close_everything(code: int) -> None:
    os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if code != 0:
        os._exit(code)


def _become_another_program(code: int) -> None:
    os.execv("/bin/sh", ["sh", "-c", f"exit {code}"])


BEHAVIOURS: dict[str, Callable[[int], None]] = {
    "sys.exit": sys.exit,
    "os._exit": os._exit,
    "raises": _raise,
    "dies of a signal": _die,
    "waits": _wait_to_be_killed,
    "waits deaf": _wait_deaf_to_be_killed,
    "stops": _stop,
    "forks twice": _fork_twice,
    "closes everything": _close_everything,
    "becomes another program": _become_another_program,
}

KILLED_BY_CLIENT = ("waits", "waits deaf", "stops")
"""What ends only when the client kills it."""

STARTS_ANOTHER = "starts another"
"""The behaviour of a process that is a client itself: see `clients`."""

WEIGHTS = {
    "sys.exit": 30,
    "os._exit": 15,
    "raises": 8,
    "dies of a signal": 10,
    "waits": 6,
    "waits deaf": 3,
    "stops": 4,
    "forks twice": 5,
    "closes everything": 6,
    "becomes another program": 4,
    STARTS_ANOTHER: 9,
}
