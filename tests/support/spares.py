"""Having processes forked ahead of requests."""

from __future__ import annotations

import contextlib

import fastfork

from . import targets
from .processes import wait_until

PACE = 40
"""Starts that make a pace."""
_PATIENCE = 2.0
"""Seconds that a template gets to fork ahead, once it has nothing else to do."""


def make_a_pace(context):
    """Start processes all at once, so that the requests come quickly at a load, too, and wait for their ends."""
    processes = [context.Process(target=targets.nothing) for _ in range(PACE)]
    fastfork.start_all(processes)
    for process in processes:
        process.join()


def have_spares(context, count=1):
    """Have the template of a context keep so many spares: processes are started until they are there."""

    def are_there():
        return fastfork.server_status().spares >= count

    def have_come():
        make_a_pace(context)
        with contextlib.suppress(AssertionError):
            wait_until(are_there, timeout=_PATIENCE)
        return are_there()

    wait_until(have_come)
