"""A template as pytest's process sees it: what it has been told, what it has set up, and what is to be done next."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from . import wire
from .plan import Group, first_of, indices_of, is_alive, own_fixtures, set_up, torn_down_by

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection
    from typing import Any

    from .durations import Durations
    from .needs import Key, Needs, Wide
    from .plan import Unit


class Action(NamedTuple):
    """What a template is to do next."""

    verb: str
    unit: Unit = -1
    keys: tuple[Key, ...] = ()
    depth: int = 0
    next_index: int = -1


class Driver:
    """Turns the units of a group into actions of its template.

    Tests that need nothing new are begun in the best order, many at a time. What changes the template (setting up,
    tearing down) waits until all before it have been begun, or have ended, as the case may be.
    """

    def __init__(self, group: Group, needs: Needs, durations: Durations, workers: int) -> None:
        self.group = group
        self.commands: socket.socket | None = None
        self.parent: Driver | None = None
        self.busy = 0
        """Tests and inner templates that have not ended."""
        self.failures = 0
        """How often it has died without having got on."""
        self.is_ending = False
        self._needs = needs
        self._durations = durations
        self._workers = workers
        self._units = list(group.units)
        self._stage: list[Unit] = []
        self._alive: dict[Any, Wide] = {}
        self._broken: set[Any] = set()
        """Definitions whose set-up has failed, the last time."""
        self._doomed: set[int] = set()
        """Tests for which something could not be set up."""
        self._is_set_up = False
        """Whether the group's own node is; `_nodes` are those within it."""
        self._nodes: list[Any] = []
        self._awaits_more = False
        self.holds = self._find_holds()

    def and_outer(self) -> list[Driver]:
        """Return this one, and those whose templates its own descends from."""
        return [self, *(self.parent.and_outer() if self.parent is not None else ())]

    def fails(self, index: int) -> bool:
        """Whether the set-up of a test has failed, or will, here or further out: it needs nothing further in."""
        return (
            index in self._doomed
            or any(map(self._is_broken, self._needs.wide(index)))
            or self._fails_outside(index)
        )

    def _fails_outside(self, index: int) -> bool:
        return self.parent is not None and self.parent.fails(index)

    # Holds: the last test before some teardown is shown after it

    def _find_holds(self) -> set[int]:
        """Return the tests after which the template will tear something down, other than at its end."""
        holds = set()
        nodes: list[Any] = []
        for unit in self._units:
            first = first_of(unit)
            chain = self._needs.chain(first)
            if any(node not in chain for node in nodes):
                holds.add(first - 1)
                nodes = [node for node in nodes if node in chain]
            for index in indices_of(unit):
                inner = self._needs.chain(index)[self.group.depth + 1 : self._depth(index, _limit(unit))]
                nodes += [node for node in inner if node not in nodes]
        return holds

    def lose_holds(self) -> set[int]:
        """Return the tests after which nothing will be torn down any more, as it has gone with a template."""
        lost = self.holds - self._find_holds()
        self.holds -= lost
        return lost

    def _depth(self, index: int, limit: int | None) -> int:
        """Return how many nodes of a test's chain the template has to have set up, but for those from `limit` on."""
        depths = self._needs.depths(index)
        own = [depth for depth in depths if depth >= self.group.depth and (limit is None or depth < limit)]
        return max(own, default=self.group.depth) + 1

    # What next

    def next_action(self) -> Action | None:
        """Return what is to be done next; None if that has to wait for what has been begun."""
        if self._stage:
            unit = self._stage[0]
            return Action(wire.SPAWN if isinstance(unit, Group) else wire.RUN, unit)
        if not self._units:
            return None if self.busy or self.is_ending or self._awaits_more else self._end()
        first = first_of(self._units[0])
        if self._leaves(first):
            return None if self.busy else Action(wire.LEAVE, first - 1, next_index=first)
        action = self._prepare(self._units[0])
        if action is not None:
            return None if self.busy and self._conflicts(action) else action
        self._open_stage()
        return self.next_action()

    def _end(self) -> Action:
        has_set_up = self._alive or self._nodes or self._is_set_up
        return Action(wire.LEAVE if has_set_up else wire.END, self.group.last)

    def _leaves(self, index: int) -> bool:
        chain = self._needs.chain(index)
        return any(node not in chain for node in self._nodes)

    def _prepare(self, unit: Unit) -> Action | None:
        """Return what is to be set up before a unit; one test's needs at a time."""
        limit = _limit(unit)
        wanted: dict[Any, Wide] = {}
        for index in indices_of(unit):
            own = own_fixtures(self._needs, self.group, index, limit)
            new = self._new([w for w in own if wanted.setdefault(w.definition, w).serves(w)], index)
            depth = self._depth(index, limit)
            if new or self._lacks_nodes(index, depth):
                return Action(wire.PREPARE, index, tuple(w.key for w in new), depth)
        return None

    def _lacks_nodes(self, index: int, depth: int) -> bool:
        if self.group.depth in self._needs.depths(index) and not self._is_set_up:
            return True
        inner = self._needs.chain(index)[self.group.depth + 1 : depth]
        return any(node not in self._nodes for node in inner)

    def _new(self, wanted: list[Wide], index: int) -> list[Wide]:
        """Return those of a test's fixtures that are not there, or will not be once those it changes have been."""
        if index in self._doomed or self._fails_outside(index):
            return []
        _, lost = self._new_and_lost(wanted)  # what is lost is set up again, though it has failed before
        wanted = list(itertools.takewhile(lambda w: w.definition in lost or not self._is_broken(w), wanted))
        new, lost = self._new_and_lost(wanted)
        return [wide for wide in wanted if wide in new or wide.definition in lost] if lost else new

    def _new_and_lost(self, wanted: list[Wide]) -> tuple[list[Wide], set[Any]]:
        """Return those fixtures that are not there, and the definitions of those that they end."""
        new = [wide for wide in wanted if not is_alive(self._alive, wide)]
        return new, torn_down_by(self._alive, new)

    def _is_broken(self, wide: Wide) -> bool:
        return wide.definition in self._broken and is_alive(self._alive, wide)

    def _conflicts(self, action: Action) -> bool:
        """Whether setting up ends another value of the same fixture, which tests may be using."""
        assert isinstance(action.unit, int)
        wanted = [w for w in self._needs.wide(action.unit) if w.key in action.keys]
        return any(w.definition in self._alive for w in wanted)

    def _open_stage(self) -> None:
        """Take all units that the template is ready for."""
        count = 1
        while count < len(self._units):
            unit = self._units[count]
            if self._leaves(first_of(unit)) or self._prepare(unit) is not None:
                break
            count += 1
        self._stage = self._durations.in_order(self._units[:count], self._workers)
        del self._units[:count]

    # What has been done

    def begin_unit(self) -> None:
        """Note that the next test or inner template has been asked for."""
        self._stage.pop(0)
        self.busy += 1

    def repeat(self, unit: Unit) -> None:
        """Have a unit begun anew."""
        self.busy -= 1
        self._stage.insert(0, unit)

    def note_prepared(self, action: Action, failed: Collection[Key], missing: Collection[Key]) -> None:
        """Note what the template has set up, or has tried to.

        Parameters
        ----------
        action:
            What it was to do.
        failed:
            Which fixtures have failed: they will for others, too, and are not tried again.
        missing:
            Which ones it has not come to: others may need them.

        """
        assert isinstance(action.unit, int)
        new = {wide.key: wide for wide in self._needs.wide(action.unit) if wide.key in action.keys}
        set_up(self._alive, [*new.values()])
        for key in missing:
            del self._alive[new[key].definition]
        if failed or missing:
            self._doomed.add(action.unit)
        self._broken.difference_update(wide.definition for wide in new.values())
        self._broken.update(new[key].definition for key in failed)
        self._is_set_up = True
        chain = self._needs.chain(action.unit)[self.group.depth + 1 : action.depth]
        self._nodes += [node for node in chain if node not in self._nodes]

    def note_left(self, next_index: int) -> None:
        """Note what the template has torn down."""
        chain = self._needs.chain(next_index) if next_index >= 0 else []
        if not chain:
            self._alive.clear()
        self._nodes = [node for node in self._nodes if node in chain]
        self._alive = {
            definition: wide
            for definition, wide in self._alive.items()
            if wide.depth <= self.group.depth + len(self._nodes)
        }

    def skip(self, index: int) -> None:
        """Leave out a test: it has been reported already."""
        self._units = [unit for unit in self._units if unit != index]
        self._stage = [unit for unit in self._stage if unit != index]

    def rest(self) -> list[int]:
        """Return the tests that have not been begun."""
        return [index for unit in (*self._stage, *self._units) for index in indices_of(unit)]

    def forget_template(self) -> None:
        """Begin anew with another template, and with what has not been begun yet."""
        self._units = self._stage + self._units
        self._units.sort(key=first_of)
        self._stage = []
        self._alive.clear()
        self._broken.clear()
        self._doomed.clear()
        self._nodes.clear()
        self._is_set_up = False
        self.busy = 0
        self.is_ending = False
        self.hang_up()

    def hang_up(self) -> None:
        """Command its template no more."""
        if self.commands is not None:
            self.commands.close()
            self.commands = None

    def await_more(self) -> None:
        """Have tests come one by one, by `add`, until `abandon`."""
        self._awaits_more = True

    def would_leave(self, index: int) -> bool:
        """Whether there is something to be torn down before a test; -1: before the end."""
        return self._leaves(index) if index >= 0 else bool(self._alive or self._nodes)

    def abandon(self) -> None:
        """Begin nothing more."""
        self._awaits_more = False
        self._units.clear()
        self._stage.clear()

    def add(self, index: int) -> None:
        """Have a test done at last."""
        self._units.append(index)


def _limit(unit: Unit) -> int | None:
    """Return the depth from which on what a unit needs is for another template; None: there is no other one."""
    return unit.depth if isinstance(unit, Group) else None
