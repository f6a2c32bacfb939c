"""Ten thousand starts leave the template as it was after the first hundred.

Without processes forked ahead, whose sockets come and go: the soak has these.
"""

from __future__ import annotations

import time
from collections import Counter

from support import targets
from support.processes import children_of, descriptors, resident_bytes

import fastfork
from fastfork import context

FIRST = 100
ALL = 10_000
IN_FLIGHT = 8
MEBIBYTE = 1 << 20


def start_and_join(ctx, count):
    """Run `count` processes, some of them at a time, and see that each ended well."""
    for _ in range(count // IN_FLIGHT):
        processes = [ctx.Process(target=targets.nothing) for _ in range(IN_FLIGHT)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
            process.close()


def kinds_of_descriptors(pid):
    """Count them by kind: a client that has to connect anew has another socket."""
    return Counter(target.partition(":[")[0] for target in descriptors(pid).values())


def test_ten_thousand_starts_leave_the_template_as_it_was(capsys):
    ctx = fastfork.get_context(template="many", preload=["support.targets"], spares=0)
    template = context._servers["many"]
    template.ensure_running()
    pid = template._forkserver_pid
    start_and_join(ctx, FIRST)
    fds, memory = kinds_of_descriptors(pid), resident_bytes(pid)
    begin = time.monotonic()
    start_and_join(ctx, ALL - FIRST)
    with capsys.disabled():
        print(f" [{ALL} starts in {time.monotonic() - begin:.0f} s]", end="")
    assert template._forkserver_pid == pid
    assert kinds_of_descriptors(pid) == fds
    assert resident_bytes(pid) - memory < MEBIBYTE
    assert children_of(pid) == []
