"""fastfork.get_context() is a complete multiprocessing context."""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import queue
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import process, resource_sharer, shared_memory
from multiprocessing.connection import wait

import pytest
from support import targets
from support.processes import DEADLINE, children_of

import fastfork
from fastfork import context, forkserver, popen


@pytest.fixture
def run(ctx):
    """Run a function in a process, to a good end."""

    def run(target, *arguments):
        child = ctx.Process(target=target, args=arguments)
        child.start()
        child.join(DEADLINE)
        assert child.exitcode == 0

    return run


# ---- Process ----


def test_a_child_knows_who_it_and_its_parent_are(ctx, ask):
    state = ask(targets.send_own_state)
    assert state["ppid"] == forkserver._forkserver._forkserver_pid
    assert state["parent"] == (os.getpid(), process.current_process().name, True)
    assert state["authkey"] == bytes(process.current_process().authkey)
    assert state["name"].startswith("FastForkProcess-")
    assert not state["daemon"]
    assert state["start method"] == "fastfork"
    assert state["inherited"] == [] or len(state["inherited"]) == 1  # the pipe's end


def test_name_daemon_and_keyword_arguments(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(
        target=targets.send_own_state, kwargs={"connection": sender}, name="Anna", daemon=True
    )
    child.start()
    state = receiver.recv()
    child.join()
    assert (state["name"], state["daemon"]) == ("Anna", True)
    assert (child.name, child.daemon) == ("Anna", True)
    assert state["pid"] == child.pid == child.ident
    for end in (receiver, sender):
        end.close()


def test_a_subclass_runs_its_own_method(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    worker = targets.Worker(sender, 6)
    worker.start()
    assert receiver.recv() == 36
    worker.join()
    assert worker.exitcode == 0
    for end in (receiver, sender):
        end.close()


def test_the_parents_end_is_told_to_the_child(programs):
    """parent_process() is who asked for the child, not the template; its sentinel fires at that one's end."""
    outcome = programs.run(
        """
        import fastfork, os
        from multiprocessing import connection, parent_process

        def work(conn, out):
            conn.send(parent_process().is_alive())
            connection.wait([parent_process().sentinel], 60)
            os.write(out.fileno(), b"orphan: %d" % (not parent_process().is_alive()))

        def middle(out):
            ours, theirs = context.Pipe()
            child = context.Process(target=work, args=(theirs, out))
            child.start()
            assert ours.recv() is True
            os._exit(0)

        context = fastfork.get_context()
        if __name__ == "__main__":
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=middle, args=(sender,))
            process.start()
            process.join()
            sender.close()
            print(os.read(receiver.fileno(), 100).decode())
        """
    )
    assert outcome.lines == ["orphan: 1"]


def test_active_children_are_those_that_live(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    children = [ctx.Process(target=targets.wait_for_end_of, args=(receiver,)) for _ in range(3)]
    for child in children:
        child.start()
    assert set(multiprocessing.active_children()) == set(children)
    assert set(ctx.active_children()) == set(children)
    sender.close()
    receiver.close()
    for child in children:
        child.join()
    assert multiprocessing.active_children() == []


def test_daemons_end_with_the_program_and_others_are_waited_for(programs):
    outcome = programs.run(
        """
        import fastfork, time

        def work():
            print("finished", flush=True)

        def forever():
            time.sleep(600)

        if __name__ == "__main__":
            context = fastfork.get_context()
            context.Process(target=forever, daemon=True).start()
            context.Process(target=work).start()
        """
    )
    assert outcome.lines == ["finished"]


def test_a_daemon_may_not_have_children(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=targets.send_error_of_start, args=(sender, ctx), daemon=True)
    child.start()
    assert "daemonic processes are not allowed to have children" in receiver.recv()
    child.join()
    for end in (receiver, sender):
        end.close()


def test_a_process_starts_once(ctx):
    child = ctx.Process(target=targets.nothing)
    child.start()
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        child.start()
    child.join()


# ---- pools ----


def test_pool_map_and_its_kin(ctx):
    with ctx.Pool(3) as pool:
        assert pool.map(targets.square, range(20)) == [i * i for i in range(20)]
        assert list(pool.imap(targets.square, range(20), chunksize=3)) == [i * i for i in range(20)]
        assert sorted(pool.imap_unordered(targets.square, range(20))) == [i * i for i in range(20)]
        assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
        assert pool.apply(targets.square, (7,)) == 49
        assert pool.apply_async(targets.square, (8,)).get(DEADLINE) == 64
        pool.close()
        pool.join()


def test_pool_brings_exceptions_back(ctx):
    with ctx.Pool(1) as pool:
        with pytest.raises(ValueError, match="no luck"):
            pool.apply(targets.fail, ("no luck",))
        pool.close()
        pool.join()


def test_pool_initializer_runs_in_each_worker(ctx):
    with ctx.Pool(2, initializer=targets.remember, initargs=("kept",)) as pool:
        assert pool.map(targets.recall, range(8)) == ["kept"] * 8
        pool.close()
        pool.join()


def test_pool_replaces_workers_after_their_tasks(ctx):
    with ctx.Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(targets.own_pid) for _ in range(6)]
        pool.close()
        pool.join()
    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3


def test_pool_terminate_ends_its_workers(ctx):
    pool = ctx.Pool(2)
    pids = {worker.pid for worker in pool._pool}
    assert pids <= set(children_of(forkserver._forkserver._forkserver_pid))
    pool.terminate()
    pool.join()
    assert children_of(forkserver._forkserver._forkserver_pid) == []


# ---- executors ----


def test_executor(ctx):
    with ProcessPoolExecutor(2, mp_context=ctx) as executor:
        assert list(executor.map(targets.square, range(30), chunksize=4)) == [i * i for i in range(30)]
        with pytest.raises(ValueError, match="no luck"):
            executor.submit(targets.fail, "no luck").result(DEADLINE)


def test_executor_with_initializer(ctx):
    with ProcessPoolExecutor(1, mp_context=ctx, initializer=targets.remember, initargs=("kept",)) as executor:
        assert executor.submit(targets.recall).result(DEADLINE) == "kept"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child is new in 3.11")
def test_executor_replaces_workers_after_their_tasks(ctx):
    # One task at a time: CPython's own executor can deadlock otherwise, whatever the start method (gh-115634).
    with ProcessPoolExecutor(1, mp_context=ctx, max_tasks_per_child=1) as executor:
        pids = [executor.submit(targets.own_pid).result(DEADLINE) for _ in range(4)]
    assert len(set(pids)) == 4


def test_executor_notices_a_worker_that_dies(ctx):
    with ProcessPoolExecutor(1, mp_context=ctx) as executor, pytest.raises(BrokenProcessPool):
        executor.submit(targets.leave_at_once, 9).result(DEADLINE)


# ---- queues and pipes ----


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_queues(ctx, run, kind):
    items = ["one", 2, None, b"x" * 100_000]
    made = getattr(ctx, kind)()
    child = ctx.Process(target=targets.put, args=(made, *items))
    child.start()
    assert [made.get() for _ in items] == items
    child.join()
    made.close()
    if kind != "SimpleQueue":
        with pytest.raises((ValueError, OSError)):
            made.get_nowait()
        made.join_thread()


def test_a_queue_of_limited_size(ctx):
    made = ctx.Queue(1)
    made.put(1)
    with pytest.raises(queue.Full):
        made.put(2, timeout=0.01)
    assert made.get() == 1
    with pytest.raises(queue.Empty):
        made.get(timeout=0.01)
    made.close()
    made.join_thread()


def test_a_joinable_queue_waits_for_its_tasks(ctx):
    made = ctx.JoinableQueue()
    for number in range(5):
        made.put(number)
    child = ctx.Process(target=targets.take_all, args=(made, 5))
    child.start()
    made.join()
    child.join()
    assert child.exitcode == 0
    made.close()
    made.join_thread()


def test_a_duplex_pipe_carries_both_ways_and_its_ends_can_be_sent(ctx):
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=targets.echo_through, args=(theirs,))
    child.start()
    theirs.close()
    inner_ours, inner_theirs = ctx.Pipe()
    ours.send(inner_theirs)
    inner_theirs.close()
    inner_ours.send("hello")
    assert inner_ours.recv() == "hello"
    child.join()
    resource_sharer.stop()  # the thread that serves whoever receives a connection
    for end in (ours, inner_ours):
        end.close()


# ---- synchronisation ----


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_locks_exclude_other_processes(ctx, kind):
    lock, counter = getattr(ctx, kind)(), ctx.RawValue("i", 0)
    children = [ctx.Process(target=targets.count_up, args=(lock, counter, 200)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert counter.value == 800


def test_a_condition_and_an_event_wake_others_up(ctx):
    event, condition = ctx.Event(), ctx.Condition()
    child = ctx.Process(target=targets.wait_and_notify, args=(event, condition))
    with condition:
        child.start()
        event.set()
        assert condition.wait(DEADLINE)
    child.join()
    assert child.exitcode == 0


def test_a_barrier_lets_all_through_at_once(ctx):
    barrier = ctx.Barrier(3)
    children = [ctx.Process(target=barrier.wait, args=(DEADLINE,)) for _ in range(2)]
    for child in children:
        child.start()
    barrier.wait(DEADLINE)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]


def test_a_lock_that_is_dropped_after_the_start_still_serves_the_child(ctx):
    """The child has the only reference that is left (gh-94765)."""
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=targets.use_lock_when_told, args=(receiver, ctx.Lock()))
    child.start()
    gc.collect()
    sender.send("go")
    child.join()
    assert child.exitcode == 0
    for end in (receiver, sender):
        end.close()


# ---- shared state ----


def test_value_and_array(ctx, run):
    value, array = ctx.Value("i", 1), ctx.Array("d", [1.0, 2.0])
    raw_value, raw_array = ctx.RawValue(ctypes.c_long, 5), ctx.RawArray("B", 3)
    run(targets.change_shared, value, array, raw_value, raw_array)
    assert (value.value, array[:], raw_value.value, bytes(raw_array)) == (2, [2.0, 4.0], 6, b"\1\2\3")


def test_shared_memory(run):
    memory = shared_memory.SharedMemory(create=True, size=100)
    try:
        run(targets.write_shared_memory, memory.name, b"written by the child")
        assert bytes(memory.buf[:20]) == b"written by the child"
    finally:
        memory.close()
        memory.unlink()


def test_manager(ctx, run):
    with ctx.Manager() as manager:
        mapping, items = manager.dict(start=1), manager.list()
        run(targets.change_managed, mapping, items, manager.Lock())
        assert dict(mapping) == {"start": 1, "child": 2}
        assert list(items) == [3]


# ---- the start method ----


def test_the_start_method_by_name(programs):
    outcome = programs.run(
        """
        import multiprocessing, fastfork, os

        def work(queue):
            queue.put((os.getppid(), multiprocessing.get_start_method()))

        if __name__ == "__main__":
            multiprocessing.set_start_method("fastfork")
            assert multiprocessing.get_context().get_start_method() == "fastfork"
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=work, args=(queue,))
            process.start()
            ppid, method = queue.get()
            process.join()
            print(ppid == fastfork.forkserver._forkserver._forkserver_pid, method)
            with multiprocessing.Pool(2) as pool:
                print(pool.map(abs, [-1, 2, -3]))
            try:
                multiprocessing.set_start_method("spawn")
            except RuntimeError as error:
                print(error)
        """
    )
    assert outcome.lines == ["True fastfork", "[1, 2, 3]", "context has already been set"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_of_other_contexts_know_the_start_method_fastfork(programs, method):
    outcome = programs.run(
        f"""
        import multiprocessing, fastfork

        def inner(queue):
            queue.put("inner " + type(multiprocessing.current_process()).__name__)

        def work(queue):
            queue.put(multiprocessing.get_start_method())
            process = multiprocessing.get_context("fastfork").Process(target=inner, args=(queue,))
            process.start()
            process.join()

        if __name__ == "__main__":
            multiprocessing.set_start_method("fastfork")
            context = multiprocessing.get_context({method!r})
            queue = context.Queue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            print(queue.get(), queue.get(), sep="\\n")
            process.join()
            print(process.exitcode)
        """
    )
    assert outcome.lines == [method, "inner FastForkProcess", "0"]


# ---- logging ----


def test_the_logger_is_multiprocessings(ctx):
    assert ctx.get_logger() is multiprocessing.get_logger()
    assert isinstance(ctx.get_logger(), logging.Logger)


def test_children_log_to_standard_error_at_the_level_of_their_parent(programs):
    path = programs.write(
        "program.py",
        """
        import fastfork, logging

        def work():
            fastfork.get_context().get_logger().info("hello from the child")

        if __name__ == "__main__":
            context = fastfork.get_context()
            context.log_to_stderr(logging.INFO)
            process = context.Process(target=work, name="Anna")
            process.start()
            process.join()
        """,
    )
    outcome = programs.python(str(path))
    assert "[INFO/Anna] child process calling self.run()" in outcome.stderr
    assert "[INFO/Anna] hello from the child" in outcome.stderr
    assert "[INFO/Anna] process exiting with exitcode 0" in outcome.stderr
    assert outcome.status == 0


# ---- exit functions ----


def test_exit_functions_of_a_child_run_as_its_version_has_it(programs):
    outcome = programs.run(
        """
        import atexit, fastfork
        from multiprocessing import util

        def work():
            atexit.register(print, "atexit", flush=True)
            util.Finalize(None, print, ("finalize",), dict(flush=True), exitpriority=1)

        if __name__ == "__main__":
            atexit.register(print, "main", flush=True)
            process = fastfork.get_context().Process(target=work)
            process.start()
            process.join()
        """
    )
    from_child = ["finalize"] if sys.version_info < (3, 13) else ["finalize", "atexit"]
    assert sorted(outcome.lines[:-1]) == sorted(from_child)
    assert outcome.lines[-1] == "main"


def test_processes_can_be_started_from_an_exit_function(programs):
    outcome = programs.run(
        """
        import atexit

        def at_the_very_end():
            start("last")

        atexit.register(at_the_very_end)  # before multiprocessing's own: it runs after it

        import fastfork

        def start(text):
            process = fastfork.get_context().Process(target=print, args=(text,))
            process.start()
            process.join()
            assert process.exitcode == 0

        if __name__ == "__main__":
            atexit.register(start, "first")
        """
    )
    assert outcome.lines == ["first", "last"]


def test_threads_of_a_child_end_before_it(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=targets.send_from_thread, args=(sender,))
    child.start()
    assert receiver.recv() == "from the thread"
    child.join()
    assert child.exitcode == 0
    assert threading.active_count() >= 1
    for end in (receiver, sender):
        end.close()


def test_the_package_names_its_context():
    assert isinstance(fastfork.get_context(), fastfork.FastForkContext)


@pytest.fixture(params=["context", "start method", "installed"])
def process_class(request, ctx, monkeypatch):
    """What makes processes, by the ways there are to have fastfork start them."""
    if request.param == "context":
        yield ctx.Process
    elif request.param == "start method":
        monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
        multiprocessing.set_start_method("fastfork")
        yield multiprocessing.Process
    else:
        fastfork.install()
        yield multiprocessing.get_context("forkserver").Process
        fastfork.uninstall()


def test_starts_do_not_ask_every_process_that_lives(process_class, monkeypatch):
    """Of many live ones some are asked whether they have ended, so that a start takes no longer for their number."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    processes = [process_class(target=targets.wait_for_end_of, args=(receiver,)) for _ in range(60)]
    for each in processes[:40]:
        each.start()
    asked = []
    poll = popen.Popen.poll
    monkeypatch.setattr(popen.Popen, "poll", lambda self, *args: asked.append(self) or poll(self, *args))
    for each in processes[40:]:
        each.start()
    assert len(asked) < 10 * 20
    sender.close()
    for each in processes:
        each.join()
        assert each.exitcode == 0
    assert multiprocessing.active_children() == []


def test_a_process_of_another_start_method_starts_as_ever(monkeypatch):
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("fork")
    begun = []
    monkeypatch.setattr(process.BaseProcess, "start", lambda self, *_: begun.append(self))
    started = multiprocessing.Process(target=targets.nothing)
    started.start()
    assert begun == [started]


def test_ended_processes_are_let_go_of_without_a_join(ctx, monkeypatch):
    monkeypatch.setattr(context, "_crowd", 0)
    for _ in range(100):
        started = ctx.Process(target=targets.nothing)
        started.start()
        wait([started.sentinel])
        assert len(process._children) <= 40


def test_a_process_is_started_once_and_by_its_parent(ctx):
    for _ in range(20):  # with few processes and with many
        started = ctx.Process(target=targets.nothing)
        started.start()
        with pytest.raises(AssertionError, match="cannot start a process twice"):
            started.start()
        started.join()
