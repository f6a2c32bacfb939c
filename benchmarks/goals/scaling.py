"""How many more processes clients on all cores start than one client does. All are clients of one template."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..environment import usable_cores
from ..runner import WIDTH, by_turns
from .job import Job, clients_of

if TYPE_CHECKING:
    from .figures import Found

_WIDTHS = {"scaling": 1, "scaling-flights": WIDTH}
"""How many processes each client has in flight."""


def measure(job: Job, found: Found) -> None:
    """Find `scaling` and `scaling-flights`, on two cores at the least."""
    widths = {figure: width for figure, width in _WIDTHS.items() if figure in job.figures}
    many = max(2, usable_cores())
    factors: dict[tuple[str, str], list[float]] = defaultdict(list)
    job.progress.begin(job.plan.scaling_slices * len(job.rivals), "scaling")
    with clients_of(job.rivals, []) as clients, TemporaryDirectory() as directory:
        for rival in by_turns(job.rivals, job.plan.scaling_slices, job.progress):
            for figure, width in widths.items():
                one, all_of_them = (
                    clients[rival.name].ask("throughput", count, job.plan.scaling_starts, width, directory)
                    for count in (1, many)
                )
                factors[figure, rival.name].append(all_of_them / one)
    for (figure, name), samples in factors.items():
        found.put(figure, name, median(samples))
