"""Which levers are left out."""

from __future__ import annotations

import pytest

from fastfork import levers


@pytest.mark.parametrize("lever", levers.LEVERS)
@pytest.mark.parametrize(
    ("names", "is_left_out"),
    [
        ("{}", True),
        ("nothing,{}", True),
        ("all", True),
        ("nothing,all", True),
        ("", False),
        ("nothing", False),
        ("{}s", False),
    ],
)
def test_names(monkeypatch, lever, names, is_left_out):
    monkeypatch.setenv(levers.VARIABLE, names.format(lever))
    assert levers.is_enabled(lever) != is_left_out


def test_none_is_left_out_by_itself(monkeypatch):
    monkeypatch.delenv(levers.VARIABLE, raising=False)
    assert all(map(levers.is_enabled, levers.LEVERS))
