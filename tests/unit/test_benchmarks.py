"""The benchmark: its arithmetic, its table, its options, and one tiny run."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
from fastfork.bench import cli, environment, main, plot, report, runner
from fastfork.bench.client import launched
from fastfork.bench.errors import BenchError
from fastfork.bench.progress import Progress
from fastfork.bench.report import Figures, Report
from fastfork.bench.rivals import RIVALS, Rival, by_name
from fastfork.bench.runner import Plan, Samples, Usage
from support.bench import ENVIRONMENT

FLOOR = Figures("floor", "floor", 100, median_s=0.0005, p99_s=0.0007, sequence_rate=1900.0)
FASTFORK = Figures(
    rival="fastfork",
    title="fastfork",
    samples=100,
    median_s=0.001,
    p99_s=0.0021,
    sequence_rate=900.4,
    flight_rate=1500.0,
    faults=199.6,
    child_cpu_s=0.00071,
    start_cpu_s=0.00123,
    pool_s=0.0154,
    first_pool_s=0.0801,
)
SPAWN = replace(FASTFORK, rival="spawn", title="stdlib spawn", median_s=0.04, p99_s=0.05)
REPORT = Report(ENVIRONMENT, ["json"], [FLOOR, FASTFORK, SPAWN])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(report.to_json(REPORT))
    return path


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0], 50, 1.5),
        ([float(number) for number in range(101)], 99, 99.0),
        ([0.0, 10.0], 99, pytest.approx(9.9)),
    ],
)
def test_percentile(samples, percent, expected):
    assert report.percentile(samples, percent) == expected


def test_summary_is_per_start():
    samples = Samples(
        latency_s=[0.001, 0.003, 0.002],
        sequence_rate=[300.0, 500.0],
        flight_rate=[700.0],
        pool_s=[0.03, 0.01, 0.02],
        before=Usage(starts=10, faults=1000, child_cpu_s=1.0, tree_cpu_s=2.0),
        after=Usage(starts=20, faults=3000, child_cpu_s=1.5, tree_cpu_s=3.0),
    )
    figures = report.summarise(by_name("fork"), samples)
    assert (figures.samples, figures.median_s, figures.sequence_rate) == (3, 0.002, 400.0)
    assert (figures.faults, figures.child_cpu_s, figures.start_cpu_s) == (200.0, 0.05, 0.1)
    assert (figures.flight_rate, figures.pool_s, figures.first_pool_s) == (700.0, 0.02, None)


def test_summary_without_usage():
    figures = report.summarise(by_name("fork"), Samples(latency_s=[1.0], sequence_rate=[1.0]))
    assert (figures.faults, figures.child_cpu_s, figures.start_cpu_s) == (None, None, None)


@pytest.mark.parametrize(
    ("value", "base", "text"),
    [(2.0, None, "-"), (3.0, 2.0, "1.50x"), (1.0, 8.0, "0.12x"), (51.0, 2.0, "25.5x")],
)
def test_ratio(value, base, text):
    assert report.ratio(value, base) == text


def test_table_has_figures_in_their_units():
    lines = report.table(REPORT).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert lines[0].endswith("preloaded: main module, json")
    assert rows["fastfork"][1:] == [
        *("1000", "2100", "1.00x", "2.00x", "900", "1500", "200", "0.71", "1.23", "15.4", "80.1", "100")
    ]
    assert rows["floor"][1:] == ["500", "700", "0.50x", "1.00x", "1900", *"-------"[:6], "100"]
    assert rows["stdlib"][4:6] == ["40.0x", "80.0x"]
    assert "CPython 3.13.0, fastfork 1.0, Linux 6.1.0" in lines[-1]


def test_json_round_trip():
    assert report.from_json(report.to_json(REPORT)) == REPORT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment": {}, "preload": [], "figures": []}'])
def test_other_json_is_refused(text):
    with pytest.raises(BenchError, match="not a report"):
        report.from_json(text)


def test_environment_tells_no_names(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: pytest.fail("asked for the host's name"))
    found = environment.current()
    assert found.cores >= 1
    assert found.python.endswith(".".join(map(str, sys.version_info[:3])))
    assert "/" not in found.caption()


def test_thp_setting():
    assert environment._thp_setting("always [madvise] never\n") == "madvise"
    assert environment._thp_setting("") == "unknown"


def test_plan_shares_rounds_among_slices():
    plan = Plan(rounds=1000, flights=800, slices=20)
    assert (plan.sequence_slice(by_name("fork")), plan.flight_slice(by_name("fork"))) == (50, 40)
    assert (plan.sequence_slice(by_name("spawn")), plan.flight_slice(by_name("spawn"))) == (2, runner.WIDTH)


def test_plan_for_very_few_rounds():
    plan = Plan().scaled(3)
    assert (plan.slices, plan.sequence_slice(by_name("fork"))) == (3, 1)
    assert plan.flight_slice(by_name("fork")) == runner.WIDTH


def test_rounds_begin_with_another_rival_each_time():
    rivals = RIVALS[:3]
    progress = Progress(io.StringIO())
    progress.begin(6)
    names = [rival.name for rival in runner.by_turns(rivals, 2, progress)]
    first = [rival.name for rival in rivals]
    assert names == [*first, *first[1:], first[0]]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_on_a_terminal_only():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        progress.begin(4)
        progress.advance()
        progress.show("fork")
        progress.end()
    assert " 25 %  fork" in terminal.getvalue()
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rivals", "fork,nobody"], "no rival 'nobody'; there are: floor, fastfork, fork,"),
        (["--preload", "json,no_such_module"], "no module named 'no_such_module'"),
        (["--preload", "no_such_package.module"], "no module named 'no_such_package.module'"),
        (["--rounds", "0"], "must be at least 1"),
    ],
)
def test_wrong_options_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_options():
    options = cli._parser().parse_args(
        ["--preload", "json, decimal", "--rivals", "fork,spawn", "--rounds", "9"]
    )
    assert options.preload == ["json", "decimal"]
    assert [rival.name for rival in options.rivals] == ["fork", "spawn"]
    assert options.rounds == 9


def test_help_names_every_rival(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {rival.name} " in text for rival in RIVALS)


def test_table_from_saved_json(saved, capsys):
    assert main(["--from-json", str(saved)]) == 0
    assert capsys.readouterr().out == report.table(REPORT)


def test_missing_json(tmp_path, capsys):
    assert main(["--from-json", str(tmp_path / "absent.json")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plot_from_saved_json(saved, programs):
    image = programs.folder / "run.png"
    outcome = programs.python("-m", "fastfork.bench", "--from-json", str(saved), "--plot", str(image))
    assert outcome.status == 0
    assert image.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BenchError, match=r"pip install 'fastfork\[plot\]'"):
        plot.draw(REPORT, str(tmp_path / "run.png"))


def test_tiny_run(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert (
        main(["--quick", "--rounds", "4", "--rivals", "fork", "--preload", "json", "--json", str(path)]) == 0
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "stdlib fork" in captured.out
    assert str(tmp_path.home()) not in path.read_text()
    (figures,) = json.loads(path.read_text())["figures"]
    assert figures["samples"] == 4
    assert sys.platform != "linux" or figures["faults"] > 10
    assert 0 < figures["median_s"] <= figures["p99_s"] < 10
    assert (
        min(figures["sequence_rate"], figures["flight_rate"], figures["pool_s"], figures["first_pool_s"]) > 0
    )


def test_a_failing_client_says_why():
    rival = Rival("odd", "odd", method="no such method")
    with pytest.raises(BenchError, match="cannot find context for 'no such method'"), launched(rival, []):
        pytest.fail("a client without a start method was ready")


def test_a_dead_client_is_noticed():
    with launched(by_name("fork"), []) as client:
        client._process.kill()
        with pytest.raises(BenchError, match="fork: the client died during 'latency'"):
            client.ask("latency", 1)
