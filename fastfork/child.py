"""What a child does between the fork and its end."""

from __future__ import annotations

import atexit
import io
import os
import pickle
import sys
from multiprocessing import process, resource_tracker, spawn, util

from .forkserver import _forkserver

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from ._native import Request
    from .config import TemplateConfig

_RUNS_ATEXIT = sys.version_info >= (3, 13)
"""From 3.13 on a child runs the exit functions that its own code registers; before, BaseProcess._bootstrap()
calls multiprocessing's own and no other."""


def run(request: Request, config: TemplateConfig) -> NoReturn:
    """Run the process that was asked for. Nothing unwinds past this: the process ends here."""
    try:
        _run(request, config)
    except BaseException:  # ^C at its very end, or an exit code that no C int holds
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _run(request: Request, config: TemplateConfig) -> NoReturn:
    code = 1
    try:
        if _RUNS_ATEXIT:
            atexit._clear()
            atexit.register(util._exit_function)  # type: ignore[attr-defined]
        code = serve(request, config)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        if _RUNS_ATEXIT:
            atexit._run_exitfuncs()
        os._exit(code)


def serve(request: Request, config: TemplateConfig) -> int:
    """Run the process that was asked for and return its exit code. A template rehearses this."""
    sentinel, alive_fd, tracker_fd, *fds = request.fds
    _forkserver.adopt(config, alive_fd, fds)
    # After the fork hooks: the tracker's own one closes what it holds (3.12.10 and later).
    resource_tracker._resource_tracker._fd = tracker_fd  # type: ignore[attr-defined]
    if not request.payload:
        return spawn._main(sentinel, os.dup(sentinel))
    return run_payload(request.payload, sentinel)


def run_payload(payload: bytes, parent_sentinel: int | None) -> int:
    """Become the process that `payload` holds, run it and return its exit code."""
    code: int = _load(payload)._bootstrap(parent_sentinel)
    return code


def _load(payload: bytes) -> Any:
    """Unpickle the process object, in a process prepared for it: multiprocessing.spawn._main() from memory."""
    stream = io.BytesIO(payload)
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        spawn.prepare(pickle.load(stream))
        return pickle.load(stream)
    finally:
        del current._inheriting  # type: ignore[attr-defined]
