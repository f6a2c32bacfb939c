"""The template: an interpreter that has preloaded, frozen its heap, and waits in C for requests.

`fastfork.launch` starts it with `main()`. `run_server()` is the part that any process can run, for a template that is
a fork of the process that wants one.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
from multiprocessing import util

from . import _native, child
from .config import TemplateConfig
from .installation import take_over
from .preload import PreloadFailedError, preload
from .warmup import warm_up

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import NoReturn

_MAX_TRACEBACK = 30_000
"""Characters of a traceback that are reported: what a pipe takes without a reader."""


def main(config_fd: int) -> NoReturn:
    """Run a template as the launching client has described it on `config_fd`. Ends the process."""
    code = 1
    with open(config_fd, "rb") as stream:
        config = TemplateConfig(**pickle.load(stream))
    try:
        if _set_up(config):
            run_server(config)
            code = 0
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        _remove_address(config.address)
        # An immortal heap is not for the interpreter to take apart.
        util._flush_std_streams()  # type: ignore[attr-defined]
        os._exit(code)


def _remove_address(address: str) -> None:
    try:
        os.unlink(address)
        os.rmdir(os.path.dirname(address))
    except FileNotFoundError:
        pass  # its client was quicker


def _set_up(config: TemplateConfig) -> bool:
    """Become what the client has described: whether that went well."""
    sys.path[:] = config.sys_path
    sys.argv[:] = config.sys_argv
    gc.disable()
    take_over(config.takes_over)
    for name in config.modules:
        __import__(name)
    if not _preload_and_report(config):
        return False
    util._close_stdin()  # type: ignore[attr-defined]
    return True


def _preload_and_report(config: TemplateConfig) -> bool:
    """Preload; what fails is told to the client that waits, and to standard error."""
    with os.fdopen(config.report_fd, "wb") as report:
        try:
            preload(config)
        except PreloadFailedError as error:
            sys.stderr.write(error.traceback)
            sys.stderr.flush()
            pickle.dump((error.module, error.traceback[-_MAX_TRACEBACK:]), report)
            return False
    return True


def run_server(config: TemplateConfig) -> None:
    """Serve requests until the last client has gone. Children do not return from here.

    Raises `OSError` when the server cannot be set up.
    """
    server = _native.Server(config.listener_fd, config.alive_fd, config.authkey)
    warm_up(child.run_payload)
    request = server.serve()
    if request is not None:
        gc.enable()
        child.run(request, config)
    server.close()
