"""joblib on fastfork: a parallel backend in which each batch of calls has a fresh process.

joblib knows no entry points: a program registers the backend itself, by a line of its own, before it names it::

    import fastfork.joblib_backend

    fastfork.joblib_backend.register()
"""

from __future__ import annotations

import io
import os
import sys
import threading
import weakref

import joblib
from joblib.parallel import FallbackToBackend, ParallelBackendBase, SequentialBackend

from . import context
from .call import default_server
from .executor import Executor, needs_own_server, own_server, settings_of
from .futures import TaskFuture

try:
    import cloudpickle
except ImportError:  # until 1.5 joblib had a copy of its own
    from joblib.externals import cloudpickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable
    from typing import Any

    from .executor import Preload
    from .forkserver import ForkServer

__all__ = ["FastForkBackend", "register"]

TEMPLATE = "joblib"
"""The name of the template that all share who ask for none of their own."""

_PRELOAD = ["joblib", __name__]


def register(name: str = "fastfork", *, make_default: bool = False) -> None:
    """Make the backend known to joblib, in this process.

    Parameters
    ----------
    name:
        The name by which ``joblib.Parallel`` and ``joblib.parallel_config`` get it.
    make_default:
        Whether it is the one that joblib takes where none is named.

    """
    joblib.register_parallel_backend(name, FastForkBackend, make_default=make_default)


class FastForkBackend(ParallelBackendBase):  # type: ignore[misc] # joblib has no types
    """A backend of joblib in which each batch of calls has a fresh process, forked from a template.

    A batch is a single call, unless `joblib.Parallel` is given a larger ``batch_size``. A process that dies, or takes
    too long, ends the `joblib.Parallel` call with an exception which says so, and the next one works. As with all
    backends of joblib, ``n_jobs=1`` means no process at all.

    Functions that no import finds travel by value, through cloudpickle, as with joblib's own processes; but those of a
    main module that has a file are the template's, which has imported it: they, and what they use of it, are not
    pickled. Arrays are copied, not mapped.

    Parameters
    ----------
    template:
        The name of the template, as in `fastfork.get_context`. The one called "joblib", if None, has imported the main
        module and joblib.
    preload, initializer, initargs:
        What is done once, in a template that is this backend's own and ends with it; see `fastfork.Executor`.
    settings:
        `timeout` and `grace`, in seconds, of a batch (the time limit of `joblib.Parallel` is for how long it waits for
        the next result), `serializer` and `options`, as for `fastfork.Executor`.

    Raises `TypeError` and `ValueError` as `fastfork.Executor` does.

    """

    supports_retrieve_callback = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        template: str | None = None,
        preload: Preload = (),
        initializer: Callable[..., object] | None = None,
        initargs: tuple[object, ...] = (),
        **settings: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._settings = settings_of({"serializer": __name__, **settings})
        if needs_own_server(template, preload, initializer):
            self._server = self._own_server(preload, initializer, initargs)
        else:
            self._server = _shared_server(template)

    def _own_server(
        self, preload: Preload, initializer: Callable[..., object] | None, initargs: tuple[object, ...]
    ) -> ForkServer:
        server = own_server([*_PRELOAD, *preload], initializer, initargs, self._settings.serializer)
        weakref.finalize(self, server.stop)
        return server

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many processes there are at once: -1 stands for as many as there are CPUs, -2 for one less.

        Raises `ValueError` for 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(joblib.cpu_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, **_more: Any) -> int:
        """Have each `joblib.Parallel` go on with a backend that is its alone: several may be under way at once."""
        if self.effective_n_jobs(n_jobs) == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        raise FallbackToBackend(FastForkRun(self))

    def apply_async(self, func: Any, callback: Callable[[Any], object] | None = None) -> Any:
        """Have a batch of calls done: so joblib asks for it until 1.5."""
        return self.submit(func, callback)


class FastForkRun(FastForkBackend):
    """What runs the calls of one `joblib.Parallel`."""

    def __init__(self, backend: FastForkBackend) -> None:
        ParallelBackendBase.__init__(self, nesting_level=backend.nesting_level)
        self._backend = backend  # its template ends with it
        self._server = backend._server
        self._settings = backend._settings
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._n_jobs = 1
        self._futures: set[TaskFuture] = set()

    def configure(self, n_jobs: int = 1, **_more: Any) -> int:
        """Be ready for the calls; see `joblib.parallel.ParallelBackendBase`, and so for the other methods."""
        self._n_jobs = self.effective_n_jobs(n_jobs)
        self._executor = Executor.on_server(self._server, self._n_jobs, self._settings)
        return self._n_jobs

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> TaskFuture:
        """Have a batch of calls done; while all are aborted it is cancelled: a callback may ask for one more."""
        with self._lock:
            if self._executor is None:
                future = TaskFuture()
                future.cancel()
                return future
            future = self._executor._submit(self._settings, func, (), {}, name=_name_of(func))
            self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: TaskFuture) -> Any:
        """Return what a batch has returned. Raises what it has raised."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Kill what runs, and all below it; what has not begun does not. It is over when this returns."""
        with self._lock:
            executor, self._executor = self._executor, None
            futures = list(self._futures)
        for future in futures:  # first, lest they take the places of those that are killed
            future.cancel()
        for future in futures:
            future.kill()
        if executor is not None:
            executor.shutdown()
        if ensure_ready:
            self._executor = Executor.on_server(self._server, self._n_jobs, self._settings)

    def terminate(self) -> None:
        """Wait for the last processes to end."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def _shared_server(template: str | None) -> ForkServer:
    if template is not None:
        return default_server(template)
    if TEMPLATE not in context._contexts:  # else the program has said what it imports
        context.get_context(TEMPLATE, preload=["__main__", *_PRELOAD])
    return default_server(TEMPLATE)


def _name_of(batch: Any) -> str:
    """Return what a batch of calls is called in messages."""
    function = batch.items[0][0]
    name: str = getattr(function, "__qualname__", None) or repr(function)
    return name if len(batch) == 1 else f"{name} and {len(batch) - 1} more"


# ---- pickles ----


def dumps(
    value: object,
    protocol: int = 5,
    *,
    buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None,
) -> bytes:
    """Pickle `value` as cloudpickle does, but for what the template has of the main module. Raises as it does."""
    stream = io.BytesIO()
    _Pickler(stream, protocol, buffer_callback=buffer_callback).dump(value)
    return stream.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    def reducer_override(self, value: Any) -> Any:
        """Return how functions and classes pickle that no import finds; `NotImplemented` for all else."""
        return NotImplemented if _is_of_main(value) else super().reducer_override(value)


def _is_of_main(value: Any) -> bool:
    """Whether a function or class is found by its name in a main module that templates can import."""
    if getattr(value, "__module__", None) != "__main__":
        return False
    found: object = sys.modules["__main__"]
    path = getattr(found, "__file__", None)
    if path is None or not os.path.exists(path):
        return False
    for name in getattr(value, "__qualname__", "<none>").split("."):
        found = getattr(found, name, None)
    return found is value
