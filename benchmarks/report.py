"""The figures of a run, as JSON and as a table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from .environment import Environment
from .errors import BenchError
from .rivals import FASTFORK, FLOOR, Rival
from .runner import WIDTH, Samples

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORMAT = 1
"""Version of the JSON's layout."""


@dataclass(frozen=True)
class Figures:
    """What a run says of one rival; None where that cannot be measured.

    Times are in seconds, rates in processes per second. `median_s` and `p99_s` are of `start(); join()` of a
    no-op. `faults` and `child_cpu_s` are of one child, from fork to exit; `start_cpu_s` adds what the client
    and the template spent for it. `pool_s` is with the template running, `first_pool_s` with none.
    """

    rival: str
    title: str
    samples: int
    median_s: float
    p99_s: float
    sequence_rate: float
    flight_rate: float | None = None
    faults: float | None = None
    child_cpu_s: float | None = None
    start_cpu_s: float | None = None
    pool_s: float | None = None
    first_pool_s: float | None = None


@dataclass(frozen=True)
class Report:
    """A run: its environment, its preload, and the figures of each rival."""

    environment: Environment
    preload: list[str]
    figures: list[Figures]

    def median_of(self, rival: str) -> float | None:
        """The median of `start(); join()` of a rival, in seconds; None if it was not measured."""
        return next((row.median_s for row in self.figures if row.rival == rival), None)

    def title(self) -> str:
        """One line that says what this is."""
        return f"start(); join() of a no-op process; preloaded: {', '.join(['main module', *self.preload])}"


def percentile(samples: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile of at least one sample, interpolated between neighbours."""
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarise(rival: Rival, samples: Samples) -> Figures:
    """The figures of one rival's samples."""
    faults, child_cpu_s, start_cpu_s = _per_start(samples)
    return Figures(
        rival=rival.name,
        title=rival.title,
        samples=len(samples.latency_s),
        median_s=median(samples.latency_s),
        p99_s=percentile(samples.latency_s, 99),
        sequence_rate=median(samples.sequence_rate),
        flight_rate=_median_or_none(samples.flight_rate),
        faults=faults,
        child_cpu_s=child_cpu_s,
        start_cpu_s=start_cpu_s,
        pool_s=_median_or_none(samples.pool_s),
        first_pool_s=_median_or_none(samples.first_pool_s),
    )


def _per_start(samples: Samples) -> tuple[float | None, float | None, float | None]:
    before, after = samples.before, samples.after
    if before is None or after is None:
        return None, None, None
    starts = after.starts - before.starts
    return (
        (after.faults - before.faults) / starts,
        (after.child_cpu_s - before.child_cpu_s) / starts,
        (after.tree_cpu_s - before.tree_cpu_s) / starts,
    )


def _median_or_none(samples: Sequence[float]) -> float | None:
    return median(samples) if samples else None


def to_json(report: Report) -> str:
    """The report as JSON text."""
    return json.dumps({"format": _FORMAT, **asdict(report)}, indent=2) + "\n"


def from_json(text: str) -> Report:
    """The report in a JSON text of `to_json`; `BenchError` if it is not one."""
    try:
        data = json.loads(text)
        return Report(
            environment=Environment(**data["environment"]),
            preload=data["preload"],
            figures=[Figures(**row) for row in data["figures"]],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise BenchError(f"this JSON is not a report of this benchmark: {error!r}") from error


_HEADINGS = (
    ("", "rival"),
    ("median", "us"),
    ("p99", "us"),
    ("against", "fastfork"),
    ("against", "floor"),
    ("in turn", "/s"),
    (f"{WIDTH} in flight", "/s"),
    ("faults", "child"),
    ("CPU ms", "child"),
    ("CPU ms", "all"),
    (f"pool of {WIDTH}", "ms"),
    ("first", "ms"),
    ("samples", ""),
)


def table(report: Report) -> str:
    """The report as text of some 120 columns: a title, a table, and the environment."""
    cells = [*zip(*_HEADINGS), *(_row(figures, report) for figures in report.figures)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [align(row, widths) for row in cells]
    lines.insert(2, "-" * max(map(len, lines)))
    return "\n".join([report.title(), "", *lines, "", report.environment.caption(), ""])


def _row(figures: Figures, report: Report) -> tuple[str, ...]:
    return (
        figures.title,
        _number(figures.median_s, 1e6),
        _number(figures.p99_s, 1e6),
        ratio(figures.median_s, report.median_of(FASTFORK)),
        ratio(figures.median_s, report.median_of(FLOOR)),
        _number(figures.sequence_rate),
        _number(figures.flight_rate),
        _number(figures.faults),
        _number(figures.child_cpu_s, 1e3, 2),
        _number(figures.start_cpu_s, 1e3, 2),
        _number(figures.pool_s, 1e3, 1),
        _number(figures.first_pool_s, 1e3, 1),
        str(figures.samples),
    )


def ratio(value: float, base: float | None) -> str:
    """`value` as a multiple of `base`, such as `1.85x` or `12.3x`; a dash without a base."""
    if base is None:
        return "-"
    multiple = value / base
    return f"{multiple:.{2 if multiple < 10 else 1}f}x"


def _number(value: float | None, scale: float = 1.0, digits: int = 0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def align(cells: Sequence[str], widths: Sequence[int], left: Sequence[int] = (0,)) -> str:
    """One line of a table; the columns with the numbers `left` begin together, the others end together."""
    padded = (
        cell.ljust(width) if number in left else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths))
    )
    return "  ".join(padded).rstrip()
