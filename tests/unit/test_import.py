"""`import fastfork`: what it costs, what it changes, and where there is nothing for it to work with."""

from __future__ import annotations

import multiprocessing

import pytest

import fastfork

MEASUREMENT = """
import time
start = time.process_time()
import multiprocessing
between = time.process_time()
import fastfork
print(between - start, time.process_time() - between)
"""

EFFECTS = """
import gc, multiprocessing, multiprocessing.context, multiprocessing.reduction, os, signal, sys, threading
from multiprocessing import process

hooks = []
os.register_at_fork = lambda **hook: hooks.append(hook)

def state():
    return (
        os.listdir("/proc/self/fd"),
        threading.enumerate(),
        process.active_children(),
        hooks,
        multiprocessing.get_all_start_methods(),
        multiprocessing.get_start_method(allow_none=True),
        [signal.getsignal(number) for number in range(1, 64)],
        gc.isenabled(), gc.get_freeze_count(),
        dict(os.environ), sys.path, sys.meta_path, sys.path_hooks,
    )

before = repr(state())
modules = set(sys.modules)
import fastfork
assert repr(state()) == before
print(*sorted(name for name in set(sys.modules) - modules if "." not in name or "fastfork" in name))
"""


def test_costs_less_than_five_milliseconds_over_multiprocessing(programs):
    programs.run(MEASUREMENT)  # writes the bytecode
    runs = [map(float, programs.run(MEASUREMENT).stdout.split()) for _ in range(5)]
    before, own = (min(seconds) for seconds in zip(*runs))
    assert own < max(0.005, before)  # on a machine at less than its pace multiprocessing takes its time, too


def test_has_no_other_effect_than_to_register_the_start_method(programs):
    modules = programs.run(EFFECTS).stdout.split()
    assert "fastfork" in modules
    assert "fastfork._core" not in modules
    assert "fastfork.forkserver" not in modules
    assert "socket" not in modules


def test_public_names_are_there():
    assert all(hasattr(fastfork, name) for name in fastfork.__all__)
    assert fastfork.__version__.count(".") >= 2


def test_is_supported_here():
    assert fastfork.is_supported()


@pytest.mark.parametrize("obstacle", ["del os.fork", "sys.implementation.name = 'pypy'"])
def test_imports_without_support_and_says_so(programs, obstacle):
    outcome = programs.run(
        f"""
        import os, sys
        import multiprocessing
        {obstacle}
        import fastfork

        print(fastfork.is_supported())
        attempts = (
            fastfork.get_context,
            lambda: fastfork.get_context(template="name"),
            lambda: multiprocessing.get_context("fastfork"),
            lambda: multiprocessing.set_start_method("fastfork"),
            fastfork.install,
        )
        for attempt in attempts:
            try:
                attempt()
            except ValueError as error:
                print(error)
        print(multiprocessing.get_context("spawn").get_start_method())
        """
    )
    assert outcome.lines == ["False", *["fastfork start method not available"] * 5, "spawn"]


def test_a_start_method_that_nobody_has_is_still_unknown():
    with pytest.raises(ValueError, match="cannot find context for 'fastspoon'"):
        multiprocessing.get_context("fastspoon")


def test_the_start_method_is_not_listed_but_known():
    assert "fastfork" not in multiprocessing.get_all_start_methods()
    assert multiprocessing.get_context("fastfork") is fastfork.get_context()
    assert fastfork.get_context().get_start_method() == "fastfork"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"nested": "none"}, ValueError),
        ({"nested": ""}, ValueError),
        ({"on_error": "raise"}, ValueError),
        ({"preload": [1]}, TypeError),
        ({"preload": ["os"], "on_error": "never"}, ValueError),
        ({"template": "named", "preload": [None]}, TypeError),
    ],
)
def test_get_context_takes_no_value_that_it_does_not_know(arguments, error):
    with pytest.raises(error):
        fastfork.get_context(**arguments)


def test_the_same_template_is_the_same_context():
    assert fastfork.get_context() is fastfork.get_context()
    assert fastfork.get_context(template="one") is fastfork.get_context(template="one")
    assert fastfork.get_context(template="one") is not fastfork.get_context(template="two")
