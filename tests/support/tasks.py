"""Tasks for executors, and functions for lean calls."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import process, shared_memory

import fastfork

STATE = []


def initialize(*values):
    STATE.extend(values)


def state():
    return list(STATE)


def append_to_state(value):
    STATE.append(value)
    return list(STATE)


def fail(error):
    raise error


def sleep_and_return(seconds, value):
    time.sleep(seconds)
    return value


def tell_pid_and_stay(path):
    """Write the pid of this process and that of one below it to a file, and stay."""
    below = subprocess.Popen(["sleep", "600"])
    write_whole(path, f"{os.getpid()} {below.pid}")
    time.sleep(600)


def tell_pid_and_stay_on(path):
    """The same, whatever time limit there is."""
    while True:
        with contextlib.suppress(fastfork.TimeLimitError):
            tell_pid_and_stay(path)


def write_whole(path, text):
    with open(f"{path}.part", "w") as stream:
        stream.write(text)
    os.rename(f"{path}.part", path)


def speak(end=None):
    """Write in all ways there are, and then do `end`."""
    sys.stdout.write("from Python\n")
    sys.stderr.write("error from Python\n")
    os.write(1, b"from the system\n")
    subprocess.run(["sh", "-c", "echo from below; echo error from below >&2"], check=True)
    return end() if end is not None else None


def leave_with_lines(count):
    os.write(2, b"".join(b"line %d\n" % number for number in range(count)))
    os._exit(3)


def write_much(size):
    sys.stdout.write("x" * size)


def print_at_exit():
    import atexit

    atexit.register(print, "at exit")


def divide_by_zero():
    return 1 // 0


def sleep_on():
    while True:
        with contextlib.suppress(fastfork.TimeLimitError):
            time.sleep(600)


def leads_session():
    return os.getsid(0) == os.getpid()


def clean_up_in_time():
    try:
        time.sleep(600)
    except fastfork.TimeLimitError:
        return "cleaned up"


def allocate(size):
    return len(bytearray(size))


def dump_core_never():
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def kill_self(number):
    os.kill(os.getpid(), number)
    time.sleep(600)


def unpicklable(_argument=None):
    return threading.Lock()


def raise_unpicklable():
    error = ValueError("with a lock")
    error.lock = threading.Lock()
    raise error


class NeedsTwoError(Exception):
    """Pickles, but does not unpickle: as many exceptions of many libraries."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_not_unpicklable():
    raise NeedsTwoError(1, 2)


class ExplodesOnArrival:
    """Pickles anywhere, and unpickles in no process but the one that has made it."""

    def __init__(self):
        self.pid = os.getpid()

    def __reduce__(self):
        return explode_elsewhere, (self.pid,)


def explode_elsewhere(pid):
    if os.getpid() != pid:
        raise RuntimeError("explodes")
    return pid


def leave_thread(path):
    """Return while a thread goes on, which writes to a file in the end."""
    go_on = threading.Event()

    def work():
        go_on.wait()
        write_whole(path, "written by a thread")

    threading.Thread(target=work).start()
    threading.Timer(0.05, go_on.set).start()
    return "returned"


def leave_exit_function(path):
    import atexit

    atexit.register(write_whole, path, "written at exit")
    return "returned"


def leave_fork():
    """Return while a process lives that was forked, and has what this one has open."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return pid


def die_leaving_fork(path):
    write_whole(path, str(leave_fork()))
    os._exit(5)


def nested_sum(depth):
    if depth == 0:
        return 1
    with fastfork.Executor(1) as executor:
        return 1 + executor.submit(nested_sum, depth - 1).result()


def seen():
    return {
        "parent": process.parent_process().pid,
        "directory": os.getcwd(),
        "argv": list(sys.argv),
        "path": list(sys.path),
        "authkey": bytes(process.current_process().authkey),
        "group": os.getpgrp() == os.getpid(),
    }


def write_to_shared_memory(name, content):
    memory = shared_memory.SharedMemory(name=name)
    memory.buf[: len(content)] = content
    memory.close()


class Buffer:
    """Bytes that pickle leaves out of band."""

    def __init__(self, content):
        self.content = content

    def __reduce_ex__(self, protocol):
        return Buffer, (pickle.PickleBuffer(self.content),)


def checksum(buffer):
    return sum(memoryview(buffer.content)), len(buffer.content)


def make_buffer(size):
    return Buffer(bytearray(b"\1") * size)


def corrupt_channel():
    """Write something to the channel that is no answer."""
    from fastfork import task

    os.write(task._channel, b"\xff" * 100)
    time.sleep(600)


def interrupt_self():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)


# ---- for lean calls ----


def echo(data, fds):
    return data


def length(data, fds):
    return str(len(data)).encode()


def many(data, fds):
    return bytearray(int(data))


def nothing(data, fds):
    return None


def no_bytes(data, fds):
    return "text"


def raise_error(data, fds):
    raise ValueError(data.decode())


def leave(data, fds):
    os._exit(int(data))


def stay(data, fds):
    time.sleep(600)


def exchange(data, fds):
    """Write to the descriptor that came along; return another one."""
    os.write(fds[0], data)
    reader, writer = os.pipe()
    os.write(writer, data[::-1])
    os.close(writer)
    return data, [reader]


def open_descriptors(data, fds):
    return str(len(os.listdir("/proc/self/fd"))).encode()


def make_adder(number):
    return lambda other: number + other
