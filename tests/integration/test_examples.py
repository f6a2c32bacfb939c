"""The real program that comes along, run as a user runs it: it checks its own results."""

from __future__ import annotations

import re
from pathlib import Path

import fastfork.bench
import pytest

WORDCOUNT = Path(fastfork.bench.__file__).parent / "examples/wordcount.py"

SOURCES = {
    "a.py": "class One:\n    def method(self): pass\n",
    "folder/b.py": "async def method(): pass\n\ndef other(): pass\n",
    "tests/c.py": "def passed_over(): pass\n",
    "d.txt": "not a source",
}
RESULT = """\
word                 times    defined name         files
def                      3    method                   2
pass                     3    One                      1

checked: 13 words
"""


@pytest.fixture
def options(tmp_path):
    """The program's options for a small folder of sources."""
    folder = tmp_path / "sources"
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return ["--words", "2", "--workers", "2", str(folder)]


def table_of(outcome):
    assert outcome.stderr == ""
    assert outcome.status == 0
    return outcome.stdout.partition("\n\n")[2]


def test_wordcount_on_fastfork(programs, options):
    outcome = programs.python("-m", "fastfork", "run", str(WORDCOUNT), "--methods", "fork,spawn", *options)
    assert table_of(outcome) == RESULT
    assert re.findall(r"^ +(\w+): .*processes", outcome.stdout, re.MULTILINE) == ["fastfork", "fastfork"]


def test_wordcount_as_a_module(programs, options):
    outcome = programs.python("-m", "fastfork", "run", "-m", "fastfork.bench.examples.wordcount", *options)
    assert table_of(outcome) == RESULT


def test_wordcount_knows_nothing_of_fastfork(programs, options):
    assert "fastfork" not in WORDCOUNT.read_text(encoding="utf-8")
    outcome = programs.python(str(WORDCOUNT), "--methods", "forkserver", *options)
    assert table_of(outcome) == RESULT
