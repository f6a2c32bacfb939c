"""The process of one test: it runs pytest's own protocol for it, writes down what comes of that, and ends."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import traceback

import pytest

from . import internals, system, wire
from .coverage_data import save_coverage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import warnings
    from typing import NoReturn

    from .run import Run
    from .slot import Slot


_is_one = False


def is_one() -> bool:
    """Whether this is the process of a test, or of its template."""
    return _is_one


def become_one() -> None:
    """Note that this is no longer pytest's own process."""
    global _is_one
    _is_one = True


def start(run: Run, index: int, slot: Slot) -> NoReturn:
    """Run a test, in the process just forked for it. Nothing unwinds past this."""
    try:
        _be_a_process(run, slot)
        if os.read(slot.go_reader, 1):
            _Test(run, index, slot).run()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(0)


def _be_a_process(run: Run, slot: Slot) -> None:
    signal.signal(signal.SIGINT, run.interrupt_handler)
    if not run.settings.interactive:
        os.setpgid(0, 0)
    system.adopt_orphans()
    internals.redirect(run.captured, slot)
    os.dup2(slot.crash, run.crash_fd, inheritable=False)
    internals.disown(run.session)
    if run.collects_garbage:
        gc.enable()


def rehearse(run: Run, slot: Slot) -> None:
    """Run the only test of a run that is none: what is left behind is for the caller to undo."""
    internals.redirect(run.captured, slot)
    internals.disown(run.session)
    _Test(run, 0, slot).run()


class _Test:
    def __init__(self, run: Run, index: int, slot: Slot) -> None:
        self._run = run
        self._index = index
        self._slot = slot
        self._item = run.items[index]
        self._journal = wire.Journal(slot.journal)
        self._stops = 0

    def run(self) -> None:
        """Run it, tell its end, and return in this process alone: a fork that the test has let go of ends here."""
        reporter = self._run.reporter
        reporter.journal = self._journal
        before = self._look() if self._run.settings.reports_leftovers else None
        suite_properties = internals.junit_suite_properties(self._run.config)
        self._run_protocol()
        if not self._journal.is_mine():
            return
        extras = internals.junit_extras(self._run.config, self._item.nodeid, suite_properties)
        subtests = internals.failed_subtests(self._item)
        if subtests:
            extras["subtests"] = subtests
        if extras:
            self._journal.add(wire.EXTRAS, extras)
        if before is not None:
            self._report_leftovers(before)
        _finish_multiprocessing()
        save_coverage()
        flush_streams()
        flags = (wire.FAILED if reporter.failed else 0) | self._stops
        self._run.send(wire.note(wire.ENDED, self._slot.number, self._index, flags))

    def _run_protocol(self) -> None:
        session = self._run.session
        for definition in self._run.needs.kept_by_marker(self._index):
            internals.forget_fixture(definition)
        prepared = self._run.prepared.get(self._index)
        if prepared is not None:
            prepared.tell_in_set_up(self._item)
        try:
            internals.run_protocol(self._item)
        except pytest.exit.Exception as error:
            self._stop("exit", error.msg, error.returncode)
        except KeyboardInterrupt:
            self._stop("interrupt", "".join(traceback.format_exc()), None)
        except BaseException:
            self._stop("error", traceback.format_exc(), None)
        if session.shouldstop:
            self._stop("shouldstop", str(session.shouldstop), None)
        if session.shouldfail:
            self._stop("shouldfail", str(session.shouldfail), None)

    def _stop(self, how: str, text: str, returncode: int | None) -> None:
        self._stops = wire.STOPS
        self._journal.add(wire.STOP, (how, text, returncode))

    def _look(self) -> tuple[set[int], set[int]]:
        return {thread.ident or 0 for thread in threading.enumerate()}, set(system.descriptors())

    def _report_leftovers(self, before: tuple[set[int], set[int]]) -> None:
        threads, descriptors = before
        found = [f"thread {t.name}" for t in threading.enumerate() if (t.ident or 0) not in threads]
        found += [
            f"descriptor {number} ({target})"
            for number, target in sorted(system.descriptors().items())
            if number not in descriptors and "/proc/" not in target
        ]
        if found:
            self._journal.add(wire.LEFTOVERS, found)


class Reporter:
    """A plugin for pytest in templates and test processes: writes reports and warnings into the journal."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.journal: wire.Journal | None = None
        self.failed = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Note where the test is, in case that it ends there."""
        self._enter(0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        """Note where the test is."""
        self._enter(1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        """Note where the test is."""
        self._enter(2)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """Have the report of what a template has met be that of plain pytest."""
        internals.leave_out_own_frames(call)

    def pytest_enter_pdb(self, config: pytest.Config, pdb: object) -> None:
        """Have a test fail that would wait for ever for the terminal."""
        if system.is_another_groups_terminal(getattr(pdb, "stdin", None)):
            internals.resume_capture(config)
            pytest.fail("The debugger needs the terminal, which a test has with --pdb or --trace only.")

    def _enter(self, phase: int) -> None:
        if self.journal is not None:
            self.journal.enter(phase)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a report down, serialised as pytest does it."""
        if self.journal is None:
            return
        self.failed = self.failed or report.failed
        data = internals.serialise(self._config, report)
        try:
            self.journal.add(wire.REPORT, data)
        except Exception:  # properties that cannot be pickled
            data["user_properties"] = [(str(name), repr(value)) for name, value in report.user_properties]
            self.journal.add(wire.REPORT, data)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: object
    ) -> None:
        """Write a warning down."""
        if self.journal is None:
            return
        w = warning_message
        message: bytes | None
        try:
            message = pickle.dumps((w.message, w.category))
        except Exception:
            message = None
        self.journal.add(
            wire.WARNING, (message, str(w.message), w.filename, w.lineno, w.line, when, nodeid, location)
        )


def _finish_multiprocessing() -> None:
    """Have multiprocessing remove what this process has made by it: pools, managers, temporary folders."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and util._finalizer_registry:
        with contextlib.suppress(Exception):
            util._run_finalizers()


def flush_streams() -> None:
    """Flush the standard streams: the process will end by _exit()."""
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()  # type: ignore[union-attr]
