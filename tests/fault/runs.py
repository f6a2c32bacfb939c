"""Runs tests in a pytest process of their own, on one fork server, within a limit, and says how that ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOLDS = "holds"
DOES_NOT_APPLY = "-"
HANGS = "hangs"
SERVER_DIED = "server died"
EXIT_CODE_LOST = "exit code lost"

_MARK = "FASTFORK_FAULT_RUN"
"""The environment variable by which all is known that a run started, whoever its parent is by now."""

_COLLECT_LIMIT = 120.0  # seconds
_MAX_WORD = 60  # characters
_MAX_LOG = 4000  # characters

_WORDS = (
    (r"failed on teardown", "something left behind"),
    (r"waited .* in vain|timed out|out of time|TimeoutError|assert None ==", HANGS),
    (r"assert 255 |== 255\b|[{ ]255}", EXIT_CODE_LOST),
    (r"(Connection\w*Error|BrokenPipeError|EOFError|FileNotFoundError)", r"start fails: \1"),
    (r"'FileNotFound\.\.\.", "start fails: FileNotFoundError"),
    (r"has killed another process", "another process killed"),
    (r"^assert .* == ''$", "complaints on standard error"),
    (r"^(assert|Traceback) ", "wrong outcome"),
)
"""What is put shorter, where a test has no word of its own: how a failure reads, and the word for it."""


@dataclass(frozen=True)
class Outcome:
    """How a test on one fork server ended."""

    title: str
    test: str
    on: str
    word: str
    seconds: float
    log: str

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return self.word in (HOLDS, DOES_NOT_APPLY)


@dataclass(frozen=True)
class Suite:
    """How many tests at once ended."""

    passed: int
    skips: dict[str, str]
    """Why, by the name of each test that was skipped."""
    failures: dict[str, str]
    """What was wrong, by the name of each test that failed; by an empty name, with the run itself."""
    seconds: float
    log: str

    @property
    def is_good(self) -> bool:
        """Whether there were tests, and nothing went wrong."""
        return self.passed > 0 and not self.failures

    @property
    def skipped(self) -> int:
        """How many tests were skipped."""
        return len(self.skips)


class Runner:
    """Runs the tests of a tree of tests with an interpreter that has pytest and fastfork.

    Parameters
    ----------
    python:
        The interpreter's path.
    root:
        The folder that pytest runs in.
    limit:
        Seconds that a test may take.

    """

    def __init__(self, python: str, root: Path, limit: float) -> None:
        self._python = python
        self._root = root
        self._limit = limit
        self._is_stopping = False

    def collect(self, where: str) -> dict[str, str]:
        """Return the titles of the tests marked as faults, by their ids.

        Raises `RuntimeError` where pytest cannot collect them.
        """
        with _temporary_folder() as folder:
            titles = folder / "titles.json"
            command = self._command("--collect-only", "-q", where)
            variables = self._variables(folder, FAULTS_LIST=str(titles))
            result = subprocess.run(
                command,
                check=False,
                cwd=self._root,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_COLLECT_LIMIT,
            )
            if result.returncode != 0:
                raise RuntimeError(f"the tests cannot be collected:\n{result.stdout.decode()}")
            found: dict[str, str] = json.loads(titles.read_text(encoding="utf-8"))
            return found

    def description(self) -> str:
        """Return what the tests run on: the interpreter and the system."""
        told = "from platform import *; print(python_implementation(), f'{python_version()},', system(), release())"
        return subprocess.check_output([self._python, "-c", told], text=True).strip()

    def run(self, title: str, test: str, on: str) -> Outcome:
        """Run a test on ``"stdlib"`` or ``"fastfork"``. Nothing that it started is left."""
        with _temporary_folder() as folder:
            report, log = folder / "report.xml", folder / "log"
            variables = self._variables(folder, FAULTS_ON=on)
            begin = time.monotonic()
            is_over = self._run(self._command(f"--junitxml={report}", test), variables, log)
            seconds = time.monotonic() - begin
            word = judge(report) if is_over else HANGS
            return Outcome(title, test, on, word, seconds, log.read_text(errors="replace")[-_MAX_LOG:])

    def run_suite(self, arguments: Sequence[str]) -> Suite:
        """Run pytest with these arguments on fastfork. Nothing that it started is left."""
        with _temporary_folder() as folder:
            report, log = folder / "report.xml", folder / "log"
            begin = time.monotonic()
            is_over = self._run(
                self._command(f"--junitxml={report}", *arguments),
                self._variables(folder, FAULTS_ON="fastfork"),
                log,
            )
            return judge_suite(report, is_over, time.monotonic() - begin, log.read_text(errors="replace"))

    def _command(self, *arguments: str) -> list[str]:
        return [
            self._python,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            f"--rootdir={self._root}",
            *arguments,
        ]

    def _variables(self, folder: Path, **more: str) -> dict[str, str]:
        """Return the environment of a run whose files all go to `folder`."""
        return {**os.environ, "TMPDIR": str(folder), _MARK: folder.name, **more}

    def _run(self, command: list[str], variables: dict[str, str], log: Path) -> bool:
        """Run pytest; whether it came to an end."""
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=self._root,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + self._limit
            while process.poll() is None and time.monotonic() < deadline and not self._is_stopping:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            return process.poll() is not None
        finally:
            _kill_all(variables[_MARK])
            process.wait()

    def stop(self) -> None:
        """Have every run end now, in whatever thread it is."""
        self._is_stopping = True


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Have a folder for a run's files, which another user can look into, as in /tmp itself."""
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kill_all(mark: str) -> None:
    """Kill every process with the mark in its environment, and those that they start meanwhile."""
    while pids := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has_mark(pid, mark)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def judge(report: Path) -> str:
    """Return the word for what pytest's report (JUnit's XML) says of its only test."""
    try:
        (case,) = ET.parse(report).iter("testcase")
    except (OSError, ET.ParseError, ValueError):
        return "the client died"
    messages = {child.tag: child.get("message", "") for child in case}
    for tag in ("failure", "error"):
        if tag in messages:
            return word_for(messages[tag])
    return DOES_NOT_APPLY if "skipped" in messages else HOLDS


def judge_suite(report: Path, is_over: bool, seconds: float, log: str) -> Suite:
    """Return what pytest's report (JUnit's XML) says of all of its tests."""
    if not is_over:
        return Suite(0, {}, {"": HANGS}, seconds, log)
    try:
        cases = list(ET.parse(report).iter("testcase"))
    except (OSError, ET.ParseError):
        return Suite(0, {}, {"": "the client died"}, seconds, log)
    failures, skips = _messages(cases, "failure", "error"), _messages(cases, "skipped")
    return Suite(len(cases) - len(skips) - len(failures), skips, failures, seconds, log)


def _messages(cases: Sequence[ET.Element], *tags: str) -> dict[str, str]:
    """Return what pytest says, under these tags, of the tests that it says it of, by their names."""
    return {
        f"{case.get('classname')}::{case.get('name')}": child.get("message", "")
        for case in cases
        for child in case
        if child.tag in tags
    }


def word_for(message: str) -> str:
    """Return a short word for a failure: what the test itself says, or what the failure looks like."""
    first, *rest = message.split("\n")
    if "Traceback" in first:  # of a program: its last line tells
        first = next((line.strip() for line in reversed(rest) if re.match(r"\s*\w+Error\b", line)), first)
    said = re.sub(r"^(AssertionError|Failed): ", "", first)
    for pattern, word in _WORDS:
        found = re.search(pattern, said)
        if found:
            return found.expand(word)
    return said if len(said) <= _MAX_WORD else said[: _MAX_WORD - 3] + "..."
