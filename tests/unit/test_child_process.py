"""A child that is held: whether it lives, its exit code, and that a pid which is another's by now harms nobody."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.processes import DEADLINE, exit_code_of, fork

from fastfork import _native
from fastfork.child_process import ChildProcess


@pytest.fixture
def paused():
    """Fork processes that do nothing until they are ended."""
    pids = []

    def start():
        pids.append(fork(signal.pause))
        return pids[-1]

    yield start
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (lambda: None, 0),
        (lambda: os._exit(7), 7),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
    ],
)
def test_the_end_and_its_exit_code_are_known(action, code):
    process = ChildProcess(fork(action))
    assert process.wait(DEADLINE)
    assert process.has_ended()
    assert process.exit_code == code


def test_a_wait_without_limit_ends_with_the_process():
    process = ChildProcess(fork(lambda: time.sleep(0.05)))
    assert process.wait(None)
    assert process.exit_code == 0


def test_a_process_that_lives_is_killed_once_and_for_all(paused):
    process = ChildProcess(paused())
    assert not process.has_ended()
    assert not process.wait(0.01)
    assert process.exit_code is None
    process.kill()
    assert process.wait(DEADLINE)
    process.kill()
    assert process.exit_code == -signal.SIGKILL


def test_a_process_that_somebody_else_has_reaped_has_ended():
    pid = fork(lambda: None)
    process = ChildProcess(pid)
    assert exit_code_of(pid) == 0
    assert process.has_ended()
    assert process.exit_code is None


@pytest.mark.skipif(not _native.has_pidfds(), reason="without pidfds one pid is as good as another")
def test_another_process_of_the_same_pid_is_neither_reaped_nor_killed(paused):
    pid, other = fork(lambda: None), paused()
    process = ChildProcess(pid)
    assert exit_code_of(pid) == 0
    process.pid = other
    process.kill()
    assert process.wait(None)
    assert os.waitpid(other, os.WNOHANG) == (0, 0)
    os.kill(other, signal.SIGKILL)
    assert exit_code_of(other) == -signal.SIGKILL
