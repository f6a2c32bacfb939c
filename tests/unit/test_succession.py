"""Where the successor of a dead template is: one place for all who knew it, one that launches it, others that join."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import stat
import tempfile
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import process
from pathlib import Path

import pytest
from support import raw, targets, trees
from support.processes import DEADLINE, children_of, exit_code_of, fork, is_alive, state_of, wait_until

import fastfork
from fastfork import address, forkserver, succession
from fastfork.template import _take_over as take_over

KEY = b"k" * 32


@pytest.fixture
def first():
    """The address of a template, in a folder for those of its successors."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        yield os.path.join(base, f"{address._prefix()}12345678", "s")


@contextlib.contextmanager
def listening(place):
    """Have a template at a place that has been claimed; afterwards the socket is there, and deserted."""
    with still_claimed(place):
        take_over(place.address)
        yield


@contextlib.contextmanager
def still_claimed(place):
    """The same, as it is before there is a template."""
    with contextlib.ExitStack() as on_failure:
        listener = place.claimed(on_failure)
        on_failure.pop_all()
    with listener:
        yield


def claimed_and_empty(where, key=KEY):
    """Have a place of whose folder somebody has made no more than the folder; return that."""
    place = succession.find(where, key)
    folder = os.path.dirname(place.address)
    place.give_back()
    os.mkdir(folder, 0o700)
    return folder


def test_the_first_one_claims_the_place_and_the_others_join(first):
    claimed = succession.find(first, KEY)
    assert claimed.is_claimed()
    folder = os.path.dirname(claimed.address)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(claimed.address).st_mode) & 0o577 == 0
    assert os.path.dirname(folder) == os.path.dirname(os.path.dirname(first))
    assert len(claimed.address) == len(first)
    with listening(claimed):
        joined = succession.find(first, KEY)
    assert not joined.is_claimed()
    assert (joined.address, joined.authkey) == (claimed.address, claimed.authkey)


def test_place_and_key_are_known_to_those_alone_who_know_the_key(first):
    ours, others = succession.find(first, KEY), succession.find(first, b"o" * 32)
    with listening(ours), listening(others):
        assert ours.address != others.address
        assert len({ours.authkey, others.authkey, KEY}) == 3
        assert len(ours.authkey) == len(KEY)


def test_the_successor_of_one_that_has_died_too_is_the_next(first):
    places = [succession.find(first, KEY)]
    for _ in range(3):
        with listening(places[-1]):
            pass
        places.append(succession.find(first, KEY))
    assert len({place.address for place in places}) == len({place.authkey for place in places}) == 4
    with listening(places[3]):
        joined = succession.find(places[1].address, places[1].authkey)
    assert joined.address == places[3].address


@pytest.fixture
def removed(first):
    """Places of two successors in a row, both of which are dead; the folder of the first one is gone."""
    places = [succession.find(first, KEY)]
    with listening(places[0]):
        pass
    places.append(succession.find(first, KEY))
    with still_claimed(places[1]):
        address.remove(places[0].address)
    address.remove(places[1].address)
    return places


@contextlib.contextmanager
def claimed_again(place):
    """Have the place of one that has died be claimed by somebody who still looks there; yield the socket."""
    with address.listen_in_new(os.path.dirname(place.address)) as listener:
        listener.settimeout(DEADLINE)
        yield listener
    address.remove(place.address)


def what(place):
    return place.address, place.authkey, place.is_claimed()


def folders(first):
    return os.listdir(os.path.dirname(os.path.dirname(first)))


def test_a_latecomer_joins_the_one_that_lives(first, removed):
    with claimed_again(removed[1]):
        take_over(removed[1].address)
        assert what(succession.find(first, KEY)) == (removed[1].address, removed[1].authkey, False)
    assert folders(first) == []


def test_a_latecomer_leaves_it_to_who_has_claimed_a_later_place(first, removed, monkeypatch):
    monkeypatch.setattr(succession, "_BIRTH", DEADLINE)
    with ThreadPoolExecutor(1) as pool, claimed_again(removed[1]) as listener:
        late = pool.submit(succession.find, first, KEY)
        listener.accept()[0].close()  # it has seen that it is a latecomer
        with listener.accept()[0]:  # and waits
            assert len(folders(first)) == 1
            take_over(removed[1].address)
            assert what(late.result(DEADLINE)) == (removed[1].address, removed[1].authkey, False)
    assert folders(first) == []


def test_a_later_place_is_given_back_where_a_latecomer_has_a_template(first, removed):
    with claimed_again(removed[0]):
        take_over(removed[0].address)
        found = succession.find(removed[0].address, removed[0].authkey)
        assert what(found) == (removed[0].address, removed[0].authkey, False)
    assert folders(first) == []


def test_a_later_place_is_kept_where_a_latecomer_gives_its_own_back(first, removed, monkeypatch):
    monkeypatch.setattr(succession, "_BIRTH", DEADLINE)
    with ThreadPoolExecutor(1) as pool:
        with claimed_again(removed[0]) as listener:
            found = pool.submit(succession.find, removed[0].address, removed[0].authkey)
            listener.accept()[0].close()
        assert what(found.result(DEADLINE)) == (removed[1].address, removed[1].authkey, True)
        found.result().give_back()


def test_who_come_at_the_same_moment_with_different_predecessors_share_it(first, removed, monkeypatch):
    """However their steps fall together."""
    monkeypatch.setattr(succession, "_BIRTH", DEADLINE)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(100):
            known = [(first, KEY), (removed[0].address, removed[0].authkey)]
            found = list(pool.map(claim_and_serve, [threading.Barrier(2)] * 2, known))
            assert found[0].address == found[1].address
            assert [place.is_claimed() for place in found].count(True) == 1
            address.remove(found[0].address)
            assert folders(first) == []


def claim_and_serve(begin, known):
    """Find the successor, and have a template there at once if the place is to be this thread's own."""
    begin.wait(DEADLINE)
    place = succession.find(*known)
    if place.is_claimed():
        with listening(place):
            begin.wait(DEADLINE)
    else:
        begin.wait(DEADLINE)
    return place


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(succession, "_BIRTH", 0.2)


def test_who_has_made_the_folder_and_does_not_listen_is_not_waited_for(first):
    claimed_and_empty(first)
    assert succession.find(first, KEY) is None


def test_a_place_that_is_given_back_is_claimed_by_who_waits_for_it(first, monkeypatch):
    monkeypatch.setattr(succession, "_BIRTH", DEADLINE)
    folder = claimed_and_empty(first)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(succession.find, first, KEY)
        os.rmdir(folder)
        with listening(waiting.result(DEADLINE)):
            pass


def test_a_folder_that_cannot_be_made_is_no_place(first):
    assert succession.find(os.path.join(first, "nothing", "here"), KEY) is None


def test_a_folder_in_which_nobody_can_listen_is_no_place(first, monkeypatch):
    monkeypatch.setattr(socket.socket, "listen", refuse)
    assert succession.find(first, KEY) is None
    assert os.listdir(os.path.dirname(os.path.dirname(first))) == []


def test_without_a_descriptor_for_the_socket_there_is_no_place(first, monkeypatch):
    sockets = types.SimpleNamespace(AF_UNIX=socket.AF_UNIX, SOCK_STREAM=socket.SOCK_STREAM, socket=refuse)
    monkeypatch.setattr(address, "socket", sockets)
    assert succession.find(first, KEY) is None
    assert os.listdir(os.path.dirname(os.path.dirname(first))) == []


def refuse(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_as_many_as_die_one_after_another_there_is_an_end(first, monkeypatch):
    monkeypatch.setattr(succession, "_GENERATIONS", 2)
    for _ in range(2):
        with listening(succession.find(first, KEY)):
            pass
    assert succession.find(first, KEY) is None


def test_of_many_at_once_one_claims(first):
    at_once = threading.Barrier(8)

    def find():
        at_once.wait()
        return succession.find(first, KEY)

    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(find) for _ in range(8)]]
    (claimed,) = [place for place in found if place is not None and place.is_claimed()]
    assert {place.address for place in found if place is not None} == {claimed.address}
    claimed.give_back()


# ---- templates ----


@pytest.fixture
def template():
    """What stands for the default template, which the test launches: pytest's environment is another one by then."""
    return forkserver._forkserver


def kill(template):
    """Kill the running template; return what was known of it."""
    pid, where, key = template._forkserver_pid, template._forkserver_address, template._forkserver_authkey
    launched = template._launched  # another thread may launch the next one meanwhile
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: launched is None or launched.process.has_ended())
    return where, key


def test_a_template_that_has_died_has_its_successor_where_all_look_for_it(template):
    assert raw.run(targets.nothing) == 0
    where, key = kill(template)
    assert raw.run(targets.nothing) == 0
    after = template._forkserver_address
    assert after != where
    joined = succession.find(where, key)
    assert (joined.address, joined.authkey, joined.is_claimed()) == (
        after,
        template._forkserver_authkey,
        False,
    )


def test_with_another_preload_than_it_had_it_is_another_template(template):
    assert raw.run(targets.nothing) == 0
    where, key = kill(template)
    template.set_forkserver_preload(["colorsys"])
    assert raw.run(targets.nothing) == 0
    place = succession.find(where, key)
    assert place.is_claimed()
    place.give_back()


@pytest.mark.parametrize("change", ["environment", "umask", "limit", "output", "group", "death"])
def test_who_would_hand_on_other_surroundings_has_a_template_of_its_own(template, monkeypatch, change):
    assert raw.run(targets.nothing) == 0
    where, key = kill(template)
    with contextlib.ExitStack() as afterwards:
        CHANGES[change](monkeypatch, afterwards)
        assert raw.run(targets.nothing) == 0
    place = succession.find(where, key)
    assert place.is_claimed()
    place.give_back()


def set_variable(monkeypatch, _afterwards):
    monkeypatch.setenv("FASTFORK_TEST_OF_SUCCESSION", "1")


def set_umask(_monkeypatch, afterwards):
    afterwards.callback(os.umask, os.umask(0o077))


def set_limit(_monkeypatch, afterwards):
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    afterwards.callback(resource.setrlimit, resource.RLIMIT_CORE, limits)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if limits[0] else 4096, limits[1]))


def redirect_output(_monkeypatch, afterwards):
    before = os.dup(1)
    afterwards.callback(os.close, before)
    afterwards.callback(os.dup2, before, 1)
    with open(os.devnull, "wb") as stream:
        os.dup2(stream.fileno(), 1)


def be_of_another_group(monkeypatch, _afterwards):
    monkeypatch.setattr(os, "getpgrp", lambda: 1)  # whoever leads a session cannot go to another one


def be_one_that_dies_with_its_client(monkeypatch, _afterwards):
    monkeypatch.setattr(process.current_process(), "_die_with_client", True, raising=False)


CHANGES = {
    "environment": set_variable,
    "umask": set_umask,
    "limit": set_limit,
    "output": redirect_output,
    "group": be_of_another_group,
    "death": be_one_that_dies_with_its_client,
}


def test_a_start_is_not_held_up_by_who_has_made_the_folder(template):
    assert raw.run(targets.nothing) == 0
    where, key = kill(template)
    folder = claimed_and_empty(where, key)
    assert raw.run(targets.nothing) == 0
    assert os.path.dirname(template._forkserver_address) != folder
    os.rmdir(folder)


@contextlib.contextmanager
def claimed_by_who_is_stopped(where, key):
    """Have another process claim the place after a template, and stop before it launches one: its pid."""

    def claim_and_stop():
        with still_claimed(succession.find(where, key)):
            os.kill(os.getpid(), signal.SIGSTOP)

    pid = fork(claim_and_stop)
    try:
        wait_until(lambda: state_of(pid) == "T")
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        exit_code_of(pid)


def test_a_start_is_not_held_up_by_who_has_claimed_the_place_and_is_stopped(template):
    assert raw.run(targets.nothing) == 0
    where, key = kill(template)
    with ThreadPoolExecutor(1) as pool, claimed_by_who_is_stopped(where, key):
        assert pool.submit(raw.run, targets.nothing).result(20) == 0


def test_who_waits_for_one_that_is_killed_before_it_launches_goes_on_to_the_next_place(template, monkeypatch):
    assert raw.run(targets.nothing) == 0
    where, key = kill(template)
    monkeypatch.setattr(succession, "_BIRTH", DEADLINE)
    with ThreadPoolExecutor(1) as pool:
        with claimed_by_who_is_stopped(where, key):
            waiting = pool.submit(succession.find, where, key)
            wait_until(lambda: connections_to(where) > 0)
        place = waiting.result(20)
    assert place.is_claimed()
    place.give_back()


def connections_to(where):
    """Return how many are connected to sockets beside a template's."""
    base = os.path.dirname(os.path.dirname(where))
    listening = [line for line in Path("/proc/net/unix").read_text().splitlines() if f" {base}/" in line]
    return len(listening) - 1


def test_a_place_is_joined_once_a_template_has_its_socket(first, monkeypatch):
    monkeypatch.setattr(succession, "_BIRTH", DEADLINE)
    claimed = succession.find(first, KEY)
    with ThreadPoolExecutor(1) as pool, still_claimed(claimed):
        waiting = pool.submit(succession.find, first, KEY)
        wait_until(lambda: connections_to(first) > 0)
        take_over(claimed.address)
        joined = waiting.result(20)
    assert (joined.address, joined.is_claimed()) == (claimed.address, False)


def test_one_that_died_of_its_preload_is_launched_as_the_program_is_by_then(template, tmp_path, monkeypatch):
    assert raw.run(targets.nothing) == 0
    kill(template)
    template.set_forkserver_preload(["found_later"], on_error="fail")
    with pytest.raises(fastfork.PreloadError):
        raw.run(targets.nothing)
    (tmp_path / "found_later.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert raw.run(targets.nothing) == 0


def test_a_successor_that_is_killed_amid_its_preload_has_one_where_all_look_for_it(
    template, tmp_path, monkeypatch
):
    """Others wait for it there; whoever has launched it is not to launch another one beside that of the others."""
    hold = tmp_path / "hold"
    (tmp_path / "held.py").write_text(
        f"import os, signal\nif os.path.exists({str(hold)!r}): os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    template.set_forkserver_preload(["held"])
    assert raw.run(targets.nothing) == 0
    before, _ = kill(template)
    hold.touch()
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(raw.run, abs, 7)
        wait_until(lambda: template._forkserver_address not in (None, before))
        wait_until(lambda: state_of(template._forkserver_pid) == "T")
        hold.unlink()
        where, key = kill(template)
        assert started.result(DEADLINE) == 7
    joined = succession.find(where, key)
    assert (joined.address, joined.is_claimed()) == (template._forkserver_address, False)


def test_after_stop_there_is_no_successor(template):
    assert raw.run(targets.nothing) == 0
    where, key = template._forkserver_address, template._forkserver_authkey
    template.stop()
    assert raw.run(targets.nothing) == 0
    place = succession.find(where, key)
    assert place.is_claimed()
    place.give_back()


@contextlib.contextmanager
def launched_by_a_child(ctx, template):
    """Have a child launch the successor of the template that it was forked from: its pid; the child lives meanwhile."""
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=targets.start_when_told_and_stay, args=(theirs, ctx))
    child.start()
    with ours, theirs:
        kill(template)
        ours.send("go")
        successor, code = ours.recv()
        assert code == 9
        yield successor
    child.join(DEADLINE)


def test_one_that_a_child_has_launched_serves_its_parent_too(ctx, template):
    with launched_by_a_child(ctx, template) as successor:
        release_r, release_w = os.pipe()
        started = raw.start(targets.leave_when_released, 7, fds=[release_r])
        assert started.pid in children_of(successor)
        os.close(release_r)
        os.close(release_w)
        assert started.exit_code() == 7
        assert template._launched is None
    wait_until(lambda: not is_alive(successor))  # it was the child's
    assert raw.run(abs, 7) == 7


def test_a_parent_that_has_joined_can_let_go(ctx, ask, template):
    before = ask(trees.send_parent)
    with launched_by_a_child(ctx, template) as successor:
        assert ask(trees.send_parent) == successor != before
        assert fastfork.server_status().pid == successor
        fastfork.stop()
        assert ask(trees.send_parent) not in (before, successor)
        assert is_alive(successor)
