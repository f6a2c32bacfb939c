"""What a template imports before it serves, and what happens to an exception there."""

from __future__ import annotations

import functools
import warnings
from multiprocessing import process, spawn, util

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import TemplateConfig


class PreloadFailedError(Exception):
    """A preload failed and the template was told to fail with it. It carries the exception's traceback."""

    def __init__(self, module: str, error: BaseException) -> None:
        import traceback  # large, and rarely needed

        super().__init__(module)
        self.module = module
        self.traceback = "".join(traceback.format_exception(type(error), error, error.__traceback__))


def preload(config: TemplateConfig) -> None:
    """Import the modules that a template is to have.

    The main module comes first, wherever its name stands. What happens to an exception, of every kind and `SystemExit`
    among them, is `config.on_error`: ``"ignore"``, ``"warn"`` (an `ImportWarning`) or ``"fail"``
    (`PreloadFailedError`).
    """
    names = [name for name in config.preload if name != "__main__"]
    if "__main__" in config.preload:
        if _is_importable(config.main):
            _attempt("__main__", functools.partial(_import_main, config.main), config.on_error)
        else:
            names[:0] = config.main_imports
    for name in names:
        _attempt(name, functools.partial(__import__, name), config.on_error)
    # Children would inherit what is still buffered, and print it again (gh-135335).
    util._flush_std_streams()  # type: ignore[attr-defined]


def _is_importable(main: dict[str, str]) -> bool:
    """Whether the main module can be imported without running its program: not a ``__main__.py``."""
    name = main.get("init_main_from_name")
    return name is None or not (name == "__main__" or name.endswith(".__main__"))


def _attempt(name: str, action: Callable[[], object], on_error: str) -> None:
    try:
        action()
    except BaseException as error:
        if on_error == "fail":
            raise PreloadFailedError(name, error) from error
        if on_error == "warn":
            message = f"Failed to preload {name!r}: {type(error).__name__}: {error}"
            warnings.warn(message, ImportWarning, stacklevel=2)


def _import_main(main: dict[str, str]) -> None:
    """Import the client's main module as ``__mp_main__``: children find it there and need not run it again."""
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        if "init_main_from_name" in main:
            spawn._fixup_main_from_name(main["init_main_from_name"])  # type: ignore[attr-defined]
        elif "init_main_from_path" in main:
            spawn.import_main_path(main["init_main_from_path"])
    finally:
        del current._inheriting  # type: ignore[attr-defined]
