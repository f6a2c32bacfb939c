"""The levers that make a child cheap: their names, and which ones are left out.

Each is explained in `fastfork.warmup`.
"""

from __future__ import annotations

import os

VARIABLE = "FASTFORK_DISABLE"
"""The environment variable that holds the names of levers to leave out, separated by commas. Others are passed over."""

ALL = "all"
"""The name that stands for every lever there."""

LEVERS = ("bind", "rehearse", "freeze", "immortal", "nursery", "huge", "spares")
"""All levers, in the order in which they are pulled."""


def is_enabled(name: str) -> bool:
    """Whether the lever called `name` is pulled in templates that are launched, or prepare themselves, now."""
    return {name, ALL}.isdisjoint(os.environ.get(VARIABLE, "").split(","))
