"""Builds ``fastfork._core`` from the C sources beside this file, by cffi in API mode.

The C/Python boundary is written once, in ff_abi.h: C reads the whole header, cffi what stands between its
two markers, since ``cdef`` takes no ``#include`` and no conditions.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import cffi

CSRC = Path(__file__).resolve().parent
CDEF_BEGIN = "/* cdef: begin */"
CDEF_END = "/* cdef: end */"

# The oldest Python whose stable ABI the wheel keeps to: PY_VERSION_HEX, and the same as a wheel tag.
LIMITED_API_VERSION = "0x03090000"
LIMITED_API_TAG = "cp39"


def has_limited_api() -> bool:
    """Whether this interpreter can build an extension that every CPython from 3.9 on loads.

    A free-threaded or a debug build lays out its objects in its own way, and takes an extension of its own.
    """
    return not sysconfig.get_config_var("Py_GIL_DISABLED") and not hasattr(sys, "gettotalrefcount")


def declarations(header: str) -> str:
    """Return what ff_abi.h, whose text is `header`, declares for cffi.

    Raises ValueError where a marker is missing.
    """
    start = header.index(CDEF_BEGIN) + len(CDEF_BEGIN)
    return header[start : header.index(CDEF_END, start)]


def project_files(pattern: str) -> list[str]:
    """Return the files of csrc that match `pattern`, relative to the project: setuptools wants them so."""
    return sorted(os.path.relpath(path, CSRC.parent) for path in CSRC.glob(pattern))


ffibuilder = cffi.FFI()
ffibuilder.cdef(declarations((CSRC / "ff_abi.h").read_text(encoding="utf-8")))
ffibuilder.set_source(
    "fastfork._core",
    '#include "ff_abi.h"',
    sources=project_files("ff_*.c"),
    depends=project_files("ff_*.h"),
    include_dirs=[str(CSRC)],
    extra_compile_args=["-std=gnu11", "-fvisibility=hidden"],
    # Left to itself cffi defines a bare Py_LIMITED_API, which means 3.2 and hides the fork hooks (3.7).
    define_macros=[("Py_LIMITED_API", LIMITED_API_VERSION)] if has_limited_api() else [],
    py_limited_api=has_limited_api(),
)
