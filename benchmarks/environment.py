"""What a figure depends on and is worth knowing beside it. No names of hosts, users or directories."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata

_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Environment:
    """Where and when a run was made. `cores` are those that this process may use."""

    date: str
    system: str
    kernel: str
    machine: str
    cpu: str
    cores: int
    thp: str
    python: str
    fastfork: str

    def caption(self) -> str:
        """All of it in one line."""
        return (
            f"{self.python}, fastfork {self.fastfork}, {self.system} {self.kernel} {self.machine}, "
            f"{self.cpu}, {self.cores} cores, THP {self.thp}, {self.date}"
        )


def current() -> Environment:
    """The environment of this process, now."""
    return Environment(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        system=platform.system(),
        kernel=platform.release(),
        machine=platform.machine(),
        cpu=_cpu_model(),
        cores=usable_cores(),
        thp=_thp_setting(_read(_THP)),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        fastfork=_fastfork_version(),
    )


def variables() -> dict[str, str]:
    """The environment variables for a run's interpreters: they find compiled modules, as programs do."""
    kept = dict(os.environ)
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile what others have compiled once
    return kept


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or _UNKNOWN


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _thp_setting(text: str) -> str:
    """The setting in brackets of a line such as `always [madvise] never`."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else _UNKNOWN


def _fastfork_version() -> str:
    try:
        return metadata.version("fastfork")
    except metadata.PackageNotFoundError:
        return "not installed"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
