"""`fastfork.Executor`: an executor in which every task has a process of its own."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import pickle
import signal
import weakref

from .call import default_server
from .forkserver import ForkServer
from .futures import TaskFuture
from .manager import Manager
from .submission import Settings, Submission

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Union

    from .options import ChildOptions

    Preload = Sequence[Union[str, Callable[[], object]]]

__all__ = ["Executor"]

_numbers = itertools.count(1)

_SETTINGS = {"timeout", "grace", "serializer", "capture", "options"}
"""What can be set for a single task."""


class Executor(concurrent.futures.Executor):
    """Runs each task in a fresh process, forked from a template that has preloaded what the task needs.

    A task that crashes, is killed or takes too long fails its own future and no other one. It is an executor of
    `concurrent.futures`: `submit`, `map`, `shutdown`, ``with``, and asyncio's ``loop.run_in_executor()`` are as there;
    functions, arguments, results and exceptions have to pickle. A single thread waits for all tasks.

    Parameters
    ----------
    max_workers:
        How many tasks run at once; the number of usable CPUs if None.
    template:
        The name of the template to fork from, as in `fastfork.get_context`; None is the default one.
    preload:
        Names of modules to import, and callables without arguments to call, in a template that is this executor's own
        and ends with it. The main module comes first.
    initializer, initargs:
        A callable and its arguments: called once, last of all, in a template that is this executor's own. What it
        leaves behind is there in every task, shared by copy-on-write.
    timeout:
        The time limit of a task in seconds; None for none. Then `fastfork.TimeLimitError` is raised in the task.
    grace:
        Seconds that the task may take then to end by itself: after that its process group is killed, that is, it and
        all that it has started, save what has left the group. At 0 that is done at once.
    serializer:
        The name of the module that pickles: ``"cloudpickle"``, where it is installed, for lambdas and closures.

    capture:
        Whether what tasks, and those below them, write to standard output and error is kept, in memory, for the
        attributes `stdout` and `stderr` of their futures. Whoever is below may go on writing; that is not waited for.

    options:
        What the processes of tasks are to be before they begin: environment, directory, limits and so on. They are read
        when a task is submitted; descriptors in them have to be open until it has begun. One that cannot be applied is
        an `OSError` of the task. Tasks end with this process unless ``die_with_client=False`` is among them.

    Raises `ValueError` for a number that is not positive or for both a template and what asks for an own one,
    `TypeError` for what cannot be preloaded. What fails in the template is a `fastfork.PreloadError` of each task.

    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        template: str | None = None,
        preload: Preload = (),
        initializer: Callable[..., object] | None = None,
        initargs: tuple[object, ...] = (),
        timeout: float | None = None,
        grace: float = 1.0,
        serializer: str = "pickle",
        capture: bool = False,
        options: ChildOptions | None = None,
    ) -> None:
        is_own = needs_own_server(template, preload, initializer)
        settings = settings_of(
            {
                "timeout": timeout,
                "grace": grace,
                "serializer": serializer,
                "capture": capture,
                "options": options,
            }
        )
        server = (
            own_server(preload, initializer, initargs, serializer) if is_own else default_server(template)
        )
        self._set_up(server, max_workers, settings, owns_server=is_own)

    @classmethod
    def on_server(cls, server: ForkServer, max_workers: int | None, settings: Settings) -> Executor:
        """Return an executor whose tasks come from a template that somebody else keeps and ends; for this package."""
        executor = cls.__new__(cls)
        executor._set_up(server, max_workers, settings, owns_server=False)
        return executor

    def _set_up(
        self, server: ForkServer, max_workers: int | None, settings: Settings, *, owns_server: bool
    ) -> None:
        self._settings = settings
        self._manager = Manager(server, _checked_workers(max_workers), owns_server=owns_server)
        self._finalizer = weakref.finalize(self, self._manager.close)
        self._finalizer.atexit = False  # the manager sees to that itself

    @classmethod
    def from_current_process(
        cls,
        max_workers: int | None = None,
        *,
        timeout: float | None = None,
        grace: float = 1.0,
        capture: bool = False,
        options: ChildOptions | None = None,
    ) -> Executor:
        """Return an executor whose template is a fork of this process as it stands now.

        All that this process has loaded is there in every task, without pickling and shared by copy-on-write. Lambdas,
        closures and local functions can be submitted: those that are there now are not pickled either, with what they
        have captured; later ones are, by value (see `fastfork.functions`). Arguments and results are pickled as ever.

        It is a fork with all that this means: of the threads of this process only the calling one is there, locks that
        others hold stay locked, and what is open, sockets and files, is shared. Create it early, before there are
        threads. Should its template die, its tasks fail: it cannot be made again.

        Parameters
        ----------
        max_workers, timeout, grace, capture, options:
            As for the executor itself.

        Raises `OSError` when this process cannot be forked, and as the executor itself.

        """
        from . import functions
        from .current_process import CurrentProcess

        default_server()  # raises where fastfork is not supported
        settings = settings_of(
            {
                "timeout": timeout,
                "grace": grace,
                "serializer": functions.__name__,
                "capture": capture,
                "options": options,
            }
        )
        executor = cls.__new__(cls)
        server = CurrentProcess(_name())
        executor._set_up(server, max_workers, settings, owns_server=True)
        server.ensure_running()
        executor._settings = settings.changed(functions=server.functions)
        return executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Have ``fn(*args, **kwargs)`` called in a process of its own; return its future.

        Raises `RuntimeError` after `shutdown`. All else that goes wrong is the future's exception:

        ============================= ==========================================================================
        what the task raised          with its traceback in the process as the cause
        `fastfork.ProcessDiedError`   the process ended before the task did: a signal, ``os._exit()``,
                                      ``sys.exit()``
        `fastfork.TimeLimitError`     the time limit
        `fastfork.TransferError`      what cannot be pickled or unpickled
        `fastfork.PreloadError`       what was to be preloaded, or the initializer, has failed
        `OSError`                     the process could not be forked
        ============================= ==========================================================================
        """
        return self._submit(self._settings, fn, args, kwargs)

    def _submit(
        self,
        settings: Settings,
        function: Callable[..., object],
        arguments: Sequence[object],
        keywords: dict[str, object],
        name: str | None = None,
    ) -> TaskFuture:
        """Have a task done; `name` is what messages call it."""
        future = TaskFuture()
        manager = self._manager
        future._kill = lambda: manager.signal(future, signal.SIGKILL)
        manager.submit(Submission(future, settings, function, arguments, keywords, name))
        return future

    def configured(self, **settings: Any) -> ConfiguredExecutor:
        """Return this executor with other settings for the tasks that are submitted through it.

        Parameters
        ----------
        settings:
            `timeout`, `grace`, `serializer`, `capture` and `options`, as for the executor itself.

        Raises `TypeError` for others, `ValueError` for values that are not possible.

        """
        return ConfiguredExecutor(self, self._settings, settings)

    async def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn(*args, **kwargs)`` in a process of its own, for asyncio: the process ends if this is cancelled."""
        return await self.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks. With `wait`, return when all are done; with `cancel_futures`, drop those that wait."""
        self._finalizer.detach()
        self._manager.close(cancels=cancel_futures)
        if wait:
            self._manager.join()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Shut down; ^C reaches the tasks too, which have process groups of their own."""
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._manager.close(cancels=True)
            self._manager.signal(None, signal.SIGINT)
        self.shutdown(wait=True)


class ConfiguredExecutor(concurrent.futures.Executor):
    """An executor with other settings; its places and its end are those of the one that it was made from."""

    def __init__(self, executor: Executor, settings: Settings, changes: dict[str, Any]) -> None:
        self._executor = executor
        self._settings = settings_of(changes, settings)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Have ``fn(*args, **kwargs)`` called, as `Executor.submit`."""
        return self._executor._submit(self._settings, fn, args, kwargs)

    def configured(self, **settings: Any) -> ConfiguredExecutor:
        """Return it with yet other settings, as `Executor.configured`."""
        return ConfiguredExecutor(self._executor, self._settings, settings)

    async def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn(*args, **kwargs)``, as `Executor.run`."""
        return await self.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the executor down that it was made from, as `Executor.shutdown`."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


def settings_of(changes: dict[str, Any], basis: Settings | None = None) -> Settings:
    """Return `basis`, or what tasks are without, with `changes`. Raises `TypeError` and `ValueError` for wrong ones."""
    unknown = changes.keys() - _SETTINGS
    if unknown:
        raise TypeError(f"tasks have no such settings: {', '.join(sorted(unknown))}")
    settings = (basis or Settings()).changed(**changes)
    if settings.timeout is not None and not settings.timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {settings.timeout!r}")
    if not settings.grace >= 0:
        raise ValueError(f"grace must be a number of seconds, not {settings.grace!r}")
    options = settings.options
    if settings.capture and options is not None and (options.stdout, options.stderr) != (None, None):
        raise ValueError("output that is captured cannot go to the stdout or stderr of options")
    return settings


def _checked_workers(max_workers: int | None) -> int:
    if max_workers is None:
        return usable_cpus()
    if max_workers < 1:
        raise ValueError(f"max_workers must be positive, not {max_workers!r}")
    return max_workers


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _calls(
    preload: Preload,
    initializer: Callable[..., object] | None,
    initargs: tuple[object, ...],
    serializer: str,
) -> list[tuple[str, bytes]]:
    """Return what a template is to call, pickled."""
    from .task import dumps_of

    functions: list[tuple[Any, tuple[object, ...]]] = [
        (function, ()) for function in preload if not isinstance(function, str)
    ]
    if initializer is not None:
        functions.append((initializer, initargs))
    for function, _ in functions:
        if not callable(function):
            raise TypeError(f"only names of modules and callables can be preloaded, not {function!r}")
    dumps = dumps_of(serializer) if functions else pickle.dumps
    return [
        (getattr(function, "__qualname__", None) or repr(function), dumps((function, arguments)))
        for function, arguments in functions
    ]


def _name() -> str:
    """Return a name for a template that no other one has."""
    return f"executor-{os.getpid()}-{next(_numbers)}"


def needs_own_server(
    template: str | None, preload: Preload, initializer: Callable[..., object] | None
) -> bool:
    """Whether tasks need a template that nobody else has. Raises `ValueError` where `template` names another one."""
    is_own = bool(preload) or initializer is not None
    if is_own and template is not None:
        raise ValueError(f"preload and initializer are for a template of its own, and not for {template!r}")
    return is_own


def own_server(
    preload: Preload,
    initializer: Callable[..., object] | None,
    initargs: tuple[object, ...],
    serializer: str,
) -> ForkServer:
    """Return what stands for a template that nobody else has. Raises `TypeError` for what cannot be preloaded."""
    calls = _calls(preload, initializer, initargs, serializer)
    default_server()  # raises where fastfork is not supported
    server = ForkServer(_name())
    modules = [name for name in preload if isinstance(name, str)]
    server.set_forkserver_preload(["__main__", *modules], on_error="fail")
    server.calls = calls
    return server
