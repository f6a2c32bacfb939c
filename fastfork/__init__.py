"""fastfork: a fork server for Python whose hot path is C.

Importing the package registers the start method ``"fastfork"`` with multiprocessing and does nothing else.
"""

from __future__ import annotations

from .context import FastForkContext, get_context, is_supported, register
from .errors import PreloadError
from .installation import install, uninstall

__all__ = [
    "FastForkContext",
    "PreloadError",
    "__version__",
    "get_context",
    "install",
    "is_supported",
    "uninstall",
]

__version__ = "0.1.0"

register()
