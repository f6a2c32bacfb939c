"""What a task of a `fastfork.Executor` is in the child: a function that is called, and what becomes of it.

The request is a header and then, unless they come on the channel, the parts of the task: a pickle of function,
arguments and keyword arguments, and the buffers that it has left out (pickle protocol 5, PEP 574).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import struct
import sys
import threading
from multiprocessing import process, util

from . import message
from .preload import flush_standard_streams

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO, Any

    from .message import Part

    Dumps = Callable[..., bytes]
    """`pickle.dumps`, or what takes the same arguments."""
    Outcome = tuple[int, list[Part]]

HEADER = struct.Struct("=BBII")
"""What the request is, the flags below, the client's pid, and the size of the pickled circumstances that follow."""

HAS_TIME_LIMIT = 1
"""SIGTERM means that the time is over."""
IS_ON_CHANNEL = 2
"""The parts of the task come on the channel, as a message."""

CAPTURES = 4
"""Two descriptors came along: its standard output and error."""

RETURNED = 1
"""The result, pickled, and its buffers."""
RAISED = 2
"""The traceback as text, and the exception, pickled."""
UNPICKLABLE = 3
"""What cannot be pickled, why, and a traceback, as text."""
FINAL = 0x100
"""The process does nothing any more but end: another one may take its place."""

MIN_BUFFER = 4096
"""Bytes from which a buffer is left out of a pickle: smaller ones are copied faster than they are listed."""


_channel = -1


class Circumstances:
    """What differs for a task from how its template was launched; by attribute, all of them optional."""

    sys_path: list[str] | None = None
    directory: str | None = None
    serializer: str = "pickle"

    def __init__(self, **values: object) -> None:
        vars(self).update(values)


def dump(value: object, dumps: Dumps) -> list[Part]:
    """Return `value` pickled, and the buffers that belong to it as they lie in memory."""
    buffers: list[Part] = []

    def keeps_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # it is not in one piece
            return True
        if raw.nbytes < MIN_BUFFER:
            return True
        buffers.append(raw)
        return False

    return [dumps(value, protocol=5, buffer_callback=keeps_in_band), *buffers]


def load(parts: Sequence[bytes | bytearray]) -> Any:
    """Return what was dumped."""
    return pickle.loads(parts[0], buffers=parts[1:])


def run(payload: bytes, channel: int, fds: list[int]) -> int:
    """Do a task and answer on `channel`: the exit code."""
    _become_child(channel, payload)
    code = do(payload, channel, fds)
    if code is None:
        _end_all()
        return 0
    return code


def do(payload: bytes, channel: int, fds: list[int]) -> int | None:
    """Do a task and answer on `channel`: the exit code, or None where something is to be ended first.

    A template rehearses this.
    """
    _, flags, _, size = HEADER.unpack_from(payload)
    if flags & CAPTURES:
        _redirect(fds)
    if flags & HAS_TIME_LIMIT:
        signal.signal(signal.SIGTERM, _stop_for_time)
    rest = payload[HEADER.size + size :]
    circumstances = _take_circumstances(payload[HEADER.size : HEADER.size + size]) if size else Circumstances
    parts = message.receive(channel) if flags & IS_ON_CHANNEL else [rest]
    try:
        kind, answer = _do(parts, circumstances.serializer)
    except SystemExit as error:
        return _leave(error)
    except KeyboardInterrupt:
        return _end_by(signal.SIGINT)
    flush_standard_streams()
    is_final = _has_nothing_to_end()
    message.send(channel, kind | FINAL if is_final else kind, answer)
    return 0 if is_final else None


def _become_child(channel: int, payload: bytes) -> None:
    """Be to multiprocessing the child of the client, and leave to the template what is to be done at its end."""
    _, _, client_pid, _ = HEADER.unpack_from(payload)
    with contextlib.suppress(OSError):  # it leads a session
        os.setpgid(0, 0)
    vars(process)["_parent_process"] = process._ParentProcess("MainProcess", client_pid, channel)  # type: ignore[attr-defined]
    atexit._clear()
    util._finalizer_registry.clear()  # type: ignore[attr-defined]
    util._run_after_forkers()  # type: ignore[attr-defined]
    global _channel
    _channel = channel
    os.register_at_fork(after_in_child=_be_nobodys_child)


def _redirect(fds: list[int]) -> None:
    """Have standard output and error go to the descriptors, whatever they were before."""
    for number, name, fd in zip((1, 2), ("stdout", "stderr"), fds):
        os.dup2(fd, number)
        os.close(fd)
        if not _is_of(getattr(sys, name), number):
            stream = open(number, "w", closefd=False)  # noqa: SIM115 -- it is the process's for good
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _is_of(stream: IO[str] | None, fd: int) -> bool:
    """Whether a stream writes to a descriptor: there may be none, or one that somebody has put in its place."""
    try:
        return stream is not None and stream.fileno() == fd
    except (AttributeError, OSError, ValueError):
        return False


def _be_nobodys_child() -> None:
    """In a process that a task has forked: let go of the channel, lest it outlive the task."""
    global _channel
    channel, _channel = _channel, -1
    if channel >= 0:
        os.close(channel)
        vars(process)["_parent_process"] = None


def _take_circumstances(content: bytes) -> Circumstances:
    circumstances: Circumstances = pickle.loads(content)
    if circumstances.sys_path is not None:
        sys.path[:] = circumstances.sys_path
    if circumstances.directory is not None:
        os.chdir(circumstances.directory)
    return circumstances


def _stop_for_time(_number: int, _frame: object) -> None:
    from .errors import TimeLimitError

    raise TimeLimitError("the time limit of the task is over")


def _do(parts: Sequence[bytes | bytearray], serializer: str) -> Outcome:
    function = None
    try:
        function, arguments, keywords = load(parts)
        del parts
        value = function(*arguments, **keywords)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        return _raised(error, serializer)
    try:
        return RETURNED, dump(value, dumps_of(serializer))
    except Exception as error:
        return _unpicklable(f"the result, of type {_type_name(value)}", error)


def dumps_of(serializer: str) -> Dumps:
    """Return the function of a module that pickles. Raises `ImportError`, `AttributeError`."""
    if serializer == "pickle":
        return pickle.dumps
    __import__(serializer)
    dumps: Dumps = sys.modules[serializer].dumps
    return dumps


def _raised(error: BaseException, serializer: str) -> Outcome:
    text = _traceback(error)
    try:
        return RAISED, [_encode(text), *_dump_exception(error, serializer)]
    except Exception as failure:
        kind, parts = _unpicklable(f"the exception, of type {_type_name(error)}", failure)
        return kind, [*parts[:2], _encode(text)]


def _dump_exception(error: BaseException, serializer: str) -> list[Part]:
    """Pickle what a task has raised, plainly where the serializer fails: that may be half imported for it."""
    try:
        return dump(error, dumps_of(serializer))
    except Exception:
        if serializer == "pickle":
            raise
        return dump(error, pickle.dumps)


def _unpicklable(what: str, error: BaseException) -> Outcome:
    return UNPICKLABLE, [_encode(what), _encode(_summary(error)), _encode(_traceback(error))]


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _summary(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__ raises
        return type(error).__name__


def _traceback(error: BaseException) -> str:
    import traceback  # large, and rarely needed

    # The first frame is this module's.
    frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return "".join(traceback.format_exception(type(error), error, frames))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _leave(error: SystemExit) -> int:
    """Return the exit code of ``sys.exit()``, and end what is to be ended."""
    code: object = error.code
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
    _end_all()
    return 0 if code is None else code & 0xFF if isinstance(code, int) else 1


def _end_by(number: int) -> int:
    """End by a signal, so that whoever asks learns of it."""
    flush_standard_streams()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 1


def _has_nothing_to_end() -> bool:
    """Whether no thread is left, no process, and nothing that is registered for the end."""
    return (
        len(threading._active) == 1  # type: ignore[attr-defined]
        and not process._children  # type: ignore[attr-defined]
        and not util._finalizer_registry  # type: ignore[attr-defined]
        and not atexit._ncallbacks()
    )


def _end_all() -> None:
    """End as an interpreter does: join threads and processes, and run what is registered for the end."""
    threading._shutdown()  # type: ignore[attr-defined]
    util._exit_function()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flush_standard_streams()
