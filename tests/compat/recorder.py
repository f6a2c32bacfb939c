"""Writes down which fork server serves an interpreter's processes, so that a test run can prove it.

This file is copied into the test environment, where a `.pth` file calls `start()` in every interpreter,
isolated ones (`-I`) too. In a fork server it opens a record, to which each child that is forked adds its
pid; in any other interpreter it does nothing. A fork server is known by its command line, since nothing may
be imported here: the suites watch `sys.modules`.
"""

from __future__ import annotations

import os
import sys

DIRECTORY_VARIABLE = "FASTFORK_COMPAT_EVIDENCE"

COMMANDS = {
    "stdlib": "from multiprocessing.forkserver import main",
    "fastfork": "fastfork.template",
}

# Before 3.15, `site` reads the .pth files of a virtual environment twice.
_started = False


def command_line() -> list[str]:
    """The whole command line of this interpreter; `sys.orig_argv` says it from 3.10."""
    if hasattr(sys, "orig_argv"):
        return sys.orig_argv
    with open("/proc/self/cmdline", "rb") as file:
        return [os.fsdecode(argument) for argument in file.read().split(b"\0")]


def server_kind() -> str | None:
    """Whose fork server this interpreter is, if it is one."""
    arguments = command_line()
    for kind, mark in COMMANDS.items():
        if any(mark in argument for argument in arguments):
            return kind
    return None


def append(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def start() -> None:
    """Open a record if this interpreter is a fork server."""
    global _started
    directory = os.environ.get(DIRECTORY_VARIABLE)
    kind = server_kind()
    if _started or not directory or not kind:
        return
    _started = True
    server = os.getpid()
    isolation = "isolated" if sys.flags.isolated else "open"
    record = os.path.join(directory, f"{kind}-{isolation}-{server}")
    append(record, "")

    def in_child() -> None:
        # A child of a child runs this hook as well, but was not asked of this server.
        if os.getppid() == server:
            append(record, f"{os.getpid()}\n")

    os.register_at_fork(after_in_child=in_child)
