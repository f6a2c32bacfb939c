"""What processes tell of what they have been made."""

from __future__ import annotations

import os
import resource
import subprocess
import sys


def tell(connection) -> None:
    """Send all that options are about."""
    mask = os.umask(0)
    os.umask(mask)
    connection.send(
        {
            "env": dict(os.environ),
            "env_of_c": subprocess.check_output(["/usr/bin/env", "-0"]),
            "cwd": os.getcwd(),
            "umask": mask,
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "affinity": os.sched_getaffinity(0),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "leads_session": os.getsid(0) == os.getpid(),
            "options": getattr(sys.modules["multiprocessing"].current_process(), "_options", None),
        }
    )


def tell_with_ballast(connection, _ballast) -> None:
    tell(connection)


def tell_nested(connection, context, options) -> None:
    """Have a process of this process tell of itself."""
    process = context.Process(target=tell, args=(connection,), options=options)
    process.start()
    process.join()
    sys.exit(process.exitcode)


def copy_input() -> None:
    """Write what is read to each output, in each way."""
    text = input()
    print(text, "by print()")
    print(text, "by print()", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, f"{text} by write()\n".encode())
    subprocess.run(["/bin/cat"], check=True)  # the rest
    sys.exit(len(sys.stdin.read()))


def tell_streams(connection) -> None:
    numbers = [os.fstat(fd).st_rdev for fd in range(3)]
    connection.send((numbers, sys.stdin.read(), sys.stdout.line_buffering))


def tell_input_of_a_fork(connection) -> None:
    """Send what this process reads, and what a process forked from it does."""
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=_send_input, args=(connection,))
    process.start()
    process.join()
    _send_input(connection)


def _send_input(connection) -> None:
    connection.send(sys.stdin.read())


def describe(_data, _fds) -> bytes:
    """Tell a lean call's client where it is and what it has."""
    return repr((os.getcwd(), dict(os.environ), os.environb.get(b"B"))).encode()
