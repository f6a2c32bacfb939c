"""Finds the Pythons of this machine that fastfork supports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OLDEST = (3, 9)
NEWEST = (3, 15)

_PROBE = """
import ensurepip, importlib.util, json, platform, sys, sysconfig, venv
print(json.dumps({
    "path": sys.executable,
    "full_version": platform.python_version(),
    "version": sys.version_info[:2],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "debug": hasattr(sys, "gettotalrefcount"),
    "carries_suites": importlib.util.find_spec("test") is not None
        and importlib.util.find_spec("test._test_multiprocessing") is not None,
    "cpython": sys.implementation.name == "cpython",
}))
"""
_PROBE_LIMIT = 30  # seconds


@dataclass(frozen=True)
class Interpreter:
    """A CPython that can make virtual environments."""

    path: str
    full_version: str
    version: tuple[int, int]
    free_threaded: bool
    debug: bool
    carries_suites: bool  # the standard library's own tests of multiprocessing

    @property
    def name(self) -> str:
        """The version: "3.13"; "3.14t" where it is free-threaded, "3.13d" for a debug build."""
        return "{}.{}".format(*self.version) + "t" * self.free_threaded + "d" * self.debug

    @property
    def takes_abi3(self) -> bool:
        """Whether it loads the abi3 wheel; else the extension is built for it."""
        return not (self.free_threaded or self.debug)


def find(wanted: Iterable[str] = ()) -> list[Interpreter]:
    """Return one interpreter for each supported version, oldest first.

    `wanted` restricts them: versions ("3.12") or paths. Raises LookupError for one that is not there.
    """
    chosen = list(wanted)
    paths = [item for item in chosen if os.sep in item]
    found: dict[str, Interpreter] = {}
    for path in [*paths, *candidates()]:
        interpreter = _probe(path)
        if interpreter is not None:
            found.setdefault(interpreter.name, interpreter)
    if chosen:
        found = {name: found[name] for name in (_resolve(item, found) for item in chosen)}
    return sorted(found.values(), key=lambda item: (item.version, item.name))


def _resolve(wanted: str, found: dict[str, Interpreter]) -> str:
    """Return the name of the interpreter that `wanted` means."""
    if os.sep in wanted:
        interpreter = _probe(wanted)
        if interpreter is None:
            raise LookupError(f"{wanted} is no Python that fastfork supports")
        return interpreter.name
    if wanted not in found:
        raise LookupError(f"no Python {wanted} here; found: {', '.join(found) or 'none'}")
    return wanted


def candidates() -> Iterator[str]:
    """Yield programs that may be Pythons: those of pyenv, then those on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(map(str, pyenv.glob("versions/*/bin/python")), reverse=True)
    minors = range(OLDEST[1], NEWEST[1] + 1)
    for name in ["python3", *(f"python3.{minor}{kind}" for minor in minors for kind in ("", "t"))]:
        path = shutil.which(name)
        if path is not None:
            yield path


def _probe(path: str) -> Interpreter | None:
    """Ask the program at `path` what it is; None where it is nothing that fastfork runs on."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", _PROBE], capture_output=True, timeout=_PROBE_LIMIT, check=True, text=True
        ).stdout
        facts = json.loads(answer)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    facts["version"] = tuple(facts["version"])
    if not facts.pop("cpython") or not OLDEST <= facts["version"] <= NEWEST:
        return None
    return Interpreter(**facts)
