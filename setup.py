"""The part of the build that depends on the interpreter: the extension, and the tag of its wheel."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from setuptools import setup


def can_serve() -> bool:
    """Whether fastfork can work here; elsewhere it still installs, without an extension, and says so.

    It takes fork() and CPython's hooks around it; PyPy has neither PyOS_BeforeFork nor PyOS_AfterFork_Parent.
    """
    return hasattr(os, "fork") and sys.implementation.name == "cpython"


def build_options() -> dict[str, Any]:
    """Return what setup() has to know about the extension for this interpreter."""
    if not can_serve():
        return {}
    options: dict[str, Any] = {"cffi_modules": ["csrc/ff_build.py:ffibuilder"]}
    builder = runpy.run_path("csrc/ff_build.py")
    if builder["has_limited_api"]():
        options["options"] = {"bdist_wheel": {"py_limited_api": builder["LIMITED_API_TAG"]}}
    return options


setup(**build_options())
