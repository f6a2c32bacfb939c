"""What of a child's options is Python's to do: `os.environ` and the standard streams as objects.

The core has applied them to the process before. Every child would have to import this that has options: so a template
does.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import util

from . import _native

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any

    from ._native import Request


def complete(request: Request) -> None:
    """Have Python know what the core has made of this process."""
    if request.has(_native.OPTION_ENV):
        _replace_environ(request.env)
    if request.has(_native.OPTION_STDIN):
        _open_stdin()
    if request.has(_native.OPTION_STDOUT):
        _renew_output("stdout", 1)
    if request.has(_native.OPTION_STDERR):
        _renew_output("stderr", 2)


def _replace_environ(env: bytes) -> None:
    _native.settle_backend()
    for name in list(os.environb):
        del os.environb[name]
    for variable in env.split(b"\0")[:-1]:
        name, _, value = variable.partition(b"=")
        os.environb[name] = value


def _open_stdin() -> None:
    """Read from descriptor 0 again, which a template and multiprocessing's bootstrap have turned away from."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    functions = vars(util)
    close_stdin = functions["_close_stdin"]

    def keep_stdin() -> None:
        functions["_close_stdin"] = close_stdin  # a process that this one forks has none, as always

    functions["_close_stdin"] = keep_stdin


def _renew_output(name: str, fd: int) -> None:
    """Buffer a stream as an interpreter does that has been started with it."""
    stream: Any = getattr(sys, f"__{name}__")
    if stream is None or stream.closed:
        errors = "backslashreplace" if fd == 2 else None
        stream = open(fd, "w", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, f"__{name}__", stream)
        setattr(sys, name, stream)
    stream.reconfigure(line_buffering=fd == 2 or os.isatty(fd))
