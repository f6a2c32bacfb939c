"""What is known of each test, and its way to pytest's hooks: in plain pytest's order, whenever the tests have ended."""

from __future__ import annotations

import os
import pickle
import signal
import warnings
from typing import TYPE_CHECKING

import pytest

from . import internals, system, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Literal

    from .run import Run
    from .slot import Slot


class Record:
    """What is known of one test."""

    __slots__ = (
        "complete",
        "crash",
        "extras",
        "holds",
        "reports",
        "set_up_seconds",
        "shown",
        "stop",
        "teardowns",
        "warnings",
    )

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.warnings: list[Any] = []
        self.extras: list[dict[str, Any]] = []
        self.stop: tuple[str, str, int | None] | None = None
        self.crash: pytest.TestReport | None = None
        self.set_up_seconds = 0.0
        self.teardowns: list[dict[str, Any]] = []
        self.holds = 0
        self.complete = False
        self.shown = False


class Results:
    """The records of a run."""

    def __init__(self, run: Run, close: Callable[[int], None]) -> None:
        self._run = run
        self._config = run.config
        self._close = close
        self._records = [Record() for _ in run.items]
        self.next = 0
        """The test whose results are the next to be shown."""
        self.ends_session = True
        """Whether enough failures end the session here; in workers of pytest-xdist they do elsewhere."""
        self.leftovers: list[tuple[str, str]] = []

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def is_finished(self) -> bool:
        """Whether all has been shown."""
        return self.next >= len(self._records)

    # What processes have written down

    def read_test(self, slot: Slot, index: int) -> None:
        """Take what a test process has written."""
        record = self._records[index]
        for kind, value in wire.journal_records(slot.journal):
            if kind == wire.REPORT:
                record.reports.append(value)
            elif kind == wire.STOP:
                record.stop = record.stop or value
            else:
                self._read_aside(record, index, kind, value)

    def read_work(self, slot: Slot, index: int) -> None:
        """Take what a template has written, while it worked in the name of a test."""
        record = self._records[index]
        seconds = 0.0
        for kind, value in wire.journal_records(slot.journal):
            if kind == wire.REPORT:
                record.teardowns.append(value)
            elif kind == wire.STOP:
                record.stop = record.stop or value
            elif kind == wire.SECONDS:
                seconds = value
            else:
                self._read_aside(record, index, kind, value)
        if not record.teardowns:
            record.set_up_seconds += seconds

    def _read_aside(self, record: Record, index: int, kind: int, value: Any) -> None:
        if kind == wire.WARNING:
            record.warnings.append(value)
        elif kind == wire.EXTRAS:
            record.extras.append(value)
        elif kind == wire.LEFTOVERS:
            self.leftovers += [(self._run.items[index].nodeid, what) for what in value]

    def crash(self, slot: Slot, index: int, reason: str, seconds: float) -> None:
        """Make a report of a test whose process has ended before the test had."""
        self.read_test(slot, index)
        record = self._records[index]
        when = wire.journal_phase(slot.journal)
        sections = list(record.reports[-1]["sections"]) if record.reports else []
        for name, fd in (("stdout", slot.out), ("stderr", slot.err)):
            text = wire.read_all(fd).decode(errors="replace")
            if text:
                sections.append((f"Captured {name} {when}", text))
        traceback = _without_machinery(wire.read_all(slot.crash).decode(errors="replace"))
        self.fail(index, when, f"{reason}\n\n{traceback}" if traceback else reason, sections, seconds)

    def fail(
        self, index: int, when: str, text: str, sections: list[tuple[str, str]], seconds: float = 0.0
    ) -> None:
        """Have a test fail, for a reason that is outside of it."""
        item = self._run.items[index]
        record = self._records[index]
        record.crash = _report(item, when, "failed", text, sections=sections, duration=seconds)
        record.complete = True

    # Showing

    def show_start(self, index: int) -> None:
        """Have it shown that a test has begun, as long as all before it have been shown."""
        record = self._records[index]
        if index == self.next and not record.shown:
            record.shown = True
            item = self._run.items[index]
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def show_next(self) -> bool:
        """Show the next test's results, if they are all there; whether they were.

        Raises what plain pytest raises after such a test, if it ends the session.
        """
        if self.is_finished():
            return False
        record = self._records[self.next]
        if not record.complete or record.holds:
            return False
        self._show(self.next)
        return True

    def show_rest(self) -> None:
        """Show what has ended, though others before it have not: the session has been interrupted."""
        for index in range(self.next, len(self._records)):
            if self._records[index].complete and self._records[index].stop is None:
                self.next = index
                self._show_reports(index)

    def _show(self, index: int) -> None:
        record = self._records[index]
        self._show_reports(index)
        self.next = index + 1
        self._records[index] = Record()
        self._stop(record.stop)

    def _show_reports(self, index: int) -> None:
        record = self._records[index]
        item = self._run.items[index]
        self.show_start(index)
        for warning in record.warnings:
            self._warn(item, warning)
        for extras in record.extras:
            internals.add_junit_extras(self._config, item.nodeid, extras)
            internals.add_failed_subtests(item, extras.get("subtests", 0))
        for report in self._reports(index):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _reports(self, index: int) -> Any:
        """Generate the reports of a test; those of its end only after the others have been shown."""
        record = self._records[index]
        reports = [internals.deserialise(self._config, data) for data in record.reports]
        if record.crash is not None:
            reports += self._around_crash(index, record.crash, [report.when for report in reports])
        if reports and record.set_up_seconds:
            reports[0].duration += record.set_up_seconds
        for position, report in enumerate(reports, 1):
            if position == len(reports) and report.when == "teardown":
                session = self._run.session
                if self.ends_session and (session.shouldfail or session.shouldstop):
                    self._close(index)
                yield from self._with_teardowns(record, report)
            else:
                yield report

    def _around_crash(
        self, index: int, crash: pytest.TestReport, phases: list[str | None]
    ) -> list[pytest.TestReport]:
        """Return the report of a crash, and those without which a test's reports would not be complete.

        As in plain pytest the last one has all that was captured: JUnit's XML takes it from there.
        """
        item = self._run.items[index]
        reports = []
        if crash.when != "setup" and "setup" not in phases:
            reports.append(_passed(item, "setup"))
        if crash.when == "teardown" and "call" not in phases:
            reports.append(_passed(item, "call"))
        internals.expect_failure(item, crash, None)
        reports.append(crash)
        if crash.when != "teardown":
            reports.append(_passed(item, "teardown", crash.sections))
        return reports

    def _with_teardowns(self, record: Record, report: pytest.TestReport) -> list[pytest.TestReport]:
        """Return the report of a test's teardown with what its template has torn down after it."""
        reports = [report]
        for data in record.teardowns:
            other = internals.deserialise(self._config, data)
            last = reports[-1]
            if last.failed and other.failed:
                reports.append(other)
                continue
            merged = last if other.passed else other
            sections = _join_sections(last.sections, other.sections)
            merged.duration = last.duration + other.duration
            merged.user_properties = last.user_properties
            merged.sections = sections
            reports[-1] = merged
        return reports

    def _warn(self, item: pytest.Item, warning: tuple[Any, ...]) -> None:
        pickled, text, filename, line_number, line, when, nodeid, location = warning
        try:
            message, category = pickle.loads(pickled)
        except Exception:
            message, category = UserWarning(text), UserWarning
        item.ihook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": warnings.WarningMessage(
                    message=message, category=category, filename=filename, lineno=line_number, line=line
                ),
                "when": when,
                "nodeid": nodeid,
                "location": location,
            }
        )

    def _stop(self, stop: tuple[str, str, int | None] | None) -> None:
        """End the session, if a test has asked for it, or the tests that have failed are enough."""
        session = self._run.session
        how, text, returncode = stop or ("", "", None)
        if how == "exit":
            raise pytest.exit.Exception(text, returncode)
        if how in _ENDS:
            raise _ENDS[how](text)
        if how == "shouldstop" and not session.shouldstop:
            session.shouldstop = text
        if how == "shouldfail" and not session.shouldfail:
            session.shouldfail = text
        if self.ends_session:
            self._raise_if_enough()

    def _raise_if_enough(self) -> None:
        session = self._run.session
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)


_ENDS: dict[str, type[BaseException]] = {"interrupt": KeyboardInterrupt, "error": RuntimeError}


def how_it_ended(status: int) -> str:
    """Say how a process has ended, from its wait status; or for what it was stopped, and had to be killed."""
    if os.WIFSTOPPED(status):
        name = system.signal_name(os.WSTOPSIG(status))
        return f"was stopped by {name} (it needs the terminal, which a test has with --pdb or --trace only)"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = " (the kernel does so when memory runs out)" if number == signal.SIGKILL else ""
        return f"was killed by {system.signal_name(number)}{hint}"
    return f"exited with code {os.WEXITSTATUS(status)}"


def _passed(item: pytest.Item, when: str, sections: Sequence[tuple[str, str]] = ()) -> pytest.TestReport:
    return _report(item, when, "passed", None, sections=sections)


def _report(
    item: pytest.Item, when: str, outcome: Literal["passed", "failed"], text: str | None, **rest: Any
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,
        longrepr=text,
        when=when,  # type: ignore[arg-type]
        **rest,
    )


def _join_sections(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join report sections; what is of one stream and phase becomes one section."""
    joined = dict(one)
    if len(joined) != len(one):
        return [*one, *other]
    for title, text in other:
        joined[title] = joined.get(title, "") + text
    return list(joined.items())


def _without_machinery(traceback: str) -> str:
    """Leave out of a traceback how a test or fixture came to be called, as pytest does elsewhere."""
    kept: list[str] = []
    below_test = False
    for line in traceback.splitlines():
        is_frame = line.startswith("  File ")
        below_test = below_test and is_frame
        if is_frame and line.endswith(_BEGINNINGS) and "pytest_plugin" in line:
            below_test = True
        if not below_test and not (is_frame and any(part in line for part in _MACHINERY)):
            kept.append(line)
    return "\n".join(kept)


_BEGINNINGS = (" in run_protocol", " in _set_up_node", " in set_up_wide_fixtures", " in tear_down")
"""How the frames end below which nothing is of the test, nor of a fixture."""
_MACHINERY = (f"{os.sep}_pytest{os.sep}", f"{os.sep}pluggy{os.sep}")
