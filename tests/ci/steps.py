"""The steps of a run: what is built, checked and tested, and in what order."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from . import counts
from .job import StepFailedError
from .schedule import Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .interpreters import Interpreter
    from .job import Job

# As in tests/c/Makefile, less -Wmissing-prototypes: the file that cffi writes has none for its entry point.
CFLAGS = "-O2 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wformat=2 -Wswitch-enum -Werror"

FAULTS_AND_STRESS = ("tests/fault", "tests/stress")

# What depends on their versions, too, is seen on the oldest and the newest Python.
WITH_OTHER_PACKAGES = (
    "tests/integration/test_dask.py",
    "tests/integration/test_joblib.py",
    "tests/integration/test_third_party.py",
)

# The longest of what is the same whatever waits for events: it is about what happens before there are any, about what
# is made of fastfork, or about the tests themselves. What a preload does with signals, timers and processes is not the
# same: each backend hears of these in its own way.
APART_FROM_EVENTS = (
    *WITH_OTHER_PACKAGES,
    "tests/fault/test_table.py",
    "tests/integration/test_readme.py",
    "tests/stress/test_many_starts.py",
    "tests/unit/test_preload.py",
)

# Each test runs pytest several times over. The oldest Python has an older pytest: what depends on that is run there.
PYTEST_PLUGIN = "tests/plugin"
PYTEST_PLUGIN_ON_OLDEST = ("tests/plugin/test_fixtures.py", "tests/plugin/test_reports.py")

C_FOLDERS = ("csrc", "tests/c", "tests/fault", "tests/fuzz")

# The tests have to meet the wheel and not a fastfork folder that happens to lie beside them.
ASSERT_INSTALLED = """
import sys, fastfork, fastfork.bench, fastfork._native
for module in fastfork, fastfork.bench, fastfork._native:
    assert module.__file__.startswith(sys.prefix), module.__file__
"""


@dataclass(frozen=True)
class Place:
    """Where things are: the checkout, and the run's own folder."""

    checkout: Path
    work: Path

    @property
    def dist(self) -> Path:
        """The sdist and the wheel made from it."""
        return self.work / "dist"

    @property
    def tree(self) -> Path:
        """The unpacked sdist less its packages: the tests run here, where only the wheel can be imported."""
        return self.work / "tree"

    def python(self, interpreter: Interpreter) -> Path:
        """The interpreter's virtual environment's program."""
        return self.work / f"venv-{interpreter.name}" / "bin/python"

    @property
    def tools(self) -> Path:
        """The programs that check: ruff, mypy and the like."""
        return self.work / "venv-tools" / "bin"

    def built(self, pattern: str) -> Path:
        """The one file in dist that matches `pattern`; StepFailedError unless there is exactly one."""
        paths = list(self.dist.glob(pattern))
        if len(paths) != 1:
            raise StepFailedError(f"{len(paths)} files in {self.dist} match {pattern}")
        return paths[0]

    def package(self, interpreter: Interpreter) -> Path:
        """What the interpreter installs: the abi3 wheel, or the sdist where it has another ABI."""
        return self.built("*.whl" if interpreter.takes_abi3 else "*.tar.gz")


def plan(place: Place, interpreters: Sequence[Interpreter], tools: Interpreter) -> list[Step]:
    """Return the steps for `interpreters`, oldest first; `tools` is the one that runs the checkers."""
    oldest, newest, between = interpreters[0], interpreters[-1], interpreters[1:-1]
    carriers = [item for item in interpreters if item.carries_suites]
    return [
        Step("build", partial(build, place, oldest)),
        Step("c", partial(test_core, place), count=lambda job: counts.from_c_programs(job.output())),
        Step("fuzz", partial(fuzz_core, place)),
        *(
            Step(f"env-{item.name}", partial(make_environment, place, item), ["build"])
            for item in reversed(interpreters)
        ),
        # The longest first, lest one be left to run alone at the end. Faults are about the core and the kernel more
        # than about the interpreter.
        fault_step(place, newest),
        fault_step(place, newest, backend="poll"),
        *(compat_step(place, item) for item in carriers),
        *([compat_step(place, carriers[-1], plain=True)] if carriers else []),
        pytest_step(place, oldest),
        *([pytest_step(place, newest)] if oldest != newest else []),
        pytest_step(place, (between or interpreters)[0], backend="poll"),
        plugin_step(place, newest, (PYTEST_PLUGIN,)),
        *integration_steps(place, between[1:]),
        *([plugin_step(place, oldest, PYTEST_PLUGIN_ON_OLDEST)] if oldest != newest else []),
        Step("tools", partial(install_tools, place, tools), ["build"]),
        Step("lint", partial(lint, place), ["tools"]),
        Step("types", partial(check_types, place), ["tools"]),
        Step("wheel", partial(audit_wheel, place), ["tools"]),
    ]


def build(place: Place, interpreter: Interpreter, job: Job) -> None:
    """Build the sdist, and from it the wheel, with a compiler's warning as an error."""
    for leftover in (place.dist, place.tree):
        shutil.rmtree(leftover, ignore_errors=True)
    venv = place.work / "venv-build"
    job.run(interpreter.path, "-m", "venv", venv)
    job.run(venv / "bin/python", "-m", "pip", "install", "--quiet", "build")
    command = (venv / "bin/python", "-m", "build", "--outdir", place.dist, place.checkout)
    job.run(*command, env={"CFLAGS": CFLAGS})
    unpack_tests(place, job, venv / "bin/python")


def unpack_tests(place: Place, job: Job, python: Path) -> None:
    """Lay out the sdist without its packages."""
    unpacked = place.work / "sdist"
    shutil.rmtree(unpacked, ignore_errors=True)
    job.run(python, "-m", "tarfile", "--extract", place.built("*.tar.gz"), unpacked)
    (top,) = unpacked.iterdir()
    top.rename(place.tree)
    for package in ("fastfork", "benchmarks"):
        shutil.rmtree(place.tree / package)


def test_core(place: Place, job: Job) -> None:
    """Run the C tests under the sanitizers, on both event backends."""
    job.run("make", "--silent", "-C", place.checkout / "tests/c", "check", f"BUILD={place.work / 'c'}")


def fuzz_core(place: Place, job: Job) -> None:
    """Replay what fuzzing has found before, and fuzz the core for some seconds more."""
    job.run("make", "--silent", "-C", place.checkout / "tests/fuzz", "check", f"BUILD={place.work / 'fuzz'}")


def make_environment(place: Place, interpreter: Interpreter, job: Job) -> None:
    """Make the interpreter's virtual environment, or freshen one that an earlier run left."""
    python = place.python(interpreter)
    if not python.exists():
        job.run(interpreter.path, "-m", "venv", python.parent.parent)
    package = place.package(interpreter)
    pip = (python, "-m", "pip", "install", "--quiet")
    job.run(*pip, f"{package}[test]")
    job.run(*pip, "--no-deps", "--force-reinstall", package)
    job.run(python, "-c", ASSERT_INSTALLED, cwd=place.tree)


def install_tools(place: Place, interpreter: Interpreter, job: Job) -> None:
    """Make the environment of what the wheel's "lint" extra names."""
    job.run(interpreter.path, "-m", "venv", place.tools.parent)
    pip = (place.tools / "python", "-m", "pip", "install", "--quiet")
    job.run(*pip, f"{place.built('*.whl')}[lint]")


def lint(place: Place, job: Job) -> None:
    """Check the style of Python and C, by the rules in pyproject.toml and .clang-format."""
    sources = sorted(path for folder in C_FOLDERS for path in place.checkout.glob(f"{folder}/*.[ch]"))
    job.run(place.tools / "ruff", "check", "--no-cache", cwd=place.checkout)
    job.run(place.tools / "ruff", "format", "--no-cache", "--check", "--diff", cwd=place.checkout)
    job.run(place.tools / "clang-format", "--dry-run", "-Werror", *sources)


def check_types(place: Place, job: Job) -> None:
    """Check the types of what pyproject.toml names."""
    job.run(place.tools / "mypy", "--cache-dir", place.work / "mypy", cwd=place.checkout)


def audit_wheel(place: Place, job: Job) -> None:
    """See that the wheel calls nothing but the stable ABI of the version in its name."""
    job.run(place.tools / "abi3audit", "--strict", "--verbose", place.built("*.whl"))


def pytest_step(place: Place, interpreter: Interpreter, backend: str = "") -> Step:
    """Return the step that runs the tests but for those with steps of their own, on `backend` if one is named."""
    left_out = [f"--ignore={folder}" for folder in (*FAULTS_AND_STRESS, PYTEST_PLUGIN)]
    return _pytest_step("pytest", ("tests", *left_out), place, interpreter, backend)


def integration_steps(place: Place, interpreters: Sequence[Interpreter]) -> list[Step]:
    """Return the steps that run whole programs: for the time that they take, each file on one of these Pythons."""
    files = [
        str(path.relative_to(place.checkout)) for path in place.checkout.glob("tests/integration/test_*.py")
    ]
    shared_out = sorted(set(files).difference(WITH_OTHER_PACKAGES))
    return [
        _pytest_step("integration", shared_out[number :: len(interpreters)], place, interpreter, backend="")
        for number, interpreter in enumerate(interpreters)
    ]


def fault_step(place: Place, interpreter: Interpreter, backend: str = "") -> Step:
    """Return the step that runs faults and stress, on the event `backend` if one is named."""
    return _pytest_step("fault", FAULTS_AND_STRESS, place, interpreter, backend)


def plugin_step(place: Place, interpreter: Interpreter, selection: Sequence[str]) -> Step:
    """Return the step that runs the tests of the pytest plugin, or a selection of them."""
    return _pytest_step("plugin", selection, place, interpreter, backend="")


def _pytest_step(
    kind: str, selection: Sequence[str], place: Place, interpreter: Interpreter, backend: str
) -> Step:
    name = f"{kind}-{interpreter.name}" + (f"-{backend}" if backend else "")
    report = place.work / f"{name}.xml"
    env = {"FASTFORK_BACKEND": backend} if backend else {}
    left_out = [f"--ignore={tests}" for tests in APART_FROM_EVENTS] if backend else []

    def run(job: Job) -> None:
        report.unlink(missing_ok=True)
        options = ("-p", "no:cacheprovider", f"--rootdir={place.tree}", f"--junitxml={report}", *left_out)
        job.run(place.python(interpreter), "-m", "pytest", *options, *selection, cwd=place.tree, env=env)

    return Step(name, run, [f"env-{interpreter.name}"], lambda _job: counts.from_junit(report))


def compat_step(place: Place, interpreter: Interpreter, *, plain: bool = False) -> Step:
    """Return the step that holds fastfork, or `plain` fastfork, to CPython's own suites, which `interpreter` carries.

    Plain is without all that makes children cheap.
    """
    name = f"compat-{interpreter.name}" + ("-plain" if plain else "")
    left_out = ("--disable", "all") if plain else ()
    report = place.work / f"{name}.json"

    def run(job: Job) -> None:
        report.unlink(missing_ok=True)
        logs = place.work / "logs" / name
        options = ("--python", interpreter.path, "--wheel", place.package(interpreter), *left_out)
        job.run(
            sys.executable, "-m", "tests.compat", *options, "--json", report, "--logs", logs, cwd=place.tree
        )

    return Step(
        name,
        run,
        needs=["build"],
        count=lambda _job: counts.from_compat(report),
        closing=lambda job: job.output().rpartition("\nCPython's own suites\n")[2],
    )
