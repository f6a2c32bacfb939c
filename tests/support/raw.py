"""The forkserver module as multiprocessing's own Popen uses it, without Process objects."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from multiprocessing.forkserver import read_signed
from typing import NamedTuple

from fastfork import forkserver
from fastfork.auth import authenticate


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


def send_garbage(template):
    """Connect to a template, authenticate, and send what is no frame; return once it has closed the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(template._forkserver_address)
        authenticate(sock, template._forkserver_authkey)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1000):
                pass
