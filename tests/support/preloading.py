"""What processes of the tests tell about what a preload has left them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

from .processes import wait_until


def send_result(connection, function, *arguments):
    """Report what a function returns."""
    connection.send(function(*arguments))


def exit_code_of_start_after_death(start_method):
    """Kill this process's template; return the exit code of a process that is started then."""
    template = os.getppid()
    os.kill(template, signal.SIGKILL)
    wait_until(lambda: os.getppid() != template)
    process = multiprocessing.get_context(start_method).Process(target=os._exit, args=(7,))
    process.start()
    process.join()
    return process.exitcode


def module_is_there(name):
    return name in sys.modules


def signal_masks():
    """Return the signals that are blocked, ignored and caught, as the kernel sees them."""
    fields = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")]


def handlers(*numbers):
    """Return the names of the signal handlers."""
    found = [signal.getsignal(number) for number in numbers]
    return [getattr(handler, "__name__", str(handler)) for handler in found]


def disposition(number):
    """Return what the kernel does with a signal: ``"default"``, ``"ignored"`` or ``"caught"``."""
    _, ignored, caught = signal_masks()
    bit = 1 << (number - 1)
    return "ignored" if ignored & bit else "caught" if caught & bit else "default"


def is_blocked(number):
    return number in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def signals_handled_by_preloaded(number):
    """Send this process the signal; return those that the preloaded module's handler has had."""
    import preloaded

    os.kill(os.getpid(), number)
    return preloaded.handled


def exit_code_of_subprocess(code):
    return subprocess.call(["/bin/sh", "-c", f"exit {code}"])


def read_at(fd):
    """Return the first bytes of an open file."""
    return os.pread(fd, 100, 0)


def kinds_of_standard_descriptors():
    """Return for descriptors 0 to 2 what each is: a name of /proc, without its number, or None."""
    return [_kind(fd) for fd in range(3)]


def _kind(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]
    except FileNotFoundError:
        return None


def surroundings():
    """Return what a process has from its parent, less what identifies it."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "directory": os.getcwd(),
        "umask": umask,
        "environment": os.environ.get("PRELOADED"),
        "environment of C": _environment_of_subprocess(),
        "niceness": os.nice(0),
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
        "recursion": sys.getrecursionlimit(),
        "switches": sys.getswitchinterval(),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "path": "/from/the/preload" in sys.path,
        "modules": "preloaded" in sys.modules,
        "group": os.getpgrp() == os.getsid(0),
    }


def _environment_of_subprocess():
    return subprocess.check_output(["/bin/sh", "-c", "printf %s $PRELOADED"]).decode()


def random_number():
    return random.random()


def is_socket(fd):
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


def preloaded_answer():
    import preloaded

    return preloaded.answer


def preloaded_threads():
    """Return how many threads there are in this process."""
    return len(os.listdir("/proc/self/task"))
