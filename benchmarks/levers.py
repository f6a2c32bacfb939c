"""What each lever gives: a template without it, one with all of them and one with none, in turn, in one run.

    python -m benchmarks.levers
    python -m benchmarks.levers --preload numpy --rounds 100

The levers are those of ``FASTFORK_DISABLE``. Page faults are the same in every run. Times are not: compare the ratios
within one run, on a quiet machine. CPU time is that of the processes alone, whoever else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import fastfork
from fastfork import context, levers

if TYPE_CHECKING:
    from collections.abc import Sequence

_SLICE = 20
"""Processes of one template before it is the next one's turn."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def nothing() -> None:
    """Do nothing: what remains is the cost of the process."""


class Variant:
    """A template that some levers are left out of."""

    def __init__(self, name: str, disabled: Sequence[str], preload: list[str]) -> None:
        self.name = name
        self.times: list[float] = []
        self._context: Any = fastfork.get_context(template=name, preload=["__main__", *preload])
        os.environ[levers.VARIABLE] = ",".join(disabled)
        self._run_one()
        del os.environ[levers.VARIABLE]
        self.pid = context._server(name)._forkserver_pid
        self._before = self._spent()

    def run(self, count: int) -> None:
        """Start and join `count` processes, one after another."""
        for _ in range(count):
            begin = time.perf_counter()
            self._run_one()
            self.times.append(time.perf_counter() - begin)

    def figures(self) -> list[float]:
        """Median in microseconds; CPU of one child and of the template for it, likewise; page faults of one child."""
        faults, child, own = (
            (after - before) / len(self.times) for before, after in zip(self._before, self._spent())
        )
        return [statistics.median(self.times) * 1e6, child * 1e6, own * 1e6, faults]

    def _run_one(self) -> None:
        process = self._context.Process(target=nothing)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"a child without {self.name} ended with exit code {process.exitcode}")

    def _spent(self) -> tuple[float, float, float]:
        with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
        with open(f"/proc/{self.pid}/schedstat", encoding="ascii") as stream:
            own = int(stream.read().split()[0]) * 1e-9
        return int(fields[8]), (int(fields[13]) + int(fields[14])) * _TICK, own


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    options = _parser().parse_args(argv)
    chosen = {
        "(none left out)": (),
        "(all left out)": levers.LEVERS,
        **{name: (name,) for name in options.levers},
    }
    variants = [Variant(name, disabled, options.preload) for name, disabled in chosen.items()]
    for start in range(options.rounds):
        for offset in range(len(variants)):
            variants[(start + offset) % len(variants)].run(_SLICE)
    _print_table(variants)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levers", description=__doc__)
    parser.add_argument(
        "--preload", type=_names, default=[], metavar="MOD,...", help="modules of all templates"
    )
    parser.add_argument(
        "--rounds", type=int, default=50, help=f"of {_SLICE} processes for each template (50)"
    )
    parser.add_argument(
        "--levers", type=_names, default=levers.LEVERS, metavar="NAME,...", help="only these (default: all)"
    )
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _print_table(variants: list[Variant]) -> None:
    print(
        f"{'left out':16} {'median us':>9} {'ratio':>6} {'child CPU us':>12} {'template CPU us':>15} {'faults':>7}"
    )
    base = variants[0].figures()[0]
    for variant in variants:
        median, child, own, faults = variant.figures()
        print(f"{variant.name:16} {median:9.0f} {median / base:6.2f} {child:12.0f} {own:15.0f} {faults:7.1f}")


if __name__ == "__main__":
    main()
