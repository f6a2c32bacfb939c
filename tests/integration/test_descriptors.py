"""The descriptors of children and templates: what they need, and nothing else."""

from __future__ import annotations

import os

import pytest
from support import targets
from support.processes import children_of, descriptors, wait_until

from fastfork import _native, forkserver

PROGRAM = """
import multiprocessing, os, re, sys

def work(connection, payload):
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds.append(re.sub("[0-9]+", "", os.readlink("/proc/self/fd/" + fd)))
        except FileNotFoundError:
            pass
    connection.send(sorted(kinds))

if __name__ == "__main__":
    if sys.argv[1] == "fastfork":
        import fastfork
    context = multiprocessing.get_context(sys.argv[1])
    for payload in (b"", bytes(100_000)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(sender, payload))
        process.start()
        print(*receiver.recv())
        process.join()
"""


def test_a_child_has_as_many_descriptors_of_each_kind_as_one_of_the_standard_library(programs):
    lines = programs.run(PROGRAM, "fastfork").lines
    assert lines == programs.run(PROGRAM, "forkserver").lines
    assert lines[0] == lines[1]


def test_children_have_nothing_of_each_other(ctx, ask):
    """However many there are, and whatever else the template holds for them."""
    alone = ask(targets.send_descriptors)
    reader, writer = ctx.Pipe(duplex=False)
    others = [ctx.Process(target=targets.wait_for_end_of, args=(reader,)) for _ in range(20)]
    for other in others:
        other.start()
    among_others = ask(targets.send_descriptors)
    for end in (reader, writer):
        end.close()
    for other in others:
        other.join()
    assert len(among_others) == len(alone)


def test_children_do_not_gather_descriptors_down_the_generations(ctx, ask):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.send_descriptor_counts, args=(sender, ctx, 4))
    process.start()
    counts = receiver.recv()
    process.join()
    assert len(counts) == 4
    assert len(set(counts[1:])) == 1
    for end in (receiver, sender):
        end.close()


def test_standard_input_of_a_child_is_empty(ctx, ask):
    assert ask(targets.send_standard_input) == ""


def test_descriptors_that_a_program_opens_do_not_reach_template_or_children(tmp_path, ask):
    with open(tmp_path / "secret", "w"):
        forkserver.ensure_running()
        of_child = ask(targets.send_descriptors)
        of_template = descriptors(forkserver._forkserver._forkserver_pid)
    assert not any("secret" in target for target in [*of_child.values(), *of_template.values()])


def test_a_template_keeps_no_descriptor_of_its_children(ctx, template):
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    before = descriptors(template._forkserver_pid)
    for _ in range(20):
        process = ctx.Process(target=targets.nothing)
        process.start()
        process.join()
    wait_until(lambda: not children_of(template._forkserver_pid))
    assert descriptors(template._forkserver_pid) == before


def test_a_process_costs_its_parent_one_descriptor_until_it_is_closed(ctx, template):
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    process.close()
    before = set(descriptors())
    one, two = (ctx.Process(target=targets.nothing) for _ in range(2))
    for process in (one, two):
        process.start()
    assert len(set(descriptors()) - before) == 2
    for process in (one, two):
        process.join()
        process.close()
    assert set(descriptors()) <= before


@pytest.mark.skipif(not _native.has_pidfds(), reason="no pidfds, by the kernel or FASTFORK_BACKEND=poll")
def test_the_sentinel_is_a_pidfd_where_there_are_some(ctx):
    process = ctx.Process(target=targets.nothing)
    process.start()
    assert "pidfd" in os.readlink(f"/proc/self/fd/{process.sentinel}")
    process.join()


def test_no_descriptor_is_inherited_by_programs_that_this_process_starts(ctx):
    before = set(descriptors())
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    opened = set(descriptors()) - before
    assert len(opened) >= 3
    assert not any(os.get_inheritable(fd) for fd in opened)
