"""Running an unmodified multiprocessing program on fastfork, in the manner of ``python -m cProfile``."""

from __future__ import annotations

import importlib.util
import io
import os
import runpy
import sys
import types

from . import forkserver
from .installation import TAKE_ALL, TAKE_ALL_BUT_SPAWN, take_over


def is_there(target: str, *, is_module: bool) -> bool:
    """Whether there is such a script or module; a module may also lie in the current directory, as for python -m."""
    if not is_module:
        return os.path.exists(target)
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec(target) is not None
    except ModuleNotFoundError:
        return False


def run(
    target: str, arguments: list[str], *, is_module: bool, preload: list[str], keep_spawn: bool = False
) -> None:
    """Run a program as ``__main__`` in this interpreter, with fastfork in place of the start methods it asks for.

    Parameters
    ----------
    target:
        The path of a script (or of a directory or archive with a ``__main__.py``), or a module's name.
    arguments:
        What the program finds in ``sys.argv[1:]``.
    is_module:
        `target` is a module's name, as after ``python -m``.
    preload:
        Modules that the template imports beside the main module.
    keep_spawn:
        Leave the start method "spawn" as it is.

    Raises what the program raises, `SystemExit` among it; see `is_there` for one that cannot be found.

    """
    take_over(TAKE_ALL_BUT_SPAWN if keep_spawn else TAKE_ALL)
    forkserver.set_forkserver_preload(["__main__", *preload])
    sys.argv[:] = [target, *arguments]
    if is_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif os.path.isfile(target) and not target.endswith((".zip", ".pyz")):
        _run_script(target)
    else:
        runpy.run_path(target, run_name="__main__")


def _run_script(path: str) -> None:
    """Run a script as the interpreter itself does: its module stays ``__main__`` until the process ends."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    with io.open_code(os.path.abspath(path)) as stream:
        code = compile(stream.read(), path, "exec", dont_inherit=True)
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __spec__=None, __loader__=None)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)
