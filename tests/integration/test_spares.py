"""Processes that the template has forked ahead: they must be like all others, and nobody may notice them."""

from __future__ import annotations

import os
import signal

import pytest
from support import targets
from support.processes import children_of, is_alive, wait_until
from support.spares import PACE, have_spares, make_a_pace

import fastfork
from fastfork import forkserver


@pytest.fixture
def spared():
    """Return the default context, whose template has spares and keeps them."""
    context = fastfork.get_context(spares=2, spare_quiet=600)
    yield context
    fastfork.get_context(spares=2, spare_quiet=1)


def test_they_serve_and_their_exit_codes_are_right(spared):
    have_spares(spared, 2)
    before = fastfork.server_status().starts
    for code in range(1, 50):
        process = spared.Process(target=targets.leave, args=(code,))
        process.start()
        process.join()
        assert process.exitcode == code
    status = fastfork.server_status()
    assert status.spare_starts > 0
    assert status.starts == before + 49
    assert status.live_children == 0


def see_that_there_are_none(context):
    """Start processes at a pace, twice, and see that none of them was forked ahead."""
    for _ in range(2):
        make_a_pace(context)
    status = fastfork.server_status()
    assert (status.starts, status.spares, status.spare_starts) == (2 * PACE, 0, 0)


def test_none_until_there_is_a_pace(spared):
    process = spared.Process(target=targets.nothing)
    process.start()
    process.join()
    assert fastfork.server_status().spares == 0
    assert children_of(forkserver._forkserver._forkserver_pid) == []


def test_none_unless_wanted(spared):
    fastfork.get_context(spares=0)
    see_that_there_are_none(spared)


@pytest.mark.parametrize("disabled", ["spares", "all"])
def test_none_where_the_environment_leaves_them_out(spared, monkeypatch, disabled):
    monkeypatch.setenv("FASTFORK_DISABLE", disabled)
    see_that_there_are_none(spared)


def test_they_go_when_it_is_quiet(ctx):
    fastfork.get_context(spares=2, spare_quiet=0.1)
    try:
        for _ in range(PACE):
            process = ctx.Process(target=targets.nothing)
            process.start()
            process.join()
        template = forkserver._forkserver._forkserver_pid
        wait_until(lambda: children_of(template) == [] and fastfork.server_status().spares == 0)
    finally:
        fastfork.get_context(spare_quiet=1)


def test_they_go_with_their_template(spared):
    have_spares(spared, 2)
    spares = children_of(forkserver._forkserver._forkserver_pid)
    assert len(spares) == 2
    fastfork.stop()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in spares)


def test_those_of_the_next_template_have_its_preload(spared, ask):
    modules = ["colorsys"]
    have_spares(spared, 2)
    assert ask(targets.send_modules, modules, context=spared) == []
    fastfork.restart(preload=["__main__", *modules])
    assert ask(targets.send_modules, modules, context=spared) == modules
    have_spares(spared, 2)
    before = fastfork.server_status().spare_starts
    assert ask(targets.send_modules, modules, context=spared) == modules
    assert fastfork.server_status().spare_starts == before + 1


def test_a_killed_template_leaves_none(spared):
    have_spares(spared, 2)
    template = forkserver._forkserver._forkserver_pid
    spares = children_of(template)
    os.kill(template, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, spares)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_spare_that_somebody_ends_or_stops_harms_nobody(spared, number):
    have_spares(spared, 2)
    for pid in children_of(forkserver._forkserver._forkserver_pid):
        os.kill(pid, number)
    for code in (3, 4, 5):
        process = spared.Process(target=targets.leave, args=(code,))
        process.start()
        process.join()
        assert process.exitcode == code


def test_they_hear_nothing_of_an_interrupt(spared, capfd):
    have_spares(spared, 2)
    for pid in children_of(forkserver._forkserver._forkserver_pid):
        os.kill(pid, signal.SIGINT)
    process = spared.Process(target=targets.kill_self, args=(signal.SIGINT,))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert capfd.readouterr().err.count("KeyboardInterrupt") == 1


def test_random_numbers_differ(spared, ask):
    have_spares(spared, 2)
    numbers = [ask(targets.send_random, context=spared) for _ in range(30)]
    assert len(set(numbers)) == 30


def test_their_state_is_that_of_a_forked_child(spared, ask, monkeypatch, tmp_path):
    forked = ask(targets.send_own_state, context=spared)
    have_spares(spared, 2)
    before = fastfork.server_status().spare_starts
    served = ask(targets.send_own_state, context=spared)
    assert fastfork.server_status().spare_starts == before + 1
    for state in (forked, served):
        for own in ("pid", "name", "identity", "inherited"):  # of each process, however it came about
            del state[own]
    assert served == forked
    monkeypatch.chdir(tmp_path)
    assert ask(targets.send_own_state, context=spared)["directory"] == str(tmp_path)


def test_their_descriptors_are_those_of_a_forked_child(spared, ask):
    forked = ask(targets.send_descriptors, context=spared)
    have_spares(spared, 2)
    served = ask(targets.send_descriptors, context=spared)
    assert sorted(kind.partition(":[")[0] for kind in served.values()) == sorted(
        kind.partition(":[")[0] for kind in forked.values()
    )


def test_hooks_run_once_in_each(programs):
    programs.write(
        "preloaded.py",
        """
        import os

        forks = []
        os.register_at_fork(after_in_child=lambda: forks.append(os.getpid()))
        """,
    )
    outcome = programs.run(
        """
        import os

        import fastfork

        def work():
            import preloaded

            print(preloaded.forks == [os.getpid()], flush=True)

        if __name__ == "__main__":
            context = fastfork.get_context(preload=["__main__", "preloaded"])
            rounds = 0
            while fastfork.server_status().spare_starts == 0 and rounds < 50:
                rounds += 1
                processes = [context.Process(target=work) for _ in range(20)]
                fastfork.start_all(processes)  # a pace at any load
                for process in processes:
                    process.join()
                process = context.Process(target=work)
                process.start()
                process.join()
            print(21 * rounds, fastfork.server_status().spare_starts > 0)
        """
    )
    *by_processes, at_last = outcome.lines
    assert at_last == f"{len(by_processes)} True"
    assert set(by_processes) == {"True"}


@pytest.mark.parametrize(
    "options", [{"spares": -1}, {"spares": 17}, {"spare_quiet": 0}, {"spare_quiet": 1e9}]
)
def test_values_that_are_not_possible(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        fastfork.get_context(**options)


def test_a_number_that_is_none():
    with pytest.raises(TypeError):
        fastfork.get_context(spares="two")
