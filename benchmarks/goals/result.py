"""A run of the goals or the levers, and the same as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..environment import Environment
from ..errors import BenchError
from .figures import FIGURES, Found
from .rows import chosen

if TYPE_CHECKING:
    from .goal import Goal, Version

GOALS = "goals"
LEVERS = "levers"
_FORMAT = 1
"""Version of the JSON's layout."""


@dataclass(frozen=True)
class Result:
    """The environment of a run, its kind (`GOALS` or `LEVERS`), the names of its rows, and what was found."""

    environment: Environment
    kind: str
    rows: list[str]
    found: Found

    @property
    def goals(self) -> list[Goal]:
        """The goals of its rows."""
        return chosen(self.rows)

    @property
    def version(self) -> Version:
        """The version of Python that was measured."""
        return tuple(int(number) for number in re.findall(r"\d+", self.environment.python)[:3])

    def met(self, goal: Goal) -> bool | None:
        """Whether a goal is met; None if it was not measured, or does not exist for this version of Python."""
        value, bound = goal.quotient.value(self.found), goal.reach(self.version)
        return None if value is None or bound is None else goal.is_met(value, bound)


def to_json(result: Result) -> str:
    """The run as JSON text: the figures, and, for who reads it, what they say of each goal."""
    verdicts = [_verdict(goal, result) for goal in result.goals] if result.kind == GOALS else []
    data = {"format": _FORMAT, **asdict(result), "verdicts": verdicts}
    return json.dumps(data, indent=2) + "\n"


def _verdict(goal: Goal, result: Result) -> dict[str, object]:
    return {
        "row": goal.name,
        "title": goal.title,
        "at_least": goal.at_least,
        "reach": goal.reach(result.version),
        "aim": goal.aim(result.version),
        "measured": goal.quotient.value(result.found),
        "met": result.met(goal),
    }


def from_json(text: str) -> Result:
    """The run in a JSON text of `to_json`; `BenchError` if it is not one."""
    try:
        data = json.loads(text)
        result = Result(
            Environment(**data["environment"]), data["kind"], data["rows"], Found(**data["found"])
        )
        if result.kind not in (GOALS, LEVERS) or not result.found.values.keys() <= FIGURES.keys():
            raise ValueError("of another kind, or with other figures")
        chosen(result.rows)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise BenchError(f"this JSON is not a run of the goals: {error!r}") from error
    return result
