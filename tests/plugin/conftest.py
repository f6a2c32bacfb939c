"""Small projects whose tests are run by pytest, plain and with fastfork."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET

import pytest

DEADLINE = 120
PLAIN = ("-p", "no:cacheprovider")


class Outcome:
    """What a run has printed, its exit code, and its JUnit report."""

    def __init__(self, code, out, xml, log):
        self.code = code
        self.out = out
        self.log = log
        self.cases = list(ET.parse(xml).iter("testcase")) if xml.exists() else []

    def results(self):
        """Return each case: its name, outcome, message, properties and what was captured, in order."""
        return [
            (
                case.get("classname"),
                case.get("name"),
                [(child.tag, child.get("message"), _text(child)) for child in case],
            )
            for case in self.cases
        ]

    def difference(self, other):
        """Say in what this one is not what another one is, if in anything."""
        if self.code != other.code:
            return f"exit code {self.code}, not {other.code}\n{self.out}"
        for ours, theirs in zip(self.results(), other.results()):
            if ours != theirs:
                return f"{ours}\nnot\n{theirs}"
        if len(self.cases) != len(other.cases):
            return f"{len(self.cases)} results, not {len(other.cases)}\n{self.out}"
        return ""

    def failures(self):
        """Return the name and the text of each case that failed."""
        return {
            case.get("name"): "".join(child.text or "" for child in case if child.tag in ("failure", "error"))
            for case in self.cases
            if case.find("failure") is not None or case.find("error") is not None
        }

    def captured(self, name, stream):
        """Return what the JUnit report says a case has written to "system-out" or "system-err"."""
        (case,) = (case for case in self.cases if case.get("name") == name)
        return "".join(element.text or "" for element in case.iter(stream))


def _text(element):
    properties = [(p.get("name"), p.get("value")) for p in element]
    return properties or re.sub(r"0x[0-9a-f]+", "0x", element.text or "")


class Project:
    """A folder of tests; `log` in its conftest appends a line to a file that all processes share."""

    def __init__(self, folder):
        self.folder = folder
        self._runs = 0
        self._plugins = ["fastfork"]
        self._runner = []
        self.write("pytest.ini", "[pytest]\njunit_logging = all\njunit_family = xunit2\n")
        self.write(
            "journal.py",
            """
            import os

            def log(*words):
                with open(os.environ["PROJECT_LOG"], "a") as file:
                    print(*words, file=file)
            """,
        )

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        # Before 9.2 pytest takes what another text of its length, written in the same second, was compiled to.
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
        return path

    def load(self, *plugins):
        """Have runs load other plugins, by the names of their entry points; without, they load fastfork's alone."""
        self._plugins += plugins

    def run_below(self, *runner):
        """Have pytest be started by a command that takes the command line to start."""
        self._runner = runner

    def command(self, *arguments):
        plugins = [word for name in self._plugins for word in ("-p", name)]
        return [*self._runner, sys.executable, "-m", "pytest", *PLAIN, *plugins, *arguments]

    def environment(self, log, **variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        return {
            **kept,
            "PYTHONPATH": str(self.folder),
            "PROJECT_LOG": str(log),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "COLUMNS": "100",
            **variables,
        }

    def run(self, *arguments, **variables):
        self._runs += 1
        xml, log = (self.folder / f"{self._runs}.{kind}" for kind in ("xml", "log"))
        log.touch()
        done = subprocess.run(
            self.command(f"--junitxml={xml}", *arguments),
            cwd=self.folder,
            env=self.environment(log, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, xml, log.read_text().splitlines())

    def compare(self, *arguments, workers=(1, 3)):
        """Run the tests plainly and with fastfork; the reports are the same. Return the runs with fastfork."""
        plain = self.run(*arguments)
        runs = [self.run(f"--fastfork={number}", *arguments) for number in workers]
        for run in runs:
            assert not run.difference(plain)
        assert plain.cases
        return (plain, *runs)

    def compare_with_log(self):
        """Do the same; what the tests have logged is the same, too, and in that order where one runs at a time."""
        plain, one, many = self.compare()
        assert one.log == plain.log
        assert sorted(many.log) == sorted(plain.log)
        return plain, one, many


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return Project(folder)
