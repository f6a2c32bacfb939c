"""The goals, row by row."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..rivals import FASTFORK, FLOOR
from .goal import Goal, Quotient, Term, always, nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .goal import Bound, Version

FORK = "fork"
FORKSERVER = "forkserver"
TUNED = "forkserver-tuned"


def _times_as_fast(figure: str, rival: str) -> Quotient:
    """How many times as long the rival takes."""
    return Quotient(Term(figure, rival), Term(figure, FASTFORK))


def _part_of(figure: str, rival: str, subject: str = FASTFORK) -> Quotient:
    """What the subject has of a figure, as a multiple of the rival's."""
    return Quotient(Term(figure, subject), Term(figure, rival))


def _growth(figure: str, base: str, rival: str) -> Quotient:
    """A figure of a rival as a multiple of another one of its own."""
    return Quotient(Term(figure, rival), Term(base, rival))


def _against_forkserver(version: Version) -> float:
    """The older ones run the main module in every child; how dear that is depends on the version."""
    if version >= (3, 13, 8):  # but for 3.14.0
        return 3.0
    return 7.5 if version >= (3, 12) else 5.0


def _against_tuned(version: Version) -> float | None:
    return None if version >= (3, 14) else 3.0


def _faults(bound: float) -> Bound:
    """A bound on page faults, which depend on the version's own data: for the one that it was set for."""
    return lambda version: bound if version[:2] == (3, 13) else None


GOALS = (
    Goal(
        "start-forkserver",
        "start(); join(), as fast as forkserver",
        "starts",
        _times_as_fast("start", FORKSERVER),
        at_least=True,
        reach=_against_forkserver,
        aim=nothing,
    ),
    Goal(
        "start-tuned",
        "the same, as forkserver tuned",
        "starts",
        _times_as_fast("start", TUNED),
        at_least=True,
        reach=_against_tuned,
        aim=nothing,
    ),
    Goal(
        "start-fork",
        "the same, as fork from a small client",
        "starts",
        _times_as_fast("start", FORK),
        at_least=True,
        reach=always(1.8),
        aim=always(2.5),
    ),
    Goal(
        "start-floor",
        "the same, of the floor",
        "starts",
        _part_of("start", FLOOR),
        reach=always(1.8),
        aim=always(1.2),
    ),
    Goal(
        "queue",
        "the same where it is sent a queue, as fast as fork",
        "starts",
        _times_as_fast("queue", FORK),
        at_least=True,
        reach=nothing,
        aim=nothing,
        beside=(_times_as_fast("queue", FORKSERVER), _times_as_fast("queue", TUNED)),
    ),
    Goal(
        "lean",
        "a lean call, of the floor",
        "starts",
        Quotient(Term("lean", FASTFORK), Term("start", FLOOR)),
        reach=always(1.4),
        aim=always(1.15),
    ),
    Goal(
        "batch",
        "8 by start_all(), of 8 started in turn",
        "starts",
        _growth("batch", "loop", FASTFORK),
        reach=nothing,
        aim=nothing,
    ),
    Goal(
        "rate",
        "processes per second, 8 in flight, of fork's",
        "starts",
        _part_of("rate", FORK),
        at_least=True,
        reach=always(1.6),
        aim=always(2.0),
    ),
    Goal(
        "arrival",
        "start() called to first line, p50, of fork's",
        "starts",
        _part_of("arrival", FORK),
        reach=always(0.25),
        aim=nothing,
    ),
    Goal(
        "arrival-p99",
        "the same, p99",
        "starts",
        _part_of("arrival-p99", FORK),
        reach=always(0.5),
        aim=nothing,
    ),
    Goal(
        "faults",
        "page faults of a no-op child",
        "starts",
        Quotient(Term("faults", FASTFORK)),
        reach=_faults(200),
        aim=_faults(100),
        beside=(Quotient(Term("faults", FORK)), Quotient(Term("faults", FORKSERVER))),
    ),
    Goal(
        "crowd",
        "a start beside 2,000 live children, of one beside none",
        "crowd",
        _growth("crowd-start", "lone-start", FASTFORK),
        reach=always(1.2),
        aim=nothing,
        beside=(_growth("crowd-start", "lone-start", TUNED),),
    ),
    Goal(
        "heap",
        "a start with a 1 GB heap, of one with 50 MB",
        "heap",
        _growth("large-heap", "small-heap", FASTFORK),
        reach=always(2.0),
        aim=nothing,
        beside=(
            _growth("large-heap", "small-heap", FORK),
            _growth("large-heap", "small-heap", TUNED),
        ),
    ),
    Goal(
        "heap-fork",
        "a start with a 1 GB heap, of fork's",
        "heap",
        _part_of("large-heap", FORK),
        reach=always(0.1),
        aim=nothing,
    ),
    Goal(
        "heap-forkserver",
        "the same, of forkserver's, tuned",
        "heap",
        _part_of("large-heap", TUNED),
        reach=always(0.1),
        aim=nothing,
    ),
    *(
        Goal(
            figure,
            title,
            "memory",
            _part_of(figure, FORK),
            reach=always(1.0),
            aim=nothing,
            beside=(_part_of(figure, FORK, FORKSERVER),),
        )
        for figure, title in (
            ("memory", "private memory of an idle pool worker, of fork's"),
            ("memory-numpy", "the same, numpy preloaded"),
        )
    ),
    *(
        Goal(
            figure,
            title,
            "pools",
            _part_of(figure, FORK),
            reach=always(1.0),
            aim=nothing,
            beside=(_part_of(figure, FORK, FORKSERVER), _part_of(figure, FORK, TUNED)),
        )
        for figure, title in (
            ("pool", "Pool(8) until 8 workers have answered, of fork's"),
            ("executor", "ProcessPoolExecutor(8), the same"),
        )
    ),
    *(
        Goal(
            figure,
            title,
            "pools",
            _part_of(figure, FORKSERVER),
            reach=always(1.0),
            aim=nothing,
            beside=(_part_of(figure, FORKSERVER, TUNED), _part_of(figure, FORKSERVER, FORK)),
        )
        for figure, title in (
            ("first-pool", "first Pool(8), template start included, of forkserver's"),
            ("first-executor", "first ProcessPoolExecutor(8), the same"),
        )
    ),
    *(
        Goal(
            figure,
            title,
            "scaling",
            _part_of(figure, FORK),
            at_least=True,
            reach=always(1.0),
            aim=nothing,
            beside=(_part_of(figure, FORK, FORKSERVER),),
        )
        for figure, title in (
            ("scaling", "clients on all cores by one, in turn, of fork's"),
            ("scaling-flights", "the same, each with 8 in flight"),
        )
    ),
)
"""What is to be reached; a row's name is what `--row` takes."""


def chosen(patterns: Sequence[str]) -> list[Goal]:
    """The goals whose names fit one of the patterns, such as `start-*`. `LookupError` if a pattern fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(goal.name, pattern) for goal in GOALS):
            raise LookupError(pattern)
    return [goal for goal in GOALS if any(fnmatchcase(goal.name, pattern) for pattern in patterns)]


def listing() -> str:
    """A line for each goal: its name and what it is about."""
    width = max(len(goal.name) for goal in GOALS)
    return "\n".join(f"  {goal.name:{width}}  {goal.title}" for goal in GOALS)
