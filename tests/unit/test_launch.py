"""How the interpreter of a template is started."""

from __future__ import annotations

import os
import sys

import pytest

from fastfork import launch, levers

BINDER = [launch._ENV, "LD_BIND_NOW=1"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the loader of Linux")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in (levers.VARIABLE, "LD_BIND_NOW"):
        monkeypatch.delenv(name, raising=False)


def test_the_interpreter_binds_its_symbols_at_its_start():
    assert launch._binder(os.fsencode(sys.executable)) == BINDER


@pytest.mark.parametrize(("name", "value"), [(levers.VARIABLE, "freeze,bind"), ("LD_BIND_NOW", "")])
def test_binding_can_be_left_out(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert launch._binder(os.fsencode(sys.executable)) == []


def test_what_env_would_take_for_something_else_is_started_directly(tmp_path):
    odd = tmp_path / "a=b"
    odd.symlink_to(sys.executable)
    for executable in (odd, tmp_path / "missing", "python3"):
        assert launch._binder(os.fsencode(executable)) == []


def test_without_env_it_is_started_directly(monkeypatch):
    monkeypatch.setattr(launch, "_ENV", "/nowhere/env")
    assert launch._binder(os.fsencode(sys.executable)) == []
