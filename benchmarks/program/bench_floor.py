"""The floor: fork, _exit and waitpid in C, in a process with the same preload as a template has.

No fresh Python process can be had for less: this is what the kernel takes to copy such an image and to end
the copy, with no hook of Python's run and nothing done in the child.
"""

from __future__ import annotations

import importlib
import multiprocessing.forkserver  # noqa: F401 - a template has it, and all that it imports
import sys
from typing import cast

import bench_measure
import bench_serve
import bench_usage


class Floor:
    """Answers the runner as `bench_measure.Client` does, as far as a floor can."""

    def __init__(self) -> None:
        self._starts = 0

    def setup(self, _method: str, preload: list[str], sys_path: list[str]) -> None:
        """Import what a template with this preload has imported."""
        sys.path += [entry for entry in sys_path if entry not in sys.path]
        importlib.import_module("fastfork")
        bench_measure.import_all(preload)

    def latency(self, count: int) -> tuple[list[float], float]:
        """`count` times fork, _exit, waitpid: the seconds of each, and their sum."""
        native = importlib.import_module("fastfork._native")
        times = cast("list[float]", native.measure_floor(count))
        self._starts += count
        return times, sum(times)

    def usage(self) -> tuple[int, int, float, float] | None:
        """As `bench_measure.Client.usage`."""
        spent = bench_usage.usage()
        return None if spent is None else (self._starts, *spent)


if __name__ == "__main__":
    bench_serve.serve(int(sys.argv[1]), Floor())
