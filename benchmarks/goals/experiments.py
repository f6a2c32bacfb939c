"""Which module measures what, and one run of all that the chosen goals need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rivals import FASTFORK, RIVALS, Rival, why_missing
from . import crowd, heap, memory, pools, scaling, starts
from .figures import Found
from .job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..progress import Progress
    from .goal import Goal
    from .plan import Plan

EXPERIMENTS = {
    "starts": starts.measure,
    "crowd": crowd.measure,
    "heap": heap.measure,
    "memory": memory.measure,
    "pools": pools.measure,
    "scaling": scaling.measure,
}
"""By the name that goals call them by."""


def run(goals: Sequence[Goal], plan: Plan, progress: Progress) -> Found:
    """Measure all terms of the goals, each experiment once, with the rivals that its goals name.

    Raises `BenchError` if a rival fails or a process gives a wrong result.
    """
    found = Found()
    for experiment, of_one in _by_experiment(goals):
        terms = {term for goal in of_one for term in goal.terms}
        named = {term.rival for term in terms}
        rivals = [rival for rival in RIVALS if rival.name in named and _can_run(rival, found)]
        figures = frozenset(term.figure for term in terms)
        EXPERIMENTS[experiment](Job(rivals, figures, plan, progress), found)
    return found


def run_variants(goals: Sequence[Goal], variants: Sequence[Rival], plan: Plan, progress: Progress) -> Found:
    """Measure what the goals ask of fastfork, of several variants of it.

    Raises `BenchError` if one fails or a process gives a wrong result.
    """
    found = Found()
    for experiment, of_one in _by_experiment(goals):
        terms = {term for goal in of_one for term in goal.terms}
        figures = frozenset(term.figure for term in terms if term.rival == FASTFORK)
        EXPERIMENTS[experiment](Job(variants, figures, plan, progress), found)
    return found


def _by_experiment(goals: Sequence[Goal]) -> Iterator[tuple[str, list[Goal]]]:
    for experiment in EXPERIMENTS:
        of_one = [goal for goal in goals if goal.experiment == experiment]
        if of_one:
            yield experiment, of_one


def _can_run(rival: Rival, found: Found) -> bool:
    reason = why_missing(rival)
    if reason:
        found.note(f"left out: {rival.name} ({reason})")
    return not reason
