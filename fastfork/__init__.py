"""fastfork: a fork server for Python whose hot path is C.

Importing the package registers the start method ``"fastfork"`` with multiprocessing and does nothing else.
"""

from __future__ import annotations

from .context import FastForkContext, get_context, is_supported, register
from .control import restart, server_status, stop
from .errors import (
    LeanCallError,
    PreloadError,
    ProcessDiedError,
    StartAllError,
    TimeLimitError,
    TransferError,
)
from .installation import install, uninstall

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any

    from .batch import start_all
    from .executor import Executor
    from .options import ChildOptions
    from .shortcuts import map as map  # noqa: A004 - not in __all__: a star import would hide the built-in one
    from .shortcuts import run
    from .status import ServerStatus

__all__ = [
    "ChildOptions",
    "Executor",
    "FastForkContext",
    "LeanCallError",
    "PreloadError",
    "ProcessDiedError",
    "ServerStatus",
    "StartAllError",
    "TimeLimitError",
    "TransferError",
    "__version__",
    "get_context",
    "install",
    "is_supported",
    "restart",
    "run",
    "server_status",
    "start_all",
    "stop",
    "uninstall",
]

__version__ = "0.2.0"

register()


_LATER = {
    "ChildOptions": "options",
    "Executor": "executor",
    "ServerStatus": "status",
    "map": "shortcuts",
    "run": "shortcuts",
    "start_all": "batch",
}
"""Modules that not every program needs, by the names that come from them."""


def __getattr__(name: str) -> Any:
    if name == "lean":
        return _import_module(".lean")
    if name in _LATER:
        return getattr(_import_module(f".{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _import_module(name: str) -> Any:
    from importlib import import_module

    return import_module(name, __name__)
