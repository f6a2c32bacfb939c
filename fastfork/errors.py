"""The exceptions that fastfork adds to those of multiprocessing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


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
