"""A large heap in huge pages: a fork copies one entry for 2 MiB in place of 512, and the child's end takes one back.

The kernel does it in place (``MADV_COLLAPSE``, Linux 6.1 and later). Where a child writes, it splits the huge page and
copies 4 KiB, as ever.
"""

from __future__ import annotations

import contextlib
import os

from . import _native

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIN_HEAP = 32 << 20
"""Bytes of private memory from which it pays: a child splits each huge page that it writes to."""

_SETTINGS = (
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled",
)
"""Files of what the machine's administrator wants; the second is there since Linux 6.8."""

_MIN_MAPPING = 2 << 20
"""Bytes of a mapping: a smaller one holds no huge page."""

_MIN_DENSITY = 0.8
"""The resident part of a mapping: what is not there yet would be, afterwards. It bounds what the template grows by."""


def use(min_heap: int = MIN_HEAP) -> None:
    """Move the heap of this process into huge pages, as far as it is dense and the kernel does it.

    Where they are off it stays as it is: the kernel would do it all the same (madvise(2), MADV_COLLAPSE).

    Parameters
    ----------
    min_heap:
        Bytes of private memory; a smaller heap stays as it is.

    """
    if are_off():
        return
    with contextlib.suppress(OSError):  # no /proc
        if _private_bytes() < min_heap:
            return
        with open("/proc/self/smaps") as stream:
            mappings = list(dense_mappings(stream))
        for begin, end in mappings:
            with contextlib.suppress(OSError):  # no room for one at its place, or no huge pages to be had
                _native.collapse(begin, end - begin)


def are_off(settings: Iterable[str] = _SETTINGS) -> bool:
    """Whether transparent huge pages are switched off on this machine, by one of the files `settings`."""
    for path in settings:
        with contextlib.suppress(OSError), open(path) as stream:
            if "[never]" in stream.read():
                return True
    return False


def _private_bytes() -> int:
    with open("/proc/self/statm") as stream:
        _, resident, shared, *_ = map(int, stream.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def dense_mappings(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Find in the lines of proc_pid_smaps(5) what is to be moved: the first address and that behind the last, of each.

    That is anonymous memory that can be written to, the heap of malloc() included, of some size and nearly all there.
    """
    begin = end = 0
    for line in lines:
        first, *rest = line.split()
        if first == "Rss:":
            if end - begin >= _MIN_MAPPING and int(rest[0]) << 10 >= _MIN_DENSITY * (end - begin):
                yield begin, end
        elif not first.endswith(":"):
            name = rest[4] if len(rest) > 4 else ""
            is_heap = rest[0] == "rw-p" and name in ("", "[heap]")
            begin, end = (int(address, 16) for address in first.split("-")) if is_heap else (0, 0)
