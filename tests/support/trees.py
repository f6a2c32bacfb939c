"""What processes of the tests tell about who started them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path


def send_parent(connection):
    connection.send(os.getppid())


def send_server_of_child(connection):
    """Start a process by multiprocessing's "forkserver" and send what its parent is."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_parent, args=(sender,))
    process.start()
    command = Path(f"/proc/{receiver.recv()}/cmdline").read_bytes()
    process.join()
    connection.send("fastfork" if b"fastfork.template" in command else "standard library")
