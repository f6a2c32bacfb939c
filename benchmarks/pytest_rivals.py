"""``pytest --fastfork`` beside plain pytest and the plugins that people use: ``python -m benchmarks.pytest_rivals``.

Three suites: tests that do nothing; the same below a conftest that imports numpy and pandas; tests that share a module
fixture of 200 ms. All rivals run by turns in one run, and every run's number of passed tests is checked. What is not
installed, or has failed in one of its runs, is named below the table. pytest-xdist, pytest-zygote and pytest-fast do
not isolate tests from each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Rival(NamedTuple):
    """A way to run tests."""

    name: str
    modules: tuple[str, ...]
    """What has to be installed for it, by the names that it is imported by."""
    plugins: tuple[str, ...] | None
    """What pytest loads for it, and nothing else, by the names of their entry points; None: all that there are."""
    options: tuple[str, ...]
    is_isolated: bool
    """Whether each test has a process of its own."""


class Suite(NamedTuple):
    """Some tests."""

    name: str
    tests: int
    needs: tuple[str, ...]
    conftest: str
    fixture: str


class Goal(NamedTuple):
    """What fastfork is to reach beside a rival."""

    suite: str
    text: str
    name: str
    rival: str
    over_plain: bool
    """Whether it is about what is added to plain pytest's time."""
    limit: float

    def ratio(self, seconds: Mapping[str, Sequence[float]]) -> float:
        """Return what has been reached: the median of the ratios of all rounds."""
        plain = seconds["plain"] if self.over_plain else [0.0] * len(seconds["plain"])
        rounds = zip(seconds[self.name], seconds[self.rival], plain)
        return statistics.median((one - less) / (other - less) for one, other, less in rounds)


RIVALS = (
    Rival("plain", ("pytest",), (), (), False),
    Rival("fastfork=1", ("fastfork",), ("fastfork",), ("--fastfork=1",), True),
    Rival("fastfork=2", ("fastfork",), ("fastfork",), ("--fastfork=2",), True),
    Rival("xdist -n 2", ("xdist",), ("xdist",), ("-n", "2"), False),
    Rival("forked", ("pytest_forked",), ("pytest_forked",), ("--forked",), True),
    Rival(
        "xdist -n 2, forked",
        ("xdist", "pytest_forked"),
        ("xdist", "pytest_forked"),
        ("-n", "2", "--forked"),
        True,
    ),
    Rival("zygote, 2 workers", ("pytest_zygote",), ("zygote",), ("--workers", "2"), False),
    Rival(
        "pytest-fast, 2 workers",
        ("pytest_fast",),
        None,
        ("--fast", "--fast-workers=2", "--fast-ttl=5"),
        False,
    ),
)

SUITES = (
    Suite("trivial", 1000, (), "", ""),
    Suite("numpy and pandas", 200, ("numpy", "pandas"), "import numpy\nimport pandas\n", ""),
    Suite("module fixture of 200 ms", 50, (), "", "time.sleep(0.2)"),
)

GOALS = (
    Goal("trivial", "one at a time, overhead in parts of forked's", "fastfork=1", "forked", True, 1 / 3),
    Goal("trivial", "two at a time, time in parts of xdist's", "fastfork=2", "xdist -n 2", False, 1.5),
    Goal(
        "numpy and pandas",
        "one at a time, overhead in parts of forked's",
        "fastfork=1",
        "forked",
        True,
        1 / 4,
    ),
    Goal("numpy and pandas", "two at a time, the same", "fastfork=2", "forked", True, 1 / 4),
)

_DISTRIBUTIONS = {"xdist": "pytest-xdist"}
"""What a module is installed by, where that is not its own name."""
_DEADLINE = 300
"""Seconds that one run may take."""
_FIXTURE_LIMIT = 1.1
_FIXTURE_SUITES = ("trivial", "module fixture of 200 ms")
_OWN = {"plain", "fastfork=1", "fastfork=2"}
"""Whose failure is one of the run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each suite, and write the figures to the file that --json names; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each rival (default 5)")
    parser.add_argument(
        "--suite", action="append", choices=[suite.name for suite in SUITES], help="only this one"
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds: at least one")
    figures = {}
    failures = {}
    missing = {rival.name: _why_missing(rival.modules) for rival in RIVALS if _why_missing(rival.modules)}
    for suite in SUITES:
        if suite.name not in (options.suite or [suite.name]):
            continue
        if _why_missing(suite.needs):
            print(f"\n{suite.name}: left out: {_why_missing(suite.needs)}")
            continue
        figures[suite.name], failures[suite.name] = _measure(suite, options.rounds)
        _print(suite, figures[suite.name], failures[suite.name], missing)
    _print_goals(figures)
    if options.json:
        results = {"seconds": figures, "failures": failures, "missing": missing}
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if any(_OWN.intersection(of_suite) for of_suite in failures.values()) else 0


def _why_missing(modules: Sequence[str]) -> str:
    """Say what has to be installed for some modules; nothing if they are all there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    packages = [_DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in missing]
    return f"not installed: pip install {' '.join(packages)}" if packages else ""


def _measure(suite: Suite, rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the seconds of each rival's runs, taken by turns, and why those that have failed have none."""
    rivals = [rival for rival in RIVALS if not _why_missing(rival.modules)]
    seconds: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    failures = {}
    with tempfile.TemporaryDirectory() as folder:
        _write(suite, Path(folder))
        for number in range(rounds + 1):
            for rival in [rival for rival in rivals if rival.name in seconds]:
                taken, failure = _run(suite, rival, folder)
                if failure:
                    del seconds[rival.name]
                    failures[rival.name] = failure
                elif number:  # the first run of each compiles what it imports
                    seconds[rival.name].append(taken)
    return seconds, failures


def _write(suite: Suite, folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(suite.conftest)
    head, argument = "", ""
    if suite.fixture:
        argument = "slow"
        head = f"import time, pytest\n@pytest.fixture(scope='module')\ndef slow():\n    {suite.fixture}\n"
    tests = "".join(f"def test_{number}({argument}): pass\n" for number in range(suite.tests))
    (folder / "test_it.py").write_text(head + tests)


def _run(suite: Suite, rival: Rival, folder: str) -> tuple[float, str]:
    """Return the seconds of one run; or 0 and the reason where not all tests have passed."""
    plugins = [word for name in ("no:cacheprovider", *(rival.plugins or ())) for word in ("-p", name)]
    autoload = {} if rival.plugins is None else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *rival.options]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**environment.variables(), "PYTHONPATH": "", **autoload},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0.0, f"no end within {_DEADLINE} s"
    seconds = time.perf_counter() - begin
    passed = re.search(r"(\d+) passed", done.stdout)
    if passed is None or int(passed[1]) != suite.tests:
        lines = done.stdout.strip().splitlines() or [""]
        return 0.0, f"{passed[1] if passed else 0} of {suite.tests} tests have passed: {lines[-1]}"
    return seconds, ""


def _print(
    suite: Suite,
    seconds: Mapping[str, Sequence[float]],
    failures: Mapping[str, str],
    missing: Mapping[str, str],
) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = medians.get("plain", math.nan)
    print(f"\n{suite.tests} tests, {suite.name}")
    print(f"{'':24}{'isolated':>9}{'seconds':>9}{'ms a test over plain':>22}")
    isolated = {rival.name: rival.is_isolated for rival in RIVALS}
    for name, median in medians.items():
        over = (median - plain) / suite.tests * 1000
        print(f"{name:24}{'yes' if isolated[name] else 'no':>9}{median:9.2f}{over:22.2f}", flush=True)
    for name, reason in failures.items():
        print(f"{name}: failed: {reason}", flush=True)
    for name, reason in missing.items():
        print(f"{name}: left out: {reason}", flush=True)


def _print_goals(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    print("\ngoals")
    for goal in GOALS:
        seconds = figures.get(goal.suite, {})
        if {"plain", goal.name, goal.rival} <= set(seconds):
            ratio = goal.ratio(seconds)
            verdict = "reached" if ratio <= goal.limit else "missed"
            print(f"{goal.suite}, {goal.text}: {ratio:.2f} ({goal.limit:.2f}: {verdict})")
    if all({"plain", "fastfork=1"} <= set(figures.get(name, ())) for name in _FIXTURE_SUITES):
        ratio = _fixture_ratio(figures["trivial"], figures["module fixture of 200 ms"])
        verdict = "reached" if ratio <= _FIXTURE_LIMIT else "missed"
        print(
            f"module fixture, time in parts of plain and the forks: {ratio:.2f} ({_FIXTURE_LIMIT:.2f}: {verdict})"
        )


def _fixture_ratio(trivial: Mapping[str, Sequence[float]], fixture: Mapping[str, Sequence[float]]) -> float:
    """Return how the time with a module fixture compares with plain pytest's and as many forks as there are tests."""
    median = statistics.median
    tests = {suite.name: suite.tests for suite in SUITES}
    fork = (median(trivial["fastfork=1"]) - median(trivial["plain"])) / tests["trivial"]
    forks = fork * tests["module fixture of 200 ms"]
    return median(fixture["fastfork=1"]) / (median(fixture["plain"]) + forks)


if __name__ == "__main__":
    sys.exit(main())
