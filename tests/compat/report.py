"""The table and the JSON of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .figures import FAILED, PASSED, SKIPPED, Figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HEADINGS = (
    "Python",
    "suite",
    "on",
    "run",
    "passed",
    "failed",
    "skipped",
    "served by stdlib",
    "by fastfork",
    "with -I",
    "seconds",
)
ABSENT = "no test suite in this interpreter"


@dataclass
class SuiteReport:
    """A suite of an interpreter; without figures it is not there.

    `stored` says how the standard library's figures were come by, `notes` what is special about the suite.
    """

    suite: str
    stdlib: Figures | None = None
    fastfork: Figures | None = None
    stored: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)


@dataclass
class InterpreterReport:
    """All suites of an interpreter; `fastfork` is the version that was tested."""

    version: str
    executable: str
    fastfork: str | None
    suites: list[SuiteReport]


def table(reports: Iterable[InterpreterReport]) -> str:
    rows = [HEADINGS, *(row for report in reports for suite in report.suites for row in _rows(report, suite))]
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(len(HEADINGS))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if column > 2 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths))
    )
    return "  ".join(aligned).rstrip()


def _rows(report: InterpreterReport, suite: SuiteReport) -> Iterator[tuple[str, ...]]:
    names = (report.version, suite.suite)
    if suite.stdlib is None and suite.fastfork is None:
        yield (*names, ABSENT)
    if suite.stdlib:
        yield (*names, f"stdlib{suite.stored}", *_cells(suite.stdlib))
    if suite.fastfork:
        yield (*names, "fastfork", *_cells(suite.fastfork))


def _cells(figures: Figures) -> tuple[str, ...]:
    served = figures.served
    return (
        str(figures.run),
        str(figures.count(PASSED)),
        str(figures.count(FAILED)),
        str(figures.count(SKIPPED)),
        str(served["stdlib"].processes),
        str(served["fastfork"].processes),
        str(served["stdlib"].isolated + served["fastfork"].isolated),
        f"{figures.seconds:.0f}",
    )


def remarks(reports: Iterable[InterpreterReport]) -> str:
    """Notes on the suites, and every problem, with what the failing test said."""
    suites = [(report, suite) for report in reports for suite in report.suites]
    return "\n".join(line for report, suite in suites for line in _remarks(report, suite))


def _remarks(report: InterpreterReport, suite: SuiteReport) -> Iterator[str]:
    for note in suite.notes:
        yield f"{report.version} {suite.suite}: {note}"
    for problem in suite.problems:
        yield f"{report.version} {suite.suite}: {problem}"
    for test, message in suite.messages.items():
        yield f"\n--- {report.version} {test}\n{message}"


def as_json(reports: Iterable[InterpreterReport]) -> list[dict[str, Any]]:
    return [
        {
            "version": report.version,
            "executable": report.executable,
            "fastfork": report.fastfork,
            "suites": [_suite_json(suite) for suite in report.suites],
        }
        for report in reports
    ]


def _suite_json(suite: SuiteReport) -> dict[str, Any]:
    return {
        "suite": suite.suite,
        "notes": suite.notes,
        "stored": suite.stored.strip(" ()"),
        "stdlib": suite.stdlib.as_json() if suite.stdlib else None,
        "fastfork": suite.fastfork.as_json() if suite.fastfork else None,
        "problems": suite.problems,
    }
