"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import environment, report, runner
from .errors import BenchError
from .goals import cli as goals
from .progress import Progress
from .rivals import RIVALS, Rival, by_name, why_missing

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Measure how fast fresh Python processes start: fastfork, the standard start methods, and the floor.

All run in one go, a slice of each in turn, each from a small client process of its own, with exit codes and
computed values checked. Trust the ratios more than the times, and those of a quiet machine most.
"""

_EPILOG = """\
the rivals:
  floor             fork, _exit and waitpid in C, in an image with the same preload: nothing can be faster
  fastfork          the template preloads the main module and --preload
  fork              standard fork; its client, which is what it copies, has imported --preload
  forkserver-tuned  standard forkserver; also everything that its children import by themselves is preloaded
  forkserver        standard forkserver as most programs have it: the main module and --preload
  spawn             standard spawn: a new interpreter each time (a twenty-fifth of the rounds)

the columns:
  median, p99       start(); join() of a no-op, one after another, in microseconds
  against           the median as a multiple of fastfork's and of the floor's
  in turn           processes per second, one after another, Process object and check included
  8 in flight       processes per second with eight running at once
  faults            minor page faults of one child, from fork to exit
  CPU ms            user and system time of one child; and of child, client and template together
  pool of 8         milliseconds until eight different workers of a new Pool have answered, template running
  first             the same in a fresh program: the template's start included
  samples           processes behind median and p99

examples:
  {prog}                                    all rivals, about a minute
  {prog} --quick                            about ten seconds, for a first look
  {prog} --preload numpy,json --rivals fastfork,fork,floor
  {prog} --json run.json --plot run.png
  {prog} --from-json run.json --plot run.png
  {prog} --goals --json goals.json --plot goals.png
  {prog} --goals --row crowd --row 'start-*'
  {prog} --goals --row faults --levers
  {prog} --goals --row heap --levers huge

{goals}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the arguments `argv` (default: the command line's); return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    goals.check(options, parser)
    try:
        _run(options)
    except BenchError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if not (options.from_json or hasattr(os, "fork")):
        raise BenchError("this platform cannot fork: there is nothing to compare")
    try:
        if options.goals:
            goals.main(options)
            return
        result = _read(options.from_json) if options.from_json else _measure(options)
        sys.stdout.write(report.table(result))
        _save(result, options)
    except OSError as error:  # of a file that was named
        raise BenchError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    prog = "fastfork bench" if __package__ == "fastfork.bench" else f"python -m {__package__}"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG.format(prog=prog, goals=goals.EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preload", type=_modules, default=[], metavar="MOD,...", help="modules to import before any fork"
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help="processes per rival in sequence (default: 1000; quick: 160)",
    )
    parser.add_argument(
        "--rivals", type=_rivals, metavar="NAME,...", help="only these (default: all that can run here)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and pools; p99 is then a guess")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures and the environment")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the figures (needs: pip install 'fastfork[plot]')"
    )
    parser.add_argument(
        "--from-json",
        type=Path,
        metavar="FILE",
        help="measure nothing: take the figures of an earlier --json",
    )
    goals.add_options(parser)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _modules(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not _exists(name):
            raise argparse.ArgumentTypeError(f"no module named {name!r} can be imported here")
    return names


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _rivals(text: str) -> list[Rival]:
    try:
        chosen = [by_name(name.strip()) for name in text.split(",")]
    except KeyError as error:
        known = ", ".join(rival.name for rival in RIVALS)
        raise argparse.ArgumentTypeError(f"no rival {error}; there are: {known}") from None
    for rival in chosen:
        reason = why_missing(rival)
        if reason:
            raise argparse.ArgumentTypeError(f"{rival.name} cannot run: {reason}")
    return chosen


def _measure(options: argparse.Namespace) -> report.Report:
    rivals = options.rivals or _all_that_run()
    plan = runner.Plan.quick() if options.quick else runner.Plan()
    if options.rounds:
        plan = plan.scaled(options.rounds)
    progress = Progress(sys.stderr)
    try:
        samples = runner.run(rivals, options.preload, plan, progress)
    finally:
        progress.end()
    figures = [report.summarise(rival, samples[rival.name]) for rival in rivals]
    return report.Report(environment.current(), options.preload, figures)


def _all_that_run() -> list[Rival]:
    """The rivals that can run here; the others are named on standard error."""
    found = []
    for rival in RIVALS:
        reason = why_missing(rival)
        if reason:
            print(f"left out: {rival.name} ({reason})", file=sys.stderr)
        else:
            found.append(rival)
    return found


def _read(path: Path) -> report.Report:
    return report.from_json(path.read_text(encoding="utf-8"))


def _save(result: report.Report, options: argparse.Namespace) -> None:
    if options.json:
        options.json.write_text(report.to_json(result), encoding="utf-8")
    if options.plot:
        from . import plot

        plot.draw(result, str(options.plot))
