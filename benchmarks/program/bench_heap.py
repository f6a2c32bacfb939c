"""A heap of small objects such as a preload of data leaves: records of three objects each, in one list."""

from __future__ import annotations

import gc
import sys

_MB = 1 << 20


def records(megabytes: int) -> list[tuple[int, str, float]]:
    """As many different records as fill so many megabytes."""
    count = megabytes * _MB // _size(_record(1 << 20))
    collects = gc.isenabled()
    gc.disable()  # every rival fills its heap without collections, as a template does
    try:
        return [_record(number) for number in range(count)]
    finally:
        if collects:
            gc.enable()


def _record(number: int) -> tuple[int, str, float]:
    return number, str(number), float(number)


def _size(record: tuple[object, ...]) -> int:
    pointer = 8
    return pointer + sum(map(sys.getsizeof, (record, *record)))
