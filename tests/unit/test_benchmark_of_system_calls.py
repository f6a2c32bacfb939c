"""The count of system calls: what strace says, the table, and one tiny run."""

from __future__ import annotations

import shutil
import stat
import sys

import pytest
from fastfork.bench import system_calls
from fastfork.bench.errors import BenchError
from fastfork.bench.system_calls import METHODS

SUMMARY = """\
    calls syscall
--------- ----------------
      {closes} close
      {reads} read
        3 execve
--------- ----------------
     9999 total
"""


def test_a_summary_is_read_less_its_total():
    assert system_calls.counts_in(SUMMARY.format(closes=120, reads=7)) == {
        "close": 120,
        "read": 7,
        "execve": 3,
    }


def test_what_one_start_takes_is_the_difference(monkeypatch):
    counts = iter([{"close": 120, "read": 7, "execve": 3}, {"close": 320, "read": 57, "execve": 3}])
    monkeypatch.setattr(shutil, "which", lambda _name: "strace")
    monkeypatch.setattr(system_calls, "_count", lambda *_: system_calls.Counter(next(counts)))
    found = {METHODS[0]: system_calls.of_a_start(METHODS[0], 100)}
    assert found == {METHODS[0]: {"close": 2.0, "read": 0.5}}
    assert system_calls.table(found)[1].split() == ["fork", "2", "close", "2,", "read", "0"]


def test_without_strace_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert system_calls.main([]) == 1
    assert capsys.readouterr().err == "system_calls: strace is not installed\n"


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    failing = tmp_path / "strace"
    failing.write_text("#!/bin/sh\necho why >&2\nexit 3\n")
    failing.chmod(failing.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda _name: str(failing))
    with pytest.raises(BenchError, match="fork: exit status 3: why"):
        system_calls.of_a_start(METHODS[0], 1)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_tiny_run(capsys):
    assert system_calls.main(["--starts", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(method.title) for line, method in zip(lines[1:], METHODS)] == [True] * len(
        METHODS
    )
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in lines[-1]
