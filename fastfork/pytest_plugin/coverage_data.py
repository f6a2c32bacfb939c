"""What coverage.py has measured in a process that ends by _exit()."""

from __future__ import annotations

import contextlib
import sys


def save_coverage() -> None:
    """Save what this process has measured, if any, beside what the others have: pytest-cov combines it."""
    coverage = sys.modules.get("coverage")
    if coverage is None:
        return
    measuring = coverage.Coverage.current()
    if measuring is not None:
        with contextlib.suppress(Exception):
            measuring.stop()
            measuring.save()
