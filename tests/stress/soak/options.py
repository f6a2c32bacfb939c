"""The options that some processes of a soak have: what a process is to be before it runs, and whether it is that."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from typing import Any

NONE = ""
SOUND = "sound"
UNFIT = "unfit"
"""One of them cannot be applied: the start has to fail."""

UNFIT_ERRNO = errno.ENOTDIR
"""What it has to fail with; no fault of a soak causes that."""

_VARIABLE = "FASTFORK_SOAK_OPTIONS"
_UMASK = 0o027
_NICENESS = 1
_DIRECTORY = "/"
_NO_DIRECTORY = os.path.join(os.devnull, "nowhere")
_MOST_FDS = 1000


def child_options(kind: str) -> dict[str, Any]:
    """Return what `fastfork.ChildOptions` is to be made of."""
    values: dict[str, Any] = {
        "env": {**os.environ, _VARIABLE: "1"},
        "cwd": _DIRECTORY,
        "umask": _UMASK,
        "nice": _NICENESS,
        "affinity": sorted(os.sched_getaffinity(0)),
        "rlimits": {resource.RLIMIT_NOFILE: (_MOST_FDS, _MOST_FDS)},
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "new_session": True,
    }
    if kind == UNFIT:
        values["cwd"] = _NO_DIRECTORY
    return values


def hold(kind: str) -> bool:
    """Whether this process is what it was to be."""
    if kind == NONE:
        return True
    mask = os.umask(_UMASK)
    null = os.stat(os.devnull)
    return (
        os.environ.get(_VARIABLE) == "1"
        and os.getcwd() == _DIRECTORY
        and mask == _UMASK
        and os.nice(0) == _NICENESS
        and resource.getrlimit(resource.RLIMIT_NOFILE) == (_MOST_FDS, _MOST_FDS)
        and os.getsid(0) == os.getpid()
        and all(os.path.samestat(os.fstat(stream.fileno()), null) for stream in (sys.stdin, sys.stdout))
    )
