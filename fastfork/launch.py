"""Starting a template: its interpreter, and what it is told about its client."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import sys
import time
from multiprocessing import spawn, util

from . import levers
from .address import listen, remove
from .child_process import ChildProcess
from .errors import PreloadError
from .preload import names_of_all
from .report import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .config import TemplateConfig
    from .succession import Place

AUTHKEY_SIZE = 32
"""Bytes of the key that a template shares with its clients."""

_ENV = "/usr/bin/env"

_UNBIND = "del os.environ['LD_BIND_NOW']; "
"""What a template does first: neither preloaded modules nor children are to find what is for its loader alone."""

_LIMIT_GRACE = 5.0
"""Seconds beyond the time limit of its preload that a template has to end by itself, and to say where it was."""


class LaunchedTemplate:
    """A template that this process has started.

    Attributes
    ----------
    process:
        The template's process, a child of this one.
    alive_fd:
        The write end of the pipe whose end tells the template that its last client has gone.
    is_successor:
        Whether it is where others look for it.
    remove_address:
        Removes the socket of a template that has died, once.

    """

    def __init__(
        self,
        process: ChildProcess,
        config: TemplateConfig,
        alive_fd: int,
        report_fd: int,
        *,
        is_successor: bool = False,
    ) -> None:
        self.process = process
        self.is_successor = is_successor
        self.address = config.address
        self.authkey = config.authkey
        self.alive_fd = alive_fd
        self._config = config
        self._report = Reader(report_fd)
        self._deadline = math.inf
        self._is_over_limit = False
        # At the end of this process a live template is left to itself: it removes its address when it leaves.
        self.remove_address = util.Finalize(
            self, _remove_address, (self.process, self.address), exitpriority=-100
        )

    @property
    def pid(self) -> int:
        """The template's process id."""
        return self.process.pid

    def is_ready(self) -> bool:
        """Whether it serves by now, or is about to."""
        return self._report.is_ready()

    def keep_limit(self) -> None:
        """End it if its preload goes on beyond the time limit: what the template does itself to that end has failed.

        Time counts from the first call that finds it preloading.
        """
        limit = self._config.preload_timeout
        if limit is None or self.is_ready() or not self._report.modules_begun():
            return
        self._deadline = min(self._deadline, time.monotonic() + limit + _LIMIT_GRACE)
        if time.monotonic() >= self._deadline:
            self._is_over_limit = not self.process.has_ended()
            self.process.kill()

    def abandon(self) -> None:
        """Close what is this process's alone, in the child of a raw ``os.fork()``: the template is its parent's."""
        self._report.abandon()

    def close(self) -> None:
        """Close the descriptors: the template then leaves, once no other client holds them."""
        self._report.close()
        alive_fd, self.alive_fd = self.alive_fd, -1
        if alive_fd >= 0:
            os.close(alive_fd)

    def preload_error(self) -> PreloadError | None:
        """Return what made the template end before it served; None if that was no preload."""
        failure = self._report.failure()
        if failure is not None:
            return _with_note(PreloadError(*failure))
        limit = self._config.preload_timeout
        if limit is not None and (self._is_over_limit or self._report.stacks()):
            return _with_note(self._time_limit_error(limit))
        return None

    def serving_error(self) -> OSError | None:
        """Return the error for which the template cannot serve; None if it has told of none."""
        error = self._report.error_of_serving()
        if error is None:
            return None
        number, text = error
        return OSError(number, f"the fork server could not begin to serve: {text}")

    def _time_limit_error(self, limit: float) -> PreloadError:
        module = self.module_being_preloaded()
        what = "its modules" if module is None else repr(module)
        reason = (
            f"the fork server could not preload {what} within the time limit (preload_timeout={limit:g} s)"
        )
        stacks = self._report.stacks() or "(its stacks could not be had)\n"
        return PreloadError(reason, module, stacks)

    def module_being_preloaded(self) -> str | None:
        """Return the name of the module that the preload has come to; None before the first one or when it serves."""
        begun = 0 if self.is_ready() else self._report.modules_begun()
        return names_of_all(self._config)[begun - 1] if begun else None


def _remove_address(process: ChildProcess, address: str) -> None:
    """Remove the socket of a template that has died: its own clean-up did not run."""
    if process.has_ended():
        remove(address)


def _with_note(error: PreloadError) -> PreloadError:
    """Add the note of CPython 3.15, by which its own tests know the error (3.11 and later have notes)."""
    if hasattr(error, "add_note"):
        error.add_note("Forkserver process may have crashed during module preloading. Check stderr.")
    return error


def launch(config: TemplateConfig, place: Place | None = None) -> LaunchedTemplate:
    """Start the interpreter of a template. It may still be preloading when this returns.

    Parameters
    ----------
    config:
        What it is to be; its address, its key and its descriptors are set here.
    place:
        Where to, if it is a template's successor; otherwise a new place is made.

    Raises `OSError` when the socket cannot be made or the interpreter not be started.

    """
    config.authkey = os.urandom(AUTHKEY_SIZE) if place is None else place.authkey
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as of_template:
        if place is None:
            listener, config.address = listen(on_failure)
        else:
            listener, config.address = place.claimed(on_failure), place.address
        config.listener_fd = of_template.enter_context(listener).fileno()
        config_r, config_w = _pipe(of_template, on_failure)
        config.alive_fd, alive_w = _pipe(of_template, on_failure)
        report_r, config.report_fd = _pipe(on_failure, of_template)
        description = pickle.dumps(vars(config))
        process = ChildProcess(
            _spawn(config_r, [config_r, config.listener_fd, config.alive_fd, config.report_fd])
        )
        on_failure.callback(process.wait, None)
        on_failure.callback(process.kill)
        _write_all(config_w, description)
        launched = LaunchedTemplate(process, config, alive_w, report_r, is_successor=place is not None)
        on_failure.pop_all()
    os.close(config_w)
    return launched


def fork(config: TemplateConfig, be_template: Callable[[TemplateConfig], NoReturn]) -> LaunchedTemplate:
    """Have a fork of this process be a template. It may still be preparing itself when this returns.

    Raises `OSError` when the socket cannot be made or the process not be forked.
    """
    config.authkey = os.urandom(AUTHKEY_SIZE)
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as of_template:
        listener, config.address = listen(on_failure)
        config.listener_fd = of_template.enter_context(listener).fileno()
        config.alive_fd, alive_w = _pipe(of_template, on_failure)
        report_r, config.report_fd = _pipe(on_failure, of_template)
        pid = os.fork()
        if pid == 0:
            config.listener_fd = listener.detach()
            os.close(alive_w)
            os.close(report_r)
            be_template(config)
        launched = LaunchedTemplate(ChildProcess(pid), config, alive_w, report_r)
        on_failure.pop_all()
    return launched


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Make a pipe, the ends of which are closed with what is given for each."""
    ends = os.pipe()
    for stack, end in zip((reader, writer), ends):
        stack.callback(os.close, end)
    return ends


def _write_all(fd: int, content: bytes) -> None:
    # A template that has died is found out by whoever connects to it.
    with contextlib.suppress(BrokenPipeError), open(fd, "wb", closefd=False) as stream:
        stream.write(content)


def _spawn(config_fd: int, fds: list[int]) -> int:
    """Start the interpreter, with the flags of this one: its pid."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # The standard library's modules come first: the client's path may hold files of the same names.
    executable: Any = spawn.get_executable()  # str until 3.10, bytes from 3.11 on
    binder = _binder(os.fsencode(executable))
    command = (
        f"import os, sys, multiprocessing.resource_tracker; {_UNBIND if binder else ''}"
        f"sys.path.insert(0, {package_parent!r}); import fastfork; sys.path.remove({package_parent!r}); "
        f"from fastfork.template import main; main({config_fd})"
    )
    flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    arguments = [*binder, executable, *flags, "-c", command]
    return int(util.spawnv_passfds(os.fsencode(arguments[0]), arguments, fds))


def _binder(executable: bytes) -> list[str]:
    """Return the command that has the interpreter bind every symbol at its start; empty where there is none.

    Left to themselves libraries bind a function when it is first called, in each child that calls it first: it writes
    to some pages and reads many. Extension modules are always bound when they are loaded.
    """
    if not levers.is_enabled("bind") or "LD_BIND_NOW" in os.environ or not sys.platform.startswith("linux"):
        return []
    # What env would search for, or find to be missing, or take for a variable, is started directly.
    can_pass_on = os.path.isabs(executable) and os.access(executable, os.X_OK) and b"=" not in executable
    return [_ENV, "LD_BIND_NOW=1"] if can_pass_on and os.access(_ENV, os.X_OK) else []
