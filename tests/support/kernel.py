"""What the kernel of this machine can do."""

from __future__ import annotations

import contextlib
import functools
import os

from fastfork import _native

from .processes import exit_code_of, fork


def kernel_tells_exit_codes() -> bool:
    """Whether a pidfd tells how a process ended that has been reaped, as on Linux 6.15 and later."""
    return _native.has_pidfds() and _pidfds_tell_exit_codes()


@functools.cache
def _pidfds_tell_exit_codes() -> bool:
    pid = fork(lambda: None)
    pidfd = os.pidfd_open(pid)
    exit_code_of(pid)
    with contextlib.closing(os.fdopen(pidfd)):
        return _native.pidfd_exit_code(pidfd) == 0
