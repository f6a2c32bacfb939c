"""Starts of no-ops: in turn, with eight in flight, as lean calls, and until the first line of a function is reached."""

from __future__ import annotations

from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .. import report, runner
from ..rivals import FASTFORK, FLOOR
from .job import Job, clients_of

if TYPE_CHECKING:
    from ..client import Client
    from ..rivals import Rival
    from .figures import Found


def measure(job: Job, found: Found) -> None:
    """Find `start`, `start-p99`, `rate` and `faults`; where they are wanted the others, too."""
    with clients_of(job.rivals, []) as clients:
        if job.figures & {"start", "start-p99", "rate", "faults"}:
            _starts(job, clients, found)
        if "queue" in job.figures:
            _starts_with_queue(job, clients, found)
        if "lean" in job.figures:
            _lean_calls(job, clients, found)
        if job.figures & {"batch", "loop"}:
            _batches(job, clients, found)
        if job.figures & {"arrival", "arrival-p99"}:
            _arrivals(job, clients, found)


def _starts(job: Job, clients: dict[str, Client], found: Found) -> None:
    plan = runner.Plan(job.plan.starts, job.plan.flights, job.plan.slices)
    samples = {rival.name: runner.Samples() for rival in job.rivals}
    job.progress.begin(plan.slices * len(job.rivals), "starts")
    runner.measure_starts(job.rivals, clients, plan, samples, job.progress)
    for rival in job.rivals:
        figures = report.summarise(rival, samples[rival.name])
        found.put("start", rival.name, figures.median_s)
        found.put("start-p99", rival.name, figures.p99_s)
        if figures.flight_rate is not None:
            found.put("rate", rival.name, figures.flight_rate)
        if figures.faults is not None:
            found.put("faults", rival.name, figures.faults)


def _starts_with_queue(job: Job, clients: dict[str, Client], found: Found) -> None:
    rivals = [rival for rival in job.rivals if rival.name != FLOOR]
    job.progress.begin(job.plan.slices * len(rivals), "starts with a queue")
    _one_by_one("queue", "with_queue", rivals, job, clients, found)


def _lean_calls(job: Job, clients: dict[str, Client], found: Found) -> None:
    rivals = _fastforks(job)
    job.progress.begin(job.plan.slices * len(rivals), "lean calls")
    _one_by_one("lean", "lean_calls", rivals, job, clients, found)


def _one_by_one(
    figure: str, request: str, rivals: list[Rival], job: Job, clients: dict[str, Client], found: Found
) -> None:
    """Find the median of what clients of the rivals, by turns, tell of as many processes as there are to be starts."""
    times: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    count = job.plan.per_slice(job.plan.starts)
    for rival in runner.by_turns(rivals, job.plan.slices, job.progress):
        times[rival.name] += clients[rival.name].ask(request, count)
    for name, samples in times.items():
        found.put(figure, name, median(samples))


def _fastforks(job: Job) -> list[Rival]:
    return [rival for rival in job.rivals if rival.method == FASTFORK]


def _batches(job: Job, clients: dict[str, Client], found: Found) -> None:
    rivals = _fastforks(job)
    times: dict[tuple[str, str], list[float]] = {
        (figure, rival.name): [] for rival in rivals for figure in ("loop", "batch")
    }
    count = max(1, job.plan.per_slice(job.plan.starts) // runner.WIDTH)
    job.progress.begin(job.plan.slices * len(rivals), "batches")
    for rival in runner.by_turns(rivals, job.plan.slices, job.progress):
        for figure in ("loop", "batch"):
            times[figure, rival.name] += clients[rival.name].ask(
                "batches", count, runner.WIDTH, figure == "batch"
            )
    for (figure, name), samples in times.items():
        found.put(figure, name, median(samples))


def _arrivals(job: Job, clients: dict[str, Client], found: Found) -> None:
    rivals = [rival for rival in job.rivals if rival.name != FLOOR]
    times: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    count = job.plan.per_slice(job.plan.arrivals)
    job.progress.begin(job.plan.slices * len(rivals), "first lines")
    with TemporaryDirectory() as directory:
        for rival in runner.by_turns(rivals, job.plan.slices, job.progress):
            times[rival.name] += clients[rival.name].ask("arrivals", count, directory)
    for name, samples in times.items():
        found.put("arrival", name, median(samples))
        found.put("arrival-p99", name, report.percentile(samples, 99))
