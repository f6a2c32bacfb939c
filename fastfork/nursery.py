"""The lever 'nursery': a child's first small objects lie side by side on fresh pages. See `fastfork.warmup`."""

from __future__ import annotations

import contextlib
import sys

from . import _native, levers

_OLDEST_PYTHON = (3, 11)
"""Where it pays: before, a child writes the reference counts on most of the pages that a nursery would spare."""


def install() -> None:
    """Have the children of this process use one, where that is possible, pays and is not disabled."""
    if levers.is_enabled("nursery") and sys.version_info >= _OLDEST_PYTHON:
        with contextlib.suppress(OSError):
            _native.install_nursery()
