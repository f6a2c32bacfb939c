"""A task of an executor on its way: what is sent of it, and how its future is settled."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pickle
import signal
import sys
import threading

from . import _native, task
from .answering import TASK
from .call import Call
from .client import ServerGoneError
from .errors import ProcessDiedError, TimeLimitError, TransferError
from .forkserver import ATTEMPTS
from .output import Output, last_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .client import Child
    from .forkserver import ForkServer
    from .functions import Functions
    from .futures import TaskFuture
    from .message import Part
    from .options import ChildOptions
    from .task import Dumps


class Settings:
    """How tasks are done.

    Attributes
    ----------
    timeout, grace:
        Seconds: the time limit, and what a task has after it to end by itself. None for no limit.
    serializer:
        The name of the module whose ``dumps`` pickles functions, arguments, results and exceptions.
    capture:
        Whether what is written to standard output and error is kept.
    options:
        What a process is to be before it does its task.
    functions:
        Those that the template has had since it was forked from this process, by their addresses.

    """

    timeout: float | None = None
    grace: float = 1.0
    serializer: str = "pickle"
    capture: bool = False
    options: ChildOptions | None = None
    functions: Functions | None = None

    def changed(self, **values: object) -> Settings:
        """Return these settings with some others in their place."""
        changed = Settings()
        vars(changed).update(vars(self), **values)
        return changed

    def dies_with_client(self) -> bool:
        """Whether a task is ended when this process ends."""
        return self.options is None or self.options.die_with_client is not False

    def dumps(self) -> Dumps:
        """Return what pickles here. Raises `ImportError`, `AttributeError`."""
        dumps = task.dumps_of(self.serializer)
        return dumps if self.functions is None else functools.partial(dumps, known=self.functions)


class Submission:
    """A task on its way.

    It is pickled at once: what happens to its arguments afterwards is not seen by it, save in large buffers (of arrays
    and the like), which are sent from where they are. What cannot be pickled fails when it is started.
    """

    def __init__(
        self,
        future: TaskFuture,
        settings: Settings,
        function: Callable[..., object],
        arguments: Sequence[object],
        keywords: Mapping[str, object],
        name: str | None = None,
    ) -> None:
        self.future = future
        self.settings = settings
        self._what = name or getattr(function, "__qualname__", None) or repr(function)
        self._parts: list[Part] = []
        self._error: Exception | None = None
        self._attempts = 0
        self._output: Output | None = None
        self._directory = _current_directory()
        self._sys_path = sys.path[:]
        self._options: tuple[bytes, list[int]] = (b"", [])
        try:
            if settings.options is not None:
                self._options = settings.options.encode()
        except ValueError as error:
            self._error = error
        try:
            self._parts = task.dump((function, arguments, keywords), settings.dumps())
        except Exception as error:
            self._error = TransferError(f"{self._what} or its arguments cannot be pickled: {error}")
            self._error.__cause__ = error

    def start(self, server: ForkServer) -> Call:
        """Have it started. Raises `OSError` and what the start of a template raises, and what pickling has raised."""
        if self._error is not None:
            raise self._error
        circumstances = self._circumstances(server.ensure_launched())
        flags = 0 if self.settings.timeout is None else task.HAS_TIME_LIMIT
        flags |= task.CAPTURES if self.settings.capture else 0
        parts = self._parts
        size = len(self._options[0]) + task.HEADER.size + len(circumstances) + len(parts[0])
        if len(parts) > 1 or size > _native.MAX_PAYLOAD:
            flags |= task.IS_ON_CHANNEL
        header = task.HEADER.pack(TASK, flags, os.getpid(), len(circumstances)) + circumstances
        is_on_channel = bool(flags & task.IS_ON_CHANNEL)
        return Call(
            server,
            header if is_on_channel else header + parts[0],
            parts if is_on_channel else (),
            self._open_output(),
            dies_with_client=self.settings.dies_with_client(),
            options=self._options,
        )

    def _open_output(self) -> list[int]:
        """Return descriptors that become its standard output and error, if these are captured."""
        if not self.settings.capture:
            return []
        if self._output is None:
            self._output = Output()
        return self._output.fds

    def _circumstances(self, prepared: Mapping[str, object]) -> bytes:
        """Return, pickled, what is not as it was when the template was launched; nothing as a rule."""
        differing: dict[str, object] = {}
        has_cwd = self.settings.options is not None and self.settings.options.cwd is not None
        if self._directory != prepared.get("dir") and not has_cwd:
            differing["directory"] = self._directory
        if self._sys_path != prepared.get("sys_path"):
            differing["sys_path"] = self._sys_path
        if self.settings.serializer != "pickle":
            differing["serializer"] = self.settings.serializer
        return pickle.dumps(task.Circumstances(**differing)) if differing else b""

    def deadline_from(self, now: float) -> float:
        """Return when its time is over if it begins now."""
        return math.inf if self.settings.timeout is None else now + self.settings.timeout

    def captures(self) -> bool:
        """Whether its future is to have what it has written."""
        return self.settings.capture

    def settle(self, kind: int, parts: list[bytes | bytearray], *, is_over_limit: bool) -> None:
        """Settle its future by what it has answered."""
        if kind != task.RETURNED:
            self.fail(self._failure(kind, parts, is_over_limit=is_over_limit))
            return
        try:
            value = task.load(parts)
        except Exception as error:
            failure = TransferError(f"the result of {self._what} cannot be unpickled: {error!r}")
            failure.__cause__ = error
            self.fail(failure)
        else:
            self._let_go()
            self.future.set_result(value)

    def _failure(self, kind: int, parts: list[bytes | bytearray], *, is_over_limit: bool) -> BaseException:
        if kind == task.RAISED:
            text = bytes(parts[0]).decode()
            error = self._raised(parts[1:])
            if is_over_limit and type(error) is TimeLimitError:
                error = self._over_limit("and was told so")
        else:
            what, why, text = (bytes(part).decode() for part in parts)
            error = TransferError(f"{what}, of {self._what} cannot be pickled: {why}")
        error.__cause__ = RemoteTracebackError(text)
        return error

    def _raised(self, parts: list[bytes | bytearray]) -> BaseException:
        try:
            error = task.load(parts)
        except Exception as failure:
            return TransferError(f"the exception of {self._what} cannot be unpickled: {failure!r}")
        if isinstance(error, BaseException):
            return error
        return TransferError(f"the exception of {self._what} has been unpickled as something else: {error!r}")

    def settle_dead(self, child: Child, *, is_over_limit: bool) -> None:
        """Settle its future when its process has ended without an answer."""
        words = None if self._output is None else last_lines(self._output.stderr())
        died = ProcessDiedError(self._what, child.exit_code, child.usage, words)
        if not is_over_limit:
            self.fail(died)
            return
        how = "ended by SIGTERM" if child.exit_code == -signal.SIGTERM else "killed with its process group"
        error = self._over_limit(f"and was {how}")
        error.__cause__ = died
        self.fail(error)

    def _over_limit(self, how: str) -> TimeLimitError:
        return TimeLimitError(
            f"{self._what} took longer than its time limit of {self.settings.timeout:g} s {how}"
        )

    def may_start_again(self, error: Exception) -> bool:
        """Whether it has not come to a start, and no more so than by its template's death."""
        self._attempts += 1
        return isinstance(error, ServerGoneError) and self._attempts < ATTEMPTS

    def fail(self, error: BaseException) -> None:
        """Settle its future by an exception, unless it is settled."""
        self._let_go()
        if not self.future.done():
            self.future.set_exception(error)

    def _let_go(self) -> None:
        """Keep nothing of it but what its future has, which gets its output before anybody is told that it is done."""
        self._parts = []
        output, self._output = self._output, None
        if output is not None:
            with contextlib.suppress(MemoryError):
                self.future.stdout, self.future.stderr = output.stdout(), output.stderr()
            output.close()

    def disown(self, error: Exception) -> None:
        """In a fork of the client: whoever waits for the future, which may be locked for ever, is told so."""
        self._let_go()
        self.future._condition = threading.Condition()
        if not self.future.done():
            self.future._state = "RUNNING"
            self.future.set_exception(error)


class RemoteTracebackError(Exception):
    """The traceback of an exception as it was in the process of a task: its text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed: the template's own one must do
        return None
