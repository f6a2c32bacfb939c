"""What is run: the suites, each in parts that can run side by side."""

from __future__ import annotations

from dataclasses import dataclass

FORK_SERVER_TESTS = ("--match", "*[fF]ork[sS]erver*")

# Where an interpreter has the tests but not the module that makes a suite of them, this one does.
STANDIN = "test_forkserver_standin"
STANDIN_NEEDS = "test._test_multiprocessing"
STANDIN_SOURCE = """\
from test._test_multiprocessing import install_tests_in_module_dict

install_tests_in_module_dict(globals(), "forkserver")
"""

# Before 3.11.8 and 3.12.2 it sleeps for five minutes now and then (gh-113205); it uses threads, and no fork server.
LEFT_OUT_OF_STANDIN = f"{STANDIN}.WithThreadsTestPool.test_terminate"


@dataclass(frozen=True)
class Suite:
    """A suite by its name in the interpreter's `test` package."""

    name: str
    standin: bool = False

    @property
    def module(self) -> str:
        return f"test.{self.name}"


@dataclass(frozen=True)
class Part:
    """A share of a suite: what `regrtest` options select of it."""

    suite: Suite
    name: str
    select: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.suite.name} ({self.name})"


FORKSERVER = Suite("test_multiprocessing_forkserver", standin=True)
FUTURES = Suite("test_concurrent_futures")
MAIN_HANDLING = Suite("test_multiprocessing_main_handling")

SUITES = (FORKSERVER, FUTURES, MAIN_HANDLING)

# The longest first: that is the order in which they are started.
PARTS = (
    Part(FORKSERVER, "processes", ("--match", "WithProcesses*")),
    Part(FUTURES, "fork server", FORK_SERVER_TESTS),
    Part(FORKSERVER, "other", ("--ignore", "With*")),
    Part(FORKSERVER, "manager", ("--match", "WithManager*")),
    Part(FORKSERVER, "threads", ("--match", "WithThreads*")),
    Part(MAIN_HANDLING, "fork server", FORK_SERVER_TESTS),
)
