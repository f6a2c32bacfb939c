"""Having processes forked ahead of requests."""

from __future__ import annotations

import contextlib

import fastfork

from . import targets
from .processes import wait_until

_PACE = 40
"""Starts that make a pace: all are asked for at once, so that they come quickly at a load, too."""
_PATIENCE = 2.0
"""Seconds that a template gets to fork ahead, once it has nothing else to do."""


def have_spares(context, count=1):
    """Have the template of a context keep so many spares: processes are started until they are there."""

    def are_there():
        return fastfork.server_status().spares >= count

    def make_a_pace():
        processes = [context.Process(target=targets.nothing) for _ in range(_PACE)]
        fastfork.start_all(processes)
        for process in processes:
            process.join()
        with contextlib.suppress(AssertionError):
            wait_until(are_there, timeout=_PATIENCE)
        return are_there()

    wait_until(make_a_pace)
