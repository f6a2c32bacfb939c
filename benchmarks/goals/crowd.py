"""Starts beside thousands of live children, and beside none: two clients of each rival, by turns."""

from __future__ import annotations

from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..client import Client, launched
from ..runner import preloads_of
from .job import WARM_UP, Job, free_megabytes

if TYPE_CHECKING:
    from ..rivals import Rival
    from .figures import Found

_MEMBER_MB = 8
"""Memory that a live child may take, page tables included: with the standard fork server it is some 6 MB."""


def measure(job: Job, found: Found) -> None:
    """Find `crowd-start` and `lone-start`. One rival after another: their crowds together might be too many."""
    preloads = preloads_of(job.rivals, [])
    job.progress.begin(len(job.rivals) * (job.plan.slices + 1), "live children")
    for rival in job.rivals:
        preload = preloads[rival.name]
        with launched(rival, preload) as lone, launched(rival, preload) as crowded:
            _measure(rival, lone, crowded, job, found)


def _measure(rival: Rival, lone: Client, crowded: Client, job: Job, found: Found) -> None:
    size = _size(crowded, job.plan.crowd, found)
    lone.ask("make_room", size)
    job.progress.show(f"{rival.title}, {size} children come")
    lone.ask("latency", WARM_UP)
    crowded.ask("latency", WARM_UP)
    with TemporaryDirectory() as directory:
        crowded.ask("gather_crowd", size, directory)
        job.progress.advance()
        times = _by_turns(rival, lone, crowded, job)
        job.progress.show(f"{rival.title}, {size} children go")
        crowded.ask("dismiss_crowd")
    found.put("lone-start", rival.name, median(times[0]))
    found.put("crowd-start", rival.name, median(times[1]))


def _size(client: Client, wanted: int, found: Found) -> int:
    """How large a crowd can be here."""
    affordable = min(wanted, int(free_megabytes() / _MEMBER_MB))
    size: int = client.ask("make_room", affordable)
    if size < wanted:
        found.note(f"live children: {size} in place of {wanted}, for want of memory or descriptors")
    return size


def _by_turns(rival: Rival, lone: Client, crowded: Client, job: Job) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    count = job.plan.per_slice(job.plan.crowd_starts)
    for number in range(job.plan.slices):
        job.progress.show(rival.title)
        turns = [(lone, times[0]), (crowded, times[1])]
        for client, samples in turns if number % 2 else turns[::-1]:
            samples.extend(client.ask("latency", count)[0])
        job.progress.advance()
    return times
