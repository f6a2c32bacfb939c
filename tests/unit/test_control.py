"""fastfork.stop(), restart() and server_status(): letting go of a template, another one, and what a server tells."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import raw, targets, trees
from support.processes import DEADLINE, children_of, exit_code_of, fork, is_alive, stopped, wait_until

import fastfork
from fastfork import context, forkserver, retirement, status


def pid_of(name=None):
    return context._server(name)._forkserver_pid


@pytest.fixture
def waiting(ctx):
    """Start processes that leave with their codes once they are told to."""
    receiver, sender = ctx.Pipe(duplex=False)

    def start(*codes, context=ctx):
        processes = [context.Process(target=targets.leave_after, args=(receiver, code)) for code in codes]
        for process in processes:
            process.start()
        return processes

    start.release = sender.close
    yield start
    sender.close()
    receiver.close()


# ---- stop ----


def test_stop_without_a_template_does_nothing():
    fastfork.stop()
    fastfork.stop("nobody's")
    assert pid_of() is None


def test_stop_ends_a_template_without_children(template):
    assert raw.run(targets.nothing) == 0
    pid, folder = template._forkserver_pid, os.path.dirname(template._forkserver_address)
    fastfork.stop()
    fastfork.stop()
    assert not is_alive(pid)
    assert pid not in children_of(os.getpid())
    assert not os.path.exists(folder)
    assert pid_of() is None


def test_stop_ends_a_template_whose_children_have_ended_and_were_not_joined(ctx, template):
    processes = [ctx.Process(target=targets.leave, args=(code,)) for code in range(5)]
    for process in processes:
        process.start()
    wait_until(lambda: not children_of(template._forkserver_pid))
    pid = template._forkserver_pid
    fastfork.stop()
    assert not is_alive(pid)
    assert [process.exitcode for process in processes] == list(range(5))


def test_live_children_go_on_and_their_exit_codes_arrive(waiting):
    processes = waiting(3, 4, 5)
    pid = pid_of()
    fastfork.stop()
    assert pid_of() is None
    assert [process.is_alive() for process in processes] == [True] * 3
    assert is_alive(pid)
    processes[0].terminate()
    waiting.release()
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [-signal.SIGTERM, 4, 5]


def test_the_template_leaves_with_the_last_child_and_no_zombie_stays(waiting, monkeypatch):
    monkeypatch.setattr(retirement, "_LEAVE_GRACE", DEADLINE)
    processes = waiting(0, 0)
    pid, folder = pid_of(), os.path.dirname(forkserver._forkserver._forkserver_address)
    fastfork.stop()
    waiting.release()
    for process in processes:
        process.join(DEADLINE)
    assert pid not in children_of(os.getpid())
    assert not os.path.exists(folder)


def test_a_retired_template_that_took_its_time_is_reaped_by_the_next_stop(waiting, monkeypatch):
    monkeypatch.setattr(retirement, "_LEAVE_GRACE", 0.0)
    (process,) = waiting(0)
    pid = pid_of()
    fastfork.stop()
    waiting.release()
    process.join(DEADLINE)
    wait_until(lambda: not is_alive(pid))
    fastfork.stop()
    assert pid not in children_of(os.getpid())


def test_the_private_stop_of_cpythons_tests_is_not_held_up_by_a_child_that_lives(waiting, monkeypatch):
    monkeypatch.setattr(forkserver, "_LEFTOVER_DEADLINE", 0.0)
    (process,) = waiting(6)
    forkserver._forkserver._stop()
    assert process.is_alive()
    assert pid_of() is None
    waiting.release()
    process.join(DEADLINE)
    assert process.exitcode == 6


def test_the_private_stop_waits_for_children_on_their_way_out(waiting, monkeypatch):
    monkeypatch.setattr(forkserver, "_LEFTOVER_DEADLINE", DEADLINE)
    (process,) = waiting(6)
    pid = pid_of()
    release = threading.Timer(0.05, waiting.release)
    release.start()
    forkserver._forkserver._stop()
    release.join()
    assert pid not in children_of(os.getpid())
    assert process.exitcode == 6


def test_a_start_after_stop_comes_from_another_template(ctx, ask, waiting):
    (old,) = waiting(6)
    before = pid_of()
    fastfork.stop()
    assert ask(trees.send_parent) == pid_of() != before
    waiting.release()
    old.join(DEADLINE)
    assert old.exitcode == 6


def test_stop_is_for_the_template_of_that_name(ask):
    named = fastfork.get_context("first")
    ask(targets.send_modules, [])
    ask(targets.send_modules, [], context=named)
    default, first = pid_of(), pid_of("first")
    fastfork.stop("first")
    assert (pid_of(), pid_of("first")) == (default, None)
    assert not is_alive(first)
    assert is_alive(default)


def test_stop_ends_a_template_that_still_preloads(hanging):
    forkserver.ensure_running()
    pid = pid_of()
    hanging.wait()
    fastfork.stop()
    assert pid not in children_of(os.getpid())


def test_stop_frees_a_thread_that_waits_for_a_preload(ctx, hanging):
    with ThreadPoolExecutor(1) as pool:
        process = ctx.Process(target=targets.leave, args=(7,))
        started = pool.submit(process.start)
        hanging.wait()
        forkserver.set_forkserver_preload([])
        fastfork.stop()
        started.result(DEADLINE)
    process.join(DEADLINE)
    assert process.exitcode == 7


def test_stop_while_threads_start_and_join_loses_nothing(ctx):
    enough = threading.Event()

    def work(number):
        codes = []
        while not enough.is_set():
            process = ctx.Process(target=targets.leave, args=(number,))
            process.start()
            process.join(DEADLINE)
            codes.append(process.exitcode)
        return set(codes)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, number) for number in range(4)]
        for _ in range(10):
            wait_until(lambda: pid_of() is not None)
            fastfork.stop()
        enough.set()
        assert [future.result(DEADLINE) for future in futures] == [{number} for number in range(4)]


def test_nested_children_go_on_using_the_template_that_was_stopped(ctx):
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=targets.start_when_told, args=(theirs, ctx))
    process.start()
    theirs.close()
    before = pid_of()
    fastfork.stop()
    ours.send("go")
    assert ours.recv() == (before, 9)
    ours.close()
    process.join(DEADLINE)
    assert process.exitcode == 0


def test_a_child_that_stops_its_parents_template_has_its_own_from_then_on(ctx, ask):
    first, second = ask(targets.send_parents_around_stop, ctx)
    assert first == pid_of()
    assert second != first
    assert raw.run(targets.nothing) == 0
    assert pid_of() == first


def test_stop_in_the_child_of_a_raw_fork_leaves_the_parent_its_template(template):
    assert raw.run(targets.nothing) == 0
    assert exit_code_of(fork(fastfork.stop)) == 0
    pid = template._forkserver_pid
    assert raw.run(targets.nothing) == 0
    assert template._forkserver_pid == pid


def test_a_raw_fork_holds_no_retired_connection(ctx, waiting):
    (process,) = waiting(1)
    pid, connection = pid_of(), forkserver._forkserver._connection
    fastfork.stop()
    assert exit_code_of(fork(lambda: os._exit(connection.is_over()))) == 1
    process.terminate()
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGTERM
    wait_until(lambda: not is_alive(pid))
    fastfork.stop()


# ---- restart ----


def test_restart_launches_another_template_with_a_new_preload(ask):
    assert ask(targets.send_modules, ["colorsys"]) == []
    before = pid_of()
    fastfork.restart(preload=["colorsys"])
    after = pid_of()
    assert after not in (None, before)
    assert not is_alive(before)
    assert ask(targets.send_modules, ["colorsys"]) == ["colorsys"]
    assert pid_of() == after


def test_restart_without_arguments_keeps_the_preload(ask):
    forkserver.set_forkserver_preload(["colorsys"])
    ask(targets.send_modules, [])
    fastfork.restart()
    assert ask(targets.send_modules, ["colorsys"]) == ["colorsys"]


def test_restart_of_what_does_not_run_launches_it():
    fastfork.restart("first", preload=[])
    assert is_alive(pid_of("first"))


def test_a_preload_that_is_refused_leaves_the_running_template(template):
    pid = template._forkserver_pid
    with pytest.raises(TypeError):
        fastfork.restart(preload=[1])
    with pytest.raises(ValueError, match="on_error"):
        fastfork.restart(on_error="never")
    assert template._forkserver_pid == pid
    assert is_alive(pid)


def test_restart_with_a_preload_that_fails_is_told_by_the_next_start(capfd, ctx):
    fastfork.restart(preload=["no_such_module_anywhere"], on_error="fail")
    with pytest.raises(fastfork.PreloadError):
        ctx.Process(target=targets.nothing).start()
    assert "no_such_module_anywhere" in capfd.readouterr().err


# ---- status ----


def test_the_status_of_nothing_launches_nothing():
    assert fastfork.server_status() == status.status_without_server("stopped")
    assert fastfork.server_status("nobody's").state == "stopped"
    assert pid_of() is None


def test_a_status_counts_starts_and_live_children(ctx, waiting):
    begun = time.monotonic()
    for _ in range(3):
        assert raw.run(targets.nothing) == 0
    processes = waiting(1, 2)
    status = fastfork.server_status()
    assert (status.state, status.pid) == ("serving", pid_of())
    assert (status.starts, status.live_children, status.clients) == (5, 2, 1)
    assert 0 < status.uptime < time.monotonic() - begun
    assert (status.failures, status.refused, status.accept_failures) == ({}, {}, {})
    waiting.release()
    for process in processes:
        process.join(DEADLINE)
    assert fastfork.server_status().live_children == 0


def test_a_status_reads_well(template):
    assert raw.run(targets.nothing) == 0
    assert "state='serving'" in repr(fastfork.server_status())


def test_a_server_that_preloads_says_so_and_nobody_waits(ctx, hanging):
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(ctx.Process(target=targets.nothing).start)
        hanging.wait()
        status = fastfork.server_status()
        assert (status.state, status.pid, status.uptime) == ("preloading", pid_of(), 0.0)
        forkserver.set_forkserver_preload([])
        fastfork.stop()
        started.result(DEADLINE)


def test_a_server_that_was_launched_and_not_connected_to_is_asked(template):
    wait_until(lambda: fastfork.server_status().state == "serving")
    assert fastfork.server_status().starts == 0


def test_a_stopped_process_answers_from_the_second_time_on(template):
    assert raw.run(targets.nothing) == 0
    before = fastfork.server_status()
    with stopped(before.pid):
        assert fastfork.server_status()[:4] == (*before[:2], pytest.approx(before.uptime, abs=DEADLINE), 1)


QUESTIONS = 1000

ASKS_AND_ASKS_AGAIN = """
import fastfork

connection.send(fastfork.server_status().pid)
connection.recv()
for _ in range(questions):
    fastfork.server_status()
connection.send("answered")
"""


def test_from_the_second_time_on_an_answer_takes_microseconds(template):
    """Whatever the server is about. The median: another process may get the processor meanwhile."""
    assert raw.run(targets.nothing) == 0
    with stopped(fastfork.server_status().pid):
        seconds = [seconds_of(fastfork.server_status) for _ in range(QUESTIONS)]
    assert statistics.median(seconds) < 1e-3


def test_a_stopped_process_answers_a_child_of_its_own_from_the_second_time_on(ctx):
    """Which has not launched it, and looks whether it lives."""
    ours, theirs = ctx.Pipe()
    arguments = (ASKS_AND_ASKS_AGAIN, {"connection": theirs, "questions": QUESTIONS})
    process = ctx.Process(target=exec, args=arguments)
    process.start()
    with ours, theirs, stopped(ours.recv()):
        ours.send("again")
        assert ours.poll(DEADLINE)
        assert ours.recv() == "answered"
    process.join()
    assert process.exitcode == 0


def seconds_of(action):
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def test_a_stopped_process_that_was_never_asked_is_a_timeout_and_nothing_is_lost(template, monkeypatch):
    monkeypatch.setattr(forkserver, "_STATUS_DEADLINE", 0.2)
    assert raw.run(targets.nothing) == 0
    with (
        stopped(template._forkserver_pid),
        pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s"),
    ):
        fastfork.server_status()
    monkeypatch.undo()
    assert raw.run(targets.nothing) == 0
    assert fastfork.server_status().starts == 2


def test_a_status_does_not_wait_for_a_start_that_waits(waiting):
    limited = fastfork.get_context("limited", max_children=1)
    (first,) = waiting(3, context=limited)
    second = limited.Process(target=targets.leave, args=(4,))
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(second.start)
        wait_until(lambda: second._popen is None and context._server("limited")._connection._pending)
        assert fastfork.server_status("limited").live_children == 1
        assert not started.done()
        waiting.release()
        started.result(DEADLINE)
    for process, code in ((first, 3), (second, 4)):
        process.join(DEADLINE)
        assert process.exitcode == code


def test_a_template_that_was_killed_is_stopped(template):
    assert raw.run(targets.nothing) == 0
    assert fastfork.server_status().state == "serving"
    os.kill(template._forkserver_pid, signal.SIGKILL)
    wait_until(lambda: fastfork.server_status().state == "stopped")
    assert raw.run(targets.nothing) == 0
    assert fastfork.server_status()[:4:3] == ("serving", 1)


def test_a_child_asks_for_the_status_of_the_template_it_came_from(ask):
    status = ask(targets.send_status)
    assert (status.state, status.pid, status.starts) == ("serving", pid_of(), 1)


def test_refused_connections_are_counted_by_cause(template):
    assert raw.run(targets.nothing) == 0
    raw.send_garbage(template)
    wait_until(lambda: fastfork.server_status().refused == {"magic": 1})


def test_threads_that_ask_all_get_an_answer(template):
    assert raw.run(targets.nothing) == 0
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(fastfork.server_status) for _ in range(50)]
        assert {future.result(DEADLINE).pid for future in futures} == {template._forkserver_pid}
