"""Starting a template: its socket, its interpreter, and what it is told about its client."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import tempfile
from multiprocessing import spawn, util

from .errors import PreloadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .config import TemplateConfig

AUTHKEY_SIZE = 32
"""Bytes of the key that a template shares with its clients."""

_MAX_ADDRESS = 100
"""Bytes of a socket's path that every POSIX system takes (Linux: 107)."""


class LaunchedTemplate:
    """A template that this process has started.

    Attributes
    ----------
    alive_fd:
        The write end of the pipe whose end tells the template that its last client has gone.

    """

    def __init__(self, pid: int, config: TemplateConfig, alive_fd: int, report_fd: int) -> None:
        self.pid = pid
        self.address = config.address
        self.authkey = config.authkey
        self.alive_fd = alive_fd
        self._report_fd = report_fd

    def remove_address(self) -> None:
        """Remove the socket of a template that has died: its own clean-up did not run."""
        shutil.rmtree(os.path.dirname(self.address), ignore_errors=True)

    def close(self) -> None:
        """Close the descriptors: the template then leaves, once no other client holds them."""
        for fd in (self.alive_fd, self._report_fd):
            if fd >= 0:
                os.close(fd)
        self.alive_fd = self._report_fd = -1

    def preload_error(self) -> PreloadError | None:
        """Return what made the template leave before it served; None if that was no preload. It is told once."""
        with open(self._report_fd, "rb", closefd=False) as stream:
            report = stream.read()
        return _with_note(PreloadError(*pickle.loads(report))) if report else None


def _with_note(error: PreloadError) -> PreloadError:
    """Add the note of CPython 3.15, by which its own tests know the error (3.11 and later have notes)."""
    if hasattr(error, "add_note"):
        error.add_note("Forkserver process may have crashed during module preloading. Check stderr.")
    return error


def launch(config: TemplateConfig) -> LaunchedTemplate:
    """Start the interpreter of a template. It may still be preloading when this returns.

    Raises `OSError` when the socket cannot be made or the interpreter not be started.
    """
    config.authkey = os.urandom(AUTHKEY_SIZE)
    with contextlib.ExitStack() as on_failure:
        listener, config.address = _listen(on_failure)
        config.listener_fd = listener.fileno()
        config_r, config_w = _pipe(on_failure)
        config.alive_fd, alive_w = _pipe(on_failure)
        report_r, config.report_fd = _pipe(on_failure)
        pid = _spawn(config_r, [config_r, config.listener_fd, config.alive_fd, config.report_fd])
        on_failure.pop_all()
    listener.close()
    for fd in (config_r, config.alive_fd, config.report_fd):
        os.close(fd)
    with open(config_w, "wb") as stream, contextlib.suppress(BrokenPipeError):
        stream.write(pickle.dumps(vars(config)))
    return LaunchedTemplate(pid, config, alive_w, report_r)


def _pipe(on_failure: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        on_failure.callback(os.close, end)
    return ends


def _listen(on_failure: contextlib.ExitStack) -> tuple[socket.socket, str]:
    """Return a listening socket that only this user can reach, and its path."""
    errors: list[OSError] = []
    for base in _base_directories():
        try:
            directory = tempfile.mkdtemp(prefix="fastfork-", dir=base)
        except OSError as error:
            errors.append(error)
            continue
        on_failure.callback(shutil.rmtree, directory, ignore_errors=True)
        address = os.path.join(directory, "s")
        listener = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen(socket.SOMAXCONN)
        return listener, address
    raise OSError(
        errors[0].errno if errors else None,
        "no writable directory with a path short enough for a socket; set TMPDIR to one",
    )


def _base_directories() -> Iterator[str]:
    """Yield directories for the socket's own one, where its path will be short enough, the best first."""
    with contextlib.suppress(FileNotFoundError):
        yield from _if_short(tempfile.gettempdir())
    for name in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp", "/dev/shm"):
        if name:
            yield from _if_short(name)


def _if_short(directory: str) -> Iterator[str]:
    if len(os.fsencode(os.path.join(directory, "fastfork-12345678", "s"))) <= _MAX_ADDRESS:
        yield directory


def _spawn(config_fd: int, fds: list[int]) -> int:
    """Start the interpreter, with the flags of this one: its pid."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # The standard library's modules come first: the client's path may hold files of the same names.
    command = (
        "import sys, multiprocessing.resource_tracker; "
        f"sys.path.insert(0, {package_parent!r}); import fastfork; sys.path.remove({package_parent!r}); "
        f"from fastfork.template import main; main({config_fd})"
    )
    executable: Any = spawn.get_executable()  # str until 3.10, bytes from 3.11 on
    arguments = [executable, *util._args_from_interpreter_flags(), "-c", command]  # type: ignore[attr-defined]
    return int(util.spawnv_passfds(executable, arguments, fds))
