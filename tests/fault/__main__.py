"""The command line: see the package's own words for what it does."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from . import __doc__ as description
from .runs import DOES_NOT_APPLY, EXIT_CODE_LOST, HANGS, HOLDS, SERVER_DIED, Outcome, Runner

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/fault"
SERVERS = {"stdlib": "standard library", "fastfork": "fastfork"}
WORST_FIRST = (SERVER_DIED, HANGS, EXIT_CODE_LOST)


def main() -> int:
    """Run what the command line asks for; return the exit status: 1 where something goes wrong on fastfork."""
    options = parse()
    runner = Runner(options.python, ROOT, options.limit)
    titles = {test: title for test, title in runner.collect(TESTS).items() if fits(options.only, title, test)}
    if not titles:
        sys.exit("tests.fault: no such fault")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: no process outlives the run
    outcomes = run_all(runner, titles, options.jobs)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8"
        )
    print(table(outcomes))
    print(f"\n{caption(runner.description(), outcomes)}")
    return int(not all(outcome.is_good for outcome in outcomes if outcome.on == "fastfork"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fault",
        description=description,
        epilog="Progress goes to standard error, the table (Markdown) to standard output.",
    )
    parser.add_argument("--python", default=sys.executable, metavar="EXE", help="with pytest and fastfork")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="faults whose title or test's id fits it"
    )
    parser.add_argument(
        "--limit", type=float, default=120, metavar="S", help="for one test, in seconds: beyond, it hangs"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there, with its log")
    return parser.parse_args()


def fits(pattern: str, *names: str) -> bool:
    """Whether one of the names has the pattern in it."""
    return any(fnmatch.fnmatch(name, f"*{pattern}*") for name in names)


def run_all(runner: Runner, titles: dict[str, str], at_once: int) -> list[Outcome]:
    """Run each test on each server, in the order of the tests; report on standard error meanwhile."""
    with ThreadPoolExecutor(at_once) as pool:
        runs = [pool.submit(runner.run, title, test, on) for test, title in titles.items() for on in SERVERS]
        try:
            for number, run in enumerate(as_completed(runs), 1):
                report(run.result(), f"{number}/{len(runs)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    return [run.result() for run in runs]


def report(outcome: Outcome, progress: str) -> None:
    """Say on standard error how a test ended, and what it wrote where fastfork does not hold."""
    print(
        f"{progress:>9}  {outcome.on:8}  {outcome.seconds:6.1f} s  {outcome.word:20}  {outcome.test}",
        file=sys.stderr,
        flush=True,
    )
    if outcome.on == "fastfork" and not outcome.is_good:
        print(outcome.log, file=sys.stderr, flush=True)


def table(outcomes: list[Outcome]) -> str:
    """Return the table: a row for each title, with the worst that happened to each server."""
    rows = [("fault", *SERVERS.values()), ("---",) * (1 + len(SERVERS))]
    for title in dict.fromkeys(outcome.title for outcome in outcomes):
        cells = (
            [outcome.word for outcome in outcomes if (outcome.title, outcome.on) == (title, on)]
            for on in SERVERS
        )
        rows.append((title, *map(sum_up, cells)))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def caption(machine: str, outcomes: list[Outcome]) -> str:
    """Return the line below the table: where it was made, and of how many tests."""
    tests = len({outcome.test for outcome in outcomes})
    words = [outcome.word for outcome in outcomes if outcome.on == "fastfork"]
    return (
        f"{machine}; {tests} tests on each, of which {words.count(HOLDS)} hold on fastfork and "
        f"{words.count(DOES_NOT_APPLY)} were skipped there, for want of what they need of the machine."
    )


def sum_up(words: list[str]) -> str:
    """Return the worst of the words, or all that are as bad."""
    wrong = {word for word in words if word not in (HOLDS, DOES_NOT_APPLY)}
    if not wrong:
        return HOLDS if HOLDS in words else DOES_NOT_APPLY
    for word in WORST_FIRST:
        if word in wrong:
            return word
    return ", ".join(sorted(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("tests.fault: interrupted")
