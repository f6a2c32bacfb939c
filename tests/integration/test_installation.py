"""multiprocessing's own "forkserver" on fastfork: install(), uninstall() and the .pth file."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.popen_forkserver
import multiprocessing.spawn
import os
import sys
import venv

import _cffi_backend
import pytest
from support import targets, trees

import fastfork
from fastfork import forkserver, pth

FUNCTIONS = (
    "_forkserver",
    "ensure_running",
    "get_inherited_fds",
    "connect_to_new_process",
    "set_forkserver_preload",
)

WHO_SERVES = """
import multiprocessing, os, sys

def parent(connection):
    connection.send(os.getppid())

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=parent, args=(sender,))
    process.start()
    with open(f"/proc/{receiver.recv()}/cmdline", "rb") as stream:
        print("fastfork" if b"fastfork.template" in stream.read() else "standard library")
    process.join()
"""


@pytest.fixture
def installed():
    """The method "forkserver" of this process, on fastfork."""
    fastfork.install()
    yield multiprocessing.get_context("forkserver")
    fastfork.uninstall()


def standard_library():
    """What install() replaces, as it is now."""
    return [
        *(getattr(multiprocessing.forkserver, name) for name in FUNCTIONS),
        multiprocessing.popen_forkserver.Popen,
        multiprocessing.spawn.get_preparation_data,
    ]


def test_forkserver_runs_on_fastfork(installed, ask):
    assert ask(trees.send_parent, context=installed) == forkserver._forkserver._forkserver_pid
    assert multiprocessing.forkserver._forkserver is forkserver._forkserver


def test_a_process_keeps_the_names_of_its_method(installed):
    process = installed.Process(target=targets.nothing)
    process.start()
    process.join()
    assert type(process).__name__ == "ForkServerProcess"
    assert process._popen.method == "forkserver"
    process.close()


def test_installing_twice_and_uninstalling_restores_all():
    before = standard_library()
    fastfork.install()
    fastfork.install()
    assert not any(now is then for now, then in zip(standard_library(), before))
    fastfork.uninstall()
    assert all(now is then for now, then in zip(standard_library(), before))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_the_whole_tree_runs_on_fastfork(installed, ask, method):
    context = multiprocessing.get_context(method)
    assert ask(trees.send_server_of_child, context=context) == "fastfork"


def test_what_is_imported_later_is_replaced_then(programs):
    outcome = programs.run(
        """
        import sys, fastfork
        fastfork.install()
        assert "multiprocessing.forkserver" not in sys.modules
        from multiprocessing import forkserver, popen_forkserver
        from fastfork.popen import Popen
        print(forkserver._forkserver is sys.modules["fastfork.forkserver"]._forkserver)
        print(issubclass(popen_forkserver.Popen, Popen))
        """
    )
    assert outcome.lines == ["True", "True"]


@pytest.fixture
def site(programs):
    """An environment of its own: a folder on the site path with what install-pth writes."""
    folder = programs.folder / "site"
    folder.mkdir()
    pth.install_pth(str(folder))
    return folder


def run_with_site(programs, site, *options, installed):
    """Run WHO_SERVES with the folder on the site path, as a .pth file beside fastfork would have it."""
    path = programs.write("who.py", WHO_SERVES)
    start = f"import runpy, site; site.addsitedir({str(site)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    outcome = programs.python(
        *options, "-W", "ignore", "-c", start, environment={"FASTFORK_INSTALL": "1" if installed else None}
    )
    assert outcome.stderr == ""
    return outcome.lines


@pytest.mark.parametrize("options", [(), ("-I",)])
def test_the_pth_file_installs_where_the_variable_is_set(programs, site, options):
    assert run_with_site(programs, site, *options, installed=True) == ["fastfork"]


def test_the_pth_file_does_nothing_without_the_variable(programs, site):
    assert run_with_site(programs, site, installed=False) == ["standard library"]


def test_the_pth_file_imports_nothing_by_itself(programs, site):
    outcome = programs.python(
        "-W",
        "ignore",
        "-c",
        f"import site, sys; site.addsitedir({str(site)!r}); print('_fastfork_install' in sys.modules, "
        "'multiprocessing' in sys.modules, 'fastfork' in sys.modules)",
        environment={"FASTFORK_INSTALL": "1"},
    )
    assert outcome.lines == ["True False False"]


def test_uninstall_pth_removes_what_install_pth_wrote(tmp_path):
    written = pth.install_pth(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(os.path.basename(path) for path in written)
    assert sorted(pth.uninstall_pth(str(tmp_path))) == sorted(written)
    assert os.listdir(tmp_path) == []
    assert pth.uninstall_pth(str(tmp_path)) == []


def test_the_commands_say_what_they_write_and_remove(programs, tmp_path):
    command = (sys.executable, "-m", "fastfork")
    written = programs.command(*command, "install-pth", "--directory", str(tmp_path))
    assert written.status == 0
    assert "fastfork-install.pth" in written.stdout
    removed = programs.command(*command, "uninstall-pth", "--directory", str(tmp_path))
    assert len(removed.lines) == 2
    assert all(line.startswith("removed ") for line in removed.lines)
    assert programs.command(*command, "uninstall-pth", "--directory", str(tmp_path)).lines == [
        "nothing to remove"
    ]


def test_install_pth_serves_its_whole_environment(programs):
    """A scratch environment that finds this one's packages: the files land in its site-packages."""
    folder = programs.folder / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    site_packages = programs.python(
        "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", executable=python
    )
    here = {os.path.dirname(os.path.dirname(fastfork.__file__)), os.path.dirname(_cffi_backend.__file__)}
    (programs.folder / site_packages.stdout.strip() / "here.pth").write_text("\n".join(here) + "\n")
    path = str(programs.write("who.py", WHO_SERVES))

    def who_serves():
        return programs.python("-I", path, executable=python, environment={"FASTFORK_INSTALL": "1"}).lines

    assert who_serves() == ["standard library"]
    assert programs.python("-m", "fastfork", "install-pth", executable=python).status == 0
    assert who_serves() == ["fastfork"]
    assert programs.python("-m", "fastfork", "uninstall-pth", executable=python).status == 0
    assert who_serves() == ["standard library"]
