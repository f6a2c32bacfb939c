"""The hooks by which pytest runs its tests on fastfork."""

from __future__ import annotations

import pytest

from . import test_process
from .settings import Settings
from .supervisor import Supervisor

_PLAIN_OPTIONS = ("collectonly", "setuponly", "setupplan", "setupshow")
"""Options of pytest with which it is to show something, not to run."""
_LEFTOVERS = "fastfork-leftovers"
"""In what a worker of pytest-xdist tells at its end."""


def activate(config: pytest.Config) -> None:
    """Have the tests of a session run on fastfork."""
    if any(config.getoption(name, False) for name in _PLAIN_OPTIONS):
        return
    config.pluginmanager.register(FastForkPlugin(config), "fastfork-session")


class FastForkPlugin:
    """Runs the tests of a session, in place of pytest's own loop."""

    def __init__(self, config: pytest.Config) -> None:
        self._settings = Settings(config)
        self._leftovers: list[tuple[str, str]] = []
        self._supervisor: Supervisor | None = None
        self._indices: dict[pytest.Item, int] = {}

    def pytest_report_header(self) -> str:
        """Say how many tests run at a time."""
        workers = self._settings.workers
        return f"fastfork: a fresh process per test, {workers} at a time"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run all tests; where pytest-xdist distributes them, that is for its workers."""
        if self._settings.in_worker or session.config.pluginmanager.hasplugin("dsession"):
            return None
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            plural = "s" if session.testsfailed != 1 else ""
            raise session.Interrupted(f"{session.testsfailed} error{plural} during collection")
        if session.items:
            supervisor = Supervisor(session, self._settings)
            self._leftovers = supervisor.results.leftovers
            supervisor.run()
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run one test, in a worker of pytest-xdist; elsewhere this is called in test processes alone."""
        if not self._settings.in_worker or test_process.is_one():
            return None
        if self._supervisor is None:
            self._supervisor = Supervisor(item.session, self._settings)
            self._indices = {item: index for index, item in enumerate(item.session.items)}
        next_index = -1 if nextitem is None else self._indices[nextitem]
        self._supervisor.run_one(self._indices[item], next_index)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End what lives in a worker of pytest-xdist, and have it tell what its tests have left behind."""
        if self._supervisor is not None:
            self._supervisor.finish()
            session.config.workeroutput[_LEFTOVERS] = self._supervisor.results.leftovers  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Take what a worker of pytest-xdist has told; one that has crashed tells nothing."""
        self._leftovers += getattr(node, "workeroutput", {}).get(_LEFTOVERS, ())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List what tests have left behind."""
        if self._leftovers:
            terminalreporter.section("leftovers of tests")
            for nodeid, what in self._leftovers:
                terminalreporter.line(f"{nodeid}: {what}")
