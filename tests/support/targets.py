"""What the processes of the tests do. They import this module by its name, as a program's own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from multiprocessing import process

from fastfork import forkserver


def nothing(*_arguments):
    pass


def square(number):
    return number * number


def own_pid(*_arguments):
    return os.getpid()


def leave(code):
    sys.exit(code)


def leave_at_once(code):
    os._exit(code)


def fail(message):
    raise ValueError(message)


def kill_self(number):
    if number in (signal.SIGSEGV, signal.SIGABRT):
        with contextlib.suppress(ImportError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    signal.pause()


def wait_for_end_of(connection):
    """Block until the other end of the pipe is closed."""
    with contextlib.suppress(EOFError):
        connection.recv()


def leave_when_told(connection):
    """Block until a number comes; leave with it."""
    sys.exit(connection.recv())


def leave_when_released(code):
    """Block until the other end of the first inherited pipe is closed; return the exit code."""
    os.read(forkserver.get_inherited_fds()[0], 1)
    return code


def compare_inherited(inodes):
    """Return 0 if the inherited descriptors stand for these files, in this order, else 1."""
    return int([os.fstat(fd).st_ino for fd in forkserver.get_inherited_fds()] != inodes)


def put(queue, *items):
    for item in items:
        queue.put(item)


def send(connection, value):
    connection.send(value)


def send_own_state(connection):
    """Report what a child knows about itself and where it comes from."""
    current, parent = process.current_process(), process.parent_process()
    connection.send(
        {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "name": current.name,
            "daemon": current.daemon,
            "authkey": bytes(current.authkey),
            "identity": current._identity,
            "parent": (parent.pid, parent.name, parent.is_alive()),
            "directory": os.getcwd(),
            "original directory": process.ORIGINAL_DIR,
            "argv": sys.argv,
            "start method": multiprocessing.get_start_method(allow_none=True),
            "inherited": forkserver.get_inherited_fds(),
        }
    )


def send_modules(connection, names):
    """Report which of the modules were there before this function ran."""
    connection.send([name for name in names if name in sys.modules])


def send_ancestry(connection, context, depth):
    """Report the pids of the parents of a chain of `depth` nested processes, innermost last."""
    below = []
    if depth > 1:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=send_ancestry, args=(sender, context, depth - 1))
        child.start()
        sender.close()
        below = receiver.recv()
        receiver.close()
        child.join()
        assert child.exitcode == 0
    connection.send([os.getppid(), *below])
