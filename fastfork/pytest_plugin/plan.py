"""The tests of a run as a tree of groups: each group has a template, in which its own wide fixtures live.

A group is a run of tests, one after the other in pytest's order, below one node of the collection tree. It gets a
template of its own only where no test can tell that from plain pytest. Where a fixture of an outer scope would have to
be set up, or be changed to another parameter, in the midst of the run, the outer template does the run's work itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from .needs import Needs, Wide

Unit = Union[int, "Group"]
"""A test, by its index, or a group."""


class Group:
    """Tests with a template of their own.

    Attributes
    ----------
    number:
        By which processes call it; 0 is that of the session.
    depth:
        Of its node in the chains of its tests.
    units:
        Tests, by index, and groups within it, in pytest's order.

    """

    __slots__ = ("depth", "first", "last", "number", "units")

    def __init__(self, number: int, depth: int, first: int, last: int) -> None:
        self.number = number
        self.depth = depth
        self.first = first
        self.last = last
        self.units: list[Unit] = []

    def indices(self) -> Iterable[int]:
        """Return its tests."""
        return range(self.first, self.last + 1)


def first_of(unit: Unit) -> int:
    """Return the first test of a unit."""
    return unit.first if isinstance(unit, Group) else unit


def indices_of(unit: Unit) -> Iterable[int]:
    """Return the tests of a unit."""
    return unit.indices() if isinstance(unit, Group) else (unit,)


class Planner:
    """Makes the tree."""

    def __init__(self, needs: Needs, count: int) -> None:
        self._needs = needs
        self._count = count
        self.groups: list[Group] = []

    def plan(self) -> Group:
        """Return the group of the session."""
        return self._group(0, 0, self._count - 1)

    def _group(self, depth: int, first: int, last: int) -> Group:
        group = Group(len(self.groups), depth, first, last)
        self.groups.append(group)
        alive: dict[Any, Wide] = {}
        position = first
        while position <= last:
            unit = self._inner_group(group, position, alive) or position
            group.units.append(unit)
            limit = unit.depth if isinstance(unit, Group) else None
            for index in indices_of(unit):
                set_up(alive, self._own(group, index, limit))
                position = index + 1
        return group

    def _own(self, group: Group, index: int, limit: int | None) -> list[Wide]:
        """Return what the group's template sets up for a test, below `limit`."""
        return own_fixtures(self._needs, group, index, limit)

    def _inner_group(self, group: Group, first: int, alive: dict[Any, Wide]) -> Group | None:
        """Return the outermost group that can begin at a test."""
        chain = self._needs.chain(first)
        for depth in range(group.depth + 1, len(chain) - 1):
            if first > group.first and _share(self._needs.chain(first - 1), chain, depth):
                continue
            last = self._end_of_run(group, first, depth)
            if self._needs_template(first, last, depth) and self._fits(group, first, last, depth, alive):
                return self._group(depth, first, last)
        return None

    def _end_of_run(self, group: Group, first: int, depth: int) -> int:
        chain = self._needs.chain(first)
        last = first
        while last < group.last and _share(self._needs.chain(last + 1), chain, depth):
            last += 1
        return last

    def _needs_template(self, first: int, last: int, depth: int) -> bool:
        return any(depth in self._needs.depths(index) for index in range(first, last + 1))

    def _fits(self, group: Group, first: int, last: int, depth: int, alive: dict[Any, Wide]) -> bool:
        """Whether the outer fixtures of a run can all be set up before it."""
        outer = {wide.definition: wide for wide in self._own(group, first, depth)}
        for index in range(first + 1, last + 1):
            for wide in self._own(group, index, depth):
                known = outer.get(wide.definition) or alive.get(wide.definition)
                if known is None and wide.is_harmless():
                    outer[wide.definition] = known = wide
                if known is None or not known.serves(wide):
                    return False
        return True


def own_fixtures(needs: Needs, group: Group, index: int, limit: int | None) -> list[Wide]:
    """Return what a group's template has to set up for a test: not what is further out, nor from `limit` inwards."""
    return [w for w in needs.wide(index) if w.depth >= group.depth and (limit is None or w.depth < limit)]


def set_up(alive: dict[Any, Wide], wanted: Sequence[Wide]) -> None:
    """Have fixtures be among those that are alive, and those that this tears down no longer be."""
    new = [wide for wide in wanted if not is_alive(alive, wide)]
    for definition in torn_down_by(alive, new):
        del alive[definition]
    alive.update({wide.definition: wide for wide in wanted})


def is_alive(alive: Mapping[Any, Wide], wide: Wide) -> bool:
    """Whether a fixture is alive with the parameter that a test wants."""
    return wide.definition in alive and alive[wide.definition].serves(wide)


def torn_down_by(alive: Mapping[Any, Wide], new: Iterable[Wide]) -> set[Any]:
    """Return the definitions of those alive that are torn down when others are set up with another parameter."""
    lost = {wide.definition for wide in new if wide.definition in alive}
    names = {definition.argname for definition in lost}
    count = -1
    while names and count != len(lost):
        count = len(lost)
        lost.update(definition for definition in alive if not names.isdisjoint(definition.argnames))
        names.update(definition.argname for definition in lost)
    return lost


def _share(one: list[Any], other: list[Any], depth: int) -> bool:
    return len(one) > depth + 1 and one[depth] is other[depth]
