"""Making chosen calls of chosen processes fail, by a library that stands before the C library: see interpose.c.

A process takes the library in when it is executed with `Faults.environment`; the processes that it starts do so too.
"""

from __future__ import annotations

import mmap
import os
import shlex
import signal
import struct
import subprocess
import sysconfig
import time
from pathlib import Path

PAGE = "FASTFORK_TESTS_FAULTS"
"""The environment variable that names the page by which the processes are told what fails."""

ALWAYS = 2**30
"""Times that a call fails, until that is over."""

CORE = "fastfork/_core"
"""What the name of the file contains that the core's calls come from."""

_FAULT = struct.Struct("24s24s8i")
_ARMED = struct.Struct("i")
_COUNTS = struct.Struct("2i")
_ARMED_AT = 48
_MAX_FAULTS = 8


def _arm(page: mmap.mmap, slot: int, value: int) -> None:
    _ARMED.pack_into(page, slot * _FAULT.size + _ARMED_AT, value)


def compiler() -> list[str]:
    """Return the command of the C compiler that this interpreter was built with."""
    return shlex.split(sysconfig.get_config_var("CC") or "cc")


def build(folder: Path) -> Path:
    """Build the library in `folder`: its path. `FileNotFoundError` where there is no C compiler."""
    library = folder / "interpose.so"
    source = Path(__file__).with_name("interpose.c")
    options = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-o", str(library), str(source), "-ldl"]
    subprocess.run([*compiler(), *options], check=True)
    return library


class Fault:
    """A call that fails until this is lifted."""

    def __init__(self, page: mmap.mmap, slot: int, call: str) -> None:
        self.call = call
        self._page = page
        self._slot = slot
        self._since = time.monotonic()

    @property
    def made(self) -> int:
        """How often the call has been made since."""
        return self._counts()[0]

    @property
    def failed(self) -> int:
        """How often it has failed."""
        return self._counts()[1]

    @property
    def age(self) -> float:
        """How long that has been so, in seconds."""
        return time.monotonic() - self._since

    def lift(self) -> None:
        """Let the call go well from now on. What was counted is known until another call is to fail."""
        _arm(self._page, self._slot, 0)

    def _counts(self) -> tuple[int, int]:
        return _COUNTS.unpack_from(self._page, (self._slot + 1) * _FAULT.size - _COUNTS.size)

    def __enter__(self):
        return self

    def __exit__(self, *_exception: object) -> None:
        self.lift()


class Faults:
    """What fails in the processes that share a page.

    Parameters
    ----------
    path:
        The file of the page. It is made where there is none.

    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            self._page = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)

    @classmethod
    def of_this_process(cls) -> Faults:
        """Return those of the page that this process was given in its environment."""
        return cls(os.environ[PAGE])

    def environment(self, library: Path) -> dict[str, str]:
        """Return the variables with which a program takes part."""
        return {PAGE: str(self.path), "LD_PRELOAD": str(library)}

    def fail(
        self,
        call: str,
        error: int,
        *,
        pid: int = 0,
        of_children: bool = False,
        caller: str = "",
        skip: int = 0,
        times: int = ALWAYS,
    ) -> Fault:
        """Have a call fail.

        Parameters
        ----------
        call:
            Its name.
        error:
            The errno that it fails with.
        pid:
            The process that it fails in; 0: in all of them.
        of_children:
            It fails in the children of that process instead.
        caller:
            What the path of the library or program contains that makes the call; empty: any.
        skip:
            Calls that go well before.
        times:
            Calls that fail then.

        """
        return self._arm_fault(call, error, pid, of_children, caller, skip, times)

    def stop(self, call: str, *, pid: int, of_children: bool = False, caller: str = "") -> Fault:
        """Have a process stop just before it makes a call that then goes well. Parameters are those of `fail`."""
        return self._arm_fault(call, -signal.SIGSTOP, pid, of_children, caller, 0, 1)

    def _arm_fault(
        self, call: str, error: int, pid: int, of_children: bool, caller: str, skip: int, times: int
    ) -> Fault:
        slot = next(slot for slot in range(_MAX_FAULTS) if not self._is_armed(slot))
        values = (call.encode(), caller.encode(), 0, pid, of_children, error, skip, times, 0, 0)
        _FAULT.pack_into(self._page, slot * _FAULT.size, *values)
        _arm(self._page, slot, 1)
        return Fault(self._page, slot, call)

    def lift(self) -> None:
        """Let all go well from now on."""
        for slot in range(_MAX_FAULTS):
            _arm(self._page, slot, 0)

    def _is_armed(self, slot: int) -> bool:
        return _ARMED.unpack_from(self._page, slot * _FAULT.size + _ARMED_AT) != (0,)

    def close(self) -> None:
        """Lift what fails, and let go of the page."""
        self.lift()
        self._page.close()
        self.path.unlink()
