"""The lever 'immortal': what a template holds is no longer counted. See `fastfork.warmup`."""

from __future__ import annotations

import contextlib

from . import _native, levers


def make_heap_immortal() -> None:
    """Have nothing counted that is there now, where CPython can do that and it is not disabled."""
    if levers.is_enabled("immortal"):
        with contextlib.suppress(OSError):
            _native.immortalize_heap()
