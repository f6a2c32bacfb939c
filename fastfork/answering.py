"""A child that answers its client: one request, one message back, and its end. No Process object is about.

The first byte of the payload says what it is to do. A pickle, which `fastfork.child` runs, begins with none of these.
"""

from __future__ import annotations

import os
import pickle
import sys
from multiprocessing import process, resource_tracker, spawn, util

from . import _native, message, task
from .forkserver import _forkserver
from .preload import flush_standard_streams

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, Union

    from ._native import Request
    from .config import TemplateConfig
    from .message import Part

    Function = Callable[[Union[bytes, bytearray], list[int]], Union[Part, tuple[Part, list[int]], None]]

CALL = 1
"""Call a function by its name: ``module:function``, a null byte, and its bytes."""
CALL_ON_CHANNEL = 2
"""The same, but its bytes come on the channel, as a message."""
TASK = 3
"""Do a task of a `fastfork.Executor`: see `fastfork.task`."""

RETURNED = 1
"""The kind of message that holds what a function has returned."""
RAISED = 2
"""The kind of message that holds the type of the exception that a function has raised, and its traceback."""


def rehearse(rounds: int, config: TemplateConfig) -> None:
    """Go the way of a child in this process, as far as that leaves it as it is."""
    import socket

    call = bytes((CALL,)) + f"{__name__}:{_nothing.__name__}".encode() + b"\0"
    pickled = pickle.dumps((_nothing, (b"", []), {}), protocol=5)
    task_payload = task.HEADER.pack(TASK, 0, 0, 0) + pickled
    ours, theirs = socket.socketpair()
    channel = theirs.fileno()
    with ours, theirs:
        for _ in range(rounds):
            is_for(call)
            answer(_native.rehearsed_request(call, [channel, -1, -1]), config)
            util._run_after_forkers()  # type: ignore[attr-defined]
            task.do(task_payload, channel, [])
            ours.recv(_REHEARSED)


_REHEARSED = 4096
"""Bytes, more than the messages of a rehearsal."""


def _nothing(_data: bytes, _fds: list[int]) -> None:
    pass


def is_for(payload: bytes) -> bool:
    """Whether a payload is a request of this kind."""
    return payload[:1] in (b"\1", b"\2", b"\3")


def run(request: Request, config: TemplateConfig) -> NoReturn:
    """Answer. Nothing unwinds past this: the process ends here."""
    code = 1
    try:
        code = answer(request, config)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the client has let go of the channel
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        flush_standard_streams()
        os._exit(code)


def answer(request: Request, config: TemplateConfig) -> int:
    """Do what a request asks for, and answer on its channel: the exit code."""
    channel, alive_fd, tracker_fd, *fds = request.fds
    _forkserver.adopt(config, alive_fd, [])
    # After the fork hooks: the tracker's own one closes what it holds (3.12.10 and later).
    resource_tracker._resource_tracker._fd = tracker_fd  # type: ignore[attr-defined]
    payload = request.payload
    if payload[0] == TASK:
        if not config.is_prepared:
            _prepare(config, has_cwd=request.has(_native.OPTION_CWD))
        return task.run(payload, channel, fds)
    data: bytes | bytearray
    name, _, data = payload[1:].partition(b"\0")
    if payload[0] == CALL_ON_CHANNEL:
        (data,) = message.receive(channel)
    kind, parts, answer_fds = _call(name.decode(), data, fds)
    flush_standard_streams()
    _send(channel, kind, parts, answer_fds)
    return 0 if kind == RETURNED else 1


def _prepare(config: TemplateConfig, *, has_cwd: bool) -> None:
    """Become what the client was when it launched the template, but for a directory that it has been given."""
    data = {**config.prepared, "name": process.current_process().name}
    if has_cwd:
        data.pop("dir", None)
    spawn.prepare(data)


def _call(name: str, data: bytes | bytearray, fds: list[int]) -> tuple[int, Sequence[Part], Sequence[int]]:
    try:
        answer = find(name)(data, fds)
        content, answer_fds = answer if isinstance(answer, tuple) else (answer, [])
        return RETURNED, [_as_bytes(content)], answer_fds
    except Exception as error:
        import traceback  # large, and rarely needed

        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return RAISED, [type(error).__name__.encode(), text.encode("utf-8", "backslashreplace")], []


def _as_bytes(data: Part | None) -> Part:
    return b"" if data is None else data if type(data) is bytes else memoryview(data).cast("B")


def find(name: str) -> Function:
    """Return the function called ``module:function``. Raises `ImportError`, `AttributeError`, `ValueError`."""
    module_name, colon, path = name.partition(":")
    if not colon:
        raise ValueError(f"a function is named as in 'module:function', not {name!r}")
    found = sys.modules.get(module_name)
    if found is None:
        __import__(module_name)
        found = sys.modules[module_name]
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found  # type: ignore[return-value]


def _send(channel: int, kind: int, parts: Sequence[Part], fds: Sequence[int]) -> None:
    if not fds:
        message.send(channel, kind, parts)
        return
    import socket

    packed = message.pack(kind, parts)
    with socket.socket(fileno=channel) as sock:
        size = socket.send_fds(sock, packed[:1], list(fds))
        message.send_rest(channel, message.without(packed, size))
