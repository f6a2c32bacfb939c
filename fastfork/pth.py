"""fastfork in a whole environment: what ``fastfork install-pth`` writes and ``uninstall-pth`` removes."""

from __future__ import annotations

import os
import sysconfig

_PTH_NAME = "fastfork-install.pth"
_HOOK_NAME = "_fastfork_install.py"

_PTH = "import os; os.environ.get('FASTFORK_INSTALL') == '1' and __import__('_fastfork_install')\n"

_HOOK_END = """

def _install():
    import fastfork

    fastfork.install()


# Only once multiprocessing's fork server is imported: other programs pay nothing.
on_import(_install)
"""


def _files() -> dict[str, str]:
    hook = os.path.join(os.path.dirname(os.path.abspath(__file__)), "import_hook.py")
    with open(hook, encoding="utf-8") as stream:
        return {_HOOK_NAME: stream.read() + _HOOK_END, _PTH_NAME: _PTH}


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
    for name, text in _files().items():
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
