"""The process of a Process object: how multiprocessing starts one, waits for it and ends it."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from multiprocessing import popen_fork, process, reduction, util
from multiprocessing.context import get_spawning_popen, set_spawning_popen

from . import forkserver
from .inherited_fd import InheritedFd
from .preparation import preparation_data, shared_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from typing import Any

    from .client import Child, Claim
    from .forkserver import ForkServer
    from .options import ChildOptions

MAX_INLINE_PAYLOAD = 65536
"""Bytes that travel inside the request; more goes from this process to the child, through a pipe."""


class Popen(popen_fork.Popen):
    """A child that a template has forked for a Process object."""

    method = "fastfork"
    DupFd = InheritedFd

    pid: int
    sentinel: int
    _child: Child
    _options: tuple[bytes, list[int]]

    def __init__(self, process_obj: BaseProcess, server: ForkServer | None = None) -> None:
        self._fds: list[int] = []
        # start() drops the arguments, but the child may still have to find a lock among them (gh-94765).
        self._arguments: Any = (process_obj._args, process_obj._kwargs)  # type: ignore[attr-defined]
        self._server = forkserver._forkserver if server is None else server
        self._claim = _claim_of(process_obj)
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Have the child inherit `fd`: its index among those that do."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: Any) -> None:
        self._launch_with(process_obj, self._prepare(process_obj))

    def _prepare(self, process_obj: Any) -> bytes:
        """Make ready what the child is sent: the payload."""
        if self._dies_with_client(process_obj):
            process_obj._die_with_client = True  # before it is pickled: then its own children do so too
        options: ChildOptions | None = vars(process_obj).pop("_options", None)
        try:
            payload = self._pickle(process_obj)
        finally:
            if options is not None:
                process_obj._options = options  # the child is not told them: it becomes what they say
        self._options = (b"", []) if options is None else options.encode()
        return payload

    def _is_inline(self, payload: bytes) -> bool:
        return len(self._options[0]) + len(payload) <= MAX_INLINE_PAYLOAD

    def _launch_with(self, process_obj: Any, payload: bytes) -> None:
        if self._is_inline(payload):
            self._start(process_obj, payload, parent_sentinel())
            self.finalizer = util.Finalize(self, self._child.close)
        else:
            self._launch_through_pipe(process_obj, payload)
        self.pid = self._child.pid
        self.sentinel = self._child.sentinel

    def _start(self, process_obj: Any, payload: bytes, sentinel: int) -> None:
        die_with_client = self._dies_with_client(process_obj)
        self._child = self._server.start(
            payload, sentinel, self._fds, self._claim, die_with_client=die_with_client, options=self._options
        )

    def _dies_with_client(self, process_obj: Any) -> bool:
        """Whether a process dies with this one: as was said for it or for its context, or as this one does itself."""
        chosen = getattr(process_obj, "_die_with_client", None)
        if chosen is not None:
            return bool(chosen)
        return self._server.die_with_client or bool(
            getattr(process.current_process(), "_die_with_client", False)
        )

    def _pickle(self, process_obj: Any) -> bytes:
        data = preparation_data(process_obj._name)
        told = data.pop("name") if shared_part(data) == self._server.prepared else data
        buffer = io.BytesIO()
        outer = get_spawning_popen()  # of a start that a signal handler has come into
        set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            reduction.dump(told, buffer)
            reduction.dump(process_obj, buffer)
        finally:
            set_spawning_popen(outer)
        return buffer.getvalue()

    def _launch_through_pipe(self, process_obj: Any, payload: bytes) -> None:
        ends: list[int] = []
        try:
            # One call, so that no signal handler that raises comes in between.
            ends.extend(itertools.chain.from_iterable(itertools.starmap(os.pipe, [()])))
            self._start(process_obj, b"", ends[0])
            os.close(ends.pop(0))
            # The write end stays open: its end is how the child learns that its parent has gone.
            self.finalizer = util.Finalize(self, _close_both, (self._child, ends))
            _write_payload(ends[0], payload)
        except BaseException:
            _close_all(ends)
            raise

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code, or None while the child lives; wait for it unless `flag` is ``os.WNOHANG``."""
        return self.wait(0.0 if flag == os.WNOHANG else None)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait at most `timeout` seconds (None: no limit) for the exit code."""
        if self.returncode is None:
            self.returncode = self._child.wait(timeout)
            if self.returncode is not None:
                self._arguments = None
        return self.returncode

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None:
            self._child.send_signal(sig)


def _claim_of(process_obj: Any) -> Claim:
    """Return the claim to its child of whoever starts a process; `fastfork.context.claim_child_of` makes one."""
    claim: Claim | None = vars(process_obj).pop("_claim", None)
    if claim is None:
        from .client import Claim

        claim = Claim()
    return claim


def _write_payload(fd: int, payload: bytes) -> None:
    # A child that could not load what it has read so far has ended: its exit code and standard error say so.
    with contextlib.suppress(BrokenPipeError), open(fd, "wb", closefd=False) as stream:
        stream.write(payload)


def _close_both(child: Child, ends: list[int]) -> None:
    child.close()
    _close_all(ends)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


_sentinel_ends: dict[int, tuple[int, int]] = {}
"""By process id, since a raw fork inherits them: read end and write end of the pipe that tells this process's end."""


def parent_sentinel() -> int:
    """Return the read end of a pipe that ends when this process does; one pipe for all children."""
    pid = os.getpid()
    ends = _sentinel_ends.get(pid)
    if ends is None:
        made = os.pipe()
        ends = _sentinel_ends.setdefault(
            pid, made
        )  # one thread's, and never a lock that a fork could copy held
        if ends is not made:
            util.close_fds(*made)  # type: ignore[attr-defined]
    return ends[0]
