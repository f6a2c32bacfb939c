"""Having processes forked ahead of requests."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import fastfork

from .processes import wait_until

_PACE = 30
"""Starts, many at a time, that make a pace."""
_PATIENCE = 2.0
"""Seconds that a template gets to fork them, once it has nothing else to do: at a load some starts make no pace."""


def have_spares(start_and_join, count=1):
    """Have starts come so fast, at whatever load, that the default context's template keeps spares.

    Parameters
    ----------
    start_and_join:
        Starts a process and waits for its end.
    count:
        How many there are to be: a pace that is over as soon as there is one need not bring others.

    """

    def are_there():
        return fastfork.server_status().spares >= count

    def make_a_pace():
        list(pool.map(lambda _: start_and_join(), range(_PACE)))
        with contextlib.suppress(AssertionError):
            wait_until(are_there, timeout=_PATIENCE)
        return are_there()

    start_and_join()  # there may be no template yet
    with ThreadPoolExecutor(8) as pool:
        wait_until(lambda: are_there() or make_a_pace())
