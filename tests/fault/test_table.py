"""The table's own judgement: a table that calls everything sound says nothing."""

from __future__ import annotations

import json
import os
import platform
import sys

import pytest
from support.processes import DEADLINE, is_alive

from . import __main__ as command
from . import repeat
from .runs import DOES_NOT_APPLY, EXIT_CODE_LOST, HANGS, HOLDS, SERVER_DIED, Outcome, Runner, word_for

CONFTEST = """
import json, os, pathlib

def pytest_collection_finish(session):
    if "FAULTS_LIST" in os.environ:
        titles = json.dumps({item.nodeid: "title of " + item.name for item in session.items})
        pathlib.Path(os.environ["FAULTS_LIST"]).write_text(titles)
"""

TESTS = """
import os, pathlib, signal, subprocess, sys
import pytest

def test_that_holds():
    pass

def test_on_fastfork_alone():
    if os.environ["FAULTS_ON"] == "stdlib":
        pytest.skip("about fastfork alone")

def test_with_a_word():
    assert 1 == 2, "server died"

def test_without_a_word():
    assert 255 == 7

def test_that_dies():
    os._exit(3)

def test_that_hangs():
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    pathlib.Path("pid").write_text(str(process.pid))
    signal.pause()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_faults.py").write_text(TESTS)
    return tmp_path


@pytest.fixture
def runner(folder):
    return Runner(sys.executable, folder, DEADLINE)


def test_the_titles_of_the_tests_are_collected_in_order(runner):
    titles = runner.collect(".")
    assert next(iter(titles.items())) == ("test_faults.py::test_that_holds", "title of test_that_holds")
    assert len(titles) == 6


def test_tests_that_cannot_be_collected_are_an_error(runner, folder):
    (folder / "test_faults.py").write_text("import nothing_of_that_name")
    with pytest.raises(RuntimeError, match="nothing_of_that_name"):
        runner.collect(".")


@pytest.mark.parametrize(
    ("test", "on", "word"),
    [
        ("test_that_holds", "fastfork", HOLDS),
        ("test_on_fastfork_alone", "fastfork", HOLDS),
        ("test_on_fastfork_alone", "stdlib", DOES_NOT_APPLY),
        ("test_with_a_word", "stdlib", SERVER_DIED),
        ("test_without_a_word", "stdlib", EXIT_CODE_LOST),
        ("test_that_dies", "stdlib", "the client died"),
    ],
)
def test_an_outcome_has_its_word(runner, test, on, word):
    assert runner.run("title", f"test_faults.py::{test}", on).word == word


def test_many_tests_at_once_have_their_counts(runner):
    suite = runner.run_suite(["test_faults.py", "-k", "not dies and not hangs"])
    assert (suite.passed, suite.skipped) == (2, 0)
    assert {test: word_for(message) for test, message in suite.failures.items()} == {
        "test_faults::test_with_a_word": SERVER_DIED,
        "test_faults::test_without_a_word": EXIT_CODE_LOST,
    }
    assert not suite.is_good


@pytest.mark.parametrize(("tests", "what"), [("test_that_dies", "the client died"), ("of_that_name", None)])
def test_a_run_that_comes_to_no_result_is_not_good(runner, tests, what):
    suite = runner.run_suite(["test_faults.py", "-k", tests])
    assert suite.failures.get("") == what
    assert not suite.is_good


@pytest.mark.parametrize(("tests", "status", "good"), [("that_holds", 0, 3), ("with_a_word", 1, 0)])
def test_runs_side_by_side_are_summed_up(folder, monkeypatch, capsys, tmp_path, tests, status, good):
    monkeypatch.setattr(repeat, "ROOT", folder)
    monkeypatch.setattr(repeat.signal, "signal", lambda *_: None)
    logs = tmp_path / "logs"
    options = ["--times", "3", "--at-once", "2", "--logs", os.fspath(logs), f"test_faults.py::test_{tests}"]
    assert repeat.main(options) == status
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"3 runs, {good} of them without a failure"
    assert out[1] == f"{good} passed, 0 skipped, {3 - good} failed"
    assert len(list(logs.iterdir())) == 3 - good


SKIPS = """
import pytest

def test_that_holds():
    pass

def test_that_lacks_something():
    pytest.skip("there is no such thing here")
"""


@pytest.mark.parametrize(("options", "status", "good"), [([], 0, 2), (["--no-skips"], 1, 0)])
def test_a_run_with_skipped_tests_is_good_unless_there_are_to_be_none(
    folder, monkeypatch, capsys, tmp_path, options, status, good
):
    (folder / "test_skips.py").write_text(SKIPS)
    monkeypatch.setattr(repeat, "ROOT", folder)
    monkeypatch.setattr(repeat.signal, "signal", lambda *_: None)
    logs = tmp_path / "logs"
    options = [*options, "--times", "2", "--at-once", "1", "--logs", os.fspath(logs), "test_skips.py"]
    assert repeat.main(options) == status
    captured = capsys.readouterr()
    out = captured.out.splitlines()
    assert out[0] == f"2 runs, {good} of them without a failure"
    assert out[1] == "2 passed, 2 skipped, 0 failed"
    skip = "test_skips::test_that_lacks_something"
    assert (f"    2 times skipped: {skip}" in out) == bool(status)
    assert (f"    {skip} was skipped: there is no such thing here" in captured.err) == bool(status)
    assert len(list(logs.iterdir())) == 2 - good


def test_what_hangs_is_ended_with_all_that_it_has_started(folder):
    outcome = Runner(sys.executable, folder, 10).run("title", "test_faults.py::test_that_hangs", "stdlib")
    assert (outcome.word, outcome.is_good) == (HANGS, False)
    assert not is_alive(int((folder / "pid").read_text()))


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("AssertionError: server died\nassert 1 == 2", SERVER_DIED),
        ("assert 255 == 7\n +  where 255 = ...", EXIT_CODE_LOST),
        ("AssertionError: assert None == 7", HANGS),
        ("AssertionError: waited 60.0 s in vain\nassert 2.0 < 1.0", HANGS),
        ("ConnectionResetError: [Errno 104] Connection reset by peer", "start fails: ConnectionResetError"),
        ("EOFError: unexpected EOF", "start fails: EOFError"),
        ('failed on teardown with "AssertionError: assert {1} == {2}"', "something left behind"),
        ("AssertionError: assert {35, 255} == {35}", EXIT_CODE_LOST),
        ("AssertionError: assert 255 in {0}", EXIT_CODE_LOST),
        (
            "AssertionError: assert 'FileNotFound... or directory' == 'works'",
            "start fails: FileNotFoundError",
        ),
        ("AssertionError: assert 'EROFS\\n' == ''", "complaints on standard error"),
        ("assert 1 == 0", "wrong outcome"),
        (
            "AssertionError: Traceback (most recent call last):\n AssertionError: kill() has killed another process",
            "another process killed",
        ),
        ("ValueError: what", "ValueError: what"),
        ("Failed: " + 100 * "x", 57 * "x" + "..."),
    ],
)
def test_a_failure_is_put_in_a_few_words(message, word):
    assert word_for(message) == word


def test_the_table_has_the_worst_of_each_title():
    outcomes = [
        Outcome(title, "test", on, word, 1.0, "")
        for title, on, word in [
            ("A", "stdlib", HOLDS),
            ("A", "fastfork", HOLDS),
            ("B|", "stdlib", DOES_NOT_APPLY),
            ("B|", "fastfork", DOES_NOT_APPLY),
            ("A", "stdlib", HANGS),
            ("A", "stdlib", SERVER_DIED),
            ("A", "fastfork", DOES_NOT_APPLY),
            ("C", "stdlib", "two"),
            ("C", "stdlib", "one"),
            ("C", "fastfork", HOLDS),
        ]
    ]
    assert command.table(outcomes).splitlines() == [
        "| fault | standard library | fastfork |",
        "| --- | --- | --- |",
        "| A | server died | holds |",
        "| B\\| | - | - |",
        "| C | one, two | holds |",
    ]


@pytest.mark.parametrize(("test", "status"), [("test_that_holds", 0), ("test_with_a_word", 1)])
def test_the_command_succeeds_where_fastfork_holds(folder, monkeypatch, capsys, test, status):
    monkeypatch.setattr(command, "ROOT", folder)
    monkeypatch.setattr(command, "TESTS", ".")
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    report = folder / "report.json"
    monkeypatch.setattr(sys, "argv", ["tests.fault", "--only", test, "--json", os.fspath(report)])
    assert command.main() == status
    captured = capsys.readouterr()
    assert captured.out.startswith("| fault | standard library | fastfork |\n| --- | --- | --- |\n| title of")
    assert "2/2" in captured.err
    assert f"{platform.python_version()}, {platform.system()}" in captured.out.splitlines()[-1]
    assert f"1 tests on each, of which {1 - status} hold" in captured.out
    assert [outcome["on"] for outcome in json.loads(report.read_text())] == ["stdlib", "fastfork"]
