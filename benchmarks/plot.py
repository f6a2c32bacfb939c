"""A picture of a report: for each rival the median and, as a whisker, the 99th percentile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import BenchError
from .report import Figures, Report, ratio
from .rivals import FASTFORK, FLOOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCENT = "#c2410c"
NEUTRAL = "#475569"
FAINT = "#94a3b8"


def draw(report: Report, path: str) -> None:
    """Write the plot as an image whose kind the ending of `path` says, PNG if it has none.

    Raises `BenchError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("plots need matplotlib: python -m pip install 'fastfork[plot]'") from None
    rows = sorted(report.figures, key=lambda figures: figures.median_s, reverse=True)
    figure = Figure(figsize=(9.0, 1.9 + 0.55 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for position, figures in enumerate(rows):
        _draw_rival(axes, position, figures, report)
    _dress(axes, rows, report)
    figure.supxlabel(report.environment.caption(), fontsize=6.5, color=FAINT, x=0.01, ha="left")
    figure.savefig(path, facecolor="white")


def _draw_rival(axes: Axes, position: int, figures: Figures, report: Report) -> None:
    colour = _colour(figures.rival)
    median, p99 = figures.median_s * 1e3, figures.p99_s * 1e3
    axes.plot(
        [median, p99], [position, position], color=colour, linewidth=2.5, alpha=0.45, solid_capstyle="butt"
    )
    axes.plot([p99], [position], marker="|", color=colour, markersize=11, markeredgewidth=2, alpha=0.7)
    axes.plot([median], [position], marker="o", color=colour, markersize=9)
    axes.annotate(
        _label(figures, report),
        (p99, position),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=colour,
    )


def _colour(rival: str) -> str:
    return {FASTFORK: ACCENT, FLOOR: FAINT}.get(rival, NEUTRAL)


def _label(figures: Figures, report: Report) -> str:
    median = f"{figures.median_s * 1e3:.3g} ms"
    base = report.median_of(FASTFORK)
    if base is None or figures.rival == FASTFORK:
        return median
    return f"{median}, {ratio(figures.median_s, base)} fastfork"


def _dress(axes: Axes, rows: list[Figures], report: Report) -> None:
    axes.set_xscale("log")
    slowest, fastest = max(row.p99_s for row in rows), min(row.median_s for row in rows)
    # On a logarithmic axis the room for the labels on the right is a power of the range.
    axes.set_xlim(fastest * 1e3 / 1.4, slowest * 1e3 * max(2.5, (slowest / fastest) ** 0.35))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds: dot = median, whisker = 99th percentile", fontsize=9)
    axes.set_title(report.title(), loc="left", fontsize=11, fontweight="bold")
    axes.grid(axis="x", which="both", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
