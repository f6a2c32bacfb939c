"""Starts with a large preloaded heap of small objects, and with a small one."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from ..runner import by_turns
from .job import WARM_UP, Job, clients_of, free_megabytes

if TYPE_CHECKING:
    from .figures import Found

_MB_EACH = 2500
"""Memory that a rival may take with both heaps: 1.1 GB of objects, and as much again that may be copied."""


def measure(job: Job, found: Found) -> None:
    """Find `small-heap` and `large-heap`. Under fork the heap is the client's, otherwise the template's."""
    needed = _MB_EACH * len(job.rivals)
    if free_megabytes() < needed:
        found.note(f"heaps: not measured, since {needed} MB of memory are not to be had")
        return
    plan = job.plan
    with (
        clients_of(job.rivals, [plan.small_heap]) as small,
        clients_of(job.rivals, [plan.large_heap]) as large,
    ):
        heaps = {"small-heap": small, "large-heap": large}
        times: dict[tuple[str, str], list[float]] = {}
        job.progress.begin((1 + plan.slices) * len(job.rivals), "heaps")
        for rival in by_turns(job.rivals, 1, job.progress):
            for clients in heaps.values():
                clients[rival.name].ask("latency", WARM_UP)
        for rival in by_turns(job.rivals, plan.slices, job.progress):
            for figure, clients in heaps.items():
                taken, _ = clients[rival.name].ask("latency", plan.per_slice(plan.heap_starts))
                times.setdefault((figure, rival.name), []).extend(taken)
    for (figure, name), samples in times.items():
        found.put(figure, name, median(samples))
