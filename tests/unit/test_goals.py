"""The goals of the benchmark: their bounds, their tables, their JSON, their options, and one tiny run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
from fastfork.bench import main
from fastfork.bench.errors import BenchError
from fastfork.bench.goals import experiments, heap, levers, plan, plot, result, rows, table
from fastfork.bench.goals.figures import FIGURES, Found
from fastfork.bench.rivals import FASTFORK, by_name
from support.bench import ENVIRONMENT

from fastfork.levers import LEVERS

VALUES = {
    "start": {"fastfork": 0.001, "fork": 0.0015, "forkserver": 0.008, "floor": 0.0004},
    "faults": {"fastfork": 216.0, "fork": 344.0, "forkserver": 900.0},
    "lone-start": {"fastfork": 0.001, "forkserver-tuned": 0.002},
    "crowd-start": {"fastfork": 0.0011, "forkserver-tuned": 0.004},
}
NAMES = ["start-forkserver", "start-tuned", "start-fork", "faults", "crowd"]


def of(python="3.13.0", kind=result.GOALS, names=NAMES, values=VALUES):
    """Return a run, made up."""
    surroundings = replace(ENVIRONMENT, python=f"CPython {python}")
    return result.Result(surroundings, kind, list(names), Found(values, ["a remark"]))


def goal_called(name):
    (goal,) = rows.chosen([name])
    return goal


def test_every_goal_can_be_measured():
    names = [goal.name for goal in rows.GOALS]
    assert len(set(names)) == len(names)
    for goal in rows.GOALS:
        assert goal.experiment in experiments.EXPERIMENTS
        for term in goal.terms:
            assert term.figure in FIGURES
            assert by_name(term.rival)


@pytest.mark.parametrize(
    ("name", "version", "bound"),
    [
        ("start-forkserver", (3, 9, 18), 5.0),
        ("start-forkserver", (3, 11, 7), 5.0),
        ("start-forkserver", (3, 12, 0), 7.5),
        ("start-forkserver", (3, 13, 7), 7.5),
        ("start-forkserver", (3, 13, 8), 3.0),
        ("start-forkserver", (3, 14, 1), 3.0),
        ("start-tuned", (3, 13, 8), 3.0),
        ("start-tuned", (3, 14, 0), None),
        ("faults", (3, 12, 9), None),
        ("faults", (3, 13, 0), 200),
        ("faults", (3, 14, 0), None),
        ("start-fork", (3, 9, 18), 1.8),
        ("start-fork", (3, 15, 0), 1.8),
    ],
)
def test_bounds_depend_on_the_version(name, version, bound):
    assert goal_called(name).reach(version) == bound


@pytest.mark.parametrize(
    ("name", "value", "is_met"),
    [("start-fork", 1.8, True), ("start-fork", 1.79, False), ("crowd", 1.2, True), ("crowd", 1.21, False)],
)
def test_bounds_are_kept_or_not(name, value, is_met):
    goal = goal_called(name)
    assert goal.is_met(value, goal.reach((3, 13, 0))) == is_met


def test_table():
    lines = table.text(of()).splitlines()
    cells = {line.split()[0]: line.split("  ") for line in lines if line}
    found = {name: [cell.strip() for cell in cells[name] if cell][1:] for name in NAMES}
    assert lines[0].split() == ["row", "figure", "goal", "aim", "measured", "met", "from"]
    assert found["start-forkserver"][1:] == [
        *(">= 7.50x", "-", "8.00x", "yes"),
        "forkserver 8000 us, fastfork 1000 us",
    ]
    assert found["start-tuned"][1:5] == [">= 3.00x", "-", "-", "-"]
    assert found["start-fork"][1:5] == [">= 1.80x", ">= 2.50x", "1.50x", "no"]
    assert found["faults"][1:] == [
        *("<= 200 faults", "<= 100 faults", "216 faults", "no"),
        "fastfork 216 faults (fork 344 faults, forkserver 900 faults)",
    ]
    assert found["crowd"][1:] == [
        *("<= 1.20x", "-", "1.10x", "yes"),
        "in the crowd 1100 us, beside none 1000 us (forkserver-tuned 2.00x)",
    ]
    assert lines[-2] == "a remark"
    assert "CPython 3.13.0, fastfork 1.0, Linux 6.1.0" in lines[-1]


def test_a_goal_of_another_version_is_neither_met_nor_missed():
    lines = table.text(of(python="3.14.1")).splitlines()
    (faults,) = (line for line in lines if line.startswith("faults"))
    assert [cell.strip() for cell in faults.split("  ") if cell][2:6] == ["-", "-", "216 faults", "-"]


@pytest.mark.parametrize("kind", [result.GOALS, result.LEVERS])
def test_json_round_trip(kind):
    assert result.from_json(result.to_json(of(kind=kind))) == of(kind=kind)


def test_json_has_what_it_says_of_each_goal():
    verdicts = {verdict["row"]: verdict for verdict in json.loads(result.to_json(of()))["verdicts"]}
    assert list(verdicts) == NAMES
    assert verdicts["start-fork"] == {
        "row": "start-fork",
        "title": "the same, as fork from a small client",
        "at_least": True,
        "reach": 1.8,
        "aim": 2.5,
        "measured": 1.5,
        "met": False,
    }
    assert (verdicts["start-tuned"]["measured"], verdicts["start-tuned"]["met"]) == (None, None)


@pytest.mark.parametrize(
    "changed",
    [
        partial(of, kind="pools"),
        partial(of, names=["no-such-row"]),
        partial(of, values={"no-such-figure": {"fork": 1.0}}),
    ],
)
def test_json_of_something_else_is_refused(changed):
    text = json.dumps({**json.loads(result.to_json(of())), **vars_of(changed())})
    with pytest.raises(BenchError, match="not a run of the goals"):
        result.from_json(text)


def vars_of(run):
    return {"kind": run.kind, "rows": run.rows, "found": vars(run.found)}


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_other_json_is_refused(text):
    with pytest.raises(BenchError, match="not a run of the goals"):
        result.from_json(text)


def test_variants_are_without_each_lever_and_without_all():
    found = {variant.name: variant.disabled for variant in levers.variants(LEVERS)}
    assert list(found) == ["all on", *(f"no {lever}" for lever in LEVERS), "all off"]
    assert (found["all on"], found["no spares"], found["all off"]) == ("", "spares", ",".join(LEVERS))
    assert {variant.method for variant in levers.variants(LEVERS)} == {FASTFORK}


def test_without_pidfds_there_is_another_backend_too():
    found = {variant.name: (variant.disabled, variant.backend) for variant in levers.variants(levers.NAMES)}
    assert found["no pidfds"] == ("", "poll")
    assert found["all off"] == (",".join(LEVERS), "poll")
    assert {backend for _, backend in found.values()} == {"", "poll"}


def test_one_lever_alone_is_all_of_them():
    assert [variant.name for variant in levers.variants(["huge"])] == ["all on", "no huge"]


def test_table_of_levers():
    values = {
        "start": {"all on": 0.001, "no bind": 0.0012, "all off": 0.0155},
        "faults": {"all on": 200.0, "all off": 400.0},
    }
    lines = table.text(of(kind=result.LEVERS, names=["start-fork", "faults"], values=values)).splitlines()
    found = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    assert found[0] == ["all on", "no bind", "all off"]
    assert found[2] == [FIGURES["start"].title, "1000 us", "1200 us, 1.20x", "15500 us, 15.5x"]
    assert found[3] == [FIGURES["faults"].title, "200 faults", "-", "400 faults, 2.00x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goals", "--row", "nothing"], "no goal is called 'nothing'"),
        (["--row", "faults"], "add --goals"),
        (["--levers"], "add --goals"),
        (["--goals", "--rounds", "9"], "--rounds is not for --goals"),
        (["--goals", "--preload", "json"], "--preload is not for --goals"),
        (["--goals", "--levers", "--plot", "run.png"], "there is no plot of the levers"),
    ],
)
def test_wrong_options_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_lever_that_is_none_is_explained(capsys):
    assert main(["--goals", "--levers", "bind,nothing"]) == 1
    assert f"no lever is called 'nothing'; there are: {', '.join(LEVERS)}" in capsys.readouterr().err


def test_help_names_every_goal(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {goal.name} " in text for goal in rows.GOALS)


def test_table_and_json_from_saved_json(tmp_path, capsys):
    saved, copy = tmp_path / "saved.json", tmp_path / "copy.json"
    saved.write_text(result.to_json(of()))
    assert main(["--goals", "--from-json", str(saved), "--json", str(copy)]) == 0
    assert capsys.readouterr().out == table.text(of())
    assert copy.read_text() == saved.read_text()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plot_from_saved_json(programs):
    programs.write("goals.json", result.to_json(of()))
    outcome = programs.python(
        *("-m", "fastfork.bench", "--goals", "--from-json", "goals.json", "--plot", "goals.png")
    )
    assert (outcome.status, outcome.stdout) == (0, table.text(of()))
    assert (programs.folder / "goals.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BenchError, match=r"pip install 'fastfork\[plot\]'"):
        plot.draw(of(), str(tmp_path / "goals.png"))


def test_tiny_run_of_a_lever(monkeypatch, tmp_path, capsys):
    tiny = plan.Plan(slices=1, heap_starts=2, small_heap="colorsys", large_heap="filecmp")
    monkeypatch.setattr(plan.Plan, "quick", lambda: tiny)
    monkeypatch.setattr(heap, "free_megabytes", lambda: float("inf"))
    path = tmp_path / "run.json"
    assert main(["--goals", "--quick", "--row", "heap", "--levers", "huge", "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.split()[:4] == ["all", "on", "no", "huge"]
    found = result.from_json(path.read_text())
    assert (found.kind, found.rows) == (result.LEVERS, ["heap"])
    assert {figure: set(values) for figure, values in found.found.values.items()} == {
        "small-heap": {"all on", "no huge"},
        "large-heap": {"all on", "no huge"},
    }
