"""Pools and executors of eight, from their creation until eight different workers have answered."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from ..client import launched
from ..runner import WIDTH, by_turns, preloads_of
from .job import Job, clients_of

if TYPE_CHECKING:
    from .figures import Found

_RUNNING = {"pool": "pool", "executor": "executor"}
_FIRST = {"first-pool": "pool", "first-executor": "executor"}


def measure(job: Job, found: Found) -> None:
    """Find `pool` and `executor`, the template running, and `first-pool` and `first-executor`, with none running."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    running = _chosen(_RUNNING, job)
    first = _chosen(_FIRST, job)
    if running:
        _with_template(job, running, times)
    if first:
        _without_template(job, first, times)
    for (figure, name), samples in times.items():
        found.put(figure, name, median(samples))


def _chosen(figures: dict[str, str], job: Job) -> dict[str, str]:
    return {figure: kind for figure, kind in figures.items() if figure in job.figures}


def _with_template(job: Job, kinds: dict[str, str], times: dict[tuple[str, str], list[float]]) -> None:
    job.progress.begin((1 + job.plan.pools) * len(job.rivals), "pools")
    with clients_of(job.rivals, []) as clients:
        for rival in by_turns(job.rivals, 1, job.progress):
            for kind in kinds.values():
                clients[rival.name].ask(kind, WIDTH)
        for rival in by_turns(job.rivals, job.plan.pools, job.progress):
            for figure, kind in kinds.items():
                times[figure, rival.name].append(clients[rival.name].ask(kind, WIDTH))


def _without_template(job: Job, kinds: dict[str, str], times: dict[tuple[str, str], list[float]]) -> None:
    preloads = preloads_of(job.rivals, [])
    job.progress.begin(job.plan.first_pools * len(job.rivals), "first pools")
    for rival in by_turns(job.rivals, job.plan.first_pools, job.progress):
        for figure, kind in kinds.items():
            with launched(rival, preloads[rival.name]) as client:
                times[figure, rival.name].append(client.ask(kind, WIDTH))
