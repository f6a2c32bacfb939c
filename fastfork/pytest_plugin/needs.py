"""Which wide fixtures tests need, and at which node of the collection tree each of them lives."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, NamedTuple

import pytest

from . import internals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .settings import Settings

_MARKER = "fastfork_per_test"


Key = tuple[str, int]
"""The name of a fixture, and how many others of that name override it for a test and yet need it."""


class Wide(NamedTuple):
    """A fixture of more than a test's scope, as one test needs it."""

    key: Key
    definition: Any
    """pytest's definition of it."""
    depth: int
    """Where in the chain of nodes, from the session to the test, it lives."""
    parameter: object
    """What it is parametrised with; one definition cannot be alive with two of them."""

    def serves(self, other: Wide) -> bool:
        """Whether this, once set up, is what another test needs."""
        return internals.is_same_parameter(self.parameter, other.parameter)

    def is_harmless(self) -> bool:
        """Whether it is one of pytest's own, whose set-up no test can tell."""
        return str(self.definition.func.__module__).startswith("_pytest.")


class Needs:
    """What the tests of a session need, each looked at once."""

    def __init__(self, items: Sequence[pytest.Item], settings: Settings) -> None:
        self._items = items
        self._settings = settings
        self._known: dict[int, tuple[Wide, ...]] = {}
        self._set_up: dict[pytest.Collector, bool] = {}
        self._depths: dict[int, set[int]] = {}
        self._chains: dict[int, list[Any]] = {}

    def chain(self, index: int) -> list[Any]:
        """Return the nodes from the session to a test."""
        if index not in self._chains:
            self._chains[index] = self._items[index].listchain()
        return self._chains[index]

    def wide(self, index: int) -> tuple[Wide, ...]:
        """Return the wide fixtures that a template can set up for a test, in the order in which it asks for them."""
        if index not in self._known:
            self._known[index] = tuple(self._find(index))
        return self._known[index]

    def kept_by_marker(self, index: int) -> list[Any]:
        """Return the definitions of the fixtures that a marker has a test set up itself."""
        item = self._items[index]
        if item.get_closest_marker(_MARKER) is None:
            return []
        definitions = internals.static_definitions(item)
        excluded = self._excluded(item)
        per_test = _PerTest(definitions, frozenset(definitions) if excluded is None else excluded)
        return [definition for name in definitions if per_test(name) for definition in definitions[name]]

    def depths(self, index: int) -> set[int]:
        """Return at which depths of its chain a test needs something set up."""
        if index not in self._depths:
            depths = set() if self._settings.per_test else self._depths_of_nodes(index)
            self._depths[index] = depths.union(wide.depth for wide in self.wide(index))
        return self._depths[index]

    def _depths_of_nodes(self, index: int) -> set[int]:
        depths = {depth for depth, node in enumerate(self.chain(index)[1:-1], 1) if self._has_set_up(node)}
        return set() if depths and internals.is_skipped(self._items[index]) else depths

    def _has_set_up(self, node: pytest.Collector) -> bool:
        if node not in self._set_up:
            self._set_up[node] = internals.has_set_up(node)
        return self._set_up[node]

    def _find(self, index: int) -> list[Wide]:
        item = self._items[index]
        definitions = {} if self._settings.per_test else internals.static_definitions(item)
        excluded = self._excluded(item)
        if excluded is None or not definitions:
            return []
        per_test = _PerTest(definitions, excluded)
        found = []
        for name in getattr(item, "fixturenames", ()):
            if definitions.get(name) and not per_test(name):
                found += self._wide_of_name(index, name, _needed(definitions[name]))
        if all(internals.is_plain_parameter(wide.definition) for wide in found) or internals.is_skipped(item):
            return []
        return found

    def _wide_of_name(self, index: int, name: str, definitions: Sequence[Any]) -> list[Wide]:
        """Return the wide ones of the fixtures with a name, the outermost first.

        One that lives where the one does that overrides it is set up with that, when that asks for it.
        """
        parameter = internals.parameter_of(self._items[index], name)
        found: list[Wide] = []
        for over, definition in enumerate(reversed(definitions)):
            depth = self._depth(index, name, definition)
            if depth is not None and (not found or depth < found[0].depth):
                found.insert(0, Wide((name, over), definition, depth, parameter))
        return found

    def _excluded(self, item: pytest.Item) -> frozenset[str] | None:
        """Return the names of the fixtures that are kept per test; None for all of them."""
        names = set(self._settings.per_test_names)
        for marker in item.iter_markers(_MARKER):
            if not marker.args:
                return None
            names.update(marker.args)
        return frozenset(names)

    def _depth(self, index: int, name: str, definition: Any) -> int | None:
        """Return where a fixture lives; None if it is set up for each test."""
        item = self._items[index]
        scope = internals.scope_of(item, name, definition)
        if scope == "session":
            return 0
        node: Any = None
        if scope == "package":
            node = internals.package_of(item, definition)
        elif scope in ("module", "class"):
            node = item.getparent(pytest.Module if scope == "module" else pytest.Class)
        chain = self.chain(index)
        return chain.index(node) if node in chain else None


class _PerTest:
    """Whether a fixture is set up per test: because it is to be, it is asynchronous, or it needs one that is."""

    def __init__(self, definitions: dict[str, Sequence[Any]], excluded: frozenset[str]) -> None:
        self._definitions = definitions
        self._known: dict[str, bool] = dict.fromkeys(excluded, True)

    def __call__(self, name: str) -> bool:
        if name not in self._known:
            self._known[name] = False  # a fixture that overrides another one needs its own name
            self._known[name] = any(
                _is_asynchronous(definition.func) or any(map(self, definition.argnames))
                for definition in self._definitions.get(name, ())
            )
        return self._known[name]


def _needed(definitions: Sequence[Any]) -> Sequence[Any]:
    """Return the last definition of a name, after those that it overrides and yet needs."""
    first = len(definitions) - 1
    while first > 0 and definitions[first].argname in definitions[first].argnames:
        first -= 1
    return definitions[first:]


def _is_asynchronous(function: Callable[..., object]) -> bool:
    """Whether a fixture runs in an event loop, which a fork cannot share."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
