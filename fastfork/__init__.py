"""fastfork: a fork server for Python whose hot path is C.

Importing the package registers the start method ``"fastfork"`` with multiprocessing and does nothing else.
"""

from __future__ import annotations

from .context import FastForkContext, get_context, is_supported, register
from .control import restart, server_status, stop
from .errors import PreloadError
from .installation import install, uninstall

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any

    from .status import ServerStatus

__all__ = [
    "FastForkContext",
    "PreloadError",
    "ServerStatus",
    "__version__",
    "get_context",
    "install",
    "is_supported",
    "restart",
    "server_status",
    "stop",
    "uninstall",
]

__version__ = "0.2.0"

register()


def __getattr__(name: str) -> Any:
    if name == "ServerStatus":  # it brings typing along
        from .status import ServerStatus

        return ServerStatus
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
