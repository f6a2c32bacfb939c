"""What a template's rehearsal may and may not touch."""

from __future__ import annotations

import sys
import threading
import types

from fastfork import warmup


def test_a_thread_that_was_never_started_is_another_thread():
    assert warmup._is_only_thread()
    waiting = threading.Thread(target=int)
    assert not warmup._is_only_thread()
    del waiting
    assert warmup._is_only_thread()


def test_a_main_module_is_preloaded_if_a_child_finds_it(monkeypatch):
    main = types.ModuleType("__mp_main__")
    main.__file__ = "/somewhere/program.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert warmup._is_main_preloaded({"init_main_from_path": "/somewhere/program.py"})
    assert not warmup._is_main_preloaded({"init_main_from_path": "/somewhere/else.py"})
    assert not warmup._is_main_preloaded({"init_main_from_name": "program"})
    assert not warmup._is_main_preloaded({})
    main.__spec__ = types.SimpleNamespace(name="program")
    assert warmup._is_main_preloaded({"init_main_from_name": "program"})
