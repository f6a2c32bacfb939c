"""What an idle worker of a pool has for itself alone."""

from __future__ import annotations

import importlib.util
import os
from statistics import median
from typing import TYPE_CHECKING

from ..runner import WIDTH, by_turns
from .job import Job, clients_of

if TYPE_CHECKING:
    from .figures import Found

_PRELOADS: dict[str, list[str]] = {"memory": [], "memory-numpy": ["numpy"]}


def measure(job: Job, found: Found) -> None:
    """Find `memory`, and `memory-numpy` where there is numpy."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        found.note("private memory: not measured, since there is no /proc/<pid>/smaps_rollup")
        return
    for figure, preload in _PRELOADS.items():
        missing = [name for name in preload if importlib.util.find_spec(name) is None]
        if figure not in job.figures:
            continue
        if missing:
            found.note(f"private memory with {missing[0]}: not measured, since that is not installed")
        else:
            _measure(figure, preload, job, found)


def _measure(figure: str, preload: list[str], job: Job, found: Found) -> None:
    kept: dict[str, list[int]] = {rival.name: [] for rival in job.rivals}
    job.progress.begin(job.plan.memory_pools * len(job.rivals), "private memory")
    with clients_of(job.rivals, preload) as clients:
        for rival in by_turns(job.rivals, job.plan.memory_pools, job.progress):
            kept[rival.name] += clients[rival.name].ask("private_bytes", WIDTH)
    for name, samples in kept.items():
        found.put(figure, name, median(samples))
