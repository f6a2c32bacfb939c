"""The figures that are measured for the goals, and what a run has found of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """A figure: what it is of, and how it is written. `scale` turns what is stored into the unit.

    `condition` tells it from another figure of the same rival, in few words.
    """

    title: str
    unit: str
    scale: float = 1.0
    digits: int = 0
    condition: str = ""

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{value * self.scale:.{self.digits}f} {self.unit}"


def _micro(title: str, condition: str = "") -> Figure:
    return Figure(title, "us", 1e6, condition=condition)


def _milli(title: str) -> Figure:
    return Figure(title, "ms", 1e3, 1)


def _memory(title: str) -> Figure:
    return Figure(title, "MB", 1 / (1 << 20), 2)


FIGURES = {
    "start": _micro("start(); join() of a no-op, median"),
    "start-p99": _micro("start(); join() of a no-op, p99"),
    "queue": _micro("start(); join() of a process that is sent a queue"),
    "lean": _micro("lean call, median"),
    "loop": _micro("each of 8 that are started in turn, and joined", "in turn"),
    "batch": _micro("each of 8 that start_all() starts, and joined", "start_all()"),
    "rate": Figure("processes with 8 in flight", "/s"),
    "faults": Figure("page faults of a no-op child", "faults"),
    "arrival": _micro("start() called to first line, median"),
    "arrival-p99": _micro("start() called to first line, p99"),
    "lone-start": _micro("start(); join() beside no other child", "beside none"),
    "crowd-start": _micro("start(); join() beside a crowd", "in the crowd"),
    "small-heap": _micro("start(); join() with a heap of 50 MB", "50 MB"),
    "large-heap": _micro("start(); join() with a heap of 1 GB", "1 GB"),
    "memory": _memory("private memory of an idle worker"),
    "memory-numpy": _memory("the same with numpy preloaded"),
    "pool": _milli("Pool of 8"),
    "executor": _milli("ProcessPoolExecutor of 8"),
    "first-pool": _milli("first Pool of 8"),
    "first-executor": _milli("first ProcessPoolExecutor of 8"),
    "scaling": Figure("rate of clients on all cores, of one client's", "x", 1.0, 2),
    "scaling-flights": Figure("the same, each with 8 in flight", "x", 1.0, 2),
}


@dataclass
class Found:
    """Values of figures in seconds, bytes, or processes (per second), by figure and rival; and remarks on them."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, figure: str, rival: str, value: float) -> None:
        """Keep a value."""
        self.values.setdefault(figure, {})[rival] = value

    def get(self, figure: str, rival: str) -> float | None:
        """A value; None if it was not measured."""
        return self.values.get(figure, {}).get(rival)

    def note(self, text: str) -> None:
        """Keep a remark, once."""
        if text not in self.notes:
            self.notes.append(text)
