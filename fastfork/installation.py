"""multiprocessing's own start methods on fastfork: in one process and its tree, or in an environment."""

from __future__ import annotations

import importlib
import os
import sysconfig
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_REPLACED_FUNCTIONS = (
    "_forkserver",
    "ensure_running",
    "get_inherited_fds",
    "connect_to_new_process",
    "set_forkserver_preload",
)

TAKE_NOTHING = ""
TAKE_FORKSERVER = "forkserver"
TAKE_ALL = "all"
TAKE_ALL_BUT_SPAWN = "all but spawn"

_originals: dict[tuple[str, str], Any] = {}
"""What stood in a module of the standard library before, by module and name."""


def install() -> None:
    """Run multiprocessing's "forkserver" start method on fastfork, in this process and in its whole tree.

    Calling it again changes nothing. A fork server of the standard library that already runs is left to its
    processes. Raises `ValueError` where fastfork is not supported.
    """
    take_over(TAKE_FORKSERVER)


def take_over(what: str) -> None:
    """Run start methods of multiprocessing on fastfork, in this process and in its whole tree.

    Parameters
    ----------
    what:
        `TAKE_FORKSERVER`: the method "forkserver". `TAKE_ALL`: every method, the default one too, whatever name the
        program asks for. `TAKE_ALL_BUT_SPAWN`: all but that one. `TAKE_NOTHING`: nothing.

    """
    if what == TAKE_NOTHING:
        return
    from . import context, forkserver

    context.get_context()
    forkserver._forkserver.takes_over = what
    for name in _REPLACED_FUNCTIONS:
        _replace("multiprocessing.forkserver", name, getattr(forkserver, name))
    _replace("multiprocessing.popen_forkserver", "Popen", _popen_class())
    _replace("multiprocessing.spawn", "get_preparation_data", _preparation_data_for_tree)
    if what != TAKE_FORKSERVER:
        context.replace_start_methods(("fork", "forkserver") if what == TAKE_ALL_BUT_SPAWN else None)


class _TakeOver:
    """Taking over as a value: it happens where this is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        from . import forkserver

        return take_over, (forkserver._forkserver.takes_over,)


def _preparation_data_for_tree(name: str) -> dict[str, Any]:
    """multiprocessing.spawn.get_preparation_data() for a tree on fastfork: "spawn" children belong to it too."""
    data: dict[str, Any] = _originals["multiprocessing.spawn", "get_preparation_data"](name)
    data["fastfork"] = _TakeOver()  # spawn.prepare() passes over what it does not know
    return data


def uninstall() -> None:
    """Give multiprocessing its own "forkserver" back; processes that run already are not touched."""
    import sys

    from . import forkserver

    forkserver._forkserver.takes_over = TAKE_NOTHING
    for (module_name, name), original in _originals.items():
        setattr(sys.modules[module_name], name, original)
    _originals.clear()


def _replace(module_name: str, name: str, value: Any) -> None:
    # Not by an import statement: the module may just be being imported, and not be in its package yet.
    module = importlib.import_module(module_name)
    current = getattr(module, name, None)
    if current is value:
        return
    if current is not None:
        _originals.setdefault((module_name, name), current)
    setattr(module, name, value)


_installed_popen: Any = None


def _popen_class() -> Any:
    """Return `fastfork.popen.Popen` as a class that calls itself "forkserver"; always the same one."""
    global _installed_popen
    if _installed_popen is None:
        from .popen import Popen

        _installed_popen = type("Popen", (Popen,), {"method": "forkserver", "__module__": Popen.__module__})
    return _installed_popen


# ---- a whole environment ----

_PTH_NAME = "fastfork-install.pth"
_HOOK_NAME = "_fastfork_install.py"

_PTH = "import os; os.environ.get('FASTFORK_INSTALL') == '1' and __import__('_fastfork_install')\n"

_HOOK = '''\
"""Written by `fastfork install-pth`: with FASTFORK_INSTALL=1, "forkserver" runs on fastfork here.

It waits for multiprocessing's fork server to be imported, so that other programs pay nothing.
"""

import sys

_MODULES = ("multiprocessing.forkserver", "multiprocessing.popen_forkserver")


class _Finder:
    """Finds nothing itself; has the modules' own loaders followed by the installation."""

    def find_spec(self, name, path=None, target=None):
        if name not in _MODULES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                _follow(spec.loader)
                return spec
        return None


def _follow(loader):
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        import fastfork

        fastfork.install()

    loader.exec_module = exec_module


sys.meta_path.insert(0, _Finder())
'''


def _site_packages(directory: str | None) -> str:
    return directory or sysconfig.get_path("purelib")


def install_pth(directory: str | None = None) -> list[str]:
    """Have ``FASTFORK_INSTALL=1`` install fastfork in every interpreter of this environment, ``-I`` ones too.

    Parameters
    ----------
    directory:
        A directory on the interpreter's site path; None for this environment's site-packages.

    Returns the paths of the files written. Raises `OSError` when they cannot be.

    """
    paths = []
    for name, text in ((_HOOK_NAME, _HOOK), (_PTH_NAME, _PTH)):
        path = os.path.join(_site_packages(directory), name)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
        paths.append(path)
    return paths


def uninstall_pth(directory: str | None = None) -> list[str]:
    """Undo `install_pth`: the paths of the files removed, none if there were none."""
    paths = [os.path.join(_site_packages(directory), name) for name in (_PTH_NAME, _HOOK_NAME)]
    removed = [path for path in paths if os.path.exists(path)]
    for path in removed:
        os.remove(path)
    return removed
