"""``pytest --fastfork`` beside plain pytest and the plugins that people use: ``python -m benchmarks.pytest_rivals``.

Three suites: tests that do nothing; the same below a conftest that imports numpy and pandas; tests that share a module
fixture of 200 ms. All rivals run by turns in one run, and every run's number of passed tests is checked. What is not
installed is left out. pytest-xdist, pytest-zygote and pytest-fast do not isolate tests from each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Rival(NamedTuple):
    """A way to run tests."""

    name: str
    module: str
    """What has to be installed for it."""
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


RIVALS = (
    Rival("plain", "pytest", (), False),
    Rival("fastfork=1", "fastfork", ("--fastfork=1",), True),
    Rival("fastfork=2", "fastfork", ("--fastfork=2",), True),
    Rival("xdist -n 2", "xdist", ("-n", "2"), False),
    Rival("forked", "pytest_forked", ("--forked",), True),
    Rival("xdist -n 2, forked", "pytest_forked", ("-n", "2", "--forked"), True),
    Rival("zygote, 2 workers", "pytest_zygote", ("--workers", "2"), False),
    Rival("pytest-fast, 2 workers", "pytest_fast", ("--fast", "--fast-workers=2", "--fast-ttl=5"), False),
)

SUITES = (
    Suite("trivial", 1000, (), "", ""),
    Suite("numpy and pandas", 200, ("numpy", "pandas"), "import numpy\nimport pandas\n", ""),
    Suite("module fixture of 200 ms", 50, (), "", "time.sleep(0.2)"),
)

_DEADLINE = 300
"""Seconds that one run may take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each suite, and write the figures to the file that --json names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each rival (default 5)")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds: at least one")
    figures = {}
    for suite in SUITES:
        if all(map(importlib.util.find_spec, suite.needs)):
            figures[suite.name] = _measure(suite, options.rounds)
            _print(suite, figures[suite.name])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


def _measure(suite: Suite, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each rival's runs, taken by turns."""
    rivals = [rival for rival in RIVALS if importlib.util.find_spec(rival.module)]
    seconds: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    with tempfile.TemporaryDirectory() as folder:
        _write(suite, Path(folder))
        for number in range(rounds + 1):
            for rival in rivals:
                taken = _run(suite, rival, folder)
                if number:  # the first run of each compiles what it imports
                    seconds[rival.name].append(taken)
    return seconds


def _write(suite: Suite, folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(suite.conftest)
    head, argument = "", ""
    if suite.fixture:
        argument = "slow"
        head = f"import time, pytest\n@pytest.fixture(scope='module')\ndef slow():\n    {suite.fixture}\n"
    tests = "".join(f"def test_{number}({argument}): pass\n" for number in range(suite.tests))
    (folder / "test_it.py").write_text(head + tests)


def _run(suite: Suite, rival: Rival, folder: str) -> float:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *rival.options]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_DEADLINE,
        check=False,
    )
    seconds = time.perf_counter() - begin
    passed = re.search(r"(\d+) passed", done.stdout)
    if passed is None or int(passed[1]) != suite.tests:
        raise SystemExit(f"{rival.name}, {suite.name}: not all tests have passed\n{done.stdout}")
    return seconds


def _print(suite: Suite, seconds: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{suite.tests} tests, {suite.name}")
    print(f"{'':24}{'isolated':>9}{'seconds':>9}{'ms a test over plain':>22}")
    isolated = {rival.name: rival.is_isolated for rival in RIVALS}
    for name, median in medians.items():
        over = (median - medians["plain"]) / suite.tests * 1000
        print(f"{name:24}{'yes' if isolated[name] else 'no':>9}{median:9.2f}{over:22.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
