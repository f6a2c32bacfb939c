"""The exceptions that fastfork adds to those of multiprocessing."""

from __future__ import annotations


class PreloadError(ConnectionError):
    """A module could not be preloaded and the template's ``on_error`` is ``"fail"``.

    It is a `ConnectionError` because that is what the standard library's fork server leaves its caller with.

    Attributes
    ----------
    module:
        The name that was to be preloaded.
    traceback:
        The traceback of the exception as it was in the template, as text.

    """

    def __init__(self, module: str, traceback: str) -> None:
        super().__init__(
            f"the fork server could not preload {module!r} (on_error='fail'); in the server:\n{traceback}"
        )
        self.module = module
        self.traceback = traceback
