"""What a step has to show: tests passed, failed and skipped, read from what each kind of suite leaves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Counts:
    """Numbers of tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        """Return the line that test runners close with."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def from_junit(report: Path) -> Counts:
    """Read pytest's --junitxml report; an expected failure counts as skipped there. No report, no tests."""
    if not report.exists():
        return Counts()
    suite = ElementTree.parse(report).getroot()[0]
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    skipped = int(suite.attrib["skipped"])
    return Counts(int(suite.attrib["tests"]) - failed - skipped, failed, skipped)


def from_c_programs(output: str) -> Counts:
    """Read the lines that tests/c/check.h prints."""
    return Counts(
        passed=len(re.findall(r"^ok ", output, re.MULTILINE)),
        failed=len(re.findall(r"^not ok ", output, re.MULTILINE)),
    )


def from_compat(report: Path) -> Counts:
    """Read the --json report of tests.compat.

    A test that does no better on the standard library is none of fastfork's failures: it counts as skipped.
    """
    if not report.exists():
        return Counts()
    interpreters = json.loads(report.read_text(encoding="utf-8"))
    return sum((_of_suite(suite) for each in interpreters for suite in each["suites"]), Counts())


def _of_suite(suite: dict[str, Any]) -> Counts:
    figures, failed = suite["fastfork"], len(suite["problems"])
    if figures is None:
        return Counts(failed=failed)
    return Counts(figures["passed"], failed, max(0, figures["tests"] - figures["passed"] - failed))
