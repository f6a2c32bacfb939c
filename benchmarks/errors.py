"""The one exception that ends a run with a message instead of a traceback."""

from __future__ import annotations


class BenchError(Exception):
    """A run cannot go on: a rival failed, gave a wrong result, or something it needs is absent."""
