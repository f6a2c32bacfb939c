"""Runs the suites of one or more interpreters, several parts at a time."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from . import interpreters, regrtest, verdict
from .figures import FAILED, Figures
from .report import InterpreterReport, SuiteReport
from .suites import LEFT_OUT_OF_STANDIN, PARTS, SUITES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from .interpreters import Environment, Interpreter
    from .regrtest import PartRun
    from .suites import Part, Suite

EVERYTHING = "*"
STANDIN_NOTE = f"its module is missing here; a stand-in runs its tests, but for {LEFT_OUT_OF_STANDIN}"
STORED = " (stored)"
STORED_IN_PART = " (stored, in part)"


@dataclass(frozen=True)
class Options:
    """What to run: `suites` by name, of them the tests that `match` fits, each part within `limit` seconds.

    `disabled` has the names of fastfork's levers to leave out, separated by commas. `baseline` has the standard
    library's figures by version and suite; `logs` is a folder for output.
    """

    suites: Sequence[str] = tuple(suite.name for suite in SUITES)
    match: str = EVERYTHING
    limit: float = 300.0
    jobs: int = 4
    stdlib_only: bool = False
    disabled: str = ""
    baseline: dict[str, dict[str, Figures]] = field(default_factory=dict)
    logs: Path | None = None


class Workshop:
    """What all runs share: folders under `work`, slots to run in, and progress told on standard error."""

    def __init__(self, options: Options, work: Path) -> None:
        self.options = options
        self.slots = asyncio.Semaphore(options.jobs)
        self._work = work
        self._numbers = itertools.count()
        self._started = time.monotonic()
        self._planned = 0
        self._done = 0

    def folder(self) -> Path:
        folder = self._work / str(next(self._numbers))
        folder.mkdir()
        return folder

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:5.0f} s] {text}", file=sys.stderr, flush=True)

    def plan(self, runs: int) -> None:
        self._planned += runs

    def done(self, text: str) -> None:
        self._done += 1
        self.say(f"{text} ({self._done} of {self._planned})")


async def examine(
    chosen: Sequence[Interpreter], options: Options, work: Path, *, wheel: Path | None, source: Path
) -> list[InterpreterReport]:
    """Run the suites of the chosen interpreters. Where a wheel is needed and not given, `source` is built."""
    workshop = Workshop(options, work)
    carriers = [interpreter for interpreter in chosen if _carried(interpreter, options)]
    if options.stdlib_only:
        wheel = None
    elif carriers and not wheel:
        workshop.say("building the wheel")
        wheel = await interpreters.build_wheel(carriers[0], source, workshop.folder())
    return list(await asyncio.gather(*(_examine(interpreter, wheel, workshop) for interpreter in chosen)))


async def _examine(interpreter: Interpreter, wheel: Path | None, workshop: Workshop) -> InterpreterReport:
    carried = _carried(interpreter, workshop.options)
    absent = [
        SuiteReport(name) for name in workshop.options.suites if name not in {suite.name for suite in carried}
    ]
    report = InterpreterReport(interpreter.version, str(interpreter.executable), None, absent)
    if carried:
        async with workshop.slots:
            workshop.say(f"{interpreter.version}: making an environment")
            environment = await interpreters.create_environment(interpreter, wheel, workshop.folder())
        report.fastfork = environment.fastfork
        report.suites += await Examination(environment, workshop).run(carried)
    return report


def _carried(interpreter: Interpreter, options: Options) -> list[Suite]:
    return [
        suite for suite in SUITES if suite.name in options.suites and regrtest.available(interpreter, suite)
    ]


class Examination:
    """All suites of one interpreter: their tests by part, and the runs by part and kind of fork server."""

    def __init__(self, environment: Environment, workshop: Workshop) -> None:
        self._environment = environment
        self._workshop = workshop
        self._tests: dict[Part, tuple[str, ...]] = {}
        self._runs: dict[tuple[Part, str], PartRun] = {}
        self._deadlocks: Counter[tuple[Part, str]] = Counter()

    async def run(self, suites: Sequence[Suite]) -> list[SuiteReport]:
        """Run `suites`; those of which no test is wanted are left out."""
        parts = [part for part in PARTS if part.suite in suites]
        listed = await asyncio.gather(*(self._list(part) for part in parts))
        self._tests = {part: tests for part, tests in zip(parts, listed) if tests}
        wanted = [suite for suite in suites if self._tests_of(suite)]
        stored = {suite: self._stored(suite) for suite in wanted}
        await self._run_all(suite for suite in wanted if not stored[suite])
        return [await self._report(suite, stored[suite]) for suite in wanted]

    async def _list(self, part: Part) -> tuple[str, ...]:
        async with self._workshop.slots:
            tests = await regrtest.list_tests(self._environment, part, self._workshop.folder())
        return tuple(test for test in tests if fnmatchcase(test, self._workshop.options.match))

    def _tests_of(self, suite: Suite) -> list[str]:
        return [test for part, tests in self._tests.items() if part.suite == suite for test in tests]

    def _stored(self, suite: Suite) -> Figures | None:
        """The standard library's stored figures, if they are of the very tests at hand."""
        baseline = self._workshop.options.baseline
        figures = baseline.get(self._environment.interpreter.version, {}).get(suite.name)
        tests = self._tests_of(suite)
        if figures and figures.tests == len(tests) and figures.imperfect.keys() <= set(tests):
            return figures
        return None

    async def _run_all(self, unknown: Iterable[Suite]) -> None:
        """Run everything on fastfork, and on the standard library the suites whose figures are unknown."""
        anew = set(unknown)
        wanted = [
            (part, kind)
            for part in self._tests
            for kind, needed in (("fastfork", self._environment.fastfork), ("stdlib", part.suite in anew))
            if needed
        ]
        self._workshop.plan(len(wanted))
        runs = await asyncio.gather(*(self._run(part, kind, self._tests[part]) for part, kind in wanted))
        self._runs = dict(zip(wanted, runs))

    async def _run(self, part: Part, kind: str, tests: Sequence[str]) -> PartRun:
        name = f"{self._environment.interpreter.version} {kind} {part}"
        run = await self._attempt(part, kind, tests, name)
        attempts = part.deadlock.attempts if part.deadlock else 1
        while run.met_deadlock and self._deadlocks[part, kind] < attempts:
            run = await self._attempt(part, kind, tests, name)
        figures = run.figures
        counts = f"{figures.run} of {figures.tests} run, {figures.count(FAILED)} failed"
        self._workshop.done(f"{name}: {counts}, {figures.seconds:.0f} s")
        return run

    async def _attempt(self, part: Part, kind: str, tests: Sequence[str], name: str) -> PartRun:
        options = self._workshop.options
        limit = min(options.limit, part.deadlock.limit if part.deadlock else math.inf)
        async with self._workshop.slots:
            folder = self._workshop.folder()
            run = await regrtest.run(
                self._environment, part, tests, kind, folder, limit, disabled=options.disabled
            )
        if options.logs:
            shutil.copyfile(folder / "log", options.logs / f"{name}.log")
        if run.met_deadlock:
            self._deadlocks[part, kind] += 1
            self._workshop.say(f"{name}: met a deadlock of CPython's own")
        return run

    async def _report(self, suite: Suite, stored: Figures | None) -> SuiteReport:
        stdlib = stored or self._total(suite, "stdlib")
        report = SuiteReport(suite.name, stdlib, stored=STORED if stored else "", notes=self._notes(suite))
        if not self._environment.fastfork:
            report.messages = self._messages(suite, "stdlib")
            return report
        report.fastfork = self._total(suite, "fastfork")
        report.messages = self._messages(suite, "fastfork")
        tests = self._tests_of(suite)
        doubtful = verdict.worse_tests(tests, report.fastfork, stdlib)
        if stored and doubtful:
            stdlib = report.stdlib = await self._recheck(suite, set(doubtful), stored)
            report.stored = STORED_IN_PART
        whole = self._workshop.options.match == EVERYTHING
        report.problems = verdict.problems(tests, report.fastfork, stdlib, whole=whole)
        return report

    def _notes(self, suite: Suite) -> list[str]:
        standin = regrtest.uses_standin(self._environment.interpreter, suite)
        return [
            *([STANDIN_NOTE] if standin else []),
            *(
                f"{kind} ({part.name}): run again after {count} deadlocks of CPython's own"
                for (part, kind), count in self._deadlocks.items()
                if part.suite == suite
            ),
        ]

    async def _recheck(self, suite: Suite, doubtful: set[str], stored: Figures) -> Figures:
        """The stored figures, with what comes of doubtful tests on the standard library here and now."""
        asked = {
            part: [test for test in tests if test in doubtful]
            for part, tests in self._tests.items()
            if part.suite == suite and not doubtful.isdisjoint(tests)
        }
        self._workshop.plan(len(asked))
        runs = await asyncio.gather(*(self._run(part, "stdlib", tests) for part, tests in asked.items()))
        now = sum((run.figures for run in runs), Figures())
        kept = {test: outcome for test, outcome in stored.imperfect.items() if test not in doubtful}
        return replace(stored, imperfect={**kept, **now.imperfect})

    def _total(self, suite: Suite, kind: str) -> Figures:
        return sum((run.figures for run in self._runs_of(suite, kind)), Figures())

    def _messages(self, suite: Suite, kind: str) -> dict[str, str]:
        return {test: text for run in self._runs_of(suite, kind) for test, text in run.messages.items()}

    def _runs_of(self, suite: Suite, kind: str) -> list[PartRun]:
        return [run for (part, of), run in self._runs.items() if part.suite == suite and of == kind]
