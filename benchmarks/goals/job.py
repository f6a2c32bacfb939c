"""What an experiment is asked to do, and what experiments have in common."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..client import Client, launched
from ..runner import preloads_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..progress import Progress
    from ..rivals import Rival
    from .plan import Plan

WARM_UP = 3
"""Processes that are started before any is measured."""


@dataclass(frozen=True)
class Job:
    """The rivals to measure, the figures that are wanted of them, and how much to measure."""

    rivals: Sequence[Rival]
    figures: frozenset[str]
    plan: Plan
    progress: Progress


@contextmanager
def clients_of(rivals: Sequence[Rival], preload: list[str]) -> Iterator[dict[str, Client]]:
    """A client of each rival, by its name, with `preload` in its template; they end with the block."""
    preloads = preloads_of(rivals, preload)
    with ExitStack() as stack:
        yield {rival.name: stack.enter_context(launched(rival, preloads[rival.name])) for rival in rivals}


def free_megabytes() -> float:
    """How much memory the kernel says is to be had; infinity where it does not."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return float("inf")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else float("inf")
