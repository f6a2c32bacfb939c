"""Fixtures. Every test begins without a template and ends with the descriptors, threads and processes it began with."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("support")

from support import targets
from support.control_groups import limited_memory
from support.processes import MARK, descendants, descriptors, settled
from support.programs import Programs

import fastfork
from fastfork import context, forkserver, installation

os.environ[MARK] = str(os.getpid())
# A shell has what it runs in its background ignore the first two, nohup the third.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Each of these changes what is tested; the tests that are about one set it.
for variable in ("FASTFORK_INSTALL", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONWARNINGS", "PYTHONUNBUFFERED"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session", autouse=True)
def _plain_main_module():
    """Children would import pytest as their main module, each of them."""
    real = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    yield
    sys.modules["__main__"] = real


@pytest.fixture(scope="session", autouse=True)
def _lasting_descriptors(_plain_main_module):
    """Have what a process opens once and keeps: the resource tracker, the heap of shared values, and the like."""
    context = fastfork.get_context()
    context.RawValue("i")
    process = context.Process(target=targets.nothing)
    process.start()
    process.join()
    process.close()
    _stop_templates()


@pytest.fixture(scope="session", autouse=True)
def _cheap_collections():
    """Have the collection after each test not go through all that pytest holds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_left_behind(_lasting_descriptors, _cheap_collections):
    before = _snapshot()
    yield
    _end_children()
    _stop_templates()
    gc.collect()
    assert settled(_snapshot, before, timeout=10) == before


def _end_children():
    """End what a test that failed has left running: a template waits for its children. Let go of the others."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def _snapshot():
    return {
        "descriptors": descriptors(),
        "threads": threading.enumerate(),
        "processes": sorted(process[:2] for process in descendants()),
    }


def _stop_templates():
    """Stop every template of this process and forget what was set for it."""
    installation.uninstall()
    for server in (forkserver._forkserver, *context._servers.values()):
        server._stop()
    for name in context._servers:
        context._contexts.pop(name, None)
    context._servers.clear()
    forkserver._forkserver.set_forkserver_preload(["__main__"])
    forkserver._forkserver.nested = "share"


@pytest.fixture
def ctx():
    """The default context."""
    return fastfork.get_context()


@pytest.fixture
def template():
    """A running template of the default context: what stands for it in this process."""
    forkserver.ensure_running()
    return forkserver._forkserver


@pytest.fixture
def programs(tmp_path):
    """A folder for programs, and the means to run them."""
    folder = tmp_path / "programs"
    folder.mkdir()
    return Programs(folder)


@pytest.fixture
def ask(ctx):
    """Run a function of `support.targets` that sends one answer, in a process; return the answer.

    What else is said of the process is for its class.
    """

    def ask(target, *arguments, context=ctx, **keywords):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(sender, *arguments), **keywords)
        process.start()
        sender.close()
        answer = receiver.recv()
        receiver.close()
        process.join()
        assert process.exitcode == 0
        return answer

    return ask


MEMORY = 256 << 20
"""Bytes."""


@pytest.fixture
def memory_cgroup():
    """What is to be written before a command so that it has 256 MiB of memory: the kernel kills what takes more."""
    with limited_memory(MEMORY) as runner:
        if runner is None:
            pytest.skip("no control group for memory that this user may make")
        yield runner
