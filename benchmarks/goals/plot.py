"""A picture of the goals: how far each figure is beyond what was to be reached, or short of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import BenchError
from ..plot import ACCENT, FAINT, NEUTRAL
from .table import bound_text, number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .goal import Goal
    from .result import Result


class _Bar(NamedTuple):
    """A goal with what was measured and, where there is one, the aim; both in multiples of the goal, more is better."""

    title: str
    label: str
    score: float
    aim: float | None


def draw(result: Result, path: str) -> None:
    """Write the plot as an image whose kind the ending of `path` says, PNG if it has none.

    Raises `BenchError` if matplotlib is not installed, or if there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("plots need matplotlib: python -m pip install 'fastfork[plot]'") from None
    bars = [bar for goal in result.goals for bar in _bars(goal, result)][::-1]
    if not bars:
        raise BenchError("nothing to draw: none of these goals has both a bound and a measurement here")
    figure = Figure(figsize=(10.0, 1.8 + 0.36 * len(bars)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for position, bar in enumerate(bars):
        _draw_bar(axes, position, bar)
    _dress(axes, bars)
    figure.supxlabel(result.environment.caption(), fontsize=6.5, color=FAINT, x=0.01, ha="left")
    figure.savefig(path, facecolor="white")


def _bars(goal: Goal, result: Result) -> list[_Bar]:
    """The goal's bar, if it has a bound and was measured."""
    value, bound, aim = (
        goal.quotient.value(result.found),
        goal.reach(result.version),
        goal.aim(result.version),
    )
    if value is None or bound is None:
        return []

    def score(number: float) -> float:
        return number / bound if goal.at_least else bound / number

    label = f"{number_text(goal.quotient, value)}, goal {bound_text(goal, goal.reach, result)}"
    return [_Bar(goal.title, label, score(value), None if aim is None else score(aim))]


def _draw_bar(axes: Axes, position: int, bar: _Bar) -> None:
    colour = ACCENT if bar.score >= 1 else NEUTRAL
    axes.plot(
        [1, bar.score], [position, position], color=colour, linewidth=4, solid_capstyle="butt", alpha=0.6
    )
    axes.plot([bar.score], [position], marker="o", color=colour, markersize=7)
    if bar.aim is not None:
        axes.plot([bar.aim], [position], marker="D", color=FAINT, markersize=5, fillstyle="none")
    axes.annotate(
        bar.label,
        (max(bar.score, bar.aim or 0, 1), position),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colour,
    )


def _dress(axes: Axes, bars: list[_Bar]) -> None:
    axes.set_xscale("log", base=2)
    best = max(max(bar.score, bar.aim or 0, 1) for bar in bars)
    worst = min(min(bar.score, 1) for bar in bars)
    # On a logarithmic axis the room for the labels on the right is a power of the range.
    axes.set_xlim(worst / 1.2, best * max(2.0, (best / worst) ** 0.5))
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.set_yticks(range(len(bars)), [bar.title for bar in bars], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color=ACCENT, linewidth=1)
    axes.set_xlabel("times as good as the goal: dot = measured, diamond = aim", fontsize=9)
    axes.set_title("what was to be reached, and what is", loc="left", fontsize=11, fontweight="bold")
    axes.grid(axis="x", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
