"""Running an action after each import of certain modules.

It stands alone and imports nothing of fastfork: `fastfork install-pth` writes a copy of it into site-packages.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MODULES = ("multiprocessing.forkserver", "multiprocessing.popen_forkserver", "multiprocessing.spawn")


class Finder:
    """Finds nothing itself; has the modules' own loaders followed by the action."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec that the other finders have for one of the modules."""
        if name not in MODULES:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self.follow(spec.loader)
                return spec
        return None

    def follow(self, loader: Any) -> None:
        """Have the action run once the loader has executed the module."""
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self.action()

        loader.exec_module = exec_module


def on_import(action: Callable[[], None]) -> Finder:
    """Call `action` after each import of one of the modules that is still to come: what to pass to `forget`."""
    finder = Finder(action)
    sys.meta_path.insert(0, finder)
    return finder


def forget(finder: Finder) -> None:
    """Undo `on_import`."""
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
