"""What each lever gives: fastfork with all of them, without each one, and without any, in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastfork import levers

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

PIDFDS = "pidfds"
"""With epoll and signalfd: without them there is what every POSIX system has."""

NAMES = (*levers.LEVERS, PIDFDS)
"""What can be switched off."""

_ALL_ON = "all on"


def variants(names: Sequence[str]) -> list[Rival]:
    """Variants of fastfork: as it is, without each lever of these names, and without any of them."""
    off = {_ALL_ON: [], **{f"no {name}": [name] for name in names}}
    if len(names) > 1:
        off["all off"] = list(names)
    return [_without(disabled, title) for title, disabled in off.items()]


def _without(names: Sequence[str], title: str) -> Rival:
    disabled = ",".join(name for name in names if name != PIDFDS)
    backend = "poll" if PIDFDS in names else ""
    return Rival(title, f"fastfork, {title}", FASTFORK, disabled=disabled, backend=backend)


def measure(goals: Sequence[Goal], names: Sequence[str], plan: Plan, progress: Progress) -> Found:
    """Measure the figures that the goals have of fastfork, with each of the levers of these names switched off."""
    return run_variants(goals, variants(names), plan, progress)


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
