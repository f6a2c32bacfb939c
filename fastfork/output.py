"""What a task writes to its standard streams, in files without a name: nobody has to read while it writes."""

from __future__ import annotations

import os

_LAST_BYTES = 4096
"""Bytes of a stream that its last lines are looked for in."""

_LAST_LINES = 20


class Output:
    """The standard output and error of one task. Raises `OSError` where there is no descriptor for them.

    Attributes
    ----------
    fds:
        The descriptors of the two files; they become the task's.

    """

    def __init__(self) -> None:
        stdout = _open_file()
        try:
            self.fds = [stdout, _open_file()]
        except BaseException:
            os.close(stdout)
            raise

    def stdout(self) -> bytes:
        """Return what has been written to standard output up to now."""
        return _content(self.fds[0])

    def stderr(self) -> bytes:
        """Return what has been written to standard error up to now."""
        return _content(self.fds[1])

    def close(self) -> None:
        """Let go of it."""
        for fd in self.fds:
            os.close(fd)


def last_lines(content: bytes) -> str:
    """Return the last lines of what a stream has got."""
    lines = content[-_LAST_BYTES:].decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(lines[-_LAST_LINES:])


def _open_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fastfork-output", os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _content(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    content = b""
    while len(content) < size:  # pread(2) returns at most 2 GiB
        part = os.pread(fd, size - len(content), len(content))
        if not part:  # it has been cut meanwhile
            break
        content = content + part if content else part
    return content
