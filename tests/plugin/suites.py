"""Other packages' own tests, from their sdists, plain and with fastfork: the same outcomes, test by test.

    python -m tests.plugin.suites --help

It needs pip, PyPI and some minutes; .ci/run runs none of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
import venv
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent.parent


class Suite(NamedTuple):
    """A package, what its tests need beside it, and how they are run."""

    package: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ("tests",)


SUITES = (
    Suite("attrs==26.1.0", ("hypothesis", "cloudpickle"), ("tests", "-p", "no:randomly")),
    Suite("click==8.5.1"),
    Suite("jinja2==3.1.6", ("trio",)),
    Suite("networkx==3.7", (), ("--pyargs", "networkx.algorithms.tests", "networkx.classes")),
    Suite(
        "werkzeug==3.1.9",
        ("ephemeral-port-reserve", "pytest-timeout", "watchdog", "cryptography"),
        ("tests", "--ignore=tests/test_serving.py"),
    ),
    Suite("flask==3.1.3", ("asgiref", "python-dotenv", "pytest==8.4.2")),
    Suite("pluggy==1.7.0", (), ("testing", "--ignore=testing/benchmark.py")),
    Suite("more-itertools==11.2.1"),
    Suite("markupsafe==3.0.4"),
    Suite("itsdangerous==2.2.0", ("freezegun",)),
    Suite("toolz==1.2.0", (), ("--pyargs", "toolz")),
)


class Place:
    """Where a suite is unpacked, with an environment of its own."""

    def __init__(self, root: Path, suite: Suite, pytest: str, fastfork: str) -> None:
        self.suite = suite
        self.folder = root / suite.package
        self.python = self.folder / "venv" / "bin" / "python"
        self._pytest = pytest
        self._fastfork = fastfork

    def prepare(self) -> None:
        """Unpack the sdist and install what the tests need."""
        if self.python.exists():
            return
        self.folder.mkdir(parents=True)
        name = self.suite.package.split("==")[0]
        self._pip(
            sys.executable, "download", "--no-deps", f"--no-binary={name}", self.suite.package, "-d", "."
        )
        if not list(self.folder.glob("*.tar.gz")):
            raise FileNotFoundError(f"{self.suite.package}: no sdist")
        with tarfile.open(next(self.folder.glob("*.tar.gz"))) as archive:
            archive.extractall(self.folder, filter="data")
        venv.create(self.folder / "venv", with_pip=True)
        self._pip(self.python, "install", self._pytest)
        self._pip(self.python, "install", self.suite.package, *self.suite.needs, self._fastfork)

    def _pip(self, python: object, *words: object) -> None:
        command = [str(word) for word in (python, "-m", "pip", *words)]
        with open(self.folder / "pip.txt", "a") as output:
            subprocess.run(command, cwd=self.folder, check=True, stdout=output, stderr=subprocess.STDOUT)

    def run(self, name: str, *options: str) -> tuple[dict[tuple[str, str], list[str]], float]:
        """Run the tests; return the outcomes of each, and the seconds."""
        xml = self.folder / f"{name}.xml"
        xml.unlink(missing_ok=True)
        source = next(path for path in self.folder.iterdir() if path.is_dir() and path.name != "venv")
        command = [
            self.python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={xml}",
            *self.suite.arguments,
            *options,
        ]
        begin = time.monotonic()
        with open(self.folder / f"{name}.txt", "w") as output:
            done = subprocess.run(
                [str(word) for word in command],
                cwd=source,
                env={**os.environ, "CI": "1"},  # hypothesis: no deadlines, and the same examples each time
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=1800,
                check=False,
            )
        if done.returncode not in (0, 1):
            raise OSError(f"pytest has ended with {done.returncode}: see {output.name}")
        return read_outcomes(xml), time.monotonic() - begin


def read_outcomes(xml: Path) -> dict[tuple[str, str], list[str]]:
    """Return what a JUnit report says of each test."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    for case in ET.parse(xml).iter("testcase"):
        kinds = sorted(child.tag for child in case if child.tag in ("failure", "error", "skipped"))
        outcomes.setdefault((case.get("classname", ""), case.get("name", "")), []).append(
            " ".join(kinds) or "passed"
        )
    return outcomes


def compare(place: Place, workers: str) -> bool:
    """Run a suite both ways and print what is different; whether nothing is."""
    plain, plain_seconds = place.run("plain")
    forked, seconds = place.run("fastfork", f"--fastfork={workers}")
    different = {key for key in (*plain, *forked) if plain.get(key) != forked.get(key)}
    count = sum(map(len, plain.values()))
    print(
        f"{place.suite.package}: {count} tests, {len(different)} different; {plain_seconds:.1f} s and {seconds:.1f} s",
        flush=True,
    )
    for key in sorted(different):
        print(f"    {'.'.join(key)}: {plain.get(key)} and {forked.get(key)}", flush=True)
    return not different


def main() -> int:
    """Run the suites that the command line names, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "packages", nargs="*", help="some of: " + ", ".join(suite.package.split("==")[0] for suite in SUITES)
    )
    parser.add_argument("--folder", type=Path, default=CHECKOUT / ".cache" / "suites")
    parser.add_argument("--pytest", default="pytest==9.1.1")
    parser.add_argument(
        "--fastfork", default=str(CHECKOUT), help="what pip installs it from, by default the checkout"
    )
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    good = True
    for suite in SUITES:
        if not options.packages or suite.package.split("==")[0] in options.packages:
            place = Place(options.folder, suite, options.pytest, options.fastfork)
            try:
                place.prepare()
                good = compare(place, options.workers) and good
            except (OSError, subprocess.SubprocessError, ET.ParseError) as error:
                print(f"{suite.package}: {error}", flush=True)
                good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
