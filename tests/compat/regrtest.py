"""Runs a part of a suite with the interpreter's own `python -m test`, and reads what came of each test."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import command, evidence, recorder
from .figures import FAILED, KINDS, MISSING, PASSED, SKIPPED, Figures, worse
from .suites import LEFT_OUT_OF_STANDIN, STANDIN, STANDIN_NEEDS, STANDIN_SOURCE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .interpreters import Environment, Interpreter
    from .suites import Part, Suite

LIST_LIMIT_S = 120
GRACE_S = 30
MARKS = {"skipped": SKIPPED, "failure": FAILED, "error": FAILED, "outcome": FAILED}
ENVIRONMENT_ALTERED = 3
TIMED_OUT = re.compile(r"^.*\bTimeout \(\d+:\d+:\d+\)!$", re.MULTILINE)
STATUS_MEANINGS = {None: "ran past its time limit", ENVIRONMENT_ALTERED: "altered its environment"}


@dataclass(frozen=True)
class PartRun:
    """What came of a part: its figures, what its failures said, whether it met the deadlock known of it.

    A part that ran past its limit says which test it was in, and where its threads were.
    """

    figures: Figures
    messages: dict[str, str]
    met_deadlock: bool = False


def available(interpreter: Interpreter, suite: Suite) -> bool:
    return suite.module in interpreter.modules or uses_standin(interpreter, suite)


def uses_standin(interpreter: Interpreter, suite: Suite) -> bool:
    """Whether the tests are there but not the module of a few lines that makes a suite of them."""
    carried = interpreter.modules
    return suite.standin and suite.module not in carried and STANDIN_NEEDS in carried


async def list_tests(environment: Environment, part: Part, work: Path) -> tuple[str, ...]:
    """The full names of the tests of a part."""
    start, target = _regrtest(environment, work), _target(environment, part, work)
    listing = await command.check(
        *start, "--list-cases", *part.select, *target, output=work / "cases", limit=LIST_LIMIT_S
    )
    tests = (line for line in listing.splitlines() if line.startswith(("test.", f"{STANDIN}.")))
    return tuple(test for test in tests if test != LEFT_OUT_OF_STANDIN)


async def run(
    environment: Environment,
    part: Part,
    tests: Sequence[str],
    kind: str,
    work: Path,
    limit: float,
    *,
    disabled: str = "",
) -> PartRun:
    """Run `tests` of a part on a fork server of a `kind` ("stdlib" or "fastfork"), within `limit` seconds.

    `work` is an empty folder, and has the output in the file `log` afterwards. `disabled` has the levers of fastfork's
    to leave out.
    """
    record = work / "evidence"
    record.mkdir()
    chosen = work / "tests"
    chosen.write_text("\n".join(tests))
    outcomes = work / "outcomes.xml"
    # regrtest shows where each thread was when it meets its own limit, so that one comes first.
    finished = await command.run(
        *_regrtest(environment, work),
        *("-v", "-u", "all", "--fail-env-changed", "--timeout", f"{limit:.0f}"),
        *("--matchfile", chosen, "--junit-xml", outcomes),
        *_target(environment, part, work),
        output=work / "log",
        limit=limit + GRACE_S,
        environment=environment_of(kind, record, disabled),
    )
    seen, messages = read_outcomes(outcomes)
    imperfect = {test: seen.get(test, MISSING) for test in tests if seen.get(test) != PASSED}
    served = {kind: evidence.read(record, kind) for kind in KINDS}
    figures = Figures(len(tests), imperfect, _complaints(part, finished), served, finished.seconds)
    dump = threads_at_limit((work / "log").read_text(errors="replace"))
    if dump:
        messages[str(part)] = dump
    return PartRun(figures, messages, met_deadlock=_met_deadlock(part, figures, dump))


def threads_at_limit(log: str) -> str:
    """The test that regrtest's own limit met, and where its threads were; nothing of a run that kept within it."""
    met = TIMED_OUT.search(log)
    return log[met.start() :] if met else ""


def _met_deadlock(part: Part, figures: Figures, dump: str) -> bool:
    return part.deadlock is not None and figures.count(MISSING) > 0 and part.deadlock.is_met(dump)


def read_outcomes(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The outcome of each test in a JUnit file of regrtest's, and what the failures say.

    A test whose subtest failed has no name in the file of older versions, and so no outcome here.
    """
    outcomes: dict[str, str] = {}
    messages: dict[str, str] = {}
    try:
        cases = ET.parse(path).iter("testcase")
    except (OSError, ET.ParseError):
        return outcomes, messages
    for case in cases:
        # A subtest's name is its test's, a space and the parameters.
        name = case.get("name", "").partition(" ")[0]
        outcome = next((MARKS[mark.tag] for mark in case if mark.tag in MARKS), PASSED)
        if name not in outcomes or worse(outcome, outcomes[name]):
            outcomes[name] = outcome
        if outcome == FAILED:
            messages[name] = "\n".join(mark.text or "" for mark in case)
    return outcomes, messages


def _regrtest(environment: Environment, work: Path) -> list[str | os.PathLike[str]]:
    return [environment.python, "-m", "test", "--tempdir", work]


def _target(environment: Environment, part: Part, work: Path) -> list[str | os.PathLike[str]]:
    if not uses_standin(environment.interpreter, part.suite):
        return [part.suite.module]
    directory = work / "standin"
    directory.mkdir(exist_ok=True)
    (directory / f"{STANDIN}.py").write_text(STANDIN_SOURCE)
    return ["--testdir", directory, STANDIN]


def environment_of(kind: str, record: Path, disabled: str) -> dict[str, str]:
    """The environment variables of a run: no setting of Python's or fastfork's gets in from outside."""
    foreign = ("PYTHON", "FASTFORK")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    variables[recorder.DIRECTORY_VARIABLE] = os.fspath(record)
    if kind == "fastfork":
        variables["FASTFORK_INSTALL"] = "1"
        variables["FASTFORK_DISABLE"] = disabled
    return variables


def _complaints(part: Part, finished: command.Finished) -> tuple[str, ...]:
    complaints = [f"{part} left behind: {process}" for process in finished.leftover]
    if finished.status != 0:
        meaning = STATUS_MEANINGS.get(finished.status, f"ended with status {finished.status}")
        complaints.append(f"{part} {meaning}")
    return tuple(complaints)
