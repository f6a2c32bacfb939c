"""Runs one step's commands, each in a process group of its own, with their output in the step's log."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# A developer's own settings are not what is tested; pip's stay, which say where packages come from.
_FOREIGN = ("PYTHON", "FASTFORK", "VIRTUAL_ENV", "PYTEST", "MYPY", "RUFF")

_GRACE = 10.0  # seconds


class StepFailedError(Exception):
    """A command of the step failed; the log has its output."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would change the steps, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(extra or {})}


class Job:
    """What a step is given to run its commands with."""

    def __init__(self, log: Path, limit: float) -> None:
        self.log = log
        self._deadline = time.monotonic() + limit
        self._process: subprocess.Popen[bytes] | None = None
        log.write_bytes(b"")

    def run(
        self, *command: str | os.PathLike[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Run a command to its end.

        Raises StepFailedError where it fails, or runs past the time that the step has.
        """
        with self.log.open("ab") as log:
            log.write(f"$ {shlex.join(os.fspath(part) for part in command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=clean_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = process
        status = self._wait(process)
        if status != 0:
            raise StepFailedError(f"{os.path.basename(command[0])} ended with status {status}")

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the command's exit status, once nothing is left of its process group either."""
        try:
            return process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            raise StepFailedError("out of time") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """Ask the running command to end, and give it some time to take its own sessions along."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)

    def output(self) -> str:
        """Return what the step has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")
