"""Multiprocessing contexts whose processes come from templates, and the start method "fastfork"."""

from __future__ import annotations

import operator
import os
import sys
from multiprocessing import context, process, reduction
from multiprocessing.process import BaseProcess

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from .client import Claim
    from .forkserver import ForkServer
    from .options import ChildOptions


class _MethodName(str):
    """The name of the start method. A process that unpickles it knows the method from then on.

    multiprocessing tells each child of a "spawn" or "forkserver" context its parent's start method by name.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[], str], tuple[()]]:
        return _method_name, ()


METHOD: str = _MethodName("fastfork")


def _method_name() -> str:
    return METHOD


def is_supported() -> bool:
    """Whether fastfork works here: it takes a POSIX system with ``fork()`` and CPython."""
    return hasattr(os, "fork") and sys.implementation.name == "cpython" and reduction.HAVE_SEND_HANDLE


def _server(name: str | None) -> ForkServer:
    """Return what stands for the template called `name` in this process; made when first asked for."""
    from . import forkserver

    # In a child, the name of the template that it came from means that one.
    if name is None or name == forkserver._forkserver.name:
        return forkserver._forkserver
    if name not in _servers:
        _servers[name] = forkserver.ForkServer(name)
    return _servers[name]


_servers: dict[str, ForkServer] = {}


_SMALL_CROWD = 16
"""Started processes, as many as which are asked at every start."""

_ASKED_PER_START = 4
"""How many are asked in the mean where there are more."""

_crowd = 0
"""How many started processes there have to be before they are asked whether they have ended."""


def start_process(own: BaseProcess) -> None:
    """Start a process, as `multiprocessing.Process.start` does.

    That asks every process which was started before whether it has ended: with thousands alive this takes longer than
    the start. Here it is done now and then, so that each start asks a few in the mean.
    """
    global _crowd
    check_start(own)
    children: set[BaseProcess] = process._children  # type: ignore[attr-defined]
    if len(children) >= _crowd:
        process._cleanup()  # type: ignore[attr-defined]
        _crowd = max(_SMALL_CROWD, len(children) + len(children) // _ASKED_PER_START + 1)
    claim = claim_child_of(own)
    try:
        be_started(own, own._Popen(own))  # type: ignore[attr-defined]
    except BaseException:
        give_up({own: claim})
        raise


def claim_child_of(own: BaseProcess) -> Claim:
    """Return the claim to the child that the next Popen object of a process is to start."""
    from .client import Claim

    claim = Claim()
    vars(own)["_claim"] = claim
    return claim


def give_up(claims: Mapping[Any, Claim]) -> None:
    """End the children of starts that have come to nothing; not those that their Process objects have by now."""
    from .client import give_up_all

    give_up_all([claim for own, claim in claims.items() if own._popen is None])
    for own in claims:
        vars(own).pop("_claim", None)  # of a start that did not come to its Popen object


def check_start(own: Any) -> None:
    """Raise for what `multiprocessing.Process.start` raises for."""
    own._check_closed()
    assert own._popen is None, "cannot start a process twice"
    assert own._parent_pid == os.getpid(), "can only start a process object created by current process"
    assert not process.current_process().daemon, "daemonic processes are not allowed to have children"


def be_started(own: Any, popen: Any) -> None:
    """Have a Process object be one that has been started."""
    own._popen = popen
    own._sentinel = popen.sentinel
    process._children.add(own)  # type: ignore[attr-defined]
    del own._target, own._args, own._kwargs  # they may refer to the process itself (bpo-30775)


class FastForkProcess(BaseProcess):
    """A process that is forked from a template.

    Parameters
    ----------
    options:
        What it is to be, in which directory, with which environment and limits, and so on; None: as its template is.
    die_with_client:
        True: it is killed, and all below it, when the process that has started it ends in whatever way. None: as its
        options or its context have it, or else as that process itself was started. What a process that has ended before
        left behind lives on. The other parameters are those of `multiprocessing.Process`.

    Raises `TypeError` for options that are none, `ValueError` where they contradict `die_with_client`.

    """

    _start_method = METHOD
    _template: str | None = None
    _die_with_client: bool | None = None
    _options: ChildOptions | None = None

    def __init__(
        self,
        *args: Any,
        options: ChildOptions | None = None,
        die_with_client: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if options is not None:
            die_with_client = _choice_of_death(options, die_with_client)
            self._options = options
        if die_with_client is not None:
            self._die_with_client = die_with_client

    def start(self) -> None:
        """Start the process, as `multiprocessing.Process.start` does; see `start_process`."""
        start_process(self)

    @classmethod
    def _Popen(cls, process_obj: FastForkProcess) -> Any:  # noqa: N802 - multiprocessing's name
        from .popen import Popen

        return Popen(process_obj, _server(cls._template))


def _choice_of_death(options: ChildOptions, die_with_client: bool | None) -> bool | None:
    """Return whether a process dies with its client, as it or its options say."""
    from .options import ChildOptions

    if not isinstance(options, ChildOptions):
        raise TypeError(f"options must be a fastfork.ChildOptions, not {options!r}")
    chosen = options.die_with_client
    if die_with_client is None or chosen is None:
        return chosen if die_with_client is None else die_with_client
    if chosen != die_with_client:
        raise ValueError(f"die_with_client is {die_with_client!r}, and {chosen!r} in the options")
    return chosen


def _rebuild(template: str) -> FastForkProcess:
    cls = get_context(template=template).Process
    return cls.__new__(cls)


def _process_class(template: str) -> type[FastForkProcess]:
    """Make the Process class of a template's context."""

    class TemplateProcess(FastForkProcess):
        _template = template

        def __reduce_ex__(self, protocol: Any) -> Any:
            # The class cannot be found by its name; a subclass of it, in a module, can.
            if type(self) is TemplateProcess:
                return _rebuild, (template,), self.__dict__
            return super().__reduce_ex__(protocol)

    TemplateProcess.__name__ = TemplateProcess.__qualname__ = "FastForkProcess"
    return TemplateProcess


class FastForkContext(context.BaseContext):
    """A multiprocessing context, complete, whose processes are forked from a template.

    Parameters
    ----------
    template:
        The template's name; None for the default one.

    """

    _name = METHOD
    Process: type[FastForkProcess] = FastForkProcess

    def __init__(self, template: str | None = None) -> None:
        self.template = template
        if template is not None:
            self.Process = _process_class(template)

    def set_forkserver_preload(
        self,
        module_names: list[str],
        *,
        on_error: str = "ignore",
        timeout: float | None = None,
        on_threads: str = "warn",
    ) -> None:
        """Set what this context's template imports; see `fastfork.forkserver.ForkServer.set_forkserver_preload`."""
        _server(self.template).set_forkserver_preload(
            module_names, on_error=on_error, timeout=timeout, on_threads=on_threads
        )

    def Pool(  # noqa: N802 - multiprocessing's name
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        """Return a process pool, as `multiprocessing.Pool` does; its workers are started all at once."""
        from .pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context())

    def __reduce__(self) -> tuple[Callable[[str | None], FastForkContext], tuple[str | None]]:
        # By name: the Process class of a named context cannot be pickled, and a child has a context of its own.
        return get_context, (self.template,)

    def _check_available(self) -> None:
        if not is_supported():
            raise ValueError("fastfork start method not available")
        # Once: a class that is changed forgets what it has cached, in each child anew.
        if context.Process.start is not _start_as_chosen:
            context.Process.start = _start_as_chosen  # type: ignore[assignment,method-assign]


_MAX_SPARES = 16
"""``FF_MAX_SPARES`` of the core, which is not loaded yet when options are given."""

_MAX_QUIET = 1_000_000.0
"""Seconds; they are told to the core in milliseconds."""

_contexts: dict[str | None, FastForkContext] = {None: FastForkContext()}


def get_context(
    template: str | None = None,
    *,
    preload: list[str] | None = None,
    on_error: str | None = None,
    preload_timeout: float | None = None,
    on_threads: str | None = None,
    nested: str | None = None,
    die_with_client: bool | None = None,
    max_children: int | None = None,
    spares: int | None = None,
    spare_quiet: float | None = None,
) -> FastForkContext:
    """Return a multiprocessing context whose processes are forked from a template.

    What is None stays as it was set before. What is about the template takes effect with the next one that is
    launched: set it before the first process is started, or use `fastfork.restart`.

    Parameters
    ----------
    template:
        A name: contexts with different names have templates of their own, side by side. None is the default template,
        which ``multiprocessing.get_context("fastfork")`` uses too.
    preload:
        Modules that the template imports before it serves; ``"__main__"`` stands for the main module. The default is
        the main module alone.
    on_error:
        What an exception in a preloaded module does: ``"ignore"`` (the default), ``"warn"`` or ``"fail"``.
    preload_timeout:
        Seconds that preloading may take; then each ``start()`` raises a `PreloadError` with the stacks of where it
        was. The default is no limit.
    on_threads:
        What threads do that preloading leaves running in the template, native ones among them where there is a /proc:
        ``"warn"`` (the default; a `RuntimeWarning` on the template's standard error), ``"ignore"`` or ``"refuse"`` (a
        `PreloadError` in each ``start()``).
    nested:
        ``"share"`` (the default): a child asks the same template for its own children. ``"own"``: it starts another.
    die_with_client:
        True: the processes of this context that this process starts are killed, and all below them, when it ends in
        whatever way. The default, False, is what the standard library does: daemons are terminated at a proper end,
        and others outlive their parent. ``Process(..., die_with_client=...)`` says it for a single one.
    max_children:
        How many processes of the template may live at once, those that its children have started among them: a
        ``start()`` beyond waits until another process has ended. The default is no limit.
    spares:
        How many processes the template may fork ahead of requests, at most 16. It does so while it has nothing else to
        do and processes are started more often than ten times a second; a start then waits for no fork. The default
        is 2; 0 for none. Each takes some hundred KiB. They are no children of anybody yet, and hear of nothing but
        their request.
    spare_quiet:
        Seconds without a start after which these go again. The default is 1.

    Raises `ValueError` where fastfork is not supported and for values that are not known, `TypeError` for a preload
    that is not a list of module names and for a number that is none.

    """
    _contexts[None]._check_available()
    if nested not in (None, "share", "own"):
        raise ValueError(f"nested must be 'share' or 'own', not {nested!r}")
    if max_children is not None and not 1 <= operator.index(max_children) < 2**32:
        raise ValueError(f"max_children must be positive, not {max_children!r}")
    if spares is not None and not 0 <= operator.index(spares) <= _MAX_SPARES:
        raise ValueError(f"spares must be a number from 0 to {_MAX_SPARES}, not {spares!r}")
    if spare_quiet is not None and not 0 < spare_quiet < _MAX_QUIET:
        raise ValueError(f"spare_quiet must be a positive number of seconds, not {spare_quiet!r}")
    made = _contexts.get(template)
    if made is None:
        made = _contexts[template] = FastForkContext(template)
    server = _server(template)
    server.change_preload(preload, on_error=on_error, timeout=preload_timeout, on_threads=on_threads)
    options = {
        "nested": nested,
        "die_with_client": die_with_client,
        "max_children": max_children,
        "spares": spares,
        "spare_quiet": spare_quiet,
    }
    vars(server).update((name, value) for name, value in options.items() if value is not None)
    return made


def _start_as_chosen(own: BaseProcess) -> None:
    """`multiprocessing.Process.start`: as the processes of the start method that the program has chosen start."""
    chosen: Any = vars(context)["_default_context"].get_context()
    chosen.Process.start(own)


class _StartMethods(dict):  # type: ignore[type-arg]
    """Multiprocessing's start methods by name, and "fastfork" for those who ask for it.

    It is not listed: `multiprocessing.get_all_start_methods()` says what it always said, which programs and CPython's
    own tests compare with.
    """

    def __missing__(self, name: str) -> FastForkContext:
        if name == METHOD:
            return _contexts[None]
        raise KeyError(name)


def replace_start_methods(names: tuple[str, ...] | None) -> None:
    """Give whoever asks for one of these start methods, or for the default one, fastfork. None means all of them."""
    methods: dict[str, Any] = vars(context)["_concrete_contexts"]
    for name in names or tuple(methods):
        methods[name] = _contexts[None]
    default: Any = vars(context)["_default_context"]
    default._default_context = _contexts[None]
    default._actual_context = None


def register() -> None:
    """Make "fastfork" a start method of multiprocessing."""
    if not isinstance(context._concrete_contexts, _StartMethods):  # type: ignore[attr-defined]
        context._concrete_contexts = _StartMethods(context._concrete_contexts)  # type: ignore[attr-defined]
