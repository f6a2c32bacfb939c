"""The comparison of executors: its goals, its table, what is not there, and one tiny run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fastfork.bench import executors

RATES = {
    "fastfork": [100.0, 120.0, 90.0],
    "pool-fork": [50.0, 40.0, 30.0],
    "pebble": [10.0, 0.0, 9.0],
    "loky": [1.0, 1.0, 1.0],
}
CHOSEN = [rival for rival in executors.RIVALS if rival.name in RATES]


@pytest.fixture
def rates(monkeypatch):
    """Runs that answer what RATES has, one after the other."""
    left = {name: list(values) for name, values in RATES.items()}

    def run(rival, _seconds):
        rate = left[rival.name].pop(0)
        return rate, "" if rate else "it broke down"

    monkeypatch.setattr(executors, "_run", run)
    monkeypatch.setattr(
        executors, "_chosen", lambda names: (CHOSEN, {"mpire": "not installed: pip install mpire"})
    )
    monkeypatch.setattr(executors, "_versions", lambda rivals: {})


@pytest.mark.usefixtures("rates")
def test_goals_are_the_medians_of_the_rounds_ratios(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert executors.main(["--rounds", "3", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    best, median = figures["goals"]
    assert (best["ratio"], best["reached"]) == (3.0, True)  # of 2, 3 and 3
    assert (median["ratio"], median["reached"]) == (10.0, True)  # of 10, 120 / 20.5 and 10
    assert figures["rates"] == RATES
    table = capsys.readouterr().out
    assert "pebble: failed: it broke down" in table
    assert "mpire: left out: not installed: pip install mpire" in table
    (line,) = [line for line in table.splitlines() if line.startswith("pebble.ProcessPool")]
    assert line.split()[-5:] == ["9.5", "105.26", "10.00", "x", "1"]


def test_a_rival_that_is_not_installed_is_named_with_the_line_that_gets_it(monkeypatch):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    rivals, missing = executors._chosen(["pool-fork", "pebble"])
    assert [rival.name for rival in rivals] == ["pool-fork"]
    assert missing == {"pebble": "not installed: pip install pebble"}


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--seconds", "0"], ["--rivals", "nobody"]])
def test_options_that_are_not_possible(words, capsys):
    with pytest.raises(SystemExit):
        executors.main(words)
    assert words[0] in capsys.readouterr().err


def test_help_names_the_rivals(capsys):
    with pytest.raises(SystemExit):
        executors.main(["--help"])
    text = capsys.readouterr().out
    assert all(rival.title in text for rival in executors.RIVALS)


def test_a_tiny_run():
    fastfork = executors.RIVALS[0]
    rate, failure = executors._run(fastfork, 0.02)
    assert (rate > 0, failure) == (True, "")


def test_a_run_that_breaks_down_says_why(monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("raise RuntimeError('why')")
    monkeypatch.setattr(executors, "_PROGRAM", program)
    assert executors._run(executors.RIVALS[0], 1.0) == (0.0, "exit status 1: RuntimeError: why")


def test_tasks_that_share_a_process_are_no_figure(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(executors.__file__).parent / "program"))
    import bench_fresh
    import bench_tasks

    with pytest.raises(RuntimeError, match="not all tasks have had fresh processes"):
        bench_fresh._timed(
            lambda task, numbers: [task(number) for number in numbers], bench_tasks.count_tasks, 2
        )
    del sys.modules["bench_fresh"], sys.modules["bench_tasks"]
