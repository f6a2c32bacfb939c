"""Calls of preloaded functions by name, each in a process of its own: bytes in, bytes or descriptors out.

This is for authors of libraries. There is no Process object and no pickle, and next to nothing of multiprocessing in
the child: what a call costs is little more than a fork. `fastfork.Executor` stands on the same ground.

The function gets the bytes and a list of descriptors, which are its own, and returns bytes or a pair of bytes and
descriptors; anything with the buffer protocol does for bytes, None for none:

    def count_words(data: bytes, fds: list[int]) -> bytes: ...

    count = fastfork.lean.call("package.module:count_words", b"some words")

Its module should be preloaded (`fastfork.get_context`); each child has to import it otherwise. Once the function has
returned, standard output and error are flushed and the process ends by ``os._exit()``: threads are not joined and exit
functions do not run.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from . import _native, message
from .answering import CALL, CALL_ON_CHANNEL, RAISED
from .call import Call, default_server
from .client import Claim, ServerGoneError, give_up_all
from .errors import LeanCallError, ProcessDiedError
from .forkserver import ATTEMPTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Union

    from typing_extensions import Self

    from .options import ChildOptions

    Bytes = Union[bytes, bytearray, memoryview]

__all__ = ["Answer", "LeanCall", "call", "start"]

_FIRST_READ = 65536


class Answer:
    """What a function has returned.

    Attributes
    ----------
    data:
        Its bytes: a bytearray where they are many.
    fds:
        Its descriptors, which are the caller's to close.

    """

    __slots__ = ("data", "fds")

    def __init__(self, data: bytes | bytearray, fds: list[int]) -> None:
        self.data = data
        self.fds = fds


def call(
    function: str,
    data: Bytes = b"",
    *,
    fds: Sequence[int] = (),
    timeout: float | None = None,
    template: str | None = None,
    options: ChildOptions | None = None,
) -> bytes | bytearray:
    """Call a function in a fresh process; return its bytes.

    The parameters are those of `start`, and `timeout` are the seconds that it may take (None: no limit): then the
    process is killed and `TimeoutError` raised.

    Raises as `LeanCall.result`, and `ValueError` when the function has returned descriptors: use `start` for these.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    attempts = 0
    answer = None
    while answer is None:
        started = start(function, data, fds=fds, template=template, options=options)
        try:  # a signal handler would come in before the body of a with statement
            answer = started.result(None if deadline is None else deadline - time.monotonic())
        except ServerGoneError:  # the next template is asked
            attempts += 1
            if attempts == ATTEMPTS:
                raise
        finally:
            started.close()
    for fd in answer.fds:
        os.close(fd)
    if answer.fds:
        raise ValueError(f"{function} has returned descriptors, which call() does not")
    return answer.data


def start(
    function: str,
    data: Bytes = b"",
    *,
    fds: Sequence[int] = (),
    template: str | None = None,
    die_with_client: bool = True,
    options: ChildOptions | None = None,
) -> LeanCall:
    """Have a function called in a fresh process, and do not wait for it.

    Parameters
    ----------
    function:
        Its name, as in ``"package.module:function"``; ``"__main__"`` is the main module.
    data:
        The bytes that it gets. More than some 64 KB are sent while `LeanCall.result` waits.
    fds:
        Descriptors of which it gets duplicates, at most 253.
    template:
        The name of the template, as in `fastfork.get_context`.
    die_with_client:
        Whether the process is killed, and all below it, when this one ends. Options that say so have precedence.
    options:
        What the process is to be before it runs. One that cannot be applied is an `OSError` of `LeanCall.result`.

    Raises `ValueError` for a name without a colon or with a null character, for too many descriptors and for options
    that cannot be sent, `OSError` and `fastfork.PreloadError` as the start of a process does.

    """
    if ":" not in function or "\0" in function:
        raise ValueError(f"a function is named as in 'module:function', not {function!r}")
    name = function.encode() + b"\0"
    parts: list[message.Part] = []
    encoded: tuple[bytes, list[int]] = (b"", [])
    if options is not None:
        encoded = options.encode()
        die_with_client = die_with_client if options.die_with_client is None else options.die_with_client
    if len(encoded[0]) + len(name) + len(data) < _native.MAX_PAYLOAD:
        payload = b"".join((bytes((CALL,)), name, data))
    else:
        payload = bytes((CALL_ON_CHANNEL,)) + name
        parts = [memoryview(data).cast("B")]
    server = default_server(template)
    claim = Claim()
    try:
        made = Call(
            server, payload, parts, fds, dies_with_client=die_with_client, options=encoded, claim=claim
        )
        return LeanCall(function, made)
    except BaseException:
        give_up_all([claim])
        raise


class LeanCall:
    """A call that is under way, in a process of its own.

    As a context manager it ends the process if it has not answered by then.
    """

    def __init__(self, function: str, call: Call) -> None:
        self._function = function
        self._call = call
        self._fds: list[int] = []
        self._has_begun = False
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def fileno(self) -> int:
        """Return a descriptor to wait on: readable when the answer begins, or the process has ended; -1 when closed."""
        return self._call.sock.fileno()

    def pid(self) -> int:
        """Return the process id; waits until the process is there. Raises `OSError` if it could not be forked."""
        child = self._call.child()
        while child is None:
            self._call.wait(0.001)
            child = self._call.child()
        return child.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process, unless it has ended."""
        self._call.kill(number)

    def result(self, timeout: float | None = None) -> Answer:
        """Wait at most `timeout` seconds (None: no limit) for the answer.

        Raises `fastfork.LeanCallError` when the function has raised an exception, `fastfork.ProcessDiedError` when the
        process ended before it has answered, `TimeoutError` when the time is over, and `OSError` when the process could
        not be forked: a `ConnectionResetError` where the template died before it had read the request.
        """
        if self._answer is None and self._error is None:
            self._receive(None if timeout is None else time.monotonic() + timeout)
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def _receive(self, deadline: float | None) -> None:
        try:
            while not self._read():
                self._await_event(deadline)
        except EOFError:
            self._error = self._death()
        except (MemoryError, OverflowError, ValueError) as error:  # nothing that a function returns
            self._error = error
            self._call.abandon()
        else:
            self._take_answer()
            self._call.forget()

    def _read(self) -> bool:
        if self._has_begun:
            return self._call.read()
        try:
            content, fds, _, _ = socket.recv_fds(self._call.sock, _FIRST_READ, _native.MAX_FDS_PER_MESSAGE)
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise EOFError(str(error)) from error
        self._has_begun = True
        self._fds = list(fds)
        return self._call.reader.take(content) or self._call.read()

    def _await_event(self, deadline: float | None) -> None:
        """Wait until the channel is readable or takes what is to be sent."""
        poller = select.poll()
        poller.register(
            self._call.sock, select.POLLIN if self._call.send() else select.POLLIN | select.POLLOUT
        )
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError(f"{self._function} has not answered in time")
        poller.poll(None if remaining is None else max(remaining, 0.001) * 1000)

    def _take_answer(self) -> None:
        reader = self._call.reader
        if reader.kind == RAISED:
            name, text = (bytes(part).decode("utf-8", "replace") for part in reader.parts)
            self._error = LeanCallError(self._function, name, text)
        else:
            self._answer = Answer(reader.parts[0], self._fds)

    def _death(self) -> Exception:
        self._call.sock.close()
        try:
            child = self._call.wait(None)
        except OSError as error:
            return error
        assert child is not None
        return ProcessDiedError(self._function, child.exit_code, child.usage)

    def close(self) -> None:
        """Let go of it: the process is killed if it has not answered yet."""
        if self._answer is None and self._error is None:
            self._error = ValueError("the call has been closed")
            self._call.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()
