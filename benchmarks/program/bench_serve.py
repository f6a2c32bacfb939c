"""The client's end of the conversation with the runner: one request, one reply."""

from __future__ import annotations

import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


def serve(descriptor: int, subject: object) -> None:
    """Call methods of `subject` as the runner asks for them, until it closes its end.

    A request is `(method name, arguments)`; a reply is `(True, result)` or `(False, traceback text)`.
    """
    runner: Connection[Any, Any] = Connection(descriptor)
    with runner, suppress(EOFError, ConnectionError):
        while True:
            name, arguments = runner.recv()
            runner.send(_attempt(subject, name, arguments))


def _attempt(subject: object, name: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, getattr(subject, name)(*arguments)
    except Exception:
        return False, traceback.format_exc()
