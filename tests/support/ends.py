"""How processes of the tests end: each of these functions is a target, and its exit code is known."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import pathlib
import resource
import signal
import sys
import threading
import time
from multiprocessing import util

from .targets import leave, leave_after, wait_for_a_signal, wait_for_end_of


def without_core() -> None:
    """Die without leaving a core file behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# ---- signals ----


def die_of(number):
    """Die of the signal, whatever Python makes of it."""
    without_core()
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    time.sleep(60)


def write_to_null():
    without_core()
    ctypes.memset(0, 1, 1)


def abort():
    without_core()
    os.abort()


def stop_self_and_leave(number, code):
    """Stop by a signal, and leave once it goes on.

    In a group of its own: what a terminal stops by stops no group that has no parent in its session to let it go on.
    """
    os.setpgid(0, 0)
    os.kill(os.getpid(), number)
    sys.exit(code)


def signal_self_and_leave(number, code):
    os.kill(os.getpid(), number)
    sys.exit(code)


def say_and_leave_after(ready, connection, code):
    """Release a semaphore, and leave with the code once the other end of the pipe is closed."""
    ready.release()
    leave_after(connection, code)


# ---- os._exit() ----


class LeavesWhenLoaded:
    """Unpickling it ends the process."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return os._exit, (self.code,)


class ImportsWhenLoaded:
    """Unpickling it imports a module."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return importlib.import_module, (self.name,)


class LeavesWhenDropped:
    def __init__(self, code):
        self.code = code

    def __del__(self):
        os._exit(self.code)


def drop(code):
    held = LeavesWhenDropped(code)
    del held


def leave_in_thread(code):
    thread = threading.Thread(target=os._exit, args=(code,))
    thread.start()
    thread.join()


def leave_in_finalizer(code):
    util.Finalize(None, os._exit, (code,), exitpriority=1)


def leave_in_exit_function(code):
    atexit.register(os._exit, code)


def leave_in_signal_handler(code):
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(code))
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(60)


# ---- exceptions and SystemExit ----


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError("cannot be printed")

    __repr__ = __str__


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


class NotAnException(BaseException):
    pass


class OddInteger(int):
    """A number that claims to be another one."""

    def __index__(self):
        return 77

    __int__ = __str__ = __repr__ = __index__


def raise_one(kind):
    raise kind


def raise_unloadable():
    raise UnpicklableError(threading.Lock())


def return_unloadable():
    return threading.Lock()


def recurse():
    recurse()


def leave_with_unprintable():
    sys.exit(UnprintableError())


def leave_in_other_thread(code):
    """`SystemExit` in a thread ends that thread alone."""
    thread = threading.Thread(target=sys.exit, args=(code,))
    thread.start()
    thread.join()


def raise_in_thread():
    threading.excepthook = lambda *_: None
    thread = threading.Thread(target=raise_one, args=(ValueError,))
    thread.start()
    thread.join()


def fail_in_exit_function(code):
    util.Finalize(None, raise_one, (ValueError,), exitpriority=1)
    sys.exit(code)


# ---- standard streams ----


def leave_without_streams(code):
    sys.stdin = sys.stdout = sys.stderr = None
    sys.exit(code)


def fail_without_streams():
    sys.stdin = sys.stdout = sys.stderr = None
    raise ValueError("nobody hears")


def close_streams_and_leave(code):
    sys.stdout.close()
    sys.stderr.close()
    sys.exit(code)


def close_streams_and_fail():
    sys.stdout.close()
    sys.stderr.close()
    raise ValueError("nobody hears")


def close_standard_descriptors_and_leave(code):
    for fd in range(3):
        os.close(fd)
    sys.exit(code)


def print_to_nobody(path):
    """Leave with 5 what cannot be flushed any more at the end."""
    fd = os.open(path, os.O_WRONLY)
    os.dup2(fd, 1)
    os.close(fd)
    sys.stdout.write("unheard")
    sys.exit(5)


def print_to_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    sys.stdout.write("unheard")
    sys.exit(5)


# ---- descriptors ----


def close_all():
    os.closerange(0, 65536)


def close_all_and_leave(code):
    close_all()
    sys.exit(code)


def close_all_and_fail():
    close_all()
    raise ValueError("nobody hears")


def close_all_and_die_of(number):
    close_all()
    die_of(number)


def close_all_and_wait():
    close_all()
    wait_for_a_signal()


def close_all_and_start(context):
    """Leave with the errno of a start without the descriptors that it takes."""
    close_all()
    try:
        context.Process(target=leave, args=(1,)).start()
    except OSError as error:
        os._exit(error.errno)


# ---- other programs, other processes ----


def execute(*command):
    os.execv(command[0], command)


def execute_with_all_descriptors(*command):
    """Have the new program hold whatever this process does."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.set_inheritable(int(fd), True)
    execute(*command)


def fork_and_leave(code, other_code):
    """Leave with the first code as parent, with the other one as child of a raw fork; both by way of Python."""
    pid = os.fork()
    if pid == 0:
        sys.exit(other_code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == other_code
    sys.exit(code)


def leave_a_daemon_behind(connection, code, folder):
    """Fork twice; what remains holds every descriptor that this process has until the pipe's other end is closed."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            pathlib.Path(folder, "ready").touch()
            wait_for_end_of(connection)
            pathlib.Path(folder, "done").touch()
        os._exit(0)
    os.wait()
    while not pathlib.Path(folder, "ready").exists():
        time.sleep(0.002)
    sys.exit(code)


def leave_with_threads(code):
    """A daemon thread does not keep the process, another one does."""
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    threading.Thread(target=time.sleep, args=(0.05,)).start()
    sys.exit(code)


def become_a_session_and_die_of(number):
    os.setsid()
    die_of(number)


def leave_as_own_child_does(context, code):
    """Leave with the exit code of a process that this one starts."""
    process = context.Process(target=leave, args=(code,))
    process.start()
    process.join()
    sys.exit(process.exitcode)


def leave_amid_signals(code):
    """Be interrupted all the way to the end."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    sys.exit(code)
