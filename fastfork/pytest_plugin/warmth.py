"""Preparing the memory of a template, so that test processes write to as few of its pages as can be.

The levers are those of `fastfork.warmup`, under the same names, for `FASTFORK_DISABLE`: the way of a test process is
gone some times in the template before the first fork (rehearse), so that caches and specialised bytecode are there; and
what the template holds is no longer counted (immortal); a large heap goes into huge pages (huge). The heap is frozen
always. A nursery gives a test process nothing: it writes to more pages than those of new objects.
"""

from __future__ import annotations

import gc

from fastfork import huge_pages, immortal, levers

from . import internals, test_process
from .needs import Needs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .run import Run

_WORTH_REHEARSING = 10
"""Tests from which on it pays."""
_WORTH_THE_HEAP = 60
"""Tests from which on it pays to go through the whole heap, which takes a tenth of a second where pandas is loaded."""
_WORTH_HUGE_PAGES = 500
"""Tests from which on it pays to copy the heap into huge pages: a heap of 60 MB for 5 % of a test's process."""
_REHEARSALS = 20
_MIN_HEAP = 16 << 20
"""Bytes of private memory from which huge pages pay: test processes do more than most children, and write to more."""


def warm_up(run: Run) -> None:
    """Pull the levers that pay and that ``FASTFORK_DISABLE`` does not name."""
    if len(run.items) >= _WORTH_REHEARSING and levers.is_enabled("rehearse"):
        _rehearse(run)
    if len(run.items) >= _WORTH_THE_HEAP:
        gc.collect()
        immortal.make_heap_immortal()
    if len(run.items) >= _WORTH_HUGE_PAGES and levers.is_enabled("huge"):
        huge_pages.use(_MIN_HEAP)


def _rehearse(run: Run) -> None:
    """Run a test that does nothing, with pytest's own plugins alone: what others do is for real tests."""
    slot = run.slots[0]
    items, needs, send, journal = run.items, run.needs, run.send, run.reporter.journal
    run.send = _nowhere  # type: ignore[method-assign, assignment]
    internals.redirect(run.captured, slot)
    try:
        with internals.rehearsal(run.session) as item:
            run.items = [item]
            run.needs = Needs(run.items, run.settings)
            for _ in range(_REHEARSALS):
                test_process.rehearse(run, slot)
                slot.clear()
    finally:
        run.items = items
        run.needs = needs
        run.send = send  # type: ignore[method-assign]
        run.reporter.journal = journal
        run.reporter.failed = False


def _nowhere(_note: bytes) -> None:
    pass
