"""A run as text: what was to be reached, what was measured, and from which figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report import align
from . import levers
from .figures import FIGURES
from .result import LEVERS

if TYPE_CHECKING:
    from .goal import Bound, Goal, Quotient, Term
    from .result import Result

_HEADINGS = ("row", "figure", "goal", "aim", "measured", "met", "from")
_LEFT = (0, 1, 6)
"""The columns of words."""


def text(result: Result) -> str:
    """The table of a run, with its remarks and its environment."""
    lines = levers.table(result.found) if result.kind == LEVERS else _goal_lines(result)
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *result.found.notes, result.environment.caption(), ""])


def _goal_lines(result: Result) -> list[str]:
    cells = [_HEADINGS, *(_row(goal, result) for goal in result.goals)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [align(row, widths, _LEFT) for row in cells]


def _row(goal: Goal, result: Result) -> tuple[str, ...]:
    value = goal.quotient.value(result.found)
    met = result.met(goal)
    return (
        goal.name,
        goal.title,
        bound_text(goal, goal.reach, result),
        bound_text(goal, goal.aim, result),
        "-" if value is None else number_text(goal.quotient, value),
        "-" if met is None else "yes" if met else "no",
        _origin(goal, result),
    )


def bound_text(goal: Goal, bound: Bound, result: Result) -> str:
    """A bound of a goal, for the Python that was measured; a dash if it has none."""
    value = bound(result.version)
    return "-" if value is None else f"{'>=' if goal.at_least else '<='} {number_text(goal.quotient, value)}"


def number_text(quotient: Quotient, value: float) -> str:
    """A quotient as a multiple, a term alone in its unit."""
    return FIGURES[quotient.above.figure].text(value) if quotient.below is None else f"{value:.2f}x"


def _origin(goal: Goal, result: Result) -> str:
    """The terms of the quotient, with the rivals that are not in it in parentheses."""
    within = ", ".join(_term(term, goal.quotient, result) for term in goal.quotient.terms)
    beside = ", ".join(_beside(quotient, result) for quotient in goal.beside)
    return f"{within} ({beside})" if beside else within


def _term(term: Term, quotient: Quotient, result: Result) -> str:
    value = result.found.get(*term)
    name = FIGURES[term.figure].condition if _is_of_one_rival(quotient) else term.rival
    return f"{name} {'-' if value is None else FIGURES[term.figure].text(value)}"


def _beside(quotient: Quotient, result: Result) -> str:
    value = quotient.value(result.found)
    return f"{quotient.above.rival} {'-' if value is None else number_text(quotient, value)}"


def _is_of_one_rival(quotient: Quotient) -> bool:
    return quotient.below is not None and quotient.above.rival == quotient.below.rival
