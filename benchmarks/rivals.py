"""What is measured against what."""

from __future__ import annotations

import importlib.util
import multiprocessing
from dataclasses import dataclass

FLOOR = "floor"
FASTFORK = "fastfork"


@dataclass(frozen=True)
class Rival:
    """One row of the report.

    `share` is the part of the rounds that a slow rival runs, so that it does not take most of the time;
    `tuned` adds to the preload everything that a child would import by itself; `disabled` is for fastfork's
    variable ``FASTFORK_DISABLE``, None for whatever it is; `backend` for ``FASTFORK_BACKEND`` in the same way.
    """

    name: str
    title: str
    method: str
    share: float = 1.0
    tuned: bool = False
    disabled: str | None = None
    backend: str | None = None


RIVALS = (
    Rival(FLOOR, "floor (fork, _exit in C)", FLOOR),
    Rival(FASTFORK, "fastfork", FASTFORK),
    Rival("fork", "stdlib fork", "fork"),
    Rival("forkserver-tuned", "forkserver, tuned", "forkserver", tuned=True),
    Rival("forkserver", "stdlib forkserver", "forkserver"),
    Rival("spawn", "stdlib spawn", "spawn", share=0.04),
)


def by_name(name: str) -> Rival:
    """The rival called `name`; `KeyError` if there is none."""
    return {rival.name: rival for rival in RIVALS}[name]


def why_missing(rival: Rival) -> str | None:
    """Why this rival cannot run here, or None if it can."""
    if rival.method in (FASTFORK, FLOOR):
        return None if importlib.util.find_spec("fastfork") else "fastfork is not installed"
    if rival.method not in multiprocessing.get_all_start_methods():
        return f"this platform has no start method {rival.method!r}"
    return None
