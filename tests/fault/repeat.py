"""The tests of faults again and again, several runs side by side: what fails once in a while shows.

    python -m tests.fault.repeat --times 50 --at-once 5
    FASTFORK_BACKEND=poll python -m tests.fault.repeat --times 10 tests/fault/test_races.py
    python -m tests.fault.repeat --at-once 2 -- tests/fault --ignore=tests/fault/test_table.py

The runs are each other's load. Each has its own temporary folder, and nothing of it is left. The log of a run that
fails is kept.

A test that lacks what it needs of the machine (a namespace, a compiler) is skipped, and the run may still be good. For
figures to be published, --no-skips has such a run fail.
"""

from __future__ import annotations

import argparse
import collections
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from .__main__ import ROOT, TESTS
from .runs import Runner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .runs import Suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status: 1 where a run has failed."""
    options = parse(arguments)
    options.logs = options.logs or Path(tempfile.mkdtemp(prefix="fault-logs-"))
    options.logs.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.python, ROOT, options.limit)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: no process outlives the run
    suites: list[Suite] = []
    try:
        suites.extend(run_all(runner, options))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print("\n".join(summary(suites, options)))
    return int(not all(is_good(suite, options) for suite in suites))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fault.repeat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tests", nargs="*", default=[TESTS], help="what pytest is to run, and, after --, its options"
    )
    parser.add_argument("--times", type=int, default=50, metavar="N", help="runs in all")
    parser.add_argument("--at-once", type=int, default=5, metavar="N", help="runs side by side")
    parser.add_argument(
        "--no-skips", action="store_true", help="a run with skipped tests has failed, and they are named"
    )
    parser.add_argument("--python", default=sys.executable, metavar="EXE", help="with pytest and fastfork")
    parser.add_argument("--limit", type=float, default=7200, metavar="S", help="for one run, in seconds")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="where logs are kept")
    return parser.parse_args(arguments)


def run_all(runner: Runner, options: argparse.Namespace) -> Iterable[Suite]:
    """Yield each run as it ends, and say on standard error how it did."""
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = [pool.submit(runner.run_suite, options.tests) for _ in range(options.times)]
        try:
            for number, run in enumerate(as_completed(runs), 1):
                report(run.result(), number, options)
                yield run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise


def is_good(suite: Suite, options: argparse.Namespace) -> bool:
    """Whether a run has not failed. One whose tests lack what they need of the machine may have been asked to."""
    return suite.is_good and not wrongly_skipped(suite, options)


def wrongly_skipped(suite: Suite, options: argparse.Namespace) -> dict[str, str]:
    """Return the tests that were skipped where none may be, and why."""
    return suite.skips if options.no_skips else {}


def report(suite: Suite, number: int, options: argparse.Namespace) -> None:
    """Say how a run did; keep the log of one that failed."""
    line = f"{number}/{options.times}  {suite.seconds:6.0f} s  {suite.passed} passed, {suite.skipped} skipped"
    print(f"{line}, {len(suite.failures)} failed", file=sys.stderr)
    for test, message in suite.failures.items():
        print(f"    {test}: {message[:200]}", file=sys.stderr)
    for test, reason in wrongly_skipped(suite, options).items():
        print(f"    {test} was skipped: {reason[:200]}", file=sys.stderr)
    sys.stderr.flush()
    if not is_good(suite, options):
        (options.logs / f"{number}.log").write_text(suite.log, encoding="utf-8")
        print(f"    {options.logs / f'{number}.log'}", file=sys.stderr)


def summary(suites: Sequence[Suite], options: argparse.Namespace) -> list[str]:
    """Return the lines that sum up all runs: the counts, and each test that has failed with how often."""
    good = sum(is_good(suite, options) for suite in suites)
    passed, skipped = (sum(getattr(suite, name) for suite in suites) for name in ("passed", "skipped"))
    failed = collections.Counter(test for suite in suites for test in suite.failures)
    missing = collections.Counter(test for suite in suites for test in wrongly_skipped(suite, options))
    return [
        f"{len(suites)} runs, {good} of them without a failure",
        f"{passed} passed, {skipped} skipped, {sum(failed.values())} failed",
        *(f"    {count} times: {test or 'the run itself'}" for test, count in failed.most_common()),
        *(f"    {count} times skipped: {test}" for test, count in missing.most_common()),
    ]


if __name__ == "__main__":
    sys.exit(main())
