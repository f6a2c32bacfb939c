"""What a child does between the fork and its end."""

from __future__ import annotations

import atexit
import io
import os
import pickle
import sys
from multiprocessing import process, resource_tracker, spawn, util

from . import _native, answering, becoming
from .forkserver import _forkserver

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any, BinaryIO, NoReturn

    from ._native import Request
    from .config import TemplateConfig

_RUNS_ATEXIT = sys.version_info >= (3, 13)
"""From 3.13 on a child runs the exit functions that its own code registers; before, BaseProcess._bootstrap()
calls multiprocessing's own and no other."""


def run(request: Request, config: TemplateConfig) -> NoReturn:
    """Run the process that was asked for. Nothing unwinds past this: the process ends here."""
    try:
        if request.options:
            becoming.complete(request)
        if answering.is_for(request.payload):
            answering.run(request, config)
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
    has_cwd = request.has(_native.OPTION_CWD)
    if request.payload:
        loaded = _load(io.BytesIO(request.payload), config, has_cwd)
    else:
        parent_sentinel = os.dup(sentinel)
        with open(sentinel, "rb") as stream:
            loaded = _load(stream, config, has_cwd)
        sentinel = parent_sentinel
    code: int = loaded._bootstrap(sentinel)
    return code


def _load(stream: BinaryIO, config: TemplateConfig, has_cwd: bool) -> Any:
    """Unpickle the process object, in a process prepared for it, as multiprocessing.spawn._main() does."""
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        _prepare(pickle.load(stream), config, has_cwd)
        return pickle.load(stream)
    finally:
        del current._inheriting  # type: ignore[attr-defined]


def _prepare(told: dict[str, Any] | str, config: TemplateConfig, has_cwd: bool) -> None:
    """Become what the client is: by its preparation data, or by a name where the template has been told the rest.

    A process that has been given a directory stays there.
    """
    if isinstance(told, str) and config.is_prepared:
        process.current_process().name = told
        if not has_cwd:
            os.chdir(config.prepared["dir"])  # it may not be there any more
        return
    data = {**config.prepared, "name": told} if isinstance(told, str) else told
    if has_cwd:
        data.pop("dir", None)
    spawn.prepare(data)
