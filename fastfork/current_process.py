"""A template that is a fork of this process as it stands, for `fastfork.Executor.from_current_process`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import weakref
from functools import partial
from multiprocessing import process, util

from . import _native, context, forkserver, functions, manager
from .forkserver import ForkServer
from .launch import fork
from .preload import flush_standard_streams
from .report import Report
from .template import remove_address, run_server
from .warmup import warm_up_for_tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from types import FunctionType
    from typing import NoReturn

    from .config import TemplateConfig
    from .launch import LaunchedTemplate
    from .succession import Place


class CurrentProcess(ForkServer):
    """What stands for a template that is a fork of this process: once it has died there is no other one.

    Attributes
    ----------
    functions:
        Those that no import finds and that the template has, by their addresses, as long as they live here.

    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._is_forked = False
        self.functions: MutableMapping[int, FunctionType] = weakref.WeakValueDictionary()

    def _start_template(self, config: TemplateConfig, _place: Place | None) -> LaunchedTemplate:
        if self._is_forked:
            message = (
                "the template was a fork of this process as it stood; it has died, and cannot be made again"
            )
            raise OSError(errno.ESRCH, message)
        config.is_prepared = True
        config.has_successors = False
        flush_standard_streams()  # tasks would write once more what is still buffered
        found = functions.find_all()
        launched = fork(config, partial(_be_template, found))
        self._is_forked = True
        self.functions.update(found)
        return launched


def _be_template(found: dict[int, FunctionType], config: TemplateConfig) -> NoReturn:
    """Be a template from now on, in a fork of the process that wants one. Ends the process."""
    code = 1
    own_pid = os.getpid()
    try:
        _native.remove_address_at_end(config.address)
        _native.keep_from_forks(config.listener_fd)
        functions.remember(found)
        _let_go_of_what_is_the_parent_s()
        run_server(config, Report(config.report_fd), warm_up_for_tasks)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        if os.getpid() == own_pid:
            remove_address(config.address)
        flush_standard_streams()
        os._exit(code)  # what is registered for the end is the parent's


def _let_go_of_what_is_the_parent_s() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)  # an event loop's
    vars(process)["_children"] = set()
    util._finalizer_registry.clear()  # type: ignore[attr-defined]
    util._run_after_forkers()  # type: ignore[attr-defined]
    util._close_stdin()  # type: ignore[attr-defined]
    servers = {forkserver._forkserver, *context._servers.values()}
    servers.update(known.server for known in manager.known_managers())
    for server in servers:
        server.let_go_in_child()
