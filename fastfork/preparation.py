"""What a new process is told about its parent before it gets its own work.

The data is that of multiprocessing.spawn.get_preparation_data(), as the newest version makes it.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing import spawn
from types import ModuleType

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any


def preparation_data(name: str) -> dict[str, Any]:
    """Return the preparation data for a process called `name`.

    Raises `RuntimeError` while the main module is being imported in a child, with advice on the
    ``if __name__ == "__main__"`` idiom.
    """
    was_unset = multiprocessing.get_start_method(allow_none=True) is None
    data = spawn.get_preparation_data(name)
    if was_unset:
        # Until 3.13 asking for the data settled the start method, here and in the child (gh-109263).
        multiprocessing.set_start_method(None, force=True)
        data["start_method"] = None
    return data


def shared_part(data: dict[str, Any]) -> dict[str, Any]:
    """Return what the preparation data of processes with other names has in common, in a form that any pickle takes."""
    shared = {key: value for key, value in data.items() if key != "name"}
    shared["authkey"] = bytes(data["authkey"])
    shared["sys_argv"] = list(data["sys_argv"])  # it is the program's own list
    return shared


def main_module_of(data: dict[str, Any]) -> dict[str, str]:
    """Return the part of the preparation data that says how to import the main module; may be empty."""
    return {key: data[key] for key in ("init_main_from_name", "init_main_from_path") if key in data}


def imports_of_main() -> list[str]:
    """Return the names of the modules that the main module has imported from, as far as its names tell.

    The ``__main__.py`` of a package, a directory or an archive runs its program unconditionally. Nobody else can import
    it, but what it imports takes its time all the same.
    """
    main = sys.modules["__main__"]
    names = set()
    for value in list(vars(main).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name in sys.modules and sys.modules[name] is not main:
            names.add(name)
    return sorted(names)
