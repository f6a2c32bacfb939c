"""fastfork.start_all(): many processes at once, and what is told of those that could not be started."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal

import pytest
from support import targets
from support.processes import wait_until

import fastfork
from fastfork import _native, batch, forkserver

BACKENDS = ["auto", "poll"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Choose the server's backend: without pidfds each start is waited for."""
    if request.param == "poll":
        monkeypatch.setenv("FASTFORK_BACKEND", "poll")


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_all_of_them_run(ctx, backend, count):
    processes = [ctx.Process(target=targets.leave, args=(number % 100,)) for number in range(count)]
    fastfork.start_all(processes)
    for number, process in enumerate(processes):
        process.join()
        assert process.exitcode == number % 100
        process.close()


def test_those_of_several_templates(ctx):
    other = fastfork.get_context("other")
    processes = [context.Process(target=targets.leave, args=(5,)) for context in (ctx, other, ctx, other)]
    fastfork.start_all(process for process in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 5


def test_payloads_of_all_sizes(ctx):
    sizes = [10, 60_000, 1_000_000, 0, 65_000] * 6
    processes = [ctx.Process(target=targets.leave_with_length, args=(bytes(size),)) for size in sizes]
    fastfork.start_all(processes)
    for size, process in zip(sizes, processes):
        process.join()
        assert process.exitcode == size % 251


def test_errors_are_told_of_each_and_the_others_run(ctx):
    processes = [ctx.Process(target=targets.leave, args=(3,)) for _ in range(4)]
    processes[1]._args = (lambda: None,)  # cannot be pickled
    with pytest.raises(fastfork.StartAllError, match="1 of 4 processes could not be started") as caught:
        fastfork.start_all(processes)
    assert list(caught.value.errors) == [processes[1]]
    assert caught.value.__cause__ is caught.value.errors[processes[1]]
    for process in (processes[0], *processes[2:]):
        process.join()
        assert process.exitcode == 3
        process.close()
    assert processes[1].exitcode is None


def test_one_that_was_started_before(ctx):
    started, fresh = (ctx.Process(target=targets.nothing) for _ in range(2))
    started.start()
    with pytest.raises(fastfork.StartAllError) as caught:
        fastfork.start_all([started, fresh, fresh])
    assert {process: type(error) for process, error in caught.value.errors.items()} == {
        started: AssertionError,
        fresh: AssertionError,
    }
    for process in (started, fresh):
        process.join()
        assert process.exitcode == 0


def test_processes_of_others_are_refused_and_none_is_started(ctx):
    own = ctx.Process(target=targets.nothing)
    with pytest.raises(TypeError, match="start_all"):
        fastfork.start_all([own, multiprocessing.get_context("spawn").Process(target=targets.nothing)])
    assert own.pid is None


@pytest.mark.skipif(
    not _native.has_pidfds(), reason="without pidfds each is started by itself, one after another"
)
def test_a_template_that_dies_amid_it(ctx, template):
    """Those that it had not taken yet come from the next one; of the others each says what became of it."""
    ctx.Process(target=targets.nothing).start()
    os.kill(template._forkserver_pid, signal.SIGSTOP)
    processes = [ctx.Process(target=targets.leave, args=(4,)) for _ in range(5)]
    complete, done = batch._complete, []

    def kill_first(process, *rest):
        if not done:
            os.kill(template._forkserver_pid, signal.SIGKILL)
        done.append(process)
        complete(process, *rest)

    batch._complete = kill_first
    try:
        fastfork.start_all(processes)
        failed = {}
    except fastfork.StartAllError as error:
        failed = error.errors
    finally:
        batch._complete = complete
    assert len(done) == 5
    for process in processes:
        if process in failed:
            assert isinstance(failed[process], OSError)
        else:
            process.join()
            assert process.exitcode == 4
    assert forkserver._forkserver is template


def test_an_interrupt_amid_it_leaves_none(ctx, template, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "_complete", interrupt)
    processes = [ctx.Process(target=signal.pause) for _ in range(5)]
    with pytest.raises(KeyboardInterrupt):
        fastfork.start_all(processes)
    monkeypatch.undo()
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    # One that was killed may take longer to end than that one lived.
    wait_until(lambda: fastfork.server_status().live_children == 0)


def test_a_pool_starts_its_workers_so(ctx, monkeypatch):
    sizes = []
    start_all = batch.start_all
    monkeypatch.setattr("fastfork.pool.start_all", lambda made: sizes.append(len(made)) or start_all(made))
    with ctx.Pool(4, maxtasksperchild=1) as pool:
        assert pool.map(targets.square, range(20), chunksize=1) == [number**2 for number in range(20)]
    assert sizes == [4]  # those that come in the place of others are started by the standard library
    assert isinstance(pool, multiprocessing.pool.Pool)


def test_a_pool_whose_workers_cannot_be_started_leaves_none(ctx):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        ctx.Pool(3, initializer=lambda: None)
    assert multiprocessing.active_children() == []
