"""The address of a template: a socket in a folder of its own, that only its user can reach.

A template removes both when it leaves or is told to end, and its client those of a template that has died. What is
left when both are killed at once goes with the next launch of the same user, here: see `_remove_abandoned`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import tempfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_ADDRESS = 107 if sys.platform == "linux" else 100
"""Bytes of a socket's path: unix(7); what every POSIX system takes."""

_SOCKET = "s"

_NEW_SOCKET = "n"
"""The socket's name until it listens: so that one which is called `_SOCKET` and does not is nobody's any more."""

_MODE = 0o600
_CLAIMED_MODE = 0o200
"""Modes of a socket, and of one whose template is still to be launched: to connect is to write, so that to be readable
means nothing else."""

_RANDOM_DIGITS = 8
"""Of the name of each folder: as many as `tempfile` gives it."""

_LONGEST_BIRTH = 3600.0
"""Seconds after which a folder without a socket that listens will not get one any more."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BOOT_DIGITS = 6
"""How much of that is in the name of each folder, where every byte counts. Should two machines that share a file system
have it in common, the worst is that one has the other launch its templates anew."""

_LISTENERS = "/proc/net/unix"


def listen(on_failure: contextlib.ExitStack) -> tuple[socket.socket, str]:
    """Return a listening socket that only this user can reach, and its path.

    Parameters
    ----------
    on_failure:
        What closes and removes both.

    Raises `OSError` when there is no place for it.

    """
    listener = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    first_error: OSError | None = None
    for base in _base_directories():
        try:
            address = _listen_below(base, listener)
        except OSError as error:
            first_error = first_error or error
            continue
        on_failure.callback(remove, address)
        _remove_abandoned(base)
        return listener, address
    message = "no writable directory with a path short enough for a socket; set TMPDIR to one"
    raise OSError(first_error and first_error.errno, message) from first_error


def listen_in_new(folder: str) -> socket.socket:
    """Make a folder, and return a listening socket in it as `listen` does: one that is known to have no template yet.

    Raises `FileExistsError` where the folder is there already, another `OSError` when there is no place for both.
    """
    with contextlib.ExitStack() as on_failure:
        listener = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        os.mkdir(folder, 0o700)
        _listen_in(folder, listener, _CLAIMED_MODE)
        on_failure.pop_all()
    return listener


def folder_after(address: str, digits: str) -> str:
    """Return a folder beside that of an address, with a name as long as its own, from hexadecimal digits."""
    base = os.path.dirname(os.path.dirname(address))
    return os.path.join(base, _prefix() + digits[:_RANDOM_DIGITS])


def socket_in(folder: str) -> str:
    """Return the address of the template whose folder this is."""
    return os.path.join(folder, _SOCKET)


def has_template(address: str) -> bool:
    """Whether a template has taken over a socket that `listen_in_new` has made."""
    try:
        return bool(os.stat(address).st_mode & stat.S_IRUSR)
    except OSError:
        return False


def _listen_below(base: str, listener: socket.socket) -> str:
    return _listen_in(tempfile.mkdtemp(prefix=_prefix(), dir=base), listener, _MODE)


def _listen_in(directory: str, listener: socket.socket, mode: int) -> str:
    address = socket_in(directory)
    new_address = os.path.join(directory, _NEW_SOCKET)
    try:
        listener.bind(new_address)
        os.chmod(new_address, mode)
        listener.listen(socket.SOMAXCONN)
        os.rename(new_address, address)
    except BaseException:
        remove(address)
        raise
    return address


def remove(address: str) -> None:
    """Remove a socket, whether or not it listens yet, and its folder, as far as they are there.

    It takes no descriptor: there may be none left, and that may be why.
    """
    directory = os.path.dirname(address)
    for name in (_NEW_SOCKET, _SOCKET):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _base_directories() -> Iterator[str]:
    """Yield directories for the socket's own one, where its path will be short enough, the best first."""
    with contextlib.suppress(FileNotFoundError):
        yield from _if_short(tempfile.gettempdir())
    for name in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp", "/dev/shm"):
        if name:
            yield from _if_short(name)


def _if_short(directory: str) -> Iterator[str]:
    folder = os.path.join(directory, _prefix() + "r" * _RANDOM_DIGITS)
    if len(os.fsencode(socket_in(folder))) <= _MAX_ADDRESS:
        yield directory


# ---- what was left behind ----


def _boot() -> str:
    """Return what tells this boot of this machine from others; nothing where the system does not say."""
    try:
        with open(_BOOT_ID) as stream:
            return stream.read(_BOOT_DIGITS)
    except OSError:
        return ""


def _prefix() -> str:
    """Return how the names of templates' folders begin: another machine may use the same file system."""
    return f"fastfork-{_boot()}"


def _remove_abandoned(base: str) -> None:
    """Remove the folders in `base` that templates of this user have left which were killed, as was their client.

    Anybody may have put there whatever he likes. What is not exactly such a folder is left alone, and so is one whose
    socket somebody listens on, in whatever state he is. Those of another boot or machine are for its tmpfiles.d.
    """
    if not _boot():
        return
    prefix = _prefix()
    with contextlib.suppress(OSError):
        found = {os.path.join(base, name) for name in os.listdir(base) if name.startswith(prefix)}
        for folder in found - _folders_with_listeners():
            with contextlib.suppress(OSError):
                _remove_if_abandoned(folder)


def _folders_with_listeners() -> set[str]:
    """Return the folders of sockets that exist, as far as these are known here: so that those need not be tried."""
    with open(_LISTENERS, errors="surrogateescape") as stream:
        paths = [line.rstrip("\n").split(maxsplit=7)[7:] for line in stream]
    return {os.path.dirname(path[0]) for path in paths if path}


def _remove_if_abandoned(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status, names = os.fstat(fd), os.listdir(fd)
        has_been_served = names == [_SOCKET]
        was_never_served = names in ([], [_NEW_SOCKET]) and _is_old(status)
        if not _is_private(status) or not (has_been_served or was_never_served):
            return
        if all(_is_deserted_socket(fd, name) for name in names):
            for name in names:
                os.unlink(name, dir_fd=fd)
            os.rmdir(folder)
    finally:
        os.close(fd)


def _is_old(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > _LONGEST_BIRTH


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o700


def _is_deserted_socket(folder_fd: int, name: str) -> bool:
    """Whether there is a socket in a folder that nobody listens on. Who has no time for a connection does listen."""
    if not stat.S_ISSOCK(os.lstat(name, dir_fd=folder_fd).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(f"/proc/self/fd/{folder_fd}/{name}")
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False
