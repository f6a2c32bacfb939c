"""The folders of templates: who removes them when, and that nobody removes another one's."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
from support import preloading, raw, targets
from support.processes import wait_until

from fastfork import address, forkserver

NOBODY = 65534

pytestmark = pytest.mark.skipif(not address._boot(), reason="the system does not say which boot this is")


@pytest.fixture
def base(monkeypatch):
    """A folder for those of templates."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(address, "_base_directories", lambda: iter([folder]))
        yield Path(folder)


@contextlib.contextmanager
def listening():
    """Have the address of a new template, on which somebody listens meanwhile."""
    with contextlib.ExitStack() as on_failure:
        listener, path = address.listen(on_failure)
        on_failure.pop_all()
    with listener:
        yield path


@pytest.fixture
def abandoned(base):
    """The folder of a template that was killed."""
    with listening() as path:
        return Path(path).parent


def launch():
    """Launch a template, and see that it serves; return its folder."""
    assert raw.run(targets.nothing) == 0
    return Path(forkserver._forkserver._forkserver_address).parent


def test_what_killed_templates_have_left_goes_with_the_next_launch(base):
    with listening() as first, listening() as second:
        assert {Path(first).parent, Path(second).parent} == set(base.iterdir())
    assert [launch()] == list(base.iterdir())


def test_a_template_that_was_killed_with_its_client_is_one(base, programs):
    outcome = programs.python(
        "-c",
        "import os, signal\n"
        "from fastfork import forkserver\n"
        "forkserver.ensure_running()\n"
        "os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        environment={"TMPDIR": os.fspath(base)},
    )
    assert outcome.status == -signal.SIGKILL
    (left,) = base.iterdir()
    assert [launch()] == list(base.iterdir()) != [left]


def test_a_template_that_lives_keeps_its_own(base):
    mine = launch()
    with listening():
        assert mine.exists()
    assert raw.run(targets.nothing) == 0


def test_no_launch_disturbs_a_template_that_is_known_to_live(base, monkeypatch):
    mine = launch()
    monkeypatch.setattr(address, "_remove_if_abandoned", lambda folder: pytest.fail(f"tried {folder}"))
    with listening():
        assert mine.exists()


@pytest.mark.parametrize("is_full", [False, True])
def test_one_that_only_a_connection_can_find_keeps_its_own(base, monkeypatch, is_full):
    """As from another network namespace: the system's list of sockets is another one there."""
    monkeypatch.setattr(address, "_folders_with_listeners", set)
    monkeypatch.setattr(socket, "SOMAXCONN", 0)
    with listening() as path, contextlib.ExitStack() as clients:
        if is_full:
            with contextlib.suppress(BlockingIOError):
                while True:
                    client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                    client.setblocking(False)
                    client.connect(path)
        address._remove_abandoned(os.fspath(base))
        assert Path(path).exists()
    address._remove_abandoned(os.fspath(base))
    assert list(base.iterdir()) == []


def test_one_that_does_not_listen_yet_keeps_its_own(base, monkeypatch):
    monkeypatch.setattr(address, "_folders_with_listeners", set)
    folder = Path(tempfile.mkdtemp(prefix=address._prefix(), dir=base))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as new:
        new.bind(os.fspath(folder / address._NEW_SOCKET))
        launch()
        assert (folder / address._NEW_SOCKET).exists()


@pytest.mark.parametrize("names", [[], [address._NEW_SOCKET]])
def test_one_that_has_not_come_to_listen_for_an_hour_goes(base, names):
    old, young = (Path(tempfile.mkdtemp(prefix=address._prefix(), dir=base)) for _ in range(2))
    for folder in (old, young):
        for name in names:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as new:
                new.bind(os.fspath(folder / name))
    hour_ago = time.time() - address._LONGEST_BIRTH - 1
    os.utime(old, (hour_ago, hour_ago))
    assert {young, launch()} == set(base.iterdir())


def test_a_launch_without_a_descriptor_leaves_nothing(base):
    with contextlib.ExitStack() as stack:
        _listener, path = address.listen(stack)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        address.remove(path)
    assert list(base.iterdir()) == []


def with_more_in_it(folder):
    (folder / "more").touch()


def with_a_file_for_a_socket(folder):
    (folder / address._SOCKET).unlink()
    (folder / address._SOCKET).touch()


def open_to_others(folder):
    folder.chmod(0o755)


def of_another_user(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(folder, NOBODY, NOBODY)


def of_another_boot(folder):
    folder.rename(folder.with_name(folder.name.replace(address._prefix(), "fastfork-000000")))


def without_a_boot(folder):
    folder.rename(folder.with_name(folder.name.replace(address._prefix(), "fastfork-")))


@pytest.mark.parametrize(
    "change",
    [
        with_more_in_it,
        with_a_file_for_a_socket,
        open_to_others,
        of_another_user,
        of_another_boot,
        without_a_boot,
    ],
)
def test_what_is_not_exactly_such_a_folder_is_left_alone(base, abandoned, change):
    change(abandoned)
    before = contents(base)
    mine = launch()
    forkserver._forkserver._stop()
    wait_until(lambda: not mine.exists())
    assert contents(base) == before


def contents(base):
    return sorted(base.rglob("*"))


def test_a_link_to_such_a_folder_is_not_followed(base, abandoned, tmp_path):
    elsewhere = Path(shutil.move(abandoned, tmp_path))
    abandoned.symlink_to(elsewhere)
    mine = launch()
    assert set(base.iterdir()) == {abandoned, mine}
    assert [path.name for path in elsewhere.iterdir()] == [address._SOCKET]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_signals_that_have_a_template_clear_up_are_as_usual_in_children(ask, number):
    assert ask(preloading.send_result, preloading.disposition, number) == "default"
