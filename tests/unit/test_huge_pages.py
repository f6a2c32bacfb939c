"""Moving a large heap into huge pages."""

from __future__ import annotations

import errno
import mmap

import pytest

from fastfork import _native, huge_pages

SMAPS = """\
{begin:x}-{end:x} {perms} 00000000 00:00 0 {name}
Size:               {size} kB
KernelPageSize:        4 kB
Rss:                {rss} kB
Pss:                   1 kB
VmFlags: rd wr mr mw me ac
"""
BEGIN = 0x7F0000000000
MIB = 1 << 20


def described(size_mib=8, rss_mib=8, perms="rw-p", name=""):
    """Return what the kernel tells of a mapping."""
    end = BEGIN + size_mib * MIB
    text = SMAPS.format(
        begin=BEGIN, end=end, perms=perms, name=name, size=size_mib << 10, rss=int(rss_mib * 1024)
    )
    return text.splitlines()


@pytest.mark.parametrize(
    ("mapping", "is_taken"),
    [
        ({}, True),
        ({"name": "[heap]"}, True),
        ({"size_mib": 10, "rss_mib": 8}, True),
        ({"size_mib": 10, "rss_mib": 7.9}, False),
        ({"size_mib": 1, "rss_mib": 1}, False),
        ({"perms": "r--p"}, False),
        ({"perms": "rw-s"}, False),
        ({"name": "/usr/lib/libsomething.so"}, False),
        ({"name": "[stack]"}, False),
    ],
)
def test_dense_mappings(mapping, is_taken):
    lines = [*described(**mapping), *described(size_mib=2, rss_mib=2)]
    found = [(BEGIN, BEGIN + mapping.get("size_mib", 8) * MIB)] if is_taken else []
    assert list(huge_pages.dense_mappings(lines)) == [*found, (BEGIN, BEGIN + 2 * MIB)]


@pytest.mark.parametrize(
    ("settings", "are_off"),
    [
        (["always madvise [never]"], True),
        (["always [madvise] never"], False),
        (["[always] madvise never"], False),
        (["[always] madvise never", "always inherit madvise [never]"], True),
        (["always madvise [never]", "always [inherit] madvise never"], True),
        (["always [madvise] never", "always [inherit] madvise never"], False),
        ([], False),
    ],
)
def test_whether_they_are_off(tmp_path, settings, are_off):
    paths = [tmp_path / str(number) for number in range(2)]
    for path, setting in zip(paths, settings):
        path.write_text(setting + "\n")
    assert huge_pages.are_off(map(str, paths)) == are_off


def test_nothing_is_moved_where_they_are_off(monkeypatch):
    moved = []
    monkeypatch.setattr(_native, "collapse", lambda *mapping: moved.append(mapping))
    monkeypatch.setattr(huge_pages, "are_off", lambda: True)
    kept = mmap.mmap(-1, 4 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.write(b"x" * len(kept))
    huge_pages.use(min_heap=0)
    assert moved == []


def test_a_small_heap_is_left_alone(monkeypatch):
    moved = []
    monkeypatch.setattr(_native, "collapse", lambda *mapping: moved.append(mapping))
    monkeypatch.setattr(huge_pages, "are_off", lambda: False)
    huge_pages.use(min_heap=1 << 50)
    assert moved == []


def test_a_mapping_that_cannot_be_moved_is_passed_over(monkeypatch):
    asked = []
    monkeypatch.setattr(huge_pages, "are_off", lambda: False)

    def fail(begin, size):
        asked.append((begin, size))
        raise OSError(errno.ENOMEM, "no huge pages")

    monkeypatch.setattr(_native, "collapse", fail)
    kept = [mmap.mmap(-1, 4 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
    for memory in kept:
        memory.write(b"x" * len(memory))
    huge_pages.use(min_heap=0)
    assert len(asked) >= 1
    assert all(size >= 2 * MIB for _, size in asked)


def test_what_is_no_memory_is_an_error():
    with pytest.raises(OSError, match=r"Errno (22|12|38)"):  # EINVAL, ENOMEM, ENOSYS
        _native.collapse(0, 2 * MIB)
