"""What a template does to its memory: each lever does what it is for, and can be left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
