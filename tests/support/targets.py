"""What the processes of the tests do. They import this module by its name, as a program's own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from multiprocessing import process, shared_memory

import fastfork
from fastfork import forkserver
from support import processes


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


def note_and_leave(path, note, code):
    """Add a line to a file; leave with the code."""
    with open(path, "a", encoding="utf-8") as notes:
        notes.write(f"{note}\n")
    sys.exit(code)


def fail(message):
    raise ValueError(message)


def kill_self(number):
    if number in (signal.SIGSEGV, signal.SIGABRT):
        with contextlib.suppress(ImportError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    signal.pause()


def wait_for_a_signal():
    """Sleep in steps: a handler in Python for a signal that comes just before a sleep runs only after that."""
    while True:
        time.sleep(0.05)


def stay(*_arguments):
    time.sleep(600)


def wait_for_end_of(connection):
    """Block until the other end of the pipe is closed."""
    with contextlib.suppress(EOFError):
        connection.recv()


def leave_after(connection, code):
    """Block until the other end of the pipe is closed; leave with the code."""
    wait_for_end_of(connection)
    sys.exit(code)


def begin_and_leave_after(connection, code):
    """Say that this process has begun; do the same then."""
    connection.send(None)
    leave_after(connection, code)


def kill_self_after(connection, number):
    """Block until the other end of the pipe is closed; then die of the signal."""
    wait_for_end_of(connection)
    kill_self(number)


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


def send_random(connection):
    connection.send(random.random())


def send_own_state(connection):
    """Report what a child knows about itself and where it comes from."""
    current, parent = process.current_process(), process.parent_process()
    umask = os.umask(0)
    os.umask(umask)
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
            "environment": dict(os.environ),
            "umask": umask,
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


class Worker(multiprocessing.get_context("fastfork").Process):
    """A Process by inheritance."""

    def __init__(self, connection, number):
        super().__init__()
        self.connection = connection
        self.number = number

    def run(self):
        self.connection.send(square(self.number))


def send_error_of_start(connection, context):
    try:
        context.Process(target=nothing).start()
    except AssertionError as error:
        connection.send(str(error))


_remembered = None


def remember(value):
    global _remembered
    _remembered = value


def recall(*_arguments):
    return _remembered


def take_all(queue, count):
    for _ in range(count):
        queue.get()
        queue.task_done()


def echo_through(connection):
    """Receive a connection over a connection, and return what comes there."""
    inner = connection.recv()
    inner.send(inner.recv())


def count_up(lock, counter, times):
    for _ in range(times):
        with lock:
            counter.value += 1


def wait_and_notify(event, condition):
    event.wait()
    with condition:
        condition.notify()


def use_lock_when_told(connection, lock):
    connection.recv()
    with lock:
        pass


def change_shared(value, array, raw_value, raw_array):
    with value.get_lock():
        value.value += 1
    for i, item in enumerate(array):
        array[i] = 2 * item
    raw_value.value += 1
    raw_array[:] = [1, 2, 3]


def write_shared_memory(name, content):
    memory = shared_memory.SharedMemory(name)
    memory.buf[: len(content)] = content
    memory.close()


def change_managed(mapping, items, lock):
    with lock:
        mapping["child"] = 2
        items.append(3)


def send_from_thread(connection):
    threading.Thread(target=connection.send, args=("from the thread",)).start()


class NamedWorker(fastfork.get_context(template="of the targets").Process):
    """A Process by inheritance, of a template with a name."""

    def __init__(self, connection, number):
        super().__init__()
        self.connection = connection
        self.number = number

    def run(self):
        assert self._template == "of the targets"
        self.connection.send(square(self.number))


def parent_pid(*_arguments):
    return os.getppid()


def send_template_of(connection, context):
    connection.send(context.template)


def send_process(connection, unstarted):
    connection.send((unstarted.name, unstarted._template))


def send_ancestry_with(connection, inner_context, outer_context):
    """Report the pids of this process's parent and of the parent of a child of another context."""
    receiver, sender = outer_context.Pipe(duplex=False)
    child = inner_context.Process(target=send_ancestry, args=(sender, inner_context, 1))
    child.start()
    sender.close()
    connection.send([os.getppid(), *receiver.recv()])
    receiver.close()
    child.join()


def send_length_and_sum(connection, content):
    connection.send((len(content), sum(content)))


def leave_with_length(content):
    sys.exit(len(content) % 251)


class RaisesWhenLoaded:
    """What can be pickled but not unpickled."""

    def __reduce__(self):
        return _raise_when_loaded, ()


def _raise_when_loaded():
    raise ValueError("cannot be loaded")


def receive_from_all(connections):
    assert [connection.recv() for connection in connections] == list(range(len(connections)))


def send_descriptors(connection):
    connection.send(processes.descriptors())


def send_descriptor_counts(connection, context, depth):
    """Report how many descriptors each of `depth` nested processes begins with."""
    counts = [len(processes.descriptors())]
    if depth > 1:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=send_descriptor_counts, args=(sender, context, depth - 1))
        child.start()
        counts += receiver.recv()
        child.join()
    connection.send(counts)


def send_standard_input(connection):
    connection.send(sys.stdin.read() + os.read(0, 10).decode())


def start_when_told(connection, context):
    """Wait for a word, start a process and report its parent and its exit code."""
    connection.recv()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send_parent_and_leave, args=(sender, 9))
    child.start()
    parent = receiver.recv()
    child.join()
    connection.send((parent, child.exitcode))


def start_when_told_and_stay(connection, context):
    """The same, and live until the connection ends."""
    start_when_told(connection, context)
    with contextlib.suppress(EOFError):
        connection.recv()


def send_parent_and_leave(connection, code):
    connection.send(os.getppid())
    sys.exit(code)


def send_parents_around_stop(connection, context):
    """Report the parents of two processes, one before and one after this process lets go of its template."""
    parents = []
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=send_parent_and_leave, args=(sender, 0))
        child.start()
        parents.append(receiver.recv())
        child.join()
        fastfork.stop()
    connection.send(parents)


def send_status(connection):
    connection.send(fastfork.server_status())


def start_and_stay(connection, context):
    """Start a process that stays, report its pid, and stay."""
    child = context.Process(target=wait_for_end_of, args=(connection,))
    child.start()
    connection.send(child.pid)
    child.join()


def dies_with_client():
    return multiprocessing.current_process()._die_with_client
