"""The forkserver module as multiprocessing's own Popen uses it, without Process objects."""

from __future__ import annotations

import os
import pickle
from multiprocessing.forkserver import read_signed
from typing import NamedTuple

from fastfork import forkserver


class Job:
    """What stands in for a process object: an action that returns an exit code."""

    def __init__(self, action, *arguments):
        self.action = action
        self.arguments = arguments

    def _bootstrap(self, parent_sentinel):
        return self.action(*self.arguments) or 0


class Started(NamedTuple):
    """A child and the stream that tells its exit code."""

    pid: int
    status_fd: int
    data_fd: int

    def exit_code(self):
        """Wait for the exit code and let go of the child."""
        try:
            return read_signed(self.status_fd)
        finally:
            os.close(self.status_fd)
            os.close(self.data_fd)


def start(action, *arguments, fds=()):
    """Start a child by connect_to_new_process()."""
    status_r, data_w = forkserver.connect_to_new_process(fds)
    os.write(data_w, pickle.dumps({}) + pickle.dumps(Job(action, *arguments)))
    return Started(read_signed(status_r), status_r, data_w)


def run(action, *arguments, fds=()):
    """Run a child to its end; return its exit code."""
    return start(action, *arguments, fds=fds).exit_code()
