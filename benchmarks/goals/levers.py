"""What each lever gives: fastfork with all of them, without each one, and without any, in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report import align, ratio
from ..rivals import FASTFORK, Rival
from .experiments import run_variants
from .figures import FIGURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..progress import Progress
    from .figures import Found
    from .goal import Goal
    from .plan import Plan

_ALL_ON = "all on"


def variants(levers: Sequence[str]) -> list[Rival]:
    """Variants of fastfork: as it is, without each lever, and without any of them."""
    off = {_ALL_ON: "", **{f"no {lever}": lever for lever in levers}}
    if len(levers) > 1:
        off["all off"] = ",".join(levers)
    return [Rival(name, f"fastfork, {name}", FASTFORK, disabled=disabled) for name, disabled in off.items()]


def measure(goals: Sequence[Goal], levers: Sequence[str], plan: Plan, progress: Progress) -> Found:
    """Measure the figures that the goals have of fastfork, with each of `levers` switched off."""
    return run_variants(goals, variants(levers), plan, progress)


def table(found: Found) -> list[str]:
    """A line for each figure: its value with all levers, and, without some, also the multiple of that."""
    columns = list(dict.fromkeys(name for values in found.values.values() for name in values))
    cells = [("", *columns), *(_row(figure, found, columns) for figure in found.values)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [align(row, widths) for row in cells]


def _row(figure: str, found: Found, columns: Sequence[str]) -> tuple[str, ...]:
    base = found.get(figure, _ALL_ON)
    return FIGURES[figure].title, *(_cell(figure, found.get(figure, column), base) for column in columns)


def _cell(figure: str, value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    text = FIGURES[figure].text(value)
    return text if value is base else f"{text}, {ratio(value, base)}"
