"""A short soak, with each kind of fault: every start is accounted for. And that the account sees what is wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from stress.soak import account as accounts
from stress.soak import faults as faults_module
from stress.soak import watch as watch_module
from stress.soak.account import Account
from stress.soak.conductor import is_in_last_stretch, zombies
from stress.soak.faults import Faults
from stress.soak.options import UNFIT_ERRNO
from stress.soak.report import Options
from stress.soak.watch import (
    FEWEST_SAMPLES,
    LONGEST_ZOMBIE,
    MOST_GROWTH_WHILE_IDLE,
    REST,
    WARM_UP,
    Idle,
    Life,
    Sample,
    Watch,
    await_rest,
    changes,
)
from support.processes import DEADLINE, exit_code_of, fork, state_of, wait_until

ROOT = Path(__file__).parents[2]
STARTS = 400
MINUTES = 0.3
LEAST_SHARE = 0.2
"""The part of all starts that the template serves which nothing is done to; it has half of the clients."""

LIMIT = 600  # seconds; only a failure takes as long


def test_a_short_soak(tmp_path):
    """The long one is `python -m tests.stress.soak`."""
    path = tmp_path / "figures.json"
    options = ["--starts", str(STARTS), "--minutes", str(MINUTES), "--clients", "4", "--json", str(path)]
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.stress.soak", *options, "--logs", str(tmp_path / "logs")],
        check=False,
        cwd=ROOT,
        timeout=LIMIT,
    )
    figures = json.loads(path.read_text())
    assert figures["problems"] == []
    assert outcome.returncode == 0
    assert figures["starts"] >= STARTS
    assert figures["right"] + sum(figures["explained"].values()) == figures["starts"]
    assert [fault for fault, times in figures["faults"].items() if times == 0] == []
    before, after = figures["steady"]["before"], figures["steady"]["after"]
    assert after["starts"] - before["starts"] >= figures["starts"] * LEAST_SHARE
    assert (after["children"], after["descriptors"]) == (0, before["descriptors"])
    for kind, limit in MOST_GROWTH_WHILE_IDLE.items():
        assert after[kind] - before[kind] <= limit


# ---- the account ----


@pytest.fixture
def account():
    return Account(loses_exit_codes=False)


def start(account, number=1, client="c1-0", *, exit_code=0, die_with_client=False):
    start_id = f"{client}.{number}"
    account.take(["start", start_id, exit_code, die_with_client, 10.0])
    return start_id


def test_a_right_exit_code_is_right(account):
    account.take(["end", start(account, exit_code=5), 100, 5, 11.0])
    assert (account.starts, account.right, account.problems) == (1, 1, [])


@pytest.mark.parametrize(("number", "is_right"), [(UNFIT_ERRNO, True), (errno.EPIPE, False), (None, False)])
def test_a_start_whose_options_cannot_be_applied_has_to_fail_by_their_errno(account, number, is_right):
    account.take(["error", start(account, exit_code=None), "OSError()", number, 11.0])
    assert (account.right, len(account.problems)) == (is_right, not is_right)


@pytest.mark.parametrize("code", [0, None])
def test_a_start_whose_options_cannot_be_applied_has_no_exit_code(account, code):
    account.take(["end", start(account, exit_code=None), 100, code, 11.0])
    assert len(account.problems) == 1


@pytest.mark.parametrize("code", [1, -signal.SIGKILL, 255, None])
def test_another_exit_code_is_a_problem(account, code):
    account.fault(accounts.TEMPLATE_KILLED, 10.5)
    account.take(["end", start(account), 100, code, 11.0])
    assert len(account.problems) == 1


@pytest.mark.parametrize(
    ("pid", "begin", "end", "is_explained"),
    [(100, 10.5, 10.6, True), (100, 9.0, 9.1, False), (100, 9.9, 10.1, True), (101, 10.5, 10.6, False)],
)
def test_only_a_kill_of_that_very_process_explains_its_death(account, pid, begin, end, is_explained):
    account.kills_child(pid, begin).end = end
    account.take(["end", start(account), 100, -signal.SIGKILL, 11.0])
    assert len(account.problems) == (not is_explained)


@pytest.mark.parametrize(("time", "is_explained"), [(10.5, True), (9.0, False)])
def test_a_lost_exit_code_is_explained_where_nobody_can_tell_it(time, is_explained):
    account = Account(loses_exit_codes=True)
    account.fault(accounts.TEMPLATE_KILLED, time).end = time
    account.take(["end", start(account), 100, 255, 11.0])
    assert len(account.problems) == (not is_explained)


@pytest.mark.parametrize(
    ("number", "kind", "client", "is_explained"),
    [
        (errno.EMFILE, accounts.TEMPLATE_LIMITED, None, True),
        (errno.EMFILE, accounts.CLIENT_LIMITED, "c1", True),
        (errno.EMFILE, accounts.CLIENT_LIMITED, "c2", False),
        (errno.EMFILE, accounts.TEMPLATE_KILLED, None, False),
        (errno.EPIPE, accounts.TEMPLATE_KILLED, None, True),
        (errno.EPIPE, accounts.TEMPLATE_STOPPED, None, False),
        (None, accounts.TEMPLATE_KILLED, None, False),
    ],
)
def test_an_error_is_explained_by_a_fault_that_may_cause_it(account, number, kind, client, is_explained):
    account.fault(kind, 10.5, client).end = 10.7
    account.take(["error", start(account), "OSError()", number, 11.0])
    assert len(account.problems) == (not is_explained)


@pytest.mark.parametrize(("client", "is_explained"), [("c1-0", False), ("c1-0.3", False), ("c2-0", True)])
def test_no_fault_of_another_template_explains_an_error_of_the_one_that_nothing_is_done_to(
    account, client, is_explained
):
    account.undisturbed.add("c1")
    account.fault(accounts.TEMPLATE_KILLED, 10.5).end = 10.7
    account.take(["error", start(account, client=client), "OSError()", errno.EPIPE, 11.0])
    assert len(account.problems) == (not is_explained)


def test_what_is_open_at_the_end_was_lost_with_its_client_or_is_a_problem(account):
    start(account, client="c1-0")
    start(account, client="c1-0.1")  # of a child of that client
    lonely = start(account, client="c2-0")
    account.kills_client("c1", 50, 11.0)
    account.settle(12.0)
    assert account.explained == {"no end: its client was killed": 2}
    assert len(account.problems) == 1
    assert lonely in account.problems[0]


def test_what_a_process_has_started_whose_own_start_fails_for_want_of_a_descriptor_is_lost_with_it(account):
    outer = start(account, client="c1-0")
    start(account, client=outer)
    account.fault(accounts.CLIENT_LIMITED, 10.5, "c1")
    account.take(["error", outer, "OSError()", errno.EMFILE, 11.0])
    assert account.late(1000.0) == []
    account.settle(1000.0)
    assert account.problems == []


def test_a_start_that_comes_to_no_end_is_late(account):
    start(account, client=accounts.ROOT)  # a client, which lives as long as it may
    start_id = start(account)
    assert account.late(11.0) == []
    assert [late.id for late in account.late(11.0 + accounts.LONGEST_START)] == [start_id]


def test_processes_that_have_to_go_with_their_client(account):
    goes = start(account, 1, die_with_client=True)
    stays = start(account, 2)
    of_another = start(account, 3, "c2-0", die_with_client=True)
    for pid, start_id in enumerate((goes, stays, of_another)):
        account.take(["pid", start_id, pid, 10.5])
    assert account.kills_client("c1", 50, 11.0) == [(goes, 0)]


# ---- the watch ----


@pytest.mark.parametrize(
    ("slope", "has_grown"),
    [((0, 0, 0), False), ((1, 0, 0), True), ((0, 1 << 16, 0), True), ((0, 0, 1 << 16), True)],
    ids=["steady", "descriptors", "resident", "private"],
)
def test_growth_is_seen(tmp_path, slope, has_grown):
    watch = Watch(tmp_path, clients=1)
    life = watch.lives[1] = Life(1, 0.0)
    for second in range(int(WARM_UP) + 2 * FEWEST_SAMPLES):
        life.samples.append(Sample(second, *(1000 + rate * second for rate in slope), 0))
    watch.check_growth()
    assert len(watch.problems) == has_grown


@pytest.mark.parametrize("pauses", [False, True])
def test_a_zombie_that_stays_is_seen_where_its_template_could_have_reaped_it(tmp_path, pauses):
    watch = Watch(tmp_path, clients=1)
    life = watch.lives[1] = Life(1, 0.0)
    watch._note_zombies(life, {5}, 0.0)
    if pauses:
        watch.forget_zombies()
    watch._note_zombies(life, {5}, LONGEST_ZOMBIE + 1)
    assert len(watch.problems) == (not pauses)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"pid": 2}, "the steady template is 2 and not 1"),
        ({"children": 1}, "the idle template has 1 children"),
        ({"descriptors": 14}, "the idle template has 14 descriptors and not 13"),
        ({"descriptors": 12}, "the idle template has 12 descriptors and not 13"),
        (MOST_GROWTH_WHILE_IDLE, None),
        ({"resident": MOST_GROWTH_WHILE_IDLE["resident"] + 1}, "bytes of resident memory more"),
        ({"private": MOST_GROWTH_WHILE_IDLE["private"] + 1}, "bytes of private memory more"),
    ],
)
def test_what_is_left_of_a_run_in_the_steady_template_is_seen(changed, problem):
    first = Sample(0.0, 13, 0, 0, 0)
    last = first._replace(**{name: value for name, value in changed.items() if name != "pid"})
    problems = changes(Idle(1, 30, first), Idle(changed.get("pid", 1), 60, last))
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


@pytest.mark.parametrize(
    ("children", "held", "most"),
    [([[], [5], []], [13], 13), ([[]], [15, 15, 13], 15), ([[]], [15, 15, 13], 13)],
    ids=["children", "descriptors about to be closed", "descriptors"],
)
def test_a_template_is_at_rest_when_nothing_changes_any_more(monkeypatch, children, held, most):
    def next_of(looks):
        return looks.pop(0) if len(looks) > 1 else looks[0]

    monkeypatch.setattr(watch_module, "children_of", lambda _pid: next_of(children))
    monkeypatch.setattr(watch_module, "descriptors", lambda _pid: dict.fromkeys(range(next_of(held))))
    await_rest(1, most, DEADLINE)
    assert (children, held) == ([[]], [13])


@pytest.mark.usefixtures("template")
def test_what_keeps_a_child_does_not_come_to_rest():
    with pytest.raises(AssertionError, match="in vain"):
        await_rest(os.getpid(), 1000, 2 * REST)


# ---- the faults ----

TEMPLATE_FAULTS = ("kill", "stop", "limit")


@pytest.fixture
def template():
    """A process that stands for a template."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def faults_of(account, watch, *, is_ending=False, clients=()):
    return Faults(
        account,
        watch,
        lambda: clients,
        seed=1,
        seconds=1200.0,
        keeps_connections=False,
        is_ending=lambda: is_ending,
    )


@pytest.mark.parametrize("fault", TEMPLATE_FAULTS)
@pytest.mark.parametrize("is_steady", [False, True])
def test_nothing_is_done_to_the_steady_template(tmp_path, account, template, monkeypatch, fault, is_steady):
    watch = Watch(tmp_path, clients=1)
    monkeypatch.setattr(watch, "templates", lambda: [template.pid])
    watch.steady = template.pid if is_steady else None
    faults = faults_of(account, watch)
    with contextlib.suppress(IndexError):  # there is no other to choose
        getattr(faults, f"_{fault}_template")()
    faults.end()
    assert sum(account.faults.values()) == (not is_steady)


@pytest.mark.parametrize(
    ("starts", "seconds", "has_come"), [(900, 1080, True), (899, 2000, False), (2000, 1079, False)]
)
def test_the_last_stretch_comes_when_there_have_been_most_starts_and_most_of_the_time(
    starts, seconds, has_come
):
    options = Options(1000, 20.0, clients=1, threads=1, seed=1, on="fastfork", mark="")
    assert is_in_last_stretch(options, starts, seconds) == has_come


@pytest.mark.parametrize("is_ending", [False, True])
def test_no_template_is_killed_while_the_run_is_about_to_end(
    tmp_path, account, template, monkeypatch, is_ending
):
    watch = Watch(tmp_path, clients=1)
    monkeypatch.setattr(watch, "templates", lambda: [template.pid])
    faults_of(account, watch, is_ending=is_ending)._kill_template()
    assert sum(account.faults.values()) == (not is_ending)


def test_a_fault_that_has_found_nobody_is_made_soon(tmp_path, account, template, monkeypatch):
    watch = Watch(tmp_path, clients=1)
    faults = faults_of(account, watch)
    faults._due = {accounts.TEMPLATE_KILLED: 0.0}
    monkeypatch.setattr(watch, "templates", list)
    faults.make()
    monkeypatch.setattr(watch, "templates", lambda: [template.pid])
    wait_until(lambda: faults.make() or account.faults, 10)


PARENT = """
import socket, subprocess, sys

with socket.socket(socket.AF_UNIX) as listener:
    if sys.argv[1]:
        listener.bind(sys.argv[1])
        listener.listen()
    print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def orphaned(tmp_path, account, monkeypatch):
    """Kill a client whose process, a child of what listens in the folder or not, does not die with it."""
    monkeypatch.setattr(faults_module, "ORPHANS_DEADLINE", 0.0)
    with contextlib.ExitStack() as processes:

        def orphan(*, is_of_template=True):
            path = str(tmp_path / "listener") if is_of_template else ""
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            parent = processes.enter_context(subprocess.Popen([sys.executable, "-c", PARENT, path], **pipes))
            pid = int(parent.stdout.readline())
            processes.callback(os.kill, pid, signal.SIGKILL)
            client = processes.enter_context(subprocess.Popen(["sleep", "1000"]))
            pidfd = os.pidfd_open(client.pid)
            processes.callback(os.close, pidfd)
            account.take(["pid", start(account, die_with_client=True), pid, 10.0])
            killed = SimpleNamespace(name="c1", pid=client.pid, pidfd=pidfd)
            faults = faults_of(account, Watch(tmp_path, clients=1), clients=[killed])
            faults._kill_client()
            return faults, parent.pid

        yield orphan


@pytest.mark.parametrize(("killed", "is_excused"), [(None, False), ("another", False), ("its own", True)])
def test_a_process_outlives_its_client_only_where_its_own_template_was_killed(
    account, orphaned, killed, is_excused
):
    faults, template = orphaned()
    if killed is not None:
        pid = template if killed == "its own" else os.getpid()
        account.kills_template(pid, time.monotonic()).end = time.monotonic()
    faults.check_all_orphans()
    assert len(account.problems) == (not is_excused)


def test_a_process_that_has_outlived_its_template_is_not_waited_for(account, orphaned):
    orphaned(is_of_template=False)[0].check_all_orphans()
    assert account.problems == []


# ---- what the conductor leaves ----


def test_a_dead_child_that_is_not_reaped_is_seen():
    pid = fork(lambda: None)
    try:
        wait_until(lambda: state_of(pid) == "Z")
        assert zombies() == [pid]
    finally:
        assert exit_code_of(pid) == 0
    assert zombies() == []
