"""Control groups, of either version, that tests make for themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def hierarchies(controller: str) -> Iterator[Path]:
    """Yield the roots of this machine's hierarchies that may limit what a controller is about."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield Path(path)


@contextlib.contextmanager
def control_group(root: Path, limits: Iterable[tuple[str, object]]) -> Iterator[Path | None]:
    """Make a group below `root`, and remove it in the end: its folder.

    Parameters
    ----------
    limits:
        Names of its files and what is to be written to them. It is None where there is none of these files, or where
        this user may not make it.

    """
    path = root / f"fastfork-tests-{os.getpid()}"
    try:
        path.mkdir()
    except OSError:
        yield None
        return
    try:
        have_been_set = [_set(path / name, value) for name, value in limits]
        yield path if any(have_been_set) else None
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        path.rmdir()


def _set(path: Path, value: object) -> bool:
    try:
        path.write_text(str(value))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[list[str] | None]:
    """Make a group whose memory is limited to `size` bytes, and where the kernel kills what takes more.

    What is to be written before a command so that it runs there; None where there is no such group.
    """
    limits = (
        ("memory.max", size),
        ("memory.swap.max", 0),
        # Of the first version; that of swap comes last, as it includes memory.
        ("memory.limit_in_bytes", size),
        ("memory.memsw.limit_in_bytes", size),
    )
    for root in hierarchies("memory"):
        with control_group(root, limits) as path:
            runner = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(path)]
            if path is not None and _is_killed([*runner, sys.executable, "-c", f"b'x' * {4 * size}"]):
                yield runner
                return
    yield None


def _is_killed(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
