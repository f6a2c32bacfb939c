"""The programs in README.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_programs():
    assert len(PROGRAMS) >= 5


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program(programs, number):
    path = programs.write("program.py", PROGRAMS[number])
    outcome = programs.python(str(path))
    assert outcome.status == 0
    fails_on_purpose = 'on_error="fail"' in PROGRAMS[number]
    assert (outcome.stderr != "") == fails_on_purpose  # a template writes its traceback there too
