"""The comparison of ways to run tests: its table, what has failed in it, and what is not there."""

from __future__ import annotations

import json

import pytest
from fastfork.bench import pytest_rivals

SECONDS = {"plain": 1.0, "fastfork=1": 2.0, "fastfork=2": 1.5, "xdist -n 2": 0.9}


@pytest.fixture
def outcomes(monkeypatch):
    """Runs that take what this says, and are the only ones that can be had."""
    seconds = dict(SECONDS)

    def run(_suite, rival, _folder):
        return seconds[rival.name], "" if seconds[
            rival.name
        ] else "0 of 1000 tests have passed: INTERNALERROR"

    monkeypatch.setattr(pytest_rivals, "_run", run)
    monkeypatch.setattr(
        pytest_rivals.importlib.util, "find_spec", lambda name: None if name == "pytest_forked" else name
    )
    rivals = [rival for rival in pytest_rivals.RIVALS if rival.name in SECONDS or "forked" in rival.name]
    monkeypatch.setattr(pytest_rivals, "RIVALS", rivals)
    return seconds


def test_what_is_missing_or_fails_is_named(outcomes, tmp_path, capsys):
    outcomes["xdist -n 2"] = 0.0
    path = tmp_path / "run.json"
    assert pytest_rivals.main(["--rounds", "2", "--suite", "trivial", "--json", str(path)]) == 0
    table = capsys.readouterr().out
    assert "xdist -n 2: failed: 0 of 1000 tests have passed: INTERNALERROR" in table
    assert "forked: left out: not installed: pip install pytest-forked" in table
    assert "xdist -n 2, forked: left out: not installed: pip install pytest-forked" in table
    figures = json.loads(path.read_text())
    assert figures["seconds"]["trivial"] == {
        "plain": [1.0, 1.0],
        "fastfork=1": [2.0, 2.0],
        "fastfork=2": [1.5, 1.5],
    }
    assert set(figures["failures"]["trivial"]) == {"xdist -n 2"}


def test_goals_need_both_rivals(outcomes, capsys):
    assert pytest_rivals.main(["--rounds", "1"]) == 0
    goals = capsys.readouterr().out.rpartition("goals")[2]
    assert goals.splitlines()[1:] == [
        "trivial, two at a time, time in parts of xdist's: 1.67 (1.50: missed)",
        "module fixture, time in parts of plain and the forks: 1.90 (1.10: missed)",
    ]


@pytest.mark.parametrize("name", ["plain", "fastfork=2"])
def test_a_failure_of_its_own_is_one_of_the_run(outcomes, name):
    outcomes[name] = 0.0
    assert pytest_rivals.main(["--rounds", "1", "--suite", "trivial"]) == 1


def test_a_suite_without_what_it_needs_is_left_out(outcomes, monkeypatch, capsys):
    monkeypatch.setattr(
        pytest_rivals.importlib.util, "find_spec", lambda name: None if name == "pandas" else name
    )
    assert pytest_rivals.main(["--rounds", "1", "--suite", "numpy and pandas"]) == 0
    assert "numpy and pandas: left out: not installed: pip install pandas" in capsys.readouterr().out


def test_a_run_whose_tests_fail_says_why(tmp_path):
    suite = pytest_rivals.Suite("one", 1, (), "", "")
    plain = pytest_rivals.RIVALS[0]
    pytest_rivals._write(suite, tmp_path)
    seconds, failure = pytest_rivals._run(suite, plain, str(tmp_path))
    assert (seconds > 0, failure) == (True, "")
    (tmp_path / "test_it.py").write_text("def test_it(): assert 0")
    seconds, failure = pytest_rivals._run(suite, plain, str(tmp_path))
    assert seconds == 0
    assert failure.startswith("0 of 1 tests have passed: 1 failed")
