"""One run: all rivals side by side, a slice of each in turn, so that the machine's moods reach all alike.

In order: `rounds` processes in sequence and some in flight, in slices; then pools with the template
running, one per rival and round; then first pools, each in a client of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .client import Client, launched
from .rivals import FLOOR, Rival, by_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .progress import Progress

WIDTH = 8
"""Processes in flight, and workers of a pool."""
_WARM_UP = 3


@dataclass(frozen=True)
class Plan:
    """How much to measure: processes per rival in sequence and in flight, slices, and pools."""

    rounds: int = 1000
    flights: int = 800
    slices: int = 20
    pools: int = 8
    first_pools: int = 3

    @classmethod
    def quick(cls) -> Plan:
        """A plan of some ten seconds."""
        return cls(rounds=160, flights=128, slices=4, pools=3, first_pools=1)

    def scaled(self, rounds: int) -> Plan:
        """The same plan with another number of rounds, in slices no shorter than one process."""
        flights = max(WIDTH, rounds * self.flights // self.rounds)
        return Plan(rounds, flights, min(self.slices, rounds), self.pools, self.first_pools)

    def sequence_slice(self, rival: Rival) -> int:
        """Processes of `rival` in sequence in one slice."""
        return max(1, round(self.rounds * rival.share / self.slices))

    def flight_slice(self, rival: Rival) -> int:
        """Processes of `rival` in flight in one slice: enough to fill the window."""
        return max(WIDTH, round(self.flights * rival.share / self.slices))


class Usage(NamedTuple):
    """What a client's processes have cost so far: counts, and seconds of CPU (user and system)."""

    starts: int
    faults: int
    child_cpu_s: float
    tree_cpu_s: float


@dataclass
class Samples:
    """Everything measured of one rival. Times are in seconds, rates in processes per second."""

    latency_s: list[float] = field(default_factory=list)
    sequence_rate: list[float] = field(default_factory=list)
    flight_rate: list[float] = field(default_factory=list)
    pool_s: list[float] = field(default_factory=list)
    first_pool_s: list[float] = field(default_factory=list)
    before: Usage | None = None
    after: Usage | None = None


def run(rivals: Sequence[Rival], preload: list[str], plan: Plan, progress: Progress) -> dict[str, Samples]:
    """Measure `rivals` with `preload` in their templates; samples by the rival's name.

    Raises `BenchError` if a rival fails or a process gives a wrong result.
    """
    samples = {rival.name: Samples() for rival in rivals}
    preloads = preloads_of(rivals, preload)
    pooled = [rival for rival in rivals if rival.name != FLOOR]
    progress.begin(plan.slices * len(rivals) + (plan.pools + plan.first_pools) * len(pooled))
    with ExitStack() as stack:
        clients = {rival.name: stack.enter_context(launched(rival, preloads[rival.name])) for rival in rivals}
        measure_starts(rivals, clients, plan, samples, progress)
        for rival in by_turns(pooled, plan.pools, progress):
            samples[rival.name].pool_s.append(clients[rival.name].ask("pool", WIDTH))
    for rival in by_turns(pooled, plan.first_pools, progress):
        with launched(rival, preloads[rival.name]) as client:
            samples[rival.name].first_pool_s.append(client.ask("pool", WIDTH))
    return samples


def preloads_of(rivals: Sequence[Rival], preload: list[str]) -> dict[str, list[str]]:
    """What each rival preloads, by its name: `preload`, and for the tuned ones what a child imports by itself."""
    found = _modules_of_a_child() if any(rival.tuned for rival in rivals) else []
    return {rival.name: found + preload if rival.tuned else preload for rival in rivals}


def _modules_of_a_child() -> list[str]:
    """All that a child imports by itself: what the best-tuned preload names."""
    with launched(by_name("spawn"), []) as client:
        names: list[str] = client.ask("modules")
        return names


def measure_starts(
    rivals: Sequence[Rival],
    clients: dict[str, Client],
    plan: Plan,
    samples: dict[str, Samples],
    progress: Progress,
) -> None:
    """Start processes in sequence and in flight; `samples` and `clients` are by the rival's name."""
    for rival in rivals:
        clients[rival.name].ask("latency", _WARM_UP)
        samples[rival.name].before = _usage(clients[rival.name])
    for rival in by_turns(rivals, plan.slices, progress):
        _measure_slice(rival, clients[rival.name], plan, samples[rival.name])
    for rival in rivals:
        samples[rival.name].after = _usage(clients[rival.name])


def _measure_slice(rival: Rival, client: Client, plan: Plan, samples: Samples) -> None:
    count = plan.sequence_slice(rival)
    times, elapsed = client.ask("latency", count)
    samples.latency_s += times
    samples.sequence_rate.append(count / elapsed)
    if rival.name != FLOOR:
        count = plan.flight_slice(rival)
        samples.flight_rate.append(count / client.ask("in_flight", count, WIDTH))


def by_turns(rivals: Sequence[Rival], count: int, progress: Progress) -> Iterator[Rival]:
    """Each rival once per round, each round beginning with another one."""
    for number in range(count):
        start = number % len(rivals) if rivals else 0
        for rival in [*rivals[start:], *rivals[:start]]:
            progress.show(rival.title)
            yield rival
            progress.advance()


def _usage(client: Client) -> Usage | None:
    reply = client.ask("usage")
    return None if reply is None else Usage(*reply)
