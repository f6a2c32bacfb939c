"""The command line: `python3 -m tests.ci`, from the checkout's root, which is what `.ci/run` does."""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import __doc__ as description
from . import interpreters
from .counts import Counts
from .schedule import Result, Schedule, Step
from .steps import Place, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKOUT = Path(__file__).resolve().parents[2]
SHOWN_OF_A_LOG = 150  # lines


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = parse(sys.argv[1:])
    try:
        every = interpreters.find()
        chosen = interpreters.find(options.python)
    except LookupError as error:
        sys.exit(f"tests.ci: {error}")
    if not chosen:
        sys.exit("tests.ci: no supported Python here")
    steps = plan(Place(CHECKOUT, options.work), chosen, tools=(every or chosen)[-1])
    steps = [step for step in steps if step.name in wanted(steps, options.only)]
    if options.list:
        print(*(step.name for step in steps), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: no command outlives the run
    started = time.monotonic()
    print("interpreters:", *(item.full_version + "t" * item.free_threaded for item in chosen), flush=True)
    results = Schedule(steps, make_logs(options.work), show).run(options.jobs)
    return summarize(results, time.monotonic() - started)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=".ci/run", description=description)
    parser.add_argument(
        "--only", action="append", metavar="STEP", help="this step (or pattern) and what it needs"
    )
    parser.add_argument("--python", action="append", default=[], metavar="X", help="a version or a path")
    parser.add_argument("--list", action="store_true", help="print the steps and leave")
    parser.add_argument("--jobs", type=int, default=default_jobs(), metavar="N", help="at once")
    parser.add_argument(
        "--work", type=Path, default=CHECKOUT / ".cache/ci", metavar="DIR", help="the run's folder"
    )
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    return options


def default_jobs() -> int:
    """Return how many steps are run side by side: one more than there are processors, as tests wait now and then."""
    return min(3, 1 + (os.cpu_count() or 1))


def wanted(steps: Sequence[Step], patterns: Sequence[str] | None) -> set[str]:
    """Return the names of the steps that match, and of all that they need."""
    by_name = {step.name: step for step in steps}
    pending = [name for name in by_name if any(fnmatch.fnmatch(name, item) for item in patterns or ["*"])]
    if not pending:
        sys.exit(f"tests.ci: no such step; there are: {', '.join(by_name)}")
    names: set[str] = set()
    while pending:
        name = pending.pop()
        names.add(name)
        pending.extend(by_name[name].needs)
    return names


def make_logs(work: Path) -> Path:
    """Make the folder of the logs."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def show(result: Result) -> None:
    """Print how a step went, and where it failed the end of its log."""
    word = "ok" if not result.reason else "FAIL" if result.job else "--"
    counts = f"  {result.counts}" if result.step.count and result.job else ""
    reason = f"  {result.reason}" if result.reason else ""
    print(f"{word:4} {result.step.name:18} {result.seconds:6.1f} s{counts}{reason}", flush=True)
    if result.reason and result.job:
        lines = result.job.output().splitlines()[-SHOWN_OF_A_LOG:]
        print(f"---- the end of {result.job.log}:", *lines, "----", sep="\n", flush=True)


def summarize(results: Sequence[Result], seconds: float) -> int:
    """Print the steps' closing texts, what failed, and the sum of all counts alone on the last line.

    Returns the exit status.
    """
    for result in results:
        if result.step.closing and result.job:
            print(f"\n{result.step.name}", result.step.closing(result.job), sep="\n")
    failed = [result.step.name for result in results if result.reason]
    print(f"\n{len(results)} steps in {seconds:.0f} s; failed: {', '.join(failed) or 'none'}")
    print(sum((result.counts for result in results), Counts()))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("tests.ci: interrupted")
