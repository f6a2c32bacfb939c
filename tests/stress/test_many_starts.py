"""Ten thousand starts leave their templates as they were after the first hundred: half of them with spares."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from support import targets
from support.processes import children_of, descriptors, resident_bytes, wait_until

import fastfork

FIRST = 100
ALL = 5_000
IN_FLIGHT = 8
MEBIBYTE = 1 << 20


def start_and_join(ctx, count):
    """Run `count` processes, some of them at a time, and see that each ended well."""
    for begun in range(0, count, IN_FLIGHT):
        processes = [ctx.Process(target=targets.nothing) for _ in range(min(IN_FLIGHT, count - begun))]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
            process.close()


def kinds_of_descriptors(pid):
    """Count them by kind: a client that has to connect anew has another socket."""
    return Counter(target.partition(":[")[0] for target in descriptors(pid).values())


@pytest.mark.parametrize("spares", [0, 2])
def test_thousands_of_starts_leave_the_template_as_it_was(capsys, spares):
    ctx = fastfork.get_context("many", preload=["support.targets"], spares=spares, spare_quiet=0.2)
    start_and_join(ctx, 1)
    pid = fastfork.server_status("many").pid
    fds = kinds_of_descriptors(pid)
    start_and_join(ctx, FIRST)
    memory = resident_bytes(pid)
    begin = time.monotonic()
    start_and_join(ctx, ALL - FIRST)
    with capsys.disabled():
        print(f" [{ALL} starts in {time.monotonic() - begin:.0f} s]", end="")
    status = fastfork.server_status("many")
    assert (status.pid, status.spare_starts > 0) == (pid, spares > 0)
    # What is forked ahead goes when it is quiet. The first count may have had what is open for a moment, and not less.
    wait_until(lambda: children_of(pid) == [] and not kinds_of_descriptors(pid) - fds)
    assert resident_bytes(pid) - memory < MEBIBYTE
