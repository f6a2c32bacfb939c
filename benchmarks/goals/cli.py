"""The part of the command line that is about the goals."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastfork.levers import ALL

from .. import environment
from ..errors import BenchError
from ..progress import Progress
from . import experiments, levers, plot, result, rows, table
from .plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

_ROWS_OF_LEVERS = ["start-fork", "rate", "arrival", "faults"]
_FOREIGN = ("preload", "rounds", "rivals")
"""Options of the other benchmark: each goal says itself what it takes."""

EPILOG = f"""\
the goals, by the names that --row takes:
{rows.listing()}
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about the goals."""
    group = parser.add_argument_group("goals", "what fastfork is to reach, and what it reaches here")
    group.add_argument(
        "--goals", action="store_true", help="measure these in place of the above, about three minutes"
    )
    group.add_argument(
        "--row",
        type=_pattern,
        action="append",
        dest="rows",
        metavar="NAME",
        help="only the goals whose names fit, such as 'start-*'; may be given again",
    )
    group.add_argument(
        "--levers",
        nargs="?",
        const=ALL,
        metavar="NAME,...",
        help=f"what each lever (default: all of {', '.join(levers.NAMES)}) gives to fastfork's figures in these goals "
        f"(default: {', '.join(_ROWS_OF_LEVERS)})",
    )


def _pattern(text: str) -> str:
    try:
        rows.chosen([text])
    except LookupError:
        raise argparse.ArgumentTypeError(f"no goal is called {text!r}; see --help") from None
    return text


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with an error where options do not go together."""
    if not options.goals and (options.rows or options.levers):
        parser.error("--row and --levers are about the goals: add --goals")
    for name in _FOREIGN:
        if options.goals and getattr(options, name):
            parser.error(f"--{name} is not for --goals: each goal has its own")
    if options.levers and options.plot:
        parser.error("there is no plot of the levers")


def main(options: argparse.Namespace) -> None:
    """Measure, or read an earlier run, and print the table. Raises `BenchError`, and `OSError` for a file."""
    of_run = _read(options.from_json) if options.from_json else _measure(options)
    sys.stdout.write(table.text(of_run))
    if options.json:
        options.json.write_text(result.to_json(of_run), encoding="utf-8")
    if options.plot:
        plot.draw(of_run, str(options.plot))


def _read(path: Path) -> result.Result:
    return result.from_json(path.read_text(encoding="utf-8"))


def _measure(options: argparse.Namespace) -> result.Result:
    plan = Plan.quick() if options.quick else Plan()
    progress = Progress(sys.stderr)
    try:
        return _levers(options, plan, progress) if options.levers else _goals(options, plan, progress)
    finally:
        progress.end()


def _goals(options: argparse.Namespace, plan: Plan, progress: Progress) -> result.Result:
    goals = rows.chosen(options.rows or ["*"])
    found = experiments.run(goals, plan, progress)
    return result.Result(environment.current(), result.GOALS, [goal.name for goal in goals], found)


def _levers(options: argparse.Namespace, plan: Plan, progress: Progress) -> result.Result:
    goals = rows.chosen(options.rows or _ROWS_OF_LEVERS)
    found = levers.measure(goals, _chosen_levers(options.levers), plan, progress)
    return result.Result(environment.current(), result.LEVERS, [goal.name for goal in goals], found)


def _chosen_levers(text: str) -> list[str]:
    if text == ALL:
        return list(levers.NAMES)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in levers.NAMES:
            raise BenchError(f"no lever is called {name!r}; there are: {', '.join(levers.NAMES)}")
    return names
