"""multiprocessing's own start methods on fastfork, in one process and its tree."""

from __future__ import annotations

import sys
from multiprocessing import context

from . import import_hook

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TAKE_NOTHING = ""
TAKE_FORKSERVER = "forkserver"
TAKE_ALL = "all"
TAKE_ALL_BUT_SPAWN = "all but spawn"

_REPLACED_IN_FORKSERVER = (
    "_forkserver",
    "ensure_running",
    "get_inherited_fds",
    "connect_to_new_process",
    "set_forkserver_preload",
)

_originals: dict[tuple[str, str], Any] = {}
"""What stood in a module of the standard library before, by module and name."""

_finder: import_hook.Finder | None = None
_popen_class: Any = None


def install() -> None:
    """Run multiprocessing's "forkserver" start method on fastfork, in this process and in its whole tree.

    Calling it again changes nothing. A fork server of the standard library that already runs is left to its
    processes. Raises `ValueError` where fastfork is not supported.
    """
    take_over(TAKE_FORKSERVER)


def uninstall() -> None:
    """Give multiprocessing its own "forkserver" back; processes that run already are not touched."""
    global _finder
    from . import forkserver

    forkserver._forkserver.takes_over = TAKE_NOTHING
    if "start" in vars(context.ForkServerProcess):
        del context.ForkServerProcess.start
    if _finder is not None:
        import_hook.forget(_finder)
        _finder = None
    for (module_name, name), original in _originals.items():
        setattr(sys.modules[module_name], name, original)
    _originals.clear()


def take_over(what: str) -> None:
    """Run start methods of multiprocessing on fastfork, in this process and in its whole tree.

    Parameters
    ----------
    what:
        `TAKE_FORKSERVER`: the method "forkserver". `TAKE_ALL`: every method, the default one too, whatever name the
        program asks for. `TAKE_ALL_BUT_SPAWN`: all but that one. `TAKE_NOTHING`: nothing.

    Raises `ValueError` where fastfork is not supported.

    """
    global _finder
    if what == TAKE_NOTHING:
        return
    from . import forkserver
    from .context import get_context, replace_start_methods, start_process

    get_context()
    forkserver._forkserver.takes_over = what
    context.ForkServerProcess.start = start_process  # type: ignore[assignment,method-assign]
    _replace_what_is_imported()
    if _finder is None:
        _finder = import_hook.on_import(_replace_what_is_imported)
    if what != TAKE_FORKSERVER:
        replace_start_methods(("fork", "forkserver") if what == TAKE_ALL_BUT_SPAWN else None)


def _replace_what_is_imported() -> None:
    """Replace what fastfork does in multiprocessing's modules; those not imported yet have their turn then."""
    from . import forkserver

    if "multiprocessing.forkserver" in sys.modules:
        for name in _REPLACED_IN_FORKSERVER:
            _replace("multiprocessing.forkserver", name, getattr(forkserver, name))
    if "multiprocessing.popen_forkserver" in sys.modules:
        _replace("multiprocessing.popen_forkserver", "Popen", _forkserver_popen())
    if "multiprocessing.spawn" in sys.modules:
        _replace("multiprocessing.spawn", "get_preparation_data", _preparation_data_for_tree)


def _replace(module_name: str, name: str, value: Any) -> None:
    module = sys.modules[module_name]
    current = getattr(module, name, None)  # nothing, in a module that is just being imported
    if current is value:
        return
    if current is not None:
        _originals.setdefault((module_name, name), current)
    setattr(module, name, value)


def _forkserver_popen() -> Any:
    """Return `fastfork.popen.Popen` as a class that calls itself "forkserver"; always the same one."""
    global _popen_class
    if _popen_class is None:
        from .popen import Popen

        _popen_class = type("Popen", (Popen,), {"method": "forkserver", "__module__": Popen.__module__})
    return _popen_class


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
