"""Modules of the standard library that a template loads as soon as a client has them: its children need them.

A process that is sent a queue, or works for a pool, would import what makes one, for several times what a start takes.
So a client says with each request which of these it has, and a template that lacks one loads it before it forks.
"""

from __future__ import annotations

import contextlib
import sys

from . import _native

NAMES = (
    "multiprocessing.connection",
    "multiprocessing.heap",
    "multiprocessing.pool",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "multiprocessing.managers",
    "multiprocessing.resource_sharer",
    "multiprocessing.shared_memory",
    "multiprocessing.sharedctypes",
    "concurrent.futures.process",
)
"""Their places are what clients and templates tell each other: at most 15."""

_BITS = [(name, _native.FIRST_MODULE << place) for place, name in enumerate(NAMES)]


def loaded() -> int:
    """Return which of them this process has imported: a bit of the core's ``FF_FORK_MODULES`` for each."""
    modules = sys.modules
    found = 0
    for name, bit in _BITS:
        if name in modules:
            found |= bit
    return found


def load(bits: int) -> None:
    """Import those that `loaded` has told of. One that cannot be imported here is for the children to try.

    What is found by its name on the client's path may be any file, and raise anything.
    """
    for name, bit in _BITS:
        if bits & bit:
            with contextlib.suppress(BaseException):
                __import__(name)
