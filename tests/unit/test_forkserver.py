"""fastfork.forkserver: the names, signatures and meaning of the standard library's module."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
from multiprocessing import forkserver as standard

import pytest
from support import raw, targets
from support.processes import children_of, descriptors, is_alive, wait_until

from fastfork import forkserver

FUNCTIONS = ["ensure_running", "get_inherited_fds", "connect_to_new_process", "set_forkserver_preload"]
PRIVATE = [
    "_stop",
    "_forkserver_pid",
    "_forkserver_address",
    "_forkserver_alive_fd",
    "_forkserver_authkey",
    "_inherited_fds",
    "_preload_modules",
    "_lock",
]


def positional(function):
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]


@pytest.fixture
def files(tmp_path):
    """Open any number of different files; they are closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(count):
            return [stack.enter_context(open(tmp_path / str(i), "w")).fileno() for i in range(count)]

        yield opened


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_that_of_the_standard_library(name):
    assert positional(getattr(forkserver, name)) == positional(getattr(standard, name))


def test_preload_takes_on_error_by_keyword_only():
    parameter = inspect.signature(forkserver.set_forkserver_preload).parameters["on_error"]
    assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, "ignore")


def test_public_names_are_those_of_the_standard_library_and_its_class():
    assert {*FUNCTIONS, "ForkServer", "MAXFDS_TO_SEND"} == set(forkserver.__all__)
    assert all(hasattr(forkserver, name) for name in forkserver.__all__)
    assert standard.MAXFDS_TO_SEND == forkserver.MAXFDS_TO_SEND


@pytest.mark.parametrize("name", PRIVATE)
def test_has_what_the_tests_of_cpython_reach_for(name):
    assert hasattr(forkserver._forkserver, name)


def test_ensure_running_does_nothing_while_the_template_lives(template):
    before = template._forkserver_pid, template._forkserver_address, descriptors()
    forkserver.ensure_running()
    assert (template._forkserver_pid, template._forkserver_address, descriptors()) == before


def test_the_template_is_a_child_of_this_process(template):
    assert template._forkserver_pid in children_of(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ensure_running_relaunches_a_template_that_was_killed(template, number):
    killed, address = template._forkserver_pid, template._forkserver_address
    assert raw.run(targets.nothing) == 0
    os.kill(killed, number)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    forkserver.ensure_running()
    assert template._forkserver_pid != killed
    assert not os.path.exists(os.path.dirname(address))
    assert raw.run(targets.nothing) == 0


def test_a_template_that_somebody_else_has_reaped_is_relaunched(template):
    os.kill(template._forkserver_pid, signal.SIGKILL)
    os.waitpid(template._forkserver_pid, 0)
    assert raw.run(targets.nothing) == 0


def test_the_template_ignores_an_interrupt(template):
    assert raw.run(targets.nothing) == 0  # it serves by now
    os.kill(template._forkserver_pid, signal.SIGINT)
    assert raw.run(targets.nothing) == 0
    assert is_alive(template._forkserver_pid)


def test_stop_ends_the_template_and_can_be_repeated(template):
    pid, address = template._forkserver_pid, template._forkserver_address
    template._stop()
    template._stop()
    assert not is_alive(pid)
    assert not os.path.exists(os.path.dirname(address))
    assert template._forkserver_pid is None


def test_a_start_after_stop_launches_another_template(template):
    pid = template._forkserver_pid
    template._stop()
    assert raw.run(targets.nothing) == 0
    assert template._forkserver_pid != pid


def test_connect_to_new_process_tells_pid_and_exit_code(template):
    release_r, release_w = os.pipe()
    child = raw.start(targets.leave_when_released, 7, fds=[release_r])
    assert children_of(template._forkserver_pid) == [child.pid]
    os.close(release_r)
    os.close(release_w)
    assert child.exit_code() == 7


def test_connect_to_new_process_tells_a_signal_as_a_negative_code():
    assert raw.run(targets.kill_self, signal.SIGTERM) == -signal.SIGTERM


def test_connect_to_new_process_gives_two_descriptors_and_keeps_no_other(template):
    assert raw.run(targets.nothing) == 0
    before = descriptors()
    status_r, data_w = forkserver.connect_to_new_process([])
    os.close(data_w)
    assert set(descriptors()) == {*before, status_r}
    os.close(status_r)


def test_a_client_that_closes_the_status_stream_is_no_error(template):
    pid = template._forkserver_pid
    child = raw.start(targets.nothing)
    os.close(child.status_fd)
    os.close(child.data_fd)
    assert raw.run(targets.nothing) == 0
    assert template._forkserver_pid == pid
    wait_until(lambda: not children_of(pid))


def test_a_child_whose_data_never_comes_ends_with_a_traceback(capfd):
    status_r, data_w = forkserver.connect_to_new_process([])
    os.close(data_w)
    standard.read_signed(status_r)
    assert standard.read_signed(status_r) == 1
    os.close(status_r)
    assert "EOFError" in capfd.readouterr().err
    assert raw.run(targets.nothing) == 0


def test_a_process_that_no_template_started_has_no_inherited_descriptors():
    assert forkserver.get_inherited_fds() is None


@pytest.mark.parametrize("count", [0, 1, 252, 253, 254, 255, 256])
def test_a_child_inherits_descriptors_in_order(count, files):
    fds = files(count)
    assert raw.run(targets.compare_inherited, [os.fstat(fd).st_ino for fd in fds], fds=fds) == 0


def test_too_many_descriptors_are_refused_before_anything_is_sent(template, files):
    assert raw.run(targets.nothing) == 0
    fds = files(257)
    before = descriptors()
    with pytest.raises(ValueError, match="too many fds"):
        forkserver.connect_to_new_process(fds)
    assert descriptors() == before
    assert children_of(template._forkserver_pid) == []
    assert raw.run(targets.nothing) == 0


def test_too_many_descriptors_do_not_even_launch_a_template(files):
    with pytest.raises(ValueError, match="too many fds"):
        forkserver.connect_to_new_process(files(257))
    assert forkserver._forkserver._forkserver_pid is None


@pytest.mark.parametrize("names", [[1], ["os", None], [b"os"], [["os"]]])
def test_preload_takes_nothing_but_strings(names):
    with pytest.raises(TypeError, match="must be a list of strings"):
        forkserver.set_forkserver_preload(names)


@pytest.mark.parametrize("on_error", ["", "raise", None, "FAIL"])
def test_preload_takes_no_other_on_error(on_error):
    with pytest.raises(ValueError, match="on_error must be 'ignore', 'warn', or 'fail'"):
        forkserver.set_forkserver_preload(["os"], on_error=on_error)


def test_a_refused_preload_leaves_the_earlier_one():
    forkserver.set_forkserver_preload(["json"], on_error="warn")
    with pytest.raises(TypeError):
        forkserver.set_forkserver_preload(["os", 1])
    with pytest.raises(ValueError, match="on_error"):
        forkserver.set_forkserver_preload(["os"], on_error="no")
    assert forkserver._forkserver._preload_modules == ["json"]
    assert forkserver._forkserver._preload_on_error == "warn"
