"""What a run was asked to be, from the command line and the ini file."""

from __future__ import annotations

import os

import pytest


class Settings:
    """The settings of a run.

    Parameters
    ----------
    config:
        pytest's. `pytest.UsageError` is raised for values that make no sense.

    """

    def __init__(self, config: pytest.Config) -> None:
        self.interactive = bool(config.getoption("usepdb", False) or config.getoption("trace", False))
        self.in_worker = hasattr(config, "workerinput")
        self.workers = 1 if self.interactive or self.in_worker else _workers(config.getoption("fastfork"))
        self.per_test = config.getoption("fastfork_fixtures") == "test"
        self.per_test_names = frozenset(config.getini("fastfork_per_test"))
        self.timeout = None if self.interactive else _timeout(config)
        self.reports_leftovers = bool(config.getoption("fastfork_leftovers"))


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        workers = int(text)
    except ValueError:
        raise pytest.UsageError(f"--fastfork={text}: not a number, nor auto") from None
    if workers < 1:
        raise pytest.UsageError(f"--fastfork={text}: at least one test at a time")
    return workers


def _timeout(config: pytest.Config) -> float | None:
    value = config.getoption("fastfork_timeout")
    if value is None:
        value = config.getini("fastfork_timeout") or None
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        raise pytest.UsageError(f"fastfork_timeout = {value}: not a number of seconds") from None
    if seconds < 0:
        raise pytest.UsageError(f"fastfork_timeout = {value}: less than nothing")
    return seconds or None
