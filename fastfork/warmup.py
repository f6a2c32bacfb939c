"""Preparing a template's memory, so that its children write to as few of its pages as can be.

After a fork every page that a child writes to is copied: at a few hundred pages that is the largest part of a child's
cost. The levers, each of which ``FASTFORK_DISABLE`` (their names, separated by commas, or ``all``) leaves out:

========== ===========================================================================================================
bind       The template's interpreter binds its libraries' symbols at its start (`fastfork.launch`), and not each child
           those that it is the first to use.
freeze     The collector is off during the preload and then forgets what is there (`gc.freeze`): a collection in a
           child writes to nothing of it. Cyclic garbage of the preload is collected once, before.
rehearse   The way of a child, from its request to its end, is gone some times in the template: caches, specialised
           bytecode and bindings of symbols are written before any fork, and not by each child.
immortal   CPython 3.12 and later: what the template holds is no longer counted, so that using it does not write to
           it. Children never free these objects.
nursery    CPython 3.11 and later: a child puts its first new small objects side by side, on 256 KiB of fresh pages, and
           not into what is free on pages of the template. What it frees there is used again for objects of the same
           size, until those 256 KiB have once been full. It then allocates as ever; they are what it may never give
           back.
huge       A heap of more than 32 MiB goes into huge pages, as far as most of it is there, so that a fork and the end of
           a child hardly depend on its size. That takes a second or two for each GB, and at most a quarter more memory.
========== ===========================================================================================================

The variable knows one more, ``spares``: processes forked ahead of requests (`fastfork.forkserver`).
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
import threading
import weakref
from multiprocessing import context as mp_context
from multiprocessing import process, reduction, resource_tracker, spawn, util

from . import _native, answering, huge_pages, immortal, levers, nursery
from .context import get_context
from .forkserver import _forkserver
from .inherited_fd import InheritedFd
from .preparation import preparation_data

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._native import Request
    from .config import TemplateConfig

_REHEARSALS = 30
"""Rounds: CPython specialises bytecode after a few, and its caches settle."""


def warm_up(serve: Callable[[Request, TemplateConfig], int], config: TemplateConfig) -> None:
    """Pull all the levers that are not disabled. The last thing that a template does before it serves.

    Parameters
    ----------
    serve:
        What a child does with its request.
    config:
        What this template is.

    """
    if levers.is_enabled("rehearse"):
        _rehearse(serve, config)
    _fix_heap()
    nursery.install()
    if levers.is_enabled("huge"):
        huge_pages.use()


def settle() -> None:
    """Do the same to what has been loaded since: to that alone, as the template serves, so where the rest is frozen."""
    if levers.is_enabled("freeze"):
        _fix_heap()


def _fix_heap() -> None:
    """Have what is there, less its garbage, be neither counted nor looked at by the collector."""
    gc.collect()
    immortal.make_heap_immortal()
    if levers.is_enabled("freeze"):
        gc.freeze()


def warm_up_for_tasks(_serve: Callable[[Request, TemplateConfig], int], config: TemplateConfig) -> None:
    """Prepare a fork of a client, which may hold much: nothing is done that would write to all of it.

    Its children do tasks, as a rule, and not processes of multiprocessing.
    """
    if levers.is_enabled("rehearse"):
        with _unchanged_process():
            answering.rehearse(_REHEARSALS, config)
    if levers.is_enabled("freeze"):
        gc.freeze()
    nursery.install()


def _nothing(*_arguments: object) -> None:
    pass


def _rehearse(serve: Callable[[Request, TemplateConfig], int], config: TemplateConfig) -> None:
    payload = _pickled_process(config)
    with _unchanged_process():
        for _ in range(_REHEARSALS):
            if _is_only_thread():
                threading._after_fork()  # type: ignore[attr-defined]
            request = _native.rehearsed_request(payload, [-1, -1, -1])
            serve(request, config)
            util._exit_function()  # type: ignore[attr-defined]
            vars(util)["_exiting"] = False
        answering.rehearse(_REHEARSALS, config)


def _is_only_thread() -> bool:
    """Whether threading knows of no other thread that lives, is being started, or has ended and been kept.

    What it does to these after a fork is for a child to do.
    """
    known = {*threading.enumerate(), *threading._dangling}  # type: ignore[attr-defined]
    return known == {threading.current_thread()}


def _pickled_process(config: TemplateConfig) -> bytes:
    """Pickle what a client sends for a process that does nothing with a descriptor."""
    name = "Process-1"
    buffer = io.BytesIO()
    mp_context.set_spawning_popen(object())  # type: ignore[arg-type]
    try:
        reduction.dump(name if config.is_prepared else preparation_data(name), buffer)
        sent = InheritedFd(0)  # as a connection has one, and so has what is made of connections
        reduction.dump(get_context(template=config.name).Process(target=_nothing, args=(sent,)), buffer)
    finally:
        mp_context.set_spawning_popen(None)
    return buffer.getvalue()


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Have this process be afterwards what it was, whatever multiprocessing did to become a child."""
    current = process.current_process()
    default_context = vars(mp_context)["_default_context"]
    tracker = resource_tracker._resource_tracker
    owners = (process, util, spawn, threading, current, default_context, tracker, _forkserver)
    saved = [dict(vars(owner)) for owner in owners]
    sys_path, sys_argv = sys.path, sys.argv
    # What preloaded modules have registered for a fork or an end is for real ones.
    vars(util).update(_afterfork_registry=weakref.WeakValueDictionary(), _finalizer_registry={})
    # The end of this interpreter's threads is not to be played, and standard input is closed already.
    vars(threading)["_shutdown"] = vars(util)["_close_stdin"] = _nothing
    try:
        yield
    finally:
        sys.path, sys.argv = sys_path, sys_argv
        for owner, names in zip(owners, saved):
            vars(owner).update(names)
