"""Benchmarks to be believed: fastfork, the standard start methods and the floor, side by side in one run.

`python -m benchmarks` from a checkout and `fastfork bench` from an installation (where this package is
`fastfork.bench`) call the same `main`. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

from .cli import main

__all__ = ["main"]
