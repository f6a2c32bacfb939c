"""Another client of the same server: a process that starts processes when it is told to.

The standard library's children do not know the server that they come from. There it is a thread of this process, whose
every request is a connection of its own.
"""

from __future__ import annotations

import contextlib
import errno
import threading

from support import targets
from support.processes import DEADLINE


class OtherClient:
    """A client of `server` beside this process."""

    def __init__(self, server):
        self._connection, theirs = server.context.Pipe()
        if server.kind == "stdlib":
            self._worker = threading.Thread(
                target=_start_when_told, args=(theirs, server.context), daemon=True
            )
            self._worker.start()
        else:
            self._worker = server.start(_start_when_told, theirs, server.context)
            theirs.close()

    def ask(self, code):
        """Have it start a process that leaves with `code`, and wait for that."""
        self._connection.send(("start", code))

    def has_answer(self):
        """Whether there is one."""
        return self._connection.poll()

    def answer(self):
        """Wait for the exit code, or for the errno of what went wrong, by its name."""
        assert self._connection.poll(DEADLINE), "another client hangs"
        return self._connection.recv()

    def start(self, code=3):
        """Ask; return the answer."""
        self.ask(code)
        return self.answer()

    def hold(self):
        """Have it start a process that lives until `release`."""
        self._connection.send(("hold",))
        assert self.answer() is None

    def release(self, code):
        """Have that process leave with `code`; return the exit code that arrives."""
        self._connection.send(("release", code))
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, exception_type, *_exception):
        """Have it leave."""
        self._connection.close()
        if exception_type is not None and hasattr(self._worker, "kill"):
            self._worker.kill()
        self._worker.join(DEADLINE)


class _Starter:
    """What the other client does."""

    def __init__(self, context):
        self._context = context
        self._held = None

    def start(self, code):
        process = self._context.Process(target=targets.leave, args=(code,))
        process.start()
        process.join()
        return process.exitcode

    def hold(self):
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=targets.leave_when_told, args=(receiver,))
        process.start()
        self._held = process, sender

    def release(self, code):
        process, sender = self._held
        sender.send(code)
        process.join()
        return process.exitcode


def _start_when_told(connection, context):
    starter = _Starter(context)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, *arguments = connection.recv()
            connection.send(_outcome(getattr(starter, name), arguments))


def _outcome(action, arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except EOFError:
        return "EOFError"
