"""The exceptions that fastfork adds to those of multiprocessing."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import FastForkProcess


class PreloadError(ConnectionError):
    """The template gave up before it served: a module could not be preloaded, took too long or left threads.

    It is a `ConnectionError` because that is what the standard library's fork server leaves its caller with.

    Attributes
    ----------
    reason:
        What was wrong, and the setting that makes it an error: ``on_error``, ``preload_timeout`` or ``on_threads``.
    module:
        The name that was to be preloaded; None where it is not known, and for threads, which any of them may have
        started.
    traceback:
        The traceback of the exception as it was in the template, as text. After a time limit: the stacks of the
        template's threads, as far as they could be had. Empty for threads.

    """

    def __init__(self, reason: str, module: str | None, traceback: str) -> None:
        super().__init__(f"{reason}; in the server:\n{traceback}" if traceback else reason)
        self.reason = reason
        self.module = module
        self.traceback = traceback

    def __reduce__(self) -> tuple[Callable[..., PreloadError], tuple[str, str | None, str]]:
        return PreloadError, (self.reason, self.module, self.traceback)


class StartAllError(RuntimeError):
    """Some of the processes that `fastfork.start_all` was given could not be started; the others run.

    Attributes
    ----------
    errors:
        Why, by the process: what its ``start()`` would have raised.

    """

    def __init__(self, errors: dict[FastForkProcess, Exception], count: int) -> None:
        first = next(iter(errors.values()))
        super().__init__(
            f"{len(errors)} of {count} processes could not be started, the first of them: {first!r}"
        )
        self.errors = errors


class ProcessDiedError(RuntimeError):
    """A process ended before it had answered.

    Attributes
    ----------
    what:
        What it was to do.
    exit_code:
        Negative for a signal; None where nobody can tell any more, since its template has died too.
    signal:
        The name of the signal that has ended it, as in ``"SIGKILL"``; None if it was none.
    cpu_time:
        Seconds of CPU time that it took, and those that it had waited for; None if that is not known.
    peak_memory:
        Bytes that it had resident at most, those that it shared with its template among them; None if that is not
        known.
    stderr:
        The last lines that it wrote to standard error; None where that was not captured.

    """

    def __init__(
        self, what: str, exit_code: int | None, usage: tuple[int, int] | None, stderr: str | None = None
    ) -> None:
        self.what = what
        self.exit_code = exit_code
        self.signal = _signal_name(exit_code)
        self.cpu_time = None if usage is None else usage[0] / 1000
        self.peak_memory = None if usage is None else usage[1] * _RSS_UNIT
        self.stderr = stderr
        self._usage = usage
        super().__init__(self._describe())

    def _describe(self) -> str:
        text = f"the process of {self.what} {self._how()}"
        if self.cpu_time is not None and self.peak_memory is not None:
            text += f" (CPU time {self.cpu_time:.3f} s, at most {self.peak_memory / 1e6:.1f} MB resident)"
        return f"{text}; its last words were:\n{self.stderr}" if self.stderr else text

    def _how(self) -> str:
        if self.exit_code is None:
            return "has ended, nobody knows how: so has its fork server"
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code} before it had answered"
        hint = ", which the kernel sends when memory has run out" if self.signal == "SIGKILL" else ""
        return f"was killed by {self.signal}{hint}"

    def __reduce__(self) -> tuple[Callable[..., ProcessDiedError], tuple[object, ...]]:
        return type(self), (self.what, self.exit_code, self._usage, self.stderr)


_RSS_UNIT = 1024 if sys.platform != "darwin" else 1
"""Bytes: see getrusage(2)."""


def _signal_name(exit_code: int | None) -> str | None:
    if exit_code is None or exit_code >= 0:
        return None
    import signal

    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


class TimeLimitError(TimeoutError):
    """A task took longer than its time limit.

    In the task itself it is raised in its main thread when the time is over, so that it can clean up.
    """


class TransferError(TypeError):
    """What was to go to a process or to come back from it cannot be pickled, or not be unpickled.

    The cause tells more: it is the exception, or its traceback from the process.
    """


class LeanCallError(RuntimeError):
    """A function that was called by `fastfork.lean` has raised an exception.

    Attributes
    ----------
    function:
        Its name.
    type_name:
        The name of the exception's type.
    traceback:
        Its traceback as it was in the process, as text.

    """

    def __init__(self, function: str, type_name: str, traceback: str) -> None:
        super().__init__(f"{function} has raised {type_name}; in the process:\n{traceback}")
        self.function = function
        self.type_name = type_name
        self.traceback = traceback

    def __reduce__(self) -> tuple[Callable[..., LeanCallError], tuple[str, str, str]]:
        return LeanCallError, (self.function, self.type_name, self.traceback)
