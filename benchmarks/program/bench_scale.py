"""How many processes several clients start in a second: children that start children, of the same server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import bench_meeting
import bench_tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

_WARM_UP = 8


def rate(
    started: Callable[..., BaseProcess], method: str, clients: int, count: int, width: int, directory: str
) -> tuple[float, list[BaseProcess]]:
    """Processes per second of so many clients, each of which starts `count` no-ops, `width` of them at once.

    The clients are what `started` has begun; they are to be joined.
    """
    with bench_meeting.called(directory) as meeting:
        running = [started(_be_client, (meeting.paths, method, count, width)) for _ in range(clients)]
        meeting.gather(clients)
        begin = time.perf_counter()
        meeting.release(clients)
        meeting.gather(clients)
        elapsed = time.perf_counter() - begin
        for client in running:
            client.join()
    return clients * count / elapsed, running


def _be_client(paths: tuple[str, str], method: str, count: int, width: int) -> None:
    """Start processes, from the moment on at which all clients may, and report again when they have ended."""
    import bench_measure

    client = bench_measure.Client(bench_tasks.nop)
    client.use(method)
    client.in_flight(_WARM_UP, width)
    bench_tasks.meet(*paths)
    client.in_flight(count, width)
    bench_tasks.report(paths[0])
