"""The system calls of a start, counted by strace: ``python -m benchmarks.system_calls``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import environment
from .errors import BenchError
from .report import align

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
The system calls of start(); join() of a process that does nothing, by all that take part: the client, the fork server,
the resource tracker, the process. strace counts them over some starts and over some more; the difference, divided by
how many more, is what one takes.
"""

_DEADLINE = 300.0
"""Seconds that a run may take."""


class Method(NamedTuple):
    """A start method as it is measured: its title, its name, and what is said of it."""

    title: str
    name: str
    spares: int = 0


METHODS = (
    Method("fork", "fork"),
    Method("forkserver, tuned", "forkserver"),
    Method("fastfork, no spares", "fastfork"),
    Method("fastfork", "fastfork", spares=2),
)

_TASKS = "def nop(): pass\n"

_PROGRAM = """\
import sys
from multiprocessing import get_context

import tasks

if __name__ == "__main__":
    method, spares, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if method == "fastfork":
        import fastfork

        context = fastfork.get_context(preload=["__main__", "tasks"], spares=spares)
    else:
        context = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["__main__", "tasks", "pkgutil", "runpy"])
    for _ in range(count):
        process = context.Process(target=tasks.nop)
        process.start()
        process.join()
        assert process.exitcode == 0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    options = _parse(arguments)
    try:
        found = {method: of_a_start(method, options.starts) for method in METHODS}
    except BenchError as error:
        print(f"system_calls: {error}", file=sys.stderr)
        return 1
    print("\n".join([*table(found), "", environment.current().caption()]))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.system_calls", description=_DESCRIPTION)
    parser.add_argument(
        "--starts", type=int, default=100, metavar="N", help="starts that are counted (default: 100)"
    )
    return parser.parse_args(arguments)


def of_a_start(method: Method, starts: int) -> dict[str, float]:
    """How often each system call is made for one start. Raises `BenchError` without strace, or if a run fails."""
    strace = shutil.which("strace")
    if strace is None:
        raise BenchError("strace is not installed")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.py").write_text(_TASKS, encoding="utf-8")
        Path(folder, "program.py").write_text(_PROGRAM, encoding="utf-8")
        few, many = (_count(strace, folder, method, count) for count in (starts, 2 * starts))
    many.subtract(few)
    return {call: count / starts for call, count in many.items() if count > 0}


def _count(strace: str, folder: str, method: Method, starts: int) -> Counter[str]:
    program = [sys.executable, "program.py", method.name, str(method.spares), str(starts)]
    summary = os.path.join(folder, "summary")
    try:
        done = subprocess.run(
            [strace, "-f", "-qq", "-c", "-U", "calls,name", "-o", summary, *program],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{method.title}: no end within {_DEADLINE:.0f} s") from None
    if done.returncode != 0:
        raise BenchError(f"{method.title}: exit status {done.returncode}: {done.stderr.strip()[-500:]}")
    return counts_in(Path(summary).read_text(encoding="utf-8"))


def counts_in(summary: str) -> Counter[str]:
    """The calls in a summary of ``strace -c -U calls,name``, less its total."""
    rows = (line.split() for line in summary.splitlines())
    return Counter(
        {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdigit() and row[1] != "total"}
    )


def table(found: dict[Method, dict[str, float]]) -> list[str]:
    """A line for each method: how many calls, and which of them most often."""
    cells = [("", "calls", "most of them"), *(_row(method, calls) for method, calls in found.items())]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [align(row, widths, (0, 2)) for row in cells]


def _row(method: Method, calls: dict[str, float]) -> tuple[str, str, str]:
    most = sorted(calls, key=lambda call: -calls[call])[:6]
    return method.title, f"{sum(calls.values()):.0f}", ", ".join(f"{call} {calls[call]:.0f}" for call in most)


if __name__ == "__main__":
    sys.exit(main())
