"""Starting many processes at once: their requests are under way together, and the template forks without a pause."""

from __future__ import annotations

from multiprocessing import util

from . import _native, shared_modules
from .client import ServerGoneError
from .context import FastForkProcess, _server, be_started, check_start, claim_child_of, give_up
from .errors import StartAllError
from .popen import Popen, parent_sentinel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .client import Claim


class _PostedPopen(Popen):
    """A child that has been asked for: it is there once `complete` has returned."""

    _is_posted = False

    def _launch(self, process_obj: Any) -> None:
        payload = self._prepare(process_obj)
        if not self._is_inline(payload) or not _native.has_pidfds():
            self._launch_with(process_obj, payload)
            return
        dies = _native.FORK_DIE_WITH_CLIENT if self._dies_with_client(process_obj) else 0
        fds = [parent_sentinel(), *self._fds]
        flags = _native.FORK_PIDFD | dies | shared_modules.loaded()
        self._server.post(payload, fds, flags, self._claim, self._options)
        self._is_posted = True

    def complete(self, process_obj: Any) -> None:
        """Wait for the child. Raises `OSError` if there is none."""
        request = self._claim.request
        if not self._is_posted or request is None:
            return
        connection, request_id, _ = request
        try:
            self._child = connection.await_posted(request_id, self._claim)
        except ServerGoneError:  # the next template is asked
            self._fds.clear()
            super()._launch(process_obj)
            return
        self.finalizer = util.Finalize(self, self._child.close)
        self.pid = self._child.pid
        self.sentinel = self._child.sentinel


def start_all(processes: Iterable[FastForkProcess]) -> None:
    """Start processes of fastfork's contexts, all at once.

    It does what a loop of ``process.start()`` does, but asks for all of them before it waits for the first one: the
    template forks one after another without waiting for this process in between.

    Parameters
    ----------
    processes:
        Processes that have not been started; their contexts may differ.

    Raises `TypeError`, and starts none, when one of them is no process of fastfork's. Raises `StartAllError` when some
    of them could not be started: it tells which, and why; the others run.

    """
    listed = list(processes)
    for process in listed:
        if not isinstance(process, FastForkProcess):
            raise TypeError(f"start_all() starts processes of fastfork's contexts, not {process!r}")
    errors: dict[FastForkProcess, Exception] = {}
    posted: dict[FastForkProcess, _PostedPopen] = {}
    claims: dict[FastForkProcess, Claim] = {}
    try:
        for process in listed:
            _post(process, posted, claims, errors)
        while posted:
            process = next(iter(posted))
            _complete(process, posted, errors)
    except BaseException:  # a signal handler's
        give_up(claims)
        raise
    if errors:
        give_up({process: claim for process, claim in claims.items() if process in errors})
        raise StartAllError(errors, len(listed)) from next(iter(errors.values()))


def _post(
    process: FastForkProcess,
    posted: dict[FastForkProcess, _PostedPopen],
    claims: dict[FastForkProcess, Claim],
    errors: dict[FastForkProcess, Exception],
) -> None:
    try:
        check_start(process)
        assert process not in posted, "cannot start a process twice"
        claims[process] = claim_child_of(process)
        posted[process] = _PostedPopen(process, _server(process._template))
    except Exception as error:
        errors[process] = error


def _complete(
    process: FastForkProcess,
    posted: dict[FastForkProcess, _PostedPopen],
    errors: dict[FastForkProcess, Exception],
) -> None:
    try:
        posted[process].complete(process)
    except Exception as error:
        errors[process] = error
    else:
        be_started(process, posted[process])
    del posted[process]
