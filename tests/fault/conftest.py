"""The server that a fault happens to: fastfork's, or with ``FAULTS_ON=stdlib`` the standard library's, to compare."""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import signal
import socket
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from support import targets
from support.processes import DEADLINE, children_of, descriptors, is_alive, settled, wait_until

import fastfork
from fastfork import forkserver
from fastfork.auth import authenticate

from .interposing import Faults, build

ON = os.environ.get("FAULTS_ON", "fastfork")
"""Whose fork server the faults happen to: ``"fastfork"`` or ``"stdlib"``."""

PRELOADED = ["__main__", "support.targets", "support.ends"]
"""What the template has: without it most of the time of a test would be its processes' imports of these."""

LIST = "FAULTS_LIST"
"""The environment variable that names a file for the titles of the collected tests, by their ids, as JSON."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        'fault("A client goes away"): of any fork server, by its interface alone: a row of the table of tests.fault',
    )


def pytest_collection_finish(session):
    if LIST in os.environ:
        markers = {item.nodeid: item.get_closest_marker("fault") for item in session.items}
        titles = {nodeid: marker.args[0] for nodeid, marker in markers.items() if marker is not None}
        Path(os.environ[LIST]).write_text(json.dumps(titles), encoding="utf-8")


class Server:
    """A fork server with its template running, and ways to reach it that no well-behaved client takes."""

    kind: str
    """``"fastfork"`` or ``"stdlib"``."""

    def __init__(self, kind, context, module):
        self.kind = kind
        self.context = context
        self._module = module
        module.ensure_running()
        self.check_starts()  # the first request waits until it has preloaded

    @property
    def pid(self):
        """The pid of the template."""
        return self._module._forkserver._forkserver_pid

    @property
    def address(self):
        """The path of its socket."""
        return self._module._forkserver._forkserver_address

    @property
    def authkey(self):
        """What its clients prove to know; None where it does not ask (stdlib: until 3.13)."""
        return getattr(self._module._forkserver, "_forkserver_authkey", None)

    @property
    def common_fds(self):
        """What goes along with each request for the children of the child: alive pipe and resource tracker."""
        return [self._module._forkserver._forkserver_alive_fd, resource_tracker.getfd()]

    def ensure_running(self):
        """Start another template if this one has died."""
        self._module.ensure_running()

    def connect(self):
        """Return a socket that is connected and has said nothing yet."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.address)  # without a timeout, which would make a full backlog an error
        sock.settimeout(DEADLINE)
        return sock

    def authenticate(self, sock, authkey=None):
        """Go through the challenge on a connected socket, where this server has one."""
        if self.authkey is not None:
            authenticate(sock, authkey or self.authkey)
        return sock

    def start(self, target=targets.nothing, *arguments, **options):
        """Start a process; return it."""
        process = self.context.Process(target=target, args=arguments, **options)
        process.start()
        return process

    def check_starts(self, count=1):
        """See that processes can be started, one after another, and that each one's exit code arrives."""
        for number in range(count):
            process = self.start(targets.leave, number % 100)
            process.join(DEADLINE)
            assert process.exitcode == number % 100
            process.close()

    @contextlib.contextmanager
    def unharmed(self):
        """See that nobody notices what happens within, and that nothing of it is left in the template."""
        pid, before = self.pid, self._channels()
        ours, theirs = self.context.Pipe()
        bystander = self.start(targets.begin_and_leave_after, theirs, 7)
        theirs.close()
        ours.recv()  # what happens to the next process that the server forks is not to happen to it
        before &= self._channels()  # neither what the last process has left nor what the bystander takes
        try:
            yield
            self.check_starts(3)
        except Exception as error:
            if self._dies(pid):
                raise AssertionError("server died") from error
            raise
        finally:
            ours.close()
            bystander.join(DEADLINE)
        assert self._is_still(pid), "server died"
        assert bystander.exitcode == 7, "exit code lost"
        bystander.close()
        # At some moment: soon there may be spares again.
        nothing = ([], _kinds(before))
        children, channels = settled(lambda: (children_of(pid), _kinds(self._channels())), nothing)
        assert children == [], "zombies left"
        assert channels == _kinds(before), "descriptors left open"

    def _dies(self, pid):
        """Whether the template is not the one that it was, or will not be in a moment."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._is_still(pid), timeout=1)
        return not self._is_still(pid)

    def _is_still(self, pid):
        return self.pid == pid and is_alive(pid)

    def _channels(self):
        """Return what the template has open, whatever the numbers: a spare one may have moved."""
        return collections.Counter(descriptors(self.pid).values())

    def kill(self):
        """End the template, hung or not, and forget it."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._module._forkserver._stop()


def _kinds(channels):
    """Count channels by kind: a server that has to open its loop anew has other pipes, a client another socket."""
    return collections.Counter(channel.partition(":[")[0] for channel in channels.elements())


@pytest.fixture(autouse=True)
def _preloaded():
    module = forkserver if ON == "fastfork" else multiprocessing.forkserver
    module.set_forkserver_preload(PRELOADED)


@pytest.fixture
def server():
    """The server under test. A test that stops its template has to let it go on, or kill it."""
    if ON == "fastfork":
        yield Server(ON, fastfork.get_context(), forkserver)
        return
    standard = Server(ON, multiprocessing.get_context("forkserver"), multiprocessing.forkserver)
    yield standard
    for process in multiprocessing.active_children():
        process.kill()
    standard.kill()


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of the default backend in a run of another one: they would be the same again."""
    if not os.environ.get("FASTFORK_BACKEND"):
        return
    left_out = [item for item in items if "with_epoll" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _only_where_it_applies(request):
    """Skip what asks for fastfork's own interface when the standard library is looked at."""
    if ON == "stdlib" and "server" not in request.fixturenames:
        pytest.skip("about fastfork alone")


if ON == "stdlib":

    @pytest.fixture(autouse=True)
    def _nothing_left_behind(_lasting_descriptors):
        """The standard library is looked at, not held to what fastfork's tests ask for: see tests/conftest.py."""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The library that makes calls fail: its path."""
    try:
        return build(tmp_path_factory.mktemp("interpose"))
    except FileNotFoundError as error:
        pytest.skip(f"no C compiler: {error}")


@pytest.fixture
def faults(library, tmp_path, monkeypatch):
    """What fails in the template that is launched next, and in its children."""
    faults = Faults(tmp_path / "faults")
    for name, value in faults.environment(library).items():
        monkeypatch.setenv(name, value)
    yield faults
    faults.close()


@pytest.fixture
def with_epoll(monkeypatch):
    """The backend that is chosen by default. Tests of it are left out where all others are to be of another one."""
    monkeypatch.delenv("FASTFORK_BACKEND", raising=False)


@pytest.fixture
def with_poll(monkeypatch):
    monkeypatch.setenv("FASTFORK_BACKEND", "poll")


@pytest.fixture
def without_spares():
    """Have each request served by a fork."""
    fastfork.get_context(spares=0)
    yield
    fastfork.get_context(spares=2)


@pytest.fixture
def many_descriptors():
    """As many descriptors as this process may have; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
