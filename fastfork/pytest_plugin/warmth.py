"""Preparing the memory of a template, so that test processes write to as few of its pages as can be."""

from __future__ import annotations

import contextlib
import gc
import os

from fastfork import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .run import Run

_WORTH_IT = 10
"""Tests from which on it pays."""


def warm_up(run: Run) -> None:
    """Pull the levers that ``FASTFORK_DISABLE`` does not name."""
    disabled = os.environ.get("FASTFORK_DISABLE", "").split(",")
    if len(run.items) < _WORTH_IT:
        return
    gc.collect()
    if "immortal" not in disabled:
        with contextlib.suppress(OSError):
            _native.immortalize_heap()
