"""What a template imports before it serves, and what happens to an exception there, or to a thread that is left."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from multiprocessing import process, spawn, util

from . import _native

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .config import TemplateConfig
    from .report import Report

_THREAD_GRACE = 0.05
"""Seconds that a thread which has been joined may take to leave the kernel's list."""


class PreloadFailedError(Exception):
    """A preload failed and the template was told to give up then.

    Attributes
    ----------
    reason, module, traceback:
        Those of `fastfork.PreloadError`.

    """

    def __init__(self, reason: str, module: str | None = None, traceback: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.module = module
        self.traceback = traceback


def preload(config: TemplateConfig, report: Report) -> None:
    """Import the modules that a template is to have.

    What happens to an exception, of every kind and `SystemExit` among them, is `config.on_error`: ``"ignore"``,
    ``"warn"`` (an `ImportWarning`) or ``"fail"`` (`PreloadFailedError`). But `KeyboardInterrupt` is raised: it is the
    user's, and no module's. What happens to threads that are left running is `config.on_threads`: ``"ignore"``,
    ``"warn"`` (a `RuntimeWarning`) or ``"refuse"`` (`PreloadFailedError`). When `config.preload_timeout` seconds are
    over, the process ends.
    """
    limit = _TimeLimit(config.preload_timeout, report.fd)
    with _ending_with_the_client(config.alive_fd):
        for name in names_to_import(config):
            report.begin_module()
            limit.arm()
            _attempt(name, _importer(name, config), config.on_error)
        for name, content in config.calls:
            report.begin_module()
            limit.arm()
            _attempt(name, functools.partial(_call, content), "fail")
        flush_standard_streams()  # children would inherit what is still buffered, and print it again (gh-135335)
    limit.cancel()
    if config.on_threads != "ignore":
        _judge_threads(config.on_threads)


@contextlib.contextmanager
def _ending_with_the_client(alive_fd: int) -> Iterator[None]:
    """Have this process be told to end when its client ends: otherwise a preload that hangs would outlive that.

    The kernel tells it by SIGTERM, on Linux. That needs no thread, of which whatever forks would be warned.
    """
    import fcntl

    try:
        if hasattr(fcntl, "F_SETSIG"):
            with contextlib.suppress(OSError):  # a kernel that only looks like Linux
                fcntl.fcntl(alive_fd, fcntl.F_SETOWN, os.getpid())
                fcntl.fcntl(alive_fd, fcntl.F_SETSIG, signal.SIGTERM)
                _set_flag(alive_fd, os.O_ASYNC, is_set=True)
            if _native.is_hung_up(alive_fd):  # it has ended before that
                os.kill(os.getpid(), signal.SIGTERM)
        yield
    finally:
        with contextlib.suppress(OSError):  # a module has closed it
            _set_flag(alive_fd, os.O_ASYNC, is_set=False)


def _set_flag(fd: int, flag: int, *, is_set: bool) -> None:
    import fcntl

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if is_set else flags & ~flag)


def flush_standard_streams() -> None:
    """Flush standard output and error; they may be closed, full, or pipes that nobody reads."""
    with contextlib.suppress(OSError):
        util._flush_std_streams()  # type: ignore[attr-defined]


def names_to_import(config: TemplateConfig) -> list[str]:
    """Return what is imported, in this order: the main module, or what it imports, comes first."""
    names = [name for name in config.preload if name != "__main__"]
    if "__main__" in config.preload:
        names[:0] = ["__main__"] if _is_importable(config.main) else config.main_imports
    return names


def names_of_all(config: TemplateConfig) -> list[str]:
    """Return the names of all that is done, in this order."""
    return [*names_to_import(config), *(name for name, _ in config.calls)]


def _call(content: bytes) -> None:
    function, arguments = pickle.loads(content)
    function(*arguments)


def _is_importable(main: dict[str, str]) -> bool:
    """Whether the main module can be imported without running its program: not a ``__main__.py``."""
    name = main.get("init_main_from_name")
    return name is None or not (name == "__main__" or name.endswith(".__main__"))


def is_main_preloaded(main: dict[str, str]) -> bool:
    """Whether a child that is told of this main module finds it here, and does not import it."""
    here = sys.modules["__main__"]
    if not main:
        return True
    if "init_main_from_path" in main:
        return getattr(here, "__file__", None) == main["init_main_from_path"]
    return getattr(getattr(here, "__spec__", None), "name", None) == main["init_main_from_name"]


def _importer(name: str, config: TemplateConfig) -> Callable[[], object]:
    if name == "__main__":
        return functools.partial(_import_main, config.main)
    return functools.partial(__import__, name)


def _import_main(main: dict[str, str]) -> None:
    """Import the client's main module as ``__mp_main__``: children find it there and need not run it again."""
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        if "init_main_from_name" in main:
            spawn._fixup_main_from_name(main["init_main_from_name"])  # type: ignore[attr-defined]
        elif "init_main_from_path" in main:
            spawn.import_main_path(main["init_main_from_path"])
    finally:
        del current._inheriting  # type: ignore[attr-defined]


def _attempt(name: str, action: Callable[[], object], on_error: str) -> None:
    try:
        action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if on_error == "fail":
            reason = f"the fork server could not preload {name!r} (on_error='fail')"
            raise PreloadFailedError(reason, name, _traceback(error)) from error
        if on_error == "warn":
            _warn(f"Failed to preload {name!r}: {_summary(error)}", ImportWarning, name)


def _traceback(error: BaseException) -> str:
    import traceback  # large, and rarely needed

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _summary(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # its own __str__ raises
        return type(error).__name__


def _warn(message: str, category: type[Warning], module: str | None = None) -> None:
    """Warn; where warnings are errors, this one is an error of the preload."""
    try:
        warnings.warn(message, category, stacklevel=3)
    except Warning as warning:
        raise PreloadFailedError(f"{message} (and warnings are errors)", module) from warning


class _TimeLimit:
    """Ends this process after some seconds (None: never), and tells where its threads were.

    faulthandler's thread needs neither the GIL nor memory, so it ends code of C too. A module that uses faulthandler
    itself can stop it: hence it begins anew with each module, and the client looks at the clock as well.
    """

    def __init__(self, seconds: float | None, fd: int) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._fd = fd

    def arm(self) -> None:
        if self._deadline is not None:
            import faulthandler

            remaining = max(self._deadline - time.monotonic(), 0.001)
            faulthandler.dump_traceback_later(remaining, exit=True, file=self._fd)

    def cancel(self) -> None:
        if self._deadline is not None:
            import faulthandler

            faulthandler.cancel_dump_traceback_later()


def _judge_threads(on_threads: str) -> None:
    names = _threads_left()
    if not names:
        return
    left = ", ".join(names)
    if on_threads == "refuse":
        raise PreloadFailedError(
            f"preloading left threads running in the fork server (on_threads='refuse'): {left}"
        )
    _warn(
        f"preloading left threads running in the fork server: {left}. No process has them, and a lock that one of "
        "them holds as a process starts stays locked there",
        RuntimeWarning,
    )


def _threads_left() -> list[str]:
    """Return the names of all threads but this one, those that Python does not know included."""
    if _thread_names_after_a_while():
        # A fork ends the threads of libraries that know of forks, such as OpenBLAS: pthread_atfork(3).
        _native.measure_floor(1)
    return _thread_names_after_a_while()


def _thread_names_after_a_while() -> list[str]:
    deadline = time.monotonic() + _THREAD_GRACE
    names = _thread_names()
    while names and time.monotonic() < deadline:
        time.sleep(0.002)
        names = _thread_names()
    return names


def _thread_names() -> list[str]:
    of_python = {thread.native_id: repr(thread.name) for thread in threading.enumerate()}
    others = {
        tid: f"{name!r} (not of Python)" for tid, name in _kernel_threads().items() if tid not in of_python
    }
    del of_python[threading.get_native_id()]
    return [*of_python.values(), *others.values()]


def _kernel_threads() -> dict[int, str]:
    """Return the threads of this process as Linux knows them; none where there is no /proc."""
    names = {}
    with contextlib.suppress(OSError):
        for tid in os.listdir("/proc/self/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/self/task/{tid}/comm", errors="replace") as stream,
            ):
                names[int(tid)] = stream.read().rstrip("\n")
    return names if threading.get_native_id() in names else {}
