"""Runs steps, a few at a time, each once those that it needs have passed."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .counts import Counts
from .job import Job, StepFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

STEP_LIMIT = 15 * 60  # seconds


@dataclass(frozen=True)
class Step:
    """A named piece of the run: `work` runs its commands, `count` tells afterwards how its tests did.

    A step without a count is one check, which passes or fails. `closing` is a text for the end of the run.
    """

    name: str
    work: Callable[[Job], None]
    needs: Sequence[str] = ()
    count: Callable[[Job], Counts] | None = None
    closing: Callable[[Job], str] | None = None


@dataclass(frozen=True)
class Result:
    """How a step went; `reason` is why it failed or was not run, and empty where it passed."""

    step: Step
    counts: Counts
    seconds: float = 0.0
    reason: str = ""
    job: Job | None = None


@dataclass
class Schedule:
    """The steps of one run, in the order in which they are started where more than one could be."""

    steps: Sequence[Step]
    logs: Path
    report: Callable[[Result], None]
    results: dict[str, Result] = field(default_factory=dict)
    _jobs: list[Job] = field(default_factory=list)

    def run(self, at_once: int) -> list[Result]:
        """Run all steps, `at_once` side by side; return their results in the steps' order."""
        with ThreadPoolExecutor(at_once) as pool:
            try:
                self._run_in(pool, at_once)
            except BaseException:
                for job in self._jobs:
                    job.stop()
                raise
        return [self.results[step.name] for step in self.steps]

    def _run_in(self, pool: ThreadPoolExecutor, at_once: int) -> None:
        waiting = list(self.steps)
        running: set[Future[Result]] = set()
        while waiting or running:
            self._give_up_hopeless(waiting)
            for step in self._ready(waiting)[: at_once - len(running)]:
                waiting.remove(step)
                running.add(pool.submit(self._carry_out, step))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                self._note(future.result())

    def _ready(self, waiting: Iterable[Step]) -> list[Step]:
        return [step for step in waiting if all(need in self.results for need in step.needs)]

    def _give_up_hopeless(self, waiting: list[Step]) -> None:
        """Take out of `waiting` what needs a step that did not pass; the steps' order has needs first."""
        failed = {name for name, result in self.results.items() if result.reason}
        for step in list(waiting):
            lost = failed.intersection(step.needs)
            if lost:
                waiting.remove(step)
                failed.add(step.name)
                self._note(Result(step, Counts(), reason=f"not run, since {min(lost)} did not pass"))

    def _note(self, result: Result) -> None:
        self.results[result.step.name] = result
        self.report(result)

    def _carry_out(self, step: Step) -> Result:
        job = Job(self.logs / f"{step.name}.log", STEP_LIMIT)
        self._jobs.append(job)
        started = time.monotonic()
        reason = ""
        try:
            step.work(job)
        except (StepFailedError, OSError) as error:
            reason = str(error)
        counts = step.count(job) if step.count else Counts(passed=0 if reason else 1)
        if counts == Counts():
            reason = reason or "no test ran"
        if reason and counts.failed == 0:
            counts += Counts(failed=1)
        return Result(step, counts, time.monotonic() - started, reason, job)
