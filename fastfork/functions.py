"""Pickles of functions that no import finds, for tasks in a fork of this process: lambdas, closures, local functions.

One that was there when the template was forked goes as a number: the template has it, with all that it has captured, as
it was then. A later one goes as its code, its defaults, what it has captured, and such global functions as it uses that
are later ones too; its other global names are those of its module in the template.
"""

from __future__ import annotations

import builtins
import gc
import io
import marshal
import pickle
import sys
from types import CellType, CodeType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    Functions = Mapping[int, FunctionType]

_ATTRIBUTES = (
    "__module__",
    "__name__",
    "__qualname__",
    "__doc__",
    "__defaults__",
    "__kwdefaults__",
    "__dict__",
)

_own: dict[int, FunctionType] = {}
"""The functions that a template had at its fork, by their addresses then; in that template and its children."""

_NONE: Functions = {}


def dumps(
    value: object,
    protocol: int = 5,
    *,
    buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None,
    known: Functions = _NONE,
) -> bytes:
    """Pickle `value` as `pickle.dumps`, and functions that no import finds.

    Parameters
    ----------
    known:
        Functions that whoever unpickles it has had since its fork, by their addresses.

    Raises as `pickle.dumps`.

    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol, buffer_callback=buffer_callback)
    pickler.known = known
    pickler.dump(value)
    return stream.getvalue()


def find_all() -> dict[int, FunctionType]:
    """Return the functions of this process that no import finds, by their addresses: before a template is forked."""
    found = {
        id(found): found for found in gc.get_objects() if type(found) is FunctionType and _is_local(found)
    }
    found.update(_own)  # a frozen heap does not show them
    return found


def remember(found: dict[int, FunctionType]) -> None:
    """Know these functions by number, in the template that was forked after they had been found."""
    _own.update(found)


def _is_local(function: FunctionType) -> bool:
    """Whether a function is none that every process of the program can be sure to import."""
    return "<" in function.__qualname__ or function.__module__ == "__main__"


def _is_importable(function: FunctionType) -> bool:
    """Whether the name of a function says which one it is, here and where its pickle goes."""
    if _is_local(function) and _own.get(id(function)) is not function:
        return False
    found: object = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


class _Pickler(pickle.Pickler):
    known: Functions = _NONE

    def reducer_override(self, value: Any) -> Any:
        """Return how a function or what it has captured pickles; `NotImplemented` for all that does as ever."""
        if type(value) is CellType:
            return _empty_cell, ()  # filled with the function, which may be in it
        if type(value) is not FunctionType or _is_importable(value):
            return NotImplemented
        if self._is_known(value):
            return _recall, (id(value),)
        arguments = (marshal.dumps(value.__code__), _module_of(value), value.__closure__)
        return _make, arguments, self._state_of(value), None, None, _set_state

    def _is_known(self, function: FunctionType) -> bool:
        return self.known.get(id(function)) is function

    def _state_of(self, function: FunctionType) -> tuple[dict[str, object], dict[str, object], list[Any]]:
        attributes = {name: getattr(function, name) for name in _ATTRIBUTES}
        cells = [(cell, content) for cell in function.__closure__ or () for content in _contents(cell)]
        return attributes, self._globals_of(function), cells

    def _globals_of(self, function: FunctionType) -> dict[str, object]:
        """Return the global names of a function that are not as well to be had where it goes."""
        names = {name for name in _names_in(function.__code__) if name in function.__globals__}
        used = {name: function.__globals__[name] for name in names}
        if _module_of(function) is None:
            return used
        return {name: value for name, value in used.items() if self._is_later(value)}

    def _is_later(self, value: object) -> bool:
        return type(value) is FunctionType and not _is_importable(value) and not self._is_known(value)


def _module_of(function: FunctionType) -> str | None:
    """Return the name of the module that has the global names of a function; None where none has."""
    name: str | None = function.__module__
    module = None if name is None else sys.modules.get(name)
    return name if module is not None and vars(module) is function.__globals__ else None


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _contents(cell: CellType) -> list[object]:
    """Return what is in a cell; nothing where it is empty."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _recall(number: int) -> FunctionType:
    return _own[number]


def _empty_cell() -> CellType:
    return CellType()


def _make(code: bytes, module: str | None, closure: tuple[CellType, ...] | None) -> FunctionType:
    if module is None:
        names: dict[str, object] = {"__builtins__": builtins}
    else:
        __import__(module)
        names = vars(sys.modules[module])
    return FunctionType(marshal.loads(code), names, None, None, closure)


def _set_state(
    function: FunctionType, state: tuple[dict[str, object], dict[str, object], list[tuple[CellType, object]]]
) -> None:
    attributes, names, cells = state
    for name, value in attributes.items():
        setattr(function, name, value)
    function.__globals__.update(names)
    for cell, content in cells:
        cell.cell_contents = content
