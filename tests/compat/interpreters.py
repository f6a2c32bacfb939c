"""The interpreters on this machine, and a virtual environment with fastfork for each."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.ci.interpreters import NEWEST, OLDEST, candidates

from . import command, recorder
from .suites import STANDIN_NEEDS, SUITES

if TYPE_CHECKING:
    from collections.abc import Iterable

PROBE_LIMIT_S = 60
SETUP_LIMIT_S = 300
NOT_SOURCE = (".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
PIP = ("-m", "pip", "--disable-pip-version-check")
RECORDER = "fastfork_compat_recorder"

PROBE = """
import importlib.util, json, platform, sys

def found(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False

print(json.dumps({
    "implementation": sys.implementation.name,
    "version": platform.python_version(),
    "release": sys.version_info[:2],
    "prefix": sys.base_prefix,
    "executable": getattr(sys, "_base_executable", sys.executable),
    "modules": [name for name in sys.argv[1:] if found(name)],
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """An interpreter and those of the suites' modules that it carries."""

    executable: Path
    version: str
    release: tuple[int, int]
    prefix: str
    modules: frozenset[str]


@dataclass(frozen=True)
class Environment:
    """A virtual environment; `fastfork` is the version in it, if any."""

    interpreter: Interpreter
    python: Path
    fastfork: str | None


def probe(executable: Path) -> Interpreter | None:
    """What `executable` is: None unless it is a CPython that runs."""
    modules = [STANDIN_NEEDS, *(suite.module for suite in SUITES)]
    try:
        answer = subprocess.run(
            [executable, "-I", "-c", PROBE, *modules],
            check=True,
            capture_output=True,
            timeout=PROBE_LIMIT_S,
        ).stdout
        facts = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if facts["implementation"] != "cpython":
        return None
    major, minor = facts["release"]
    return Interpreter(
        executable=Path(facts["executable"]),
        version=facts["version"],
        release=(major, minor),
        prefix=facts["prefix"],
        modules=frozenset(facts["modules"]),
    )


def discover() -> list[Interpreter]:
    """Every CPython from 3.9 to 3.15 that pyenv has or PATH names, each once, oldest first."""
    found: dict[tuple[str, str], Interpreter] = {}
    for path in candidates():
        interpreter = probe(Path(path))
        if interpreter and OLDEST <= interpreter.release <= NEWEST:
            found.setdefault((interpreter.version, interpreter.prefix), interpreter)
    return oldest_first(found.values())


def oldest_first(interpreters: Iterable[Interpreter]) -> list[Interpreter]:
    return sorted(interpreters, key=lambda interpreter: (interpreter.release, interpreter.version))


async def build_wheel(interpreter: Interpreter, source: Path, work: Path) -> Path:
    """Build fastfork's wheel with `interpreter` from the tree `source`; the oldest one's serves them all."""
    tree = work / "tree"
    wheels = work / "wheels"
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    python = await _create(interpreter, work)
    await _run(python, *PIP, "wheel", "--no-deps", "--wheel-dir", wheels, tree, log=work / "wheel.log")
    return next(wheels.glob("fastfork-*.whl"))


async def create_environment(interpreter: Interpreter, wheel: Path | None, work: Path) -> Environment:
    """A virtual environment with the recorder and, given its wheel, fastfork, ready to be switched on."""
    python = await _create(interpreter, work, *([] if wheel else ["--without-pip"]))
    _install_recorder(next(python.parents[1].glob("lib/python*/site-packages")))
    version = await _install_fastfork(python, wheel, work) if wheel else None
    return Environment(interpreter, python, version)


async def _create(interpreter: Interpreter, work: Path, *options: str) -> Path:
    directory = work / "environment"
    await _run(interpreter.executable, "-m", "venv", *options, directory, log=work / "venv.log")
    return directory / "bin/python"


def _install_recorder(site_packages: Path) -> None:
    shutil.copyfile(recorder.__file__, site_packages / f"{RECORDER}.py")
    (site_packages / f"{RECORDER}.pth").write_text(f"import {RECORDER}; {RECORDER}.start()\n")


async def _install_fastfork(python: Path, wheel: Path, work: Path) -> str:
    await _run(python, *PIP, "install", wheel, log=work / "pip.log")
    await _run(python, "-m", "fastfork", "install-pth", log=work / "install-pth.log")
    version = await _run(python, "-c", "import fastfork; print(fastfork.__version__)", log=work / "version")
    return version.strip()


async def _run(*arguments: str | Path, log: Path) -> str:
    return await command.check(*arguments, output=log, limit=SETUP_LIMIT_S)
