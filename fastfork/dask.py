"""Dask on fastfork: each task of a worker in a fresh process of that worker's own template.

A worker takes an executor that has been made in its own process. What makes it there is the plugin of this module, or::

    dask worker ADDRESS --preload fastfork.dask

for a single worker.
"""

from __future__ import annotations

import asyncio
import signal

from distributed import WorkerPlugin

from .executor import Executor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from distributed import Worker

    from .executor import Preload
    from .futures import TaskFuture

__all__ = ["FreshProcesses", "dask_setup"]

_PRELOAD = ["distributed.worker", "cloudpickle"]


class FreshProcesses(WorkerPlugin):  # type: ignore[misc] # distributed has no types
    """A plugin of Dask's workers: their tasks have fresh processes, as many at once as the worker has threads.

    ``client.register_plugin(FreshProcesses())`` is for all workers of a cluster, those to come included. A task whose
    process dies, or takes too long, fails with a `fastfork.ProcessDiedError` or a `fastfork.TimeLimitError` that says
    so, by itself: the worker, its data and its other tasks live on. When a worker closes, its tasks are killed. In a
    task there is no worker to be had from ``get_worker()``, nor a client from ``worker_client()``. Coroutines and
    actors are run in the worker, as ever.

    Parameters
    ----------
    executor:
        The name by which tasks ask for it, as in ``dask.annotate(executor="fastfork")``. What is called "default" is
        for all that do not ask.
    preload:
        Modules that the template of each worker imports besides, and callables that it calls; see `fastfork.Executor`.
    settings:
        `initializer`, `initargs`, `timeout`, `grace`, `capture` and `options`, as for `fastfork.Executor`.

    """

    name = "fastfork"

    def __init__(self, executor: str = "default", *, preload: Preload = (), **settings: Any) -> None:
        self._executor = executor
        self._preload = list(preload)
        self._settings = settings
        self._replaced: dict[str, Any] = {}

    async def setup(self, worker: Worker) -> None:
        """Give a worker its executor, once a process has come from its template. Raises as tasks and executors do."""
        made = WorkerExecutor(
            worker.state.nthreads,
            preload=[*_PRELOAD, *self._preload],
            **{"serializer": "cloudpickle", **self._settings},
        )
        try:
            # In a thread: an import of seconds would keep the worker from its heartbeats.
            await asyncio.get_running_loop().run_in_executor(None, lambda: made.submit(int).result())
        except BaseException:
            made.shutdown(wait=False)
            raise
        self._replaced[worker.id] = worker.executors.get(self._executor)
        worker.executors[self._executor] = made

    def teardown(self, worker: Worker) -> None:
        """Kill what runs, and give a worker back what it had; it may be closing."""
        if worker.id not in self._replaced:
            return
        replaced = self._replaced.pop(worker.id)
        worker.executors.pop(self._executor).shutdown(wait=False)
        if replaced is not None:
            worker.executors[self._executor] = replaced


class WorkerExecutor(Executor):
    """The executor of one worker."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Have a task done: `fn` is what calls its function, and the first argument what knows it."""
        named = args[0] if args else fn
        name = getattr(named, "key", None) or getattr(named, "__qualname__", None)
        return self._submit(self._settings, fn, args, kwargs, name=name and str(name))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Kill what runs: whoever wants the results has them computed by another worker."""
        self._manager.close(cancels=True)
        self._manager.signal(None, signal.SIGKILL)
        super().shutdown(wait, cancel_futures=cancel_futures)


async def dask_setup(worker: Worker) -> None:
    """Give a worker that has this module preloaded the plugin; Dask calls it."""
    await worker.plugin_add(FreshProcesses(), catch_errors=False)
