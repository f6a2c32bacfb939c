"""`fastfork.Executor` beside others that give each task a fresh process: ``python -m benchmarks.executors``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rates = dict[str, list[float]]

_DESCRIPTION = """\
Tasks per second of a task that does nothing, with two workers and a fresh process for each task: fastfork.Executor and
what else there is for it, by turns in one run. Each run has an interpreter of its own, and every task is checked: its
result, and that it was the first one of its process.
"""

_EPILOG = """\
rivals:
{rivals}

columns:
  tasks/s      the median of the rounds
  ms           milliseconds a task at that rate; two are under way at a time
  fastfork is  how many times as many tasks fastfork does in the same time: the median of the rounds' ratios
  failed       rounds without a figure, because the rival broke down; the last reason stands below the table

goals: twice the rate of the best rival, ten times that of the median one.

examples:
  {prog}                                     all rivals that are installed, about two minutes
  {prog} --rounds 1 --seconds 0.3            a first look
  {prog} --rivals fastfork,pool-fork,pebble
  {prog} --json run.json
"""


class Rival(NamedTuple):
    """An executor."""

    name: str
    title: str
    package: str = ""
    """What has to be installed for it, by the name that it is imported by, too."""


FASTFORK = "fastfork"

RIVALS = (
    Rival(FASTFORK, "fastfork.Executor(2)", "fastfork"),
    Rival("pool-fork", "Pool(2, maxtasksperchild=1), fork"),
    Rival("pool-forkserver", "Pool(2, maxtasksperchild=1), forkserver"),
    Rival("futures", "ProcessPoolExecutor(2, max_tasks_per_child=1)"),
    Rival("pebble", "pebble.ProcessPool(2, max_tasks=1)", "pebble"),
    Rival("mpire", "mpire.WorkerPool(2), worker_lifespan=1", "mpire"),
    Rival("loky", "loky.ProcessPoolExecutor(1), one for each task", "loky"),
)

GOALS = (("the best rival", 2.0, max), ("the median of the rivals", 10.0, statistics.median))
"""What fastfork is compared with, by how much it is to be faster, and how that rate comes from those of a round."""

_PROGRAM = Path(__file__).parent / "program" / "bench_executors.py"
_DEADLINE = 60.0
"""Seconds that a run may take beyond what it was given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the figures to the file that --json names; the exit status."""
    options = _options(argv)
    rivals, missing = _chosen(options.rivals)
    rates: Rates = {rival.name: [] for rival in rivals}
    failures: dict[str, str] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for rival in rivals[number % len(rivals) :] + rivals[: number % len(rivals)]:
            rate, failure = _run(rival, options.seconds)
            rates[rival.name].append(rate)
            if failure:
                failures[rival.name] = failure
    _print_table(rivals, rates, failures, missing)
    goals = _goals(rates)
    _print_goals(goals)
    if options.json:
        figures = {
            "environment": asdict(environment.current()),
            "versions": _versions(rivals),
            "rates": rates,
            "failures": failures,
            "missing": missing,
            "goals": goals,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if any(rates.get(FASTFORK, [0.0])) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.executors",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rivals = "\n".join(f"  {rival.name:16} {rival.title}" for rival in RIVALS)
    parser.epilog = _EPILOG.format(prog=parser.prog, rivals=rivals)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each rival (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="about how long each run counts tasks (default 2)"
    )
    parser.add_argument("--rivals", metavar="NAME,...", help="only these (default: all that are installed)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures and the environment")
    options = parser.parse_args(argv)
    names = [rival.name for rival in RIVALS]
    options.rivals = options.rivals.split(",") if options.rivals else names
    if options.rounds < 1:
        parser.error("--rounds: at least one")
    if not options.seconds > 0:
        parser.error("--seconds: a positive number")
    for name in options.rivals:
        if name not in names:
            parser.error(f"--rivals: no {name!r}, only {', '.join(names)}")
    return options


def _chosen(names: Sequence[str]) -> tuple[list[Rival], dict[str, str]]:
    """Return the rivals of these names that can run, and why the others cannot."""
    missing = {rival.name: _why_missing(rival) for rival in RIVALS if rival.name in names}
    rivals = [rival for rival in RIVALS if rival.name in names and not missing[rival.name]]
    return rivals, {name: reason for name, reason in missing.items() if reason}


def _why_missing(rival: Rival) -> str:
    if rival.name == "futures" and sys.version_info < (3, 11):
        return "max_tasks_per_child came with Python 3.11"
    if not rival.package or importlib.util.find_spec(rival.package):
        return ""
    return f"not installed: pip install {rival.package}"


def _versions(rivals: Sequence[Rival]) -> dict[str, str]:
    """Return the versions of what is no part of Python, by its name."""
    return {rival.name: metadata.version(rival.package) for rival in rivals if rival.package}


def _run(rival: Rival, seconds: float) -> tuple[float, str]:
    """Return the tasks per second of one run; or 0 and the reason where the rival has broken down."""
    process = subprocess.Popen(
        [sys.executable, str(_PROGRAM), rival.name, str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment.variables(),
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds + _DEADLINE)
    except subprocess.TimeoutExpired:
        _end_group(process)
        return 0.0, f"no answer within {seconds + _DEADLINE:.0f} s"
    except BaseException:
        _end_group(process)
        raise
    if process.returncode != 0:
        _end_group(process)
        lines = stderr.strip().splitlines() or [""]
        return 0.0, f"exit status {process.returncode}: {lines[-1]}"
    return json.loads(stdout)["rate"], ""


def _end_group(process: subprocess.Popen[str]) -> None:
    """End what a run that went wrong has left, too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _print_table(
    rivals: Sequence[Rival], rates: Rates, failures: Mapping[str, str], missing: Mapping[str, str]
) -> None:
    versions = _versions(rivals)
    print(environment.current().caption())
    print(", ".join(f"{name} {version}" for name, version in versions.items() if name != FASTFORK))
    print(f"\n{'':48}{'tasks/s':>10}{'ms':>9}{'fastfork is':>13}{'failed':>8}")
    for rival in rivals:
        reached = [rate for rate in rates[rival.name] if rate]
        failed = len(rates[rival.name]) - len(reached)
        if reached:
            rate = statistics.median(reached)
            columns = f"{rate:10.1f}{1000 / rate:9.2f}{_ratio(rates, rival.name):>13}"
        else:
            columns = f"{'-':>10}{'-':>9}{'':13}"
        print(f"{rival.title:48}{columns}{failed or '':>8}")
    for name, reason in {**failures, **missing}.items():
        print(f"{name}: {'failed' if name in failures else 'left out'}: {reason}")


def _ratio(rates: Rates, name: str) -> str:
    ratios = [one / other for one, other in zip(rates.get(FASTFORK, []), rates[name]) if one and other]
    return f"{statistics.median(ratios):.2f} x" if ratios and name != FASTFORK else ""


def _goals(rates: Rates) -> list[dict[str, object]]:
    """Return what has been reached: the medians of the ratios of the rounds."""
    others = [values for name, values in rates.items() if name != FASTFORK]
    rounds = [[rate for rate in of_round if rate] for of_round in zip(*others)]
    found: list[dict[str, object]] = []
    for text, goal, summary in GOALS:
        pairs = zip(rates.get(FASTFORK, []), rounds)
        ratios = [own / summary(of_round) for own, of_round in pairs if own and of_round]
        if ratios:
            ratio = statistics.median(ratios)
            found.append({"rival": text, "ratio": ratio, "goal": goal, "reached": ratio >= goal})
    return found


def _print_goals(goals: Sequence[Mapping[str, object]]) -> None:
    print("\ngoals")
    for goal in goals:
        verdict = "reached" if goal["reached"] else "missed"
        print(f"times the rate of {goal['rival']}: {goal['ratio']:.2f} (goal {goal['goal']:g}: {verdict})")


if __name__ == "__main__":
    sys.exit(main())
