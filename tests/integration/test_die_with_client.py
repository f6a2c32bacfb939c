"""`die_with_client`: the end of a client, however it comes, is the end of its processes and of all below them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import targets
from support.processes import DEADLINE, descriptors, exit_code_of, fork, is_alive, wait_until

import fastfork
from fastfork import forkserver

PROGRAM = """
import json, os, subprocess, sys, time
import fastfork

def tell(kind, pid=None):
    os.write(1, f"{kind} {pid or os.getpid()}\\n".encode())

def stay(kind):
    tell(kind)
    time.sleep(600)

def double_fork():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            stay("daemon")
        os._exit(0)
    os.wait()

def work():
    tell("subprocess", subprocess.Popen(["sleep", "600"]).pid)
    double_fork()
    fastfork.get_context().Process(target=stay, args=("nested",)).start()
    stay("child")

if __name__ == "__main__":
    context = fastfork.get_context(**json.loads(sys.argv[1]))
    context.Process(target=work, **json.loads(sys.argv[2])).start()
    tell("template", fastfork.forkserver._forkserver._forkserver_pid)
    tell("folder", os.path.dirname(fastfork.forkserver._forkserver._forkserver_address))
    sys.stdin.readline()
    exec(sys.argv[3])
"""

KINDS = {"subprocess", "daemon", "nested", "child", "template", "folder"}


class Running:
    """A run of the program, all of whose processes are there."""

    def __init__(self, programs, *, context=None, process=None, end=""):
        path = programs.write("program.py", PROGRAM)
        command = [sys.executable, str(path), json.dumps(context or {}), json.dumps(process or {}), end]
        self.program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = dict(self.read() for _ in KINDS)
        assert set(told) == KINDS
        self.folder = told.pop("folder")
        self.pids = {kind: int(pid) for kind, pid in told.items()}

    def read(self):
        """Return what it tells next: a kind and a number or path."""
        return self.program.stdout.readline().split()

    def go_on(self):
        """Let it do what it is to do in the end."""
        self.program.stdin.write("\n")
        self.program.stdin.flush()

    def wait(self):
        self.program.stdout.close()
        self.program.stdin.close()
        self.program.wait(DEADLINE)

    def kill(self):
        self.program.kill()
        self.wait()

    def living(self):
        return {kind for kind, pid in self.pids.items() if is_alive(pid)}


def sockets(pid):
    return [kind for kind in descriptors(pid).values() if kind.startswith("socket:")]


@pytest.mark.parametrize(
    "options",
    [{"context": {"die_with_client": True}}, {"process": {"die_with_client": True}}],
    ids=["context", "process"],
)
def test_all_below_a_client_that_is_killed_dies_with_it(programs, options):
    before = set(os.listdir("/dev/shm"))
    running = Running(programs, **options)
    running.kill()
    wait_until(lambda: not running.living())
    wait_until(lambda: not os.path.exists(running.folder))
    # Other programs have theirs there, for a time.
    left = set(os.listdir("/dev/shm")) - before
    wait_until(lambda: left.isdisjoint(os.listdir("/dev/shm")))


def test_without_it_all_go_on_as_with_the_standard_library(programs):
    running = Running(programs, context={"die_with_client": True}, process={"die_with_client": False})
    connections = len(sockets(running.pids["template"]))
    running.kill()
    try:
        wait_until(lambda: len(sockets(running.pids["template"])) < connections)
        assert running.living() == set(running.pids)
    finally:
        for kind in ("child", "nested", "daemon", "subprocess"):
            os.kill(running.pids[kind], signal.SIGKILL)
    wait_until(lambda: not running.living())


@pytest.mark.parametrize("end", ["os._exit(3)", "os.abort()", "os.execv('/bin/true', ['true'])"])
def test_every_kind_of_end_counts(programs, end):
    running = Running(programs, context={"die_with_client": True}, end=end)
    running.go_on()
    running.wait()
    wait_until(lambda: not running.living())


def test_a_live_raw_fork_of_the_client_does_not_keep_them(programs):
    end = "pid = os.fork(); tell('fork', pid) if pid else None; time.sleep(600)"
    running = Running(programs, context={"die_with_client": True}, end=end)
    running.go_on()
    forked = int(running.read()[1])
    running.kill()
    wait_until(lambda: not running.living() - {"template"})
    assert is_alive(forked)
    os.kill(forked, signal.SIGKILL)
    wait_until(lambda: not running.living())


def test_a_nested_process_dies_with_the_child_that_started_it(ctx):
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=targets.start_and_stay, args=(theirs, ctx), die_with_client=True)
    process.start()
    nested = ours.recv()
    assert is_alive(nested)
    process.kill()
    process.join()
    wait_until(lambda: not is_alive(nested))
    for end in (ours, theirs):
        end.close()


def test_others_of_the_same_client_and_of_other_clients_go_on(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    mine = ctx.Process(target=targets.leave_after, args=(receiver, 5), die_with_client=True)
    mine.start()
    read_end, write_end = os.pipe()

    def another_client():
        process = ctx.Process(target=targets.wait_for_end_of, args=(receiver,), die_with_client=True)
        process.start()
        os.write(write_end, b"%d" % process.pid)
        os._exit(0)

    assert exit_code_of(fork(another_client)) == 0
    others = int(os.read(read_end, 100))
    wait_until(lambda: not is_alive(others))
    assert mine.is_alive()
    for end in (read_end, write_end):
        os.close(end)
    sender.close()
    receiver.close()
    mine.join(DEADLINE)
    assert mine.exitcode == 5


def test_stop_does_not_end_them(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.leave_after, args=(receiver, 6), die_with_client=True)
    process.start()
    fastfork.stop()
    assert process.is_alive()
    sender.close()
    receiver.close()
    process.join(DEADLINE)
    assert process.exitcode == 6


def test_the_choice_of_a_process_arrives_in_its_subclass_and_its_pool(ctx):
    process = ctx.Process(target=targets.nothing, name="named", daemon=True, die_with_client=True)
    assert (process.name, process.daemon, process._die_with_client) == ("named", True, True)
    dying = fastfork.get_context("dying", die_with_client=True)
    with dying.Pool(1) as pool:
        assert pool.apply(targets.dies_with_client)
        pool.close()
        pool.join()
    assert not forkserver._forkserver.die_with_client


def test_however_many_are_below_a_child_and_whatever_they_do(programs):
    """What is below a child may be stopped, ignore signals, and be many."""
    path = programs.write(
        "program.py",
        """
        import os, signal, sys, time
        import fastfork

        def work():
            for _ in range(30):
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    if os.fork() == 0:
                        os.write(1, b"%d\\n" % os.getpid())
                        os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(600)
            time.sleep(600)

        if __name__ == "__main__":
            fastfork.get_context().Process(target=work, die_with_client=True).start()
            time.sleep(600)
        """,
    )
    program = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
    pids = [int(program.stdout.readline()) for _ in range(30)]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    program.kill()
    program.stdout.close()
    program.wait(DEADLINE)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
