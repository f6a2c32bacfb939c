"""What a template does to its memory: each lever does what it is for, and can be left out."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastfork import huge_pages

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc tells what a child costs")

COUNT_FAULTS = """
    import sys
    import fastfork
    import fastfork.forkserver

    CHILDREN = 8

    def nothing():
        pass

    def run_one(ctx):
        process = ctx.Process(target=nothing)
        process.start()
        process.join()
        assert process.exitcode == 0

    def faults_of_dead_children(pid):
        with open(f"/proc/{pid}/stat") as stream:
            return int(stream.read().rpartition(")")[2].split()[8])

    def main():
        ctx = fastfork.get_context(preload=["__main__", *sys.argv[1:]])
        run_one(ctx)
        pid = fastfork.forkserver._forkserver._forkserver_pid
        before = faults_of_dead_children(pid)
        for _ in range(CHILDREN):
            run_one(ctx)
        print((faults_of_dead_children(pid) - before) / CHILDREN)

    if __name__ == "__main__":
        main()
"""


@pytest.fixture
def faults(programs):
    """Count the page faults of one child that does nothing, with some levers left out."""

    def faults(*disabled, preload=()):
        environment = {"FASTFORK_DISABLE": ",".join(disabled)}
        return float(programs.run(COUNT_FAULTS, *preload, environment=environment).stdout)

    return faults


def test_a_rehearsal_saves_children_page_faults(faults):
    assert faults() < faults("rehearse") - 10


def test_a_rehearsal_does_not_run_a_main_module_that_is_not_preloaded(programs):
    source = """
        import os
        import fastfork

        with open("runs", "a") as stream:
            print(os.getpid(), file=stream)

        def send_parent(connection):
            connection.send(os.getppid())

        if __name__ == "__main__":
            ctx = fastfork.get_context(preload=[])
            receiver, sender = ctx.Pipe(duplex=False)
            process = ctx.Process(target=send_parent, args=(sender,))
            process.start()
            template = receiver.recv()
            process.join()
            with open("runs") as stream:
                runs = [int(line) for line in stream]
            print(runs == [os.getpid(), process.pid], template in runs)
    """
    assert programs.run(source).lines == ["True False"]


def test_a_rehearsal_leaves_threads_alone_that_a_child_calls_dead(programs):
    programs.write(
        "kept.py",
        """
        import threading

        ended = threading.Thread(target=int)
        ended.start()
        ended.join()
        """,
    )
    source = """
        import fastfork
        import kept
        import threading

        def use():
            assert not kept.ended.is_alive()
            assert threading.current_thread() is threading.main_thread()
            assert threading.active_count() == 1
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()

        if __name__ == "__main__":
            process = fastfork.get_context(preload=["__main__"]).Process(target=use)
            process.start()
            process.join()
            print(process.exitcode)
    """
    assert programs.run(source).lines == ["0"]


@pytest.mark.parametrize(("disabled", "is_frozen"), [("", True), ("freeze", False)])
def test_what_a_template_holds_is_exempt_from_collections_in_children(programs, disabled, is_frozen):
    source = """
        import gc
        import fastfork

        def show():
            print(gc.isenabled(), gc.get_freeze_count() > 1000, flush=True)

        if __name__ == "__main__":
            process = fastfork.get_context(preload=["__main__"]).Process(target=show)
            process.start()
            process.join()
            print(process.exitcode)
    """
    outcome = programs.run(source, environment={"FASTFORK_DISABLE": disabled})
    assert outcome.lines == [f"True {is_frozen}", "0"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="objects are counted")
def test_an_immortal_heap_saves_children_page_faults(faults):
    assert faults() < faults("immortal") - 40


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the loader of Linux")
@pytest.mark.parametrize("given", [None, "1"])
def test_binding_at_the_start_does_not_show_in_the_environment(programs, given):
    source = """
        import os
        import subprocess
        import sys
        import fastfork

        def show():
            print(os.environ.get("LD_BIND_NOW"), flush=True)
            subprocess.run([sys.executable, "-c", "import os; print(os.environ.get('LD_BIND_NOW'))"], check=True)

        if __name__ == "__main__":
            process = fastfork.get_context(preload=["__main__"]).Process(target=show)
            process.start()
            process.join()
            print(process.exitcode)
    """
    outcome = programs.run(source, environment={"LD_BIND_NOW": given})
    assert outcome.lines == [str(given), str(given), "0"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reference counts touch these pages all the same")
def test_a_nursery_saves_children_page_faults(faults):
    assert faults() < faults("nursery") - 5


SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""What the administrator wants of huge pages."""

NONE_TO_BE_HAD = huge_pages.are_off() or not SETTING.exists()

HUGE_PAGES = """
    import mmap
    from fastfork import _native

    MIB = 1 << 20

    def huge_kilobytes(pid):
        with open(f"/proc/{pid}/smaps_rollup") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("AnonHugePages"))

    def filled(size):
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(b"x" * size)
        return memory

    def does_the_kernel():
        memory = filled(8 * MIB)
        with open("/proc/self/maps") as stream:
            texts = [line.split()[0].split("-") for line in stream if "rw-p" in line]
        mappings = [(int(begin, 16), int(end, 16)) for begin, end in texts]
        begin, end = max(mappings, key=lambda mapping: mapping[1] - mapping[0])
        try:
            _native.collapse(begin, end - begin)
        except OSError:
            return False
        return True
"""

HAVE_LARGE_HEAP = """
    import fastfork
    from pages import does_the_kernel, huge_kilobytes

    if __name__ == "__main__":
        process = fastfork.get_context(preload=["large"]).Process(target=sum, args=([1],))
        process.start()
        process.join()
        pid = fastfork.forkserver._forkserver._forkserver_pid
        print(process.exitcode, does_the_kernel(), huge_kilobytes(pid))
"""


@contextmanager
def the_setting(lock):
    """Hold the file of the setting: others may read the setting meanwhile, or nobody else may."""
    with SETTING.open() as stream:
        fcntl.flock(stream, lock)
        yield


@pytest.mark.skipif(NONE_TO_BE_HAD, reason="no huge pages here")
@pytest.mark.parametrize("disabled", ["", "huge"])
def test_a_large_heap_goes_into_huge_pages_where_the_kernel_does_it(programs, disabled):
    programs.write("pages.py", HUGE_PAGES)
    programs.write("large.py", "records = [(number, str(number)) for number in range(600_000)]")
    with the_setting(fcntl.LOCK_SH):
        outcome = programs.run(HAVE_LARGE_HEAP, environment={"FASTFORK_DISABLE": disabled})
    exit_code, kernel_does, huge = outcome.stdout.split()
    assert exit_code == "0"
    assert (int(huge) > 20_000) == (kernel_does == "True" and not disabled)


USE_WHEN_TOLD = """
    import sys
    from fastfork import huge_pages
    from pages import MIB, does_the_kernel, filled, huge_kilobytes

    kept = filled(32 * MIB)
    before = huge_kilobytes("self")
    print("ready", flush=True)
    sys.stdin.readline()
    huge_pages.use(min_heap=0)
    print("done", flush=True)
    moved = huge_kilobytes("self") - before
    print(does_the_kernel(), moved)
"""


@pytest.mark.skipif(
    NONE_TO_BE_HAD or not os.access(SETTING, os.W_OK), reason="the setting is not ours to change"
)
@pytest.mark.parametrize("wanted", ["never", "madvise", "always"])
def test_a_heap_goes_into_huge_pages_unless_they_are_off(programs, wanted):
    programs.write("pages.py", HUGE_PAGES)
    program = programs.write("program.py", USE_WHEN_TOLD)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, program], text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        with changed_setting(wanted):
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
        kernel_does, huge = process.stdout.read().split()
    assert process.returncode == 0
    assert (int(huge) > 20_000) == (kernel_does == "True" and wanted != "never")


@contextmanager
def changed_setting(wanted):
    """Change the setting of the whole machine: for a moment, and while no other test depends on it."""
    with the_setting(fcntl.LOCK_EX):
        text = SETTING.read_text()
        before = text[text.index("[") + 1 : text.index("]")]
        try:
            SETTING.write_text(wanted)
            yield
        finally:
            SETTING.write_text(before)


NEARLY_ALL = """
    import fastfork
    import most
    from pages import MIB, huge_kilobytes
    from most import take

    if __name__ == "__main__":
        context = fastfork.get_context(preload=["most"])
        template = fastfork.forkserver._forkserver

        def exit_codes(target, *arguments, count=1):
            processes = [context.Process(target=target, args=arguments) for _ in range(count)]
            fastfork.start_all(processes)
            for process in processes:
                process.join()
            return {process.exitcode for process in processes}

        assert exit_codes(sum, [1], count=8) == {0}
        pid = template._forkserver_pid
        assert exit_codes(take, 1024 * MIB) == {-9}
        assert exit_codes(sum, [1], count=8) == {0}
        assert template._forkserver_pid == pid
        print(huge_kilobytes(pid))
"""

MOST_OF_THE_MEMORY = """
    import os, sys

    def resident():
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def take(size):
        return b"x" * size

    records = []
    while "fastfork.template" in sys.modules and resident() < 200 << 20:
        records.extend((number, str(number)) for number in range(1000))
"""


@pytest.mark.parametrize("disabled", ["", "huge"])
def test_a_large_heap_where_memory_is_limited(programs, memory_cgroup, disabled):
    """Moving 200 MiB into huge pages takes no more than there is, and who takes too much is the one that is killed."""
    programs.write("pages.py", HUGE_PAGES)
    programs.write("most.py", MOST_OF_THE_MEMORY)
    program = programs.write("program.py", NEARLY_ALL)
    command = [*memory_cgroup, sys.executable, str(program)]
    outcome = programs.command(*command, environment={"FASTFORK_DISABLE": disabled})
    assert (outcome.status, outcome.stderr) == (0, "")
    assert int(outcome.stdout) > 20_000 or disabled or NONE_TO_BE_HAD, outcome.stdout


ALLOCATE = """
    def allocate():
        kept = [[(i, str(i)), {i: float(i)}, bytes(i % 700)] for i in range(20000)]
        for i, (pair, mapping, zeros) in enumerate(kept):
            assert (pair, mapping, zeros) == ((i, str(i)), {i: float(i)}, bytes(i % 700))
        grown = []
        for i in range(600):
            grown.append(bytearray())
            for each in grown[-50:]:
                each += b"x" * (i % 20)
        return kept
"""


RUN_IN_CHILD = """
    import fastfork
    from task import task

    if __name__ == "__main__":
        process = fastfork.get_context(preload=["task"]).Process(target=task)
        process.start()
        process.join()
        print(process.exitcode)
"""


@pytest.fixture
def run_in_child(programs):
    """Run `task()` of a module, which is preloaded, in a child; it has to succeed."""

    def run_in_child(source, **environment):
        programs.write("allocate.py", ALLOCATE)
        programs.write("task.py", source)
        assert programs.run(RUN_IN_CHILD, environment=environment).lines == ["0"]

    return run_in_child


@pytest.mark.parametrize("allocators", [None, "debug", "malloc", "pymalloc"])
def test_children_allocate_with_whatever_allocators_python_has(run_in_child, allocators):
    source = """
        from allocate import allocate

        def task():
            for _ in range(3):
                allocate()
    """
    run_in_child(source, PYTHONMALLOC=allocators)


@pytest.mark.parametrize("starts", ["at the preload", "in the child"])
def test_tracemalloc_works_in_children(run_in_child, starts):
    source = f"""
        import tracemalloc
        from allocate import allocate

        if {starts == "at the preload"}:
            tracemalloc.start()

        def task():
            before = allocate()
            tracemalloc.start()
            during = allocate()
            assert tracemalloc.get_traced_memory()[0] > 1_000_000
            tracemalloc.stop()
            del before, during
            allocate()
    """
    run_in_child(source)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="interpreters share the GIL")
def test_interpreters_with_a_gil_of_their_own_allocate_beside_each_other(run_in_child):
    source = """
        import threading
        from allocate import allocate

        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters

        def run_other():
            code = "x = [[(i, str(i))] for i in range(2000)]; del x"
            other = interpreters.create()
            for _ in range(20):
                interpreters.run_string(other, code)
            interpreters.destroy(other)

        def task():
            threads = [threading.Thread(target=run_other) for _ in range(2)]
            for thread in threads:
                thread.start()
            allocate()
            for thread in threads:
                thread.join()
    """
    run_in_child(source)


def test_what_a_child_frees_is_free(run_in_child):
    source = """
        import os

        def resident():
            with open("/proc/self/statm") as stream:
                return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def task():
            before = resident()
            for _ in range(3):
                kept = [(i, str(i)) for i in range(300_000)]
                taken = resident() - before
                assert taken > 20_000_000
                del kept
            assert resident() - before < taken / 4
    """
    run_in_child(source)


WORK_WITH_LARGE_HEAP = """
    import os
    import fastfork

    ROUNDS = 40

    def private():
        with open("/proc/self/smaps_rollup") as stream:
            return sum(int(line.split()[1]) << 10 for line in stream if line.startswith("Private_"))

    def work(number):
        kept = [(i, str(i)) for i in range(10_000 + 500 * (number % 8))]
        taken = private()
        del kept
        return os.getpid(), taken, private()

    if __name__ == "__main__":
        with fastfork.get_context(preload=["__main__", "large"]).Pool(1) as pool:
            rounds = pool.map(work, range(ROUNDS), chunksize=1)
        pids, taken, left = zip(*rounds)
        print(len(set(pids)), max(taken[8:]) - max(taken[:8]), max(left[8:]) - max(left[:8]), max(taken))
"""


def test_what_a_worker_has_for_itself_does_not_grow(programs):
    programs.write("large.py", "records = [(number, str(number)) for number in range(400_000)]")
    workers, growth, growth_of_rest, most = map(int, programs.run(WORK_WITH_LARGE_HEAP).stdout.split())
    assert workers == 1
    assert growth < 3 << 20
    assert growth_of_rest < 3 << 20
    assert most < 32 << 20
