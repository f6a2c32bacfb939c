"""Runs commands to their end, in sessions of their own, and leaves no process of theirs behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROC = Path("/proc")
GRACE_S = 5.0
POLL_S = 0.05


class CommandFailedError(Exception):
    """A command that had to succeed did not; the message has its output."""


@dataclass(frozen=True)
class Finished:
    """How a command ended; `status` is None where it ran past its limit. `leftover` processes outlived it."""

    status: int | None
    seconds: float
    leftover: tuple[str, ...]


async def run(
    *arguments: str | os.PathLike[str],
    output: Path,
    limit: float,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command for at most `limit` seconds, in the folder of the file `output`, which takes what it writes.

    A folder of its own: `python -m fastfork` run in the source tree would find the package there.
    """
    started = time.monotonic()
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=output.parent,
            env=environment,
            start_new_session=True,
        )
    status: int | None = None
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            status = await asyncio.wait_for(process.wait(), limit)
        seconds = time.monotonic() - started
        leftover = await _leftover(process.pid) if status is not None else ()
        return Finished(status, seconds, leftover)
    finally:
        await _kill(process)


async def check(*arguments: str | os.PathLike[str], output: Path, limit: float) -> str:
    """Run a command that has to succeed; what it wrote.

    Raises:
        CommandFailedError: it failed, or did not end within `limit` seconds.
    """
    finished = await run(*arguments, output=output, limit=limit)
    text = output.read_text(errors="replace")
    if finished.status != 0:
        command = " ".join(os.fspath(argument) for argument in arguments)
        raise CommandFailedError(f"{command}\nended with status {finished.status}:\n{text}")
    return text


async def _leftover(session: int) -> tuple[str, ...]:
    """What still lives in a session some seconds after its leader's end: fork servers take a moment."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        if not any(_members(session)):
            return ()
        await asyncio.sleep(POLL_S)
    return tuple(_describe(pid) for pid in _members(session))


async def _kill(process: asyncio.subprocess.Process) -> None:
    for pid in (process.pid, *_members(process.pid)):
        if pid != process.pid or process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    await process.wait()


def _members(session: int) -> Iterator[int]:
    """The living processes of a session, as far as /proc tells."""
    for stat in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, fields = stat.read_text(errors="replace").rpartition(")")
            state, _parent, _group, member_of = fields.split()[:4]
            if int(member_of) == session and state not in "ZX":
                yield int(stat.parent.name)


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        return b" ".join(arguments).decode(errors="replace").strip()
    return f"process {pid}"
