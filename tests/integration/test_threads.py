"""Many threads, raw forks, signals: whoever starts, joins, polls or waits gets the right answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait

import pytest
from support import raw, targets
from support.processes import DEADLINE

import fastfork
from fastfork import forkserver

THREADS = 8


@pytest.fixture
def threads():
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


@pytest.fixture
def at_once():
    """Let all threads begin together."""
    return threading.Barrier(THREADS).wait


def collect(threads, function):
    """Run `function(number of the thread)` in each thread; return the results."""
    futures = [threads.submit(function, number) for number in range(THREADS)]
    return [future.result(DEADLINE) for future in futures]


def test_threads_that_start_and_join_their_own_processes_get_the_right_codes(ctx, threads, at_once):
    def work(number):
        at_once()
        codes = []
        for i in range(25):
            process = ctx.Process(target=targets.leave_at_once, args=((number * 25 + i) % 256,))
            process.start()
            process.join(DEADLINE)
            codes.append(process.exitcode)
        return codes

    expected = [[(number * 25 + i) % 256 for i in range(25)] for number in range(THREADS)]
    assert collect(threads, work) == expected


def test_threads_that_join_the_same_processes_all_get_the_right_codes(ctx, threads, at_once):
    processes = [ctx.Process(target=targets.leave, args=(code,)) for code in range(60)]
    for process in processes:
        process.start()

    def work(number):
        at_once()
        for process in processes if number % 2 else reversed(processes):
            process.join(DEADLINE)
        return [process.exitcode for process in processes]

    assert collect(threads, work) == [list(range(60))] * THREADS


def poll(process):
    while process.is_alive():
        pass
    return process.exitcode


def wait_for(process):
    wait([process.sentinel], DEADLINE)
    assert not process.is_alive()
    return process.exitcode


def join(process):
    process.join(DEADLINE)
    return process.exitcode


def join_in_steps(process):
    while process.exitcode is None:
        process.join(0.001)
    return process.exitcode


def test_threads_that_join_poll_and_wait_on_the_same_process_agree(ctx, threads, at_once):
    ways = [join, poll, wait_for, join_in_steps] * 2
    for code in range(30):
        process = ctx.Process(target=targets.leave, args=(code,))
        process.start()

        def work(number, process=process):
            at_once()
            return ways[number](process)

        assert collect(threads, work) == [code] * THREADS


def test_a_thread_that_waits_for_a_long_process_holds_nobody_up(ctx, threads):
    receiver, sender = ctx.Pipe(duplex=False)
    long = ctx.Process(target=targets.leave_when_told, args=(receiver,))
    long.start()
    waiting = threads.submit(join, long)
    for code in range(10):
        process = ctx.Process(target=targets.leave, args=(code,))
        process.start()
        assert join(process) == code
    assert not waiting.done()
    sender.send(42)
    assert waiting.result(DEADLINE) == 42
    for end in (receiver, sender):
        end.close()


def test_threads_that_start_the_first_process_share_one_template(ctx, threads, at_once):
    def work(_number):
        at_once()
        forkserver.ensure_running()
        return forkserver._forkserver._forkserver_pid

    assert len(set(collect(threads, work))) == 1


def test_threads_with_templates_of_their_own(threads, at_once):
    contexts = [fastfork.get_context(template=f"of thread {number}") for number in range(THREADS)]

    def work(number):
        at_once()
        process = contexts[number].Process(target=targets.leave, args=(number,))
        process.start()
        return join(process)

    assert collect(threads, work) == list(range(THREADS))


def test_threads_that_use_connect_to_new_process(threads, at_once):
    def work(number):
        at_once()
        return [raw.run(targets.square, number) for _ in range(20)]

    assert collect(threads, work) == [[number * number] * 20 for number in range(THREADS)]


def test_a_thread_that_terminates_what_another_one_joins(ctx, threads):
    receiver, sender = ctx.Pipe(duplex=False)
    for _ in range(20):
        process = ctx.Process(target=targets.wait_for_end_of, args=(receiver,))
        process.start()
        joined = threads.submit(join, process)
        process.terminate()
        assert joined.result(DEADLINE) == -15
    for end in (receiver, sender):
        end.close()


# ---- raw forks ----


FORK = """
import fastfork, os, sys, threading, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork
context = fastfork.get_context()

def run(code):
    process = context.Process(target=sys.exit, args=(code,))
    process.start()
    process.join(60)
    assert process.exitcode == code, process.exitcode

def fork(action):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid

def check(pid):
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_after_a_raw_fork_parent_and_child_go_on(programs):
    outcome = programs.run(
        FORK
        + """
if __name__ == "__main__":
    run(1)
    pid = fork(lambda: [run(code) for code in (2, 3, 4)])
    run(5)
    check(pid)
    run(6)
    print("done", fastfork.forkserver._forkserver._forkserver_pid is not None)
"""
    )
    assert outcome.lines == ["done True"]


def test_a_raw_fork_shares_the_template_of_its_parent(programs):
    outcome = programs.run(
        FORK
        + """
def parent_of_child():
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(writer,))
    process.start()
    process.join()
    return reader.recv()

def send(writer):
    writer.send(os.getppid())

if __name__ == "__main__":
    run(1)
    print(parent_of_child(), flush=True)
    check(fork(lambda: print(parent_of_child(), flush=True)))
    print(fastfork.forkserver._forkserver._forkserver_pid)
"""
    )
    assert len(set(outcome.lines)) == 1


@pytest.mark.parametrize("when", ["before anything", "after ensure_running", "after a process"])
def test_a_raw_fork_at_any_time_hurts_neither_side(programs, when):
    arrange = {
        "before anything": "pass",
        "after ensure_running": "fastfork.forkserver.ensure_running()",
        "after a process": "run(1)",
    }[when]
    outcome = programs.run(
        FORK
        + f"""
from fastfork import forkserver

if __name__ == "__main__":
    {arrange}
    before = forkserver._forkserver._forkserver_pid
    check(fork(lambda: run(2)))
    run(3)
    check(fork(lambda: (run(4), check(fork(lambda: run(5))), run(6))))
    run(7)
    print(before in (None, forkserver._forkserver._forkserver_pid))
"""
    )
    assert outcome.lines == ["True"]


def test_a_raw_fork_with_live_children_leaves_them_to_its_parent(programs):
    outcome = programs.run(
        FORK
        + """
def work(reader, code):
    os.read(reader.fileno(), 1)
    sys.exit(code)

if __name__ == "__main__":
    reader, writer = context.Pipe(duplex=False)
    processes = [context.Process(target=work, args=(reader, code)) for code in range(5)]
    for process in processes:
        process.start()
    check(fork(lambda: run(9)))
    for process in processes:
        os.write(writer.fileno(), b"1")
    for process in processes:
        process.join()
    print(*(process.exitcode for process in processes))
"""
    )
    assert outcome.lines == ["0 1 2 3 4"]


def test_a_raw_fork_while_other_threads_start_processes(programs):
    outcome = programs.run(
        FORK
        + """
def keep_starting():
    while not enough.is_set():
        run(3)

if __name__ == "__main__":
    run(2)  # a fork amid an import, here of the modules of the first start, is not safe in any program
    enough = threading.Event()
    starters = [threading.Thread(target=keep_starting) for _ in range(3)]
    for starter in starters:
        starter.start()
    for _ in range(40):
        check(fork(lambda: run(4)))
    enough.set()
    for starter in starters:
        starter.join()
    print("done")
"""
    )
    assert outcome.lines == ["done"]


def test_the_child_of_a_raw_fork_does_not_stop_the_template_at_its_end(programs):
    outcome = programs.run(
        FORK
        + """
from fastfork import forkserver

if __name__ == "__main__":
    run(1)
    before = forkserver._forkserver._forkserver_pid
    check(fork(lambda: forkserver._forkserver._stop()))
    check(fork(lambda: None))
    run(2)
    print(before == forkserver._forkserver._forkserver_pid)
"""
    )
    assert outcome.lines == ["True"]


def test_a_standard_fork_child_starts_fastfork_processes(programs):
    outcome = programs.run(
        FORK
        + """
import multiprocessing

if __name__ == "__main__":
    run(1)
    process = multiprocessing.get_context("fork").Process(target=run, args=(2,))
    process.start()
    process.join()
    run(3)
    print(process.exitcode)
"""
    )
    assert outcome.lines == ["0"]


# ---- signals ----


def test_a_signal_handler_starts_and_joins_processes_amid_others(programs):
    outcome = programs.run(
        """
        import fastfork, os, signal, sys

        context = fastfork.get_context()
        handled = []

        def run(code):
            process = context.Process(target=os._exit, args=(code,))
            process.start()
            process.join(60)
            assert process.exitcode == code, process.exitcode

        def handle(number, frame):
            run(7)
            handled.append(number)
            signal.setitimer(signal.ITIMER_REAL, 0.011)

        if __name__ == "__main__":
            run(1)
            signal.signal(signal.SIGALRM, handle)
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            for _ in range(1000):
                run(3)
                if len(handled) >= 20:
                    break
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(len(handled) >= 20)
        """
    )
    assert outcome.lines == ["True"]


def test_signals_that_only_interrupt_disturb_nobody(programs):
    outcome = programs.run(
        """
        import fastfork, os, signal

        if __name__ == "__main__":
            count = 0
            def handle(number, frame):
                global count
                count += 1
            signal.signal(signal.SIGALRM, handle)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            context = fastfork.get_context()
            for code in range(100):
                process = context.Process(target=os._exit, args=(code,))
                process.start()
                process.join(60)
                assert process.exitcode == code
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(count > 10)
        """
    )
    assert outcome.lines == ["True"]


def test_an_interrupted_start_leaves_no_stray_child(programs):
    """The template is stopped when ^C comes: the request is sent and not answered."""
    outcome = programs.run(
        """
        import fastfork, os, signal, threading, time
        from fastfork import forkserver

        def work():
            time.sleep(600)

        def children(pid):
            found = []
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        with open(f"/proc/{name}/stat") as stream:
                            if int(stream.read().rpartition(")")[2].split()[1]) == pid:
                                found.append(int(name))
                    except OSError:
                        pass
            return found

        if __name__ == "__main__":
            context = fastfork.get_context()
            first = context.Process(target=abs, args=(1,))
            first.start()
            first.join()
            template = forkserver._forkserver._forkserver_pid
            os.kill(template, signal.SIGSTOP)
            os.waitpid(template, os.WUNTRACED)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Timer(0.4, os.kill, (template, signal.SIGCONT)).start()
            try:
                context.Process(target=work).start()
            except KeyboardInterrupt:
                print("interrupted")
            os.kill(template, signal.SIGCONT)
            last = context.Process(target=abs, args=(1,))
            last.start()
            last.join()
            deadline = time.monotonic() + 30
            while children(template) and time.monotonic() < deadline:
                time.sleep(0.01)
            print(children(template), last.exitcode)
        """
    )
    assert outcome.lines == ["interrupted", "[] 0"]


def test_an_interrupt_while_the_template_preloads_ends_the_start(programs):
    programs.write(
        "preloaded.py", "import time, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    )
    outcome = programs.run(
        """
        import fastfork, os, signal, threading
        from fastfork import forkserver

        if __name__ == "__main__":
            context = fastfork.get_context(preload=["preloaded"])
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                context.Process(target=print).start()
            except KeyboardInterrupt:
                print("interrupted")
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
            context.set_forkserver_preload([])
            process = context.Process(target=print, args=("works",))
            process.start()
            process.join()
        """
    )
    assert outcome.lines == ["interrupted", "works"]


def test_an_interrupt_from_the_terminal_reaches_program_and_children_but_not_the_template(programs):
    outcome = programs.run(
        """
        import fastfork, os, signal
        from fastfork import forkserver

        def work(writer):
            try:
                writer.send("ready")
                signal.pause()
            except KeyboardInterrupt:
                writer.send("interrupted")

        if __name__ == "__main__":
            context = fastfork.get_context()
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(writer,))
            process.start()
            assert reader.recv() == "ready"
            before = forkserver._forkserver._forkserver_pid
            try:
                os.killpg(0, signal.SIGINT)  # as ^C does
                signal.pause()
            except KeyboardInterrupt:
                pass
            print(reader.recv())
            process.join()
            again = context.Process(target=print, args=("again",))
            again.start()
            again.join()
            print(before == forkserver._forkserver._forkserver_pid, process.exitcode)
        """
    )
    assert outcome.lines == ["interrupted", "again", "True 0"]
