"""The command line: see the package's own words for what it does."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import __doc__ as description
from . import figures, interpreters, report
from .command import CommandFailedError
from .runner import EVERYTHING, Options, examine
from .suites import SUITES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .interpreters import Interpreter
    from .report import InterpreterReport

SOURCE = Path(__file__).parents[2]
PROBLEMS = 1
NOTHING_RUN = 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.compat",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suites = [suite.name for suite in SUITES]
    parser.add_argument("--python", action="append", type=Path, metavar="PATH", help="default: all found")
    parser.add_argument("--wheel", type=Path, metavar="PATH", help="fastfork's wheel; default: build one")
    parser.add_argument("--suite", action="append", choices=suites, help="default: all")
    parser.add_argument(
        "--match", default=EVERYTHING, metavar="PATTERN", help="only tests whose full name fits"
    )
    parser.add_argument(
        "--disable",
        default="",
        metavar="NAMES",
        help="run the suites on fastfork with FASTFORK_DISABLE=NAMES",
    )
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="how many at a time (default: 4)")
    parser.add_argument(
        "--timeout", type=float, default=300, metavar="S", help="limit for a part, in seconds"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep regrtest's output there")
    stdlib = parser.add_mutually_exclusive_group()
    stdlib.add_argument("--stdlib-only", action="store_true", help="run without fastfork")
    stdlib.add_argument("--run-stdlib", action="store_true", help="do not use the stored figures")
    parser.add_argument("--refresh", action="store_true", help="run the standard library, store its figures")
    return parser.parse_args(arguments)


def chosen_interpreters(paths: Sequence[Path] | None) -> list[Interpreter]:
    """The interpreters asked for, or all, oldest first.

    Raises:
        SystemExit: one that was asked for is no CPython that runs.
    """
    if not paths:
        return interpreters.discover()
    probed = {path: interpreters.probe(path) for path in paths}
    for path, interpreter in probed.items():
        if interpreter is None:
            sys.exit(f"{path} is no CPython that runs")
    return interpreters.oldest_first(interpreter for interpreter in probed.values() if interpreter)


def options(arguments: argparse.Namespace) -> Options:
    fresh = arguments.run_stdlib or arguments.stdlib_only or arguments.refresh
    if arguments.logs:
        arguments.logs.mkdir(parents=True, exist_ok=True)
    return Options(
        suites=arguments.suite or Options.suites,
        match=arguments.match,
        limit=arguments.timeout,
        jobs=arguments.jobs,
        disabled=arguments.disable,
        stdlib_only=arguments.stdlib_only,
        baseline={} if fresh else figures.load_baseline(),
        logs=arguments.logs,
    )


async def run(arguments: argparse.Namespace) -> list[InterpreterReport]:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="fastfork-compat-") as work:
        chosen = chosen_interpreters(arguments.python)
        return await examine(
            chosen,
            options(arguments),
            Path(work),
            wheel=arguments.wheel and arguments.wheel.resolve(),
            source=SOURCE,
        )


def store(reports: Sequence[InterpreterReport]) -> None:
    """Put the standard library's figures of these reports into the baseline."""
    baseline = figures.load_baseline()
    for of in reports:
        suites = {suite.suite: suite.stdlib for suite in of.suites if suite.stdlib}
        if suites:
            baseline.setdefault(of.version, {}).update(suites)
    figures.store_baseline(baseline)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    try:
        reports = asyncio.run(run(chosen))
    except CommandFailedError as error:
        sys.exit(str(error))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    partial = chosen.suite or chosen.match != EVERYTHING
    print("\nCPython's own suites" + (" (only a part of them)" if partial else ""))
    if chosen.disable:
        print(f"with FASTFORK_DISABLE={chosen.disable}")
    print(report.table(reports))
    print(report.remarks(reports))
    if chosen.json:
        chosen.json.write_text(json.dumps(report.as_json(reports), indent=1) + "\n")
    if chosen.refresh:
        store(reports)
    return exit_status(reports)


def exit_status(reports: Sequence[InterpreterReport]) -> int:
    suites = [suite for of in reports for suite in of.suites]
    if not any(suite.stdlib or suite.fastfork for suite in suites):
        return NOTHING_RUN
    return PROBLEMS if any(suite.problems for suite in suites) else 0


if __name__ == "__main__":
    sys.exit(main())
