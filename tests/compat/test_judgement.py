"""The runner's own judgement: a runner that lets everything pass proves nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from . import evidence, figures, recorder, regrtest, runner, suites, verdict
from .evidence import Served
from .figures import FAILED, MISSING, SKIPPED, Figures
from .interpreters import Environment, Interpreter

if TYPE_CHECKING:
    from pathlib import Path

TESTS = ("test.suite.Class.test_a", "test.suite.Class.test_b")
STDLIB = Figures(tests=2, served={"stdlib": Served(1, 100, 4), "fastfork": Served()})
FASTFORK = Figures(tests=2, served={"stdlib": Served(), "fastfork": Served(1, 98, 4)})


def changed(of: Figures, **changes: Any) -> Figures:
    return Figures(**{**vars(of), **changes})


def served(stdlib: Served, fastfork: Served) -> Figures:
    return changed(FASTFORK, served={"stdlib": stdlib, "fastfork": fastfork})


def test_equal_figures_are_no_problem() -> None:
    assert verdict.problems(TESTS, FASTFORK, STDLIB) == []


@pytest.mark.parametrize("outcome", [SKIPPED, FAILED, MISSING])
def test_an_outcome_worse_than_the_standard_librarys_is_a_problem(outcome: str) -> None:
    fastfork = changed(FASTFORK, imperfect={TESTS[0]: outcome})
    (problem,) = verdict.problems(TESTS, fastfork, STDLIB)
    assert problem.startswith(f"{TESTS[0]}: {outcome}")


@pytest.mark.parametrize(
    ("ours", "theirs"), [(FAILED, FAILED), (SKIPPED, SKIPPED), (SKIPPED, FAILED), (FAILED, MISSING)]
)
def test_an_outcome_no_worse_is_none(ours: str, theirs: str) -> None:
    fastfork = changed(FASTFORK, imperfect={TESTS[0]: ours})
    stdlib = changed(STDLIB, imperfect={TESTS[0]: theirs})
    assert verdict.problems(TESTS, fastfork, stdlib) == []


def test_a_complaint_that_the_standard_library_does_not_earn_is_a_problem() -> None:
    fastfork = changed(FASTFORK, complaints=("left behind: a process",))
    assert verdict.problems(TESTS, fastfork, STDLIB) == ["left behind: a process"]
    assert verdict.problems(TESTS, fastfork, changed(STDLIB, complaints=("altered",))) == []


@pytest.mark.parametrize(
    "fastfork",
    [
        pytest.param(served(Served(1, 0, 0), Served(1, 100, 4)), id="the standard library's server started"),
        pytest.param(served(Served(), Served()), id="nobody served"),
        pytest.param(served(Served(), Served(1, 50, 4)), id="fastfork served half of them"),
        pytest.param(served(Served(), Served(1, 100, 0)), id="fastfork served no isolated interpreter"),
    ],
)
def test_proof_is_asked_for(fastfork: Figures) -> None:
    assert verdict.problems(TESTS, fastfork, STDLIB)


def test_a_part_that_starts_no_process_needs_no_proof() -> None:
    nothing = served(Served(), Served())
    assert verdict.problems(TESTS, nothing, nothing, whole=False) == []
    assert verdict.problems(TESTS, nothing, nothing)
    assert verdict.problems(TESTS, nothing, STDLIB, whole=False)


def test_outcomes_are_read_from_regrtests_file(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.xml"
    path.write_text(
        """<testsuites><testsuite>
        <testcase name="passes"><system-out>words</system-out></testcase>
        <testcase name="skips"><skipped>no reason</skipped></testcase>
        <testcase name="fails"><failure>why</failure></testcase>
        <testcase name="errs"><error>why</error></testcase>
        <testcase name="expected"><output>a known failure</output></testcase>
        <testcase name="unexpected"><outcome>UNEXPECTED_SUCCESS</outcome></testcase>
        <testcase name="skips_a_subtest (number=1)"><skipped>no reason</skipped></testcase>
        <testcase />
        </testsuite></testsuites>"""
    )
    outcomes, messages = regrtest.read_outcomes(path)
    del outcomes[""]
    assert outcomes == {
        "passes": "passed",
        "skips": "skipped",
        "fails": "failed",
        "errs": "failed",
        "expected": "passed",
        "unexpected": "failed",
        "skips_a_subtest": "skipped",
    }
    assert messages["fails"] == "why"


def test_a_run_that_crashed_has_no_outcomes(tmp_path: Path) -> None:
    truncated = tmp_path / "outcomes.xml"
    truncated.write_text("<testsuites><testcase")
    assert regrtest.read_outcomes(truncated) == ({}, {})
    assert regrtest.read_outcomes(tmp_path / "absent.xml") == ({}, {})


def test_figures_survive_storing(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    baseline = {"3.13.0": {"suite": changed(STDLIB, imperfect={TESTS[1]: SKIPPED}, complaints=("a", "b"))}}
    figures.store_baseline(baseline, path)
    assert figures.load_baseline(path) == baseline


def test_a_deadlock_is_known_by_all_its_frames() -> None:
    deadlock = suites.Deadlock("gh-1", ("feed", "join"))
    dump = '  File "queues.py", line 2 in {}\n  File "threading.py", line 1 in run\n'
    assert deadlock.is_met("Timeout!\n" + dump.format("feed") + dump.format("join"))
    assert not deadlock.is_met("Timeout!\n" + dump.format("feed") + dump.format("join_thread"))


def test_a_run_past_its_limit_says_where_it_was() -> None:
    dump = (
        'test_b (test.B.test_b) ... Timeout (0:02:30)!\nThread 0x1 (most recent call first):\n  File "b.py"'
    )
    assert regrtest.threads_at_limit(f"test_a (test.A.test_a) ... ok\n{dump}") == dump
    assert (
        regrtest.threads_at_limit("Run 8 tests sequentially (timeout: 2 min 30 sec)\ntest_a ... ok\n") == ""
    )


@pytest.mark.parametrize(("deadlocks", "runs"), [(0, 1), (2, 3), (99, 4)])
def test_a_part_is_run_again_after_its_deadlock_alone(
    deadlocks: int, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    async def run(*_arguments: object, **_options: object) -> regrtest.PartRun:
        made.append(_arguments)
        return regrtest.PartRun(FASTFORK, {}, met_deadlock=len(made) <= deadlocks)

    monkeypatch.setattr(regrtest, "run", run)
    part = suites.Part(suites.FUTURES, "gh-1", (), suites.Deadlock("gh-1", ("feed",), limit=60, attempts=4))
    interpreter = Interpreter(tmp_path, "3.13.0", (3, 13), "", frozenset())

    async def examine() -> regrtest.PartRun:
        workshop = runner.Workshop(runner.Options(), tmp_path / "work")
        examination = runner.Examination(Environment(interpreter, tmp_path, "0"), workshop)
        return await examination._run(part, "fastfork", TESTS)

    (tmp_path / "work").mkdir()
    last = asyncio.run(examine())
    assert len(made) == runs
    assert last.met_deadlock == (deadlocks >= runs)
    assert {arguments[-1] for arguments in made} == {60}


def test_no_lever_is_left_out_but_those_that_the_run_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTFORK_DISABLE", "bind")
    assert regrtest.environment_of("fastfork", tmp_path, "")["FASTFORK_DISABLE"] == ""
    assert regrtest.environment_of("fastfork", tmp_path, "all")["FASTFORK_DISABLE"] == "all"
    assert "FASTFORK_DISABLE" not in regrtest.environment_of("stdlib", tmp_path, "all")


def test_counts_leave_nothing_out() -> None:
    some = Figures(tests=5, imperfect={"b": SKIPPED, "c": FAILED, "d": MISSING})
    assert [some.count(outcome) for outcome in figures.BEST_FIRST] == [2, 1, 1, 1]
    assert some.run == 4


@pytest.mark.parametrize("kind", recorder.COMMANDS)
def test_a_server_is_recorded_with_the_children_asked_of_it_alone(kind: str, tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(recorder.__file__)!r})
import recorder
recorder.start()
recorder.start()  # as site does before 3.15
child = os.fork()
if not child:
    grandchild = os.fork()
    if grandchild:
        os.waitpid(grandchild, 0)
    os._exit(0)
os.waitpid(child, 0)
# {recorder.COMMANDS[kind]}
"""
    environment = {**os.environ, recorder.DIRECTORY_VARIABLE: os.fspath(tmp_path)}
    for options in [], ["-I"]:
        subprocess.run([sys.executable, *options, "-c", program], env=environment, check=True, timeout=60)
    assert evidence.read(tmp_path, kind) == Served(servers=2, processes=2, isolated=1)
    (other,) = recorder.COMMANDS.keys() - {kind}
    assert evidence.read(tmp_path, other) == Served()


def test_other_interpreters_are_not_recorded(tmp_path: Path) -> None:
    folder = os.path.dirname(recorder.__file__)
    program = f"import sys; sys.path.insert(0, {folder!r}); import recorder; recorder.start()"
    environment = {**os.environ, recorder.DIRECTORY_VARIABLE: os.fspath(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
