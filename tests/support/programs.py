"""Running programs in fresh interpreters, with a deadline, and seeing that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass
class Outcome:
    """How a program ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """What it printed."""
        return self.stdout.splitlines()


@dataclass
class Programs:
    """Programs in a folder of their own, which is their working directory."""

    folder: Path

    def write(self, name: str, source: str) -> Path:
        """Write a module or another file; returns its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    def run(
        self,
        source: str,
        *arguments: str,
        environment: Mapping[str, str | None] | None = None,
        options: tuple[str, ...] = (),
    ) -> Outcome:
        """Run a script that has to succeed and to leave standard error empty."""
        path = self.write("program.py", source)
        outcome = self.python(*options, str(path), *arguments, environment=environment)
        assert outcome.stderr == ""
        assert outcome.status == 0
        return outcome

    def python(
        self,
        *arguments: str,
        stdin: str = "",
        environment: Mapping[str, str | None] | None = None,
        executable: str = sys.executable,
    ) -> Outcome:
        """Run the interpreter with `arguments`; a variable that is None is taken out of the environment."""
        return self.command(executable, *arguments, stdin=stdin, environment=environment)

    def command(
        self, *command: str, stdin: str = "", environment: Mapping[str, str | None] | None = None
    ) -> Outcome:
        """Run a command to its end."""
        variables = {**os.environ, **(environment or {})}
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(stdin, DEADLINE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise AssertionError(f"out of time; it wrote:\n{stdout}\n{stderr}") from None
        return Outcome(process.returncode, stdout, stderr)
