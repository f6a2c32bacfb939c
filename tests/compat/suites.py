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

# Where shutdown() meets an error of a task on its way to a worker, CPython before 3.12.8 and 3.13.1 may lock itself up,
# whatever starts its processes: the sooner a worker is there, the likelier (gh-125451). These tests submit tasks that
# cannot be pickled, and shut down without waiting for what comes of them.
FEEDER_DEADLOCK_TESTS = (
    "*Forkserver*.test_shutdown_deadlock_pickle",
    "*Forkserver*.test_processes_terminate",
)

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
class Deadlock:
    """A known deadlock of CPython's own.

    `frames` are the functions that some threads are in, each its own, in regrtest's dump of a run that met it.
    """

    issue: str
    frames: tuple[str, ...]
    limit: float = 60.0
    attempts: int = 6

    def is_met(self, log: str) -> bool:
        return all(f" in {frame}\n" in log for frame in self.frames)


@dataclass(frozen=True)
class Part:
    """A share of a suite: what `regrtest` options select of it.

    A part in which CPython may meet a `deadlock` of its own has a shorter time limit, and is run again when it did.
    """

    suite: Suite
    name: str
    select: tuple[str, ...]
    deadlock: Deadlock | None = None

    def __str__(self) -> str:
        return f"{self.suite.name} ({self.name})"


FORKSERVER = Suite("test_multiprocessing_forkserver", standin=True)
FUTURES = Suite("test_concurrent_futures")
MAIN_HANDLING = Suite("test_multiprocessing_main_handling")

SUITES = (FORKSERVER, FUTURES, MAIN_HANDLING)


def _each(option: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """A regrtest option that is given once for each pattern."""
    return tuple(argument for pattern in patterns for argument in (option, pattern))


FEEDER_DEADLOCK = Deadlock("gh-125451", ("_on_queue_feeder_error", "_finalize_join"))

# The longest first: that is the order in which they are started.
PARTS = (
    Part(FORKSERVER, "processes", ("--match", "WithProcesses*")),
    Part(FUTURES, "fork server", (*FORK_SERVER_TESTS, *_each("--ignore", FEEDER_DEADLOCK_TESTS))),
    Part(FORKSERVER, "other", ("--ignore", "With*")),
    Part(FORKSERVER, "manager", ("--match", "WithManager*")),
    Part(FORKSERVER, "threads", ("--match", "WithThreads*")),
    Part(MAIN_HANDLING, "fork server", FORK_SERVER_TESTS),
    Part(FUTURES, FEEDER_DEADLOCK.issue, _each("--match", FEEDER_DEADLOCK_TESTS), FEEDER_DEADLOCK),
)
