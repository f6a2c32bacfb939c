"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest
from support.processes import wait_until

from fastfork import forkserver


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the module `preloaded` that children and templates can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(source):
        (folder / "preloaded.py").write_text(source + "\n")

    return write


class Hanging:
    """A preload that never ends."""

    def __init__(self, mark):
        self._mark = mark

    def wait(self):
        """Wait until a template has come to it."""
        wait_until(self._mark.exists)


@pytest.fixture
def hanging(tmp_path, module):
    """Have the default template preload a module that never ends."""
    mark = tmp_path / "has begun"
    module(f"import time; open({str(mark)!r}, 'w').close(); time.sleep(600)")
    forkserver.set_forkserver_preload(["colorsys", "preloaded"])
    return Hanging(mark)
