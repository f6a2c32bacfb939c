"""The template: an interpreter that has preloaded, frozen its heap, and waits in C for requests.

`fastfork.launch` starts it with `main()`. `run_server()` is the part that any process can run, for a template that is
a fork of the process that wants one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import pickle
import socket
import stat
import sys
from multiprocessing import process, spawn, util

from . import _native, child, shared_modules, surroundings
from .config import TemplateConfig
from .installation import take_over
from .preload import PreloadFailedError, flush_standard_streams, is_main_preloaded, preload
from .report import Report
from .warmup import settle, warm_up

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from ._native import Request


def main(config_fd: int) -> NoReturn:
    """Run a template as the launching client has described it on `config_fd`. Ends the process."""
    code = 1
    own_pid = os.getpid()
    with open(config_fd, "rb") as stream:
        config = TemplateConfig(**pickle.load(stream))
    _native.remove_address_at_end(config.address)
    _native.keep_from_forks(config.listener_fd)
    _take_over(config.address)
    report = Report(config.report_fd)
    try:
        if _set_up(config, report):
            run_server(config, report)
            code = 0
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        if os.getpid() == own_pid:  # ^C may come in a child before it has begun
            remove_address(config.address)
            _run_exit_functions()
        flush_standard_streams()
        os._exit(code)  # an immortal heap is not for the interpreter to take apart


def _take_over(address: str) -> None:
    """Have those who look for a successor know that the socket has a template: see `fastfork.address.has_template`."""
    with contextlib.suppress(OSError):  # it has been removed
        if not os.stat(address).st_mode & stat.S_IRUSR:
            os.chmod(address, 0o600)


def _run_exit_functions() -> None:
    """Run what preloaded modules have registered for the end, as the end of an interpreter would.

    multiprocessing's own function is among it, which removes the semaphores of locks that they have made: the resource
    tracker would call these leaked.
    """
    # Until 3.9 the last exception comes through, though all have been printed.
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()


def remove_address(address: str) -> None:
    """Remove the template's own socket and its folder."""
    with contextlib.suppress(OSError):  # its client was quicker, or it cannot be removed any more
        os.unlink(address)
        os.rmdir(os.path.dirname(address))


def _set_up(config: TemplateConfig, report: Report) -> bool:
    """Become what the client has described: whether that went well."""
    # A subprocess of a preloaded module that had them would pass for a template.
    for fd in (config.listener_fd, config.alive_fd):
        os.set_inheritable(fd, False)
    sys.path[:] = config.sys_path
    sys.argv[:] = config.sys_argv
    take_over(config.takes_over)
    with _without_collections():
        shared_modules.load(config.modules)
        if not _preload_and_report(config, report):
            return False
    config.is_prepared = _prepare(config)
    util._close_stdin()  # type: ignore[attr-defined]
    _be_listener(config.listener_fd)
    return True


def _prepare(config: TemplateConfig) -> bool:
    """Become what each child of the launching client is to be: whether that could be done."""
    if not is_main_preloaded(config.main):
        return False  # each child imports it, or fails of it, by itself
    current = process.current_process()
    name = current.name
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        # Its lists are sys.path and sys.argv from now on, and the client's stay as they are.
        spawn.prepare(pickle.loads(pickle.dumps(config.prepared)))
    except OSError:  # the directory
        return False
    finally:
        del current._inheriting  # type: ignore[attr-defined]
        current.name = name
    return True


def _be_listener(fd: int) -> None:
    """Have the kernel tell those who connect that it is this process that listens: unix(7), SO_PEERCRED."""
    with socket.socket(fileno=os.dup(fd)) as listener:
        listener.listen(socket.SOMAXCONN)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Have no automatic collection. Whether the collector is on is left alone: that is for the modules to say."""
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    try:
        yield
    finally:
        if gc.get_threshold()[0] == 0:
            gc.set_threshold(*thresholds)


def _preload_and_report(config: TemplateConfig, report: Report) -> bool:
    """Preload; what fails is told to the client that waits, and to standard error.

    After ^C the client need not be told: the next template preloads anew.
    """
    try:
        preload(config, report)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        return False
    except PreloadFailedError as error:
        report.fail(error.reason, error.module, error.traceback)
        with contextlib.suppress(AttributeError, ValueError, OSError):  # there is none, or it is closed
            sys.stderr.write(error.traceback or f"{error.reason}\n")
        return False
    return True


def run_server(
    config: TemplateConfig,
    report: Report,
    prepare_memory: Callable[[Callable[[Request, TemplateConfig], int], TemplateConfig], None] = warm_up,
) -> None:
    """Serve requests until the last client has gone. Children do not return from here.

    Raises `OSError` when the server cannot be set up.
    """
    server = _new_server(config, report)
    # The children's, from now on: preloaded modules may have changed what the launching client had.
    config.surroundings = surroundings.look()
    has_collector = gc.isenabled()
    gc.disable()
    prepare_memory(child.serve, config)
    report.be_ready()
    run_child = child.run  # looked up here, and not by every child
    try:
        request = server.serve(_load_modules)
    except OSError as error:
        report.fail_to_serve(error)
        raise
    if request is not None:
        if has_collector:
            gc.enable()
        run_child(request, config)
    _native.keep_from_forks(-1)
    server.close()


def _new_server(config: TemplateConfig, report: Report) -> _native.Server:
    try:
        return _native.Server(
            config.listener_fd,
            config.alive_fd,
            config.authkey,
            config.max_children,
            config.max_spares,
            config.spare_quiet,
            shared_modules.loaded(),
        )
    except OSError as error:
        report.fail_to_serve(error)
        raise


def _load_modules(bits: int) -> None:
    """Load what a client has, while it waits for its child."""
    shared_modules.load(bits)
    settle()
