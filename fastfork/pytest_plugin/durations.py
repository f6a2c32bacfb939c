"""What tests and the fixtures of groups took in earlier runs, kept in pytest's cache, and the order to take them in.

Tests are begun in the order of their length, the longest first, so that none of them is left alone at the end. What is
shorter than `NOTICEABLE` keeps pytest's order, in which results are shown.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from .plan import Group, Unit

NOTICEABLE = 0.05
"""Seconds."""

_KEY = "fastfork/durations"


class Durations:
    """Reads the cache of earlier runs, and writes it."""

    def __init__(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        self._cache: pytest.Cache | None = getattr(config, "cache", None)
        self._items = items
        known = None if self._cache is None else self._cache.get(_KEY, {})
        self._known = _only_numbers(known) if isinstance(known, dict) else {}
        self._new: dict[str, float] = {}

    def note(self, index: int, seconds: float) -> None:
        """Note what a test took, without the wide fixtures that were set up for it."""
        self._new[self._items[index].nodeid] = round(seconds, 3)

    def save(self) -> None:
        """Write down what is worth it; tests that did not run keep their figures."""
        if self._cache is None or not self._new:
            return
        merged = {**self._known, **self._new}
        kept = {nodeid: seconds for nodeid, seconds in merged.items() if seconds >= NOTICEABLE / 2}
        if kept != self._known:
            self._cache.set(_KEY, kept)

    def in_order(self, units: list[Unit], workers: int) -> list[Unit]:
        """Return units in the order in which they are best begun."""
        if workers == 1 or not self._known:
            return units
        return sorted(units, key=lambda unit: -self._length(unit, workers))

    def _length(self, unit: Unit, workers: int) -> float:
        """Return the seconds that a unit takes at least, if all workers work on it."""
        seconds = self._of(unit) if isinstance(unit, int) else self._of_group(unit, workers)
        return seconds if seconds >= NOTICEABLE else 0.0

    def _of(self, index: int) -> float:
        return self._known.get(self._items[index].nodeid, 0.0)

    def _of_group(self, group: Group, workers: int) -> float:
        seconds = [self._of(index) for index in group.indices()]
        return max(*seconds, sum(seconds) / workers)


def _only_numbers(known: dict[str, object]) -> dict[str, float]:
    """Leave out what a file that others can write to may hold besides."""
    return {nodeid: float(seconds) for nodeid, seconds in known.items() if isinstance(seconds, (int, float))}
