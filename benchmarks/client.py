"""The runner's end of a client: a fresh interpreter in which one rival is measured.

Each rival has a process of its own, so that none inherits another's modules, threads or descriptors: what
`fork` copies is a small program, not a benchmark full of fork servers.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import environment
from .errors import BenchError
from .rivals import FLOOR, Rival

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program")
_DEADLINE = 180.0
"""Seconds that a client may take for one request."""
_EXIT_DEADLINE = 10.0
"""Seconds that a client may take to end."""


@contextmanager
def launched(rival: Rival, preload: list[str]) -> Iterator[Client]:
    """A client that is ready to measure `rival`, and is ended when the block is left."""
    sys_path = [os.path.abspath(entry) for entry in sys.path]
    client = Client(rival, sys_path)
    try:
        client.ask("setup", rival.method, preload, sys_path)
        yield client
    finally:
        client.close()


class Client:
    """A running client. Its methods raise `BenchError` when it cannot do what it is asked."""

    def __init__(self, rival: Rival, sys_path: list[str]) -> None:
        self._name = rival.name
        self._connection, theirs = multiprocessing.Pipe()
        script = "bench_floor.py" if rival.name == FLOOR else "bench_client.py"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, os.path.join(_PROGRAM, script), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_variables(rival, sys_path),
                stdout=subprocess.DEVNULL,  # a preloaded module may print; standard output is the report's
                start_new_session=True,  # Ctrl-C is the runner's to handle; it then closes its clients
            )

    def ask(self, name: str, *arguments: object) -> Any:
        """Have the client run one of its methods, and return the result."""
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(_DEADLINE):
                raise BenchError(f"{self._name}: no answer to {name!r} within {_DEADLINE:.0f} s")
            succeeded, result = self._connection.recv()
        except (EOFError, ConnectionError):
            raise BenchError(f"{self._name}: the client died during {name!r}") from None
        if not succeeded:
            raise BenchError(f"{self._name}: {name!r} failed in the client:\n{result}")
        return result

    def close(self) -> None:
        """End the client; by force if it does not."""
        self._connection.close()
        try:
            self._process.wait(_EXIT_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _variables(rival: Rival, sys_path: list[str]) -> dict[str, str]:
    variables = environment.variables()
    if rival.tuned:  # any fork server finds what it is to preload: some ignore the client's path
        variables["PYTHONPATH"] = os.pathsep.join([_PROGRAM, *sys_path])
    if rival.disabled is not None:
        variables["FASTFORK_DISABLE"] = rival.disabled
    if rival.backend is not None:
        variables["FASTFORK_BACKEND"] = rival.backend
    return variables
