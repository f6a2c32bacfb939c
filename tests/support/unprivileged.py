"""Preloaded, it has a template do without a privilege that root has: to set any niceness."""

from __future__ import annotations

import ctypes

_VERSION = (
    0x20080522  # _LINUX_CAPABILITY_VERSION_3, of which a set of capabilities takes two words of each kind
)
_CAP_SYS_NICE = 23

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, sets: ctypes.Array[ctypes.c_uint32]) -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    if getattr(_libc, name)(header, sets) != 0:
        raise OSError(ctypes.get_errno(), name)


_sets = (
    ctypes.c_uint32 * 6
)()  # effective, permitted, inheritable: the lower word of each, then the upper one
_call("capget", _sets)
_sets[0] &= ~(1 << _CAP_SYS_NICE)
_call("capset", _sets)
