"""The thread of an executor: it starts tasks, waits for all of them at once, and settles their futures."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
import weakref
from collections import deque

from . import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .call import Call
    from .client import Connection
    from .forkserver import ForkServer
    from .futures import TaskFuture
    from .submission import Submission

_STEP = 0.05
"""Seconds after which a death is asked for again that another thread may have been told of, and a process killed again
that may not have been there."""

_LOOK = 1.0
"""Seconds after which running tasks are looked at though nothing has come from them: a process that one of them has
forked past all of Python's hooks may keep the task's channel from its end."""

_END_DEADLINE = 10.0
"""Seconds that processes whose tasks are done may take to end before an executor that is shut down leaves them."""


class _Running:
    """A task in its process."""

    def __init__(self, submission: Submission, call: Call) -> None:
        self.submission = submission
        self.call = call
        self.deadline = submission.deadline_from(time.monotonic())
        self.is_told_to_end = False
        self.is_over_limit = False
        self.is_answered = False
        self.awaits_end = False


class Manager:
    """Runs the tasks of one executor.

    Parameters
    ----------
    server:
        What stands for the template that the tasks are forked from.
    max_workers:
        How many may run at once.
    owns_server:
        Whether the template is this executor's alone, and ends with it.

    Attributes
    ----------
    server:
        As above.

    """

    def __init__(self, server: ForkServer, max_workers: int, *, owns_server: bool) -> None:
        self.server = server
        self._max_workers = max_workers
        self._owns_server = owns_server
        self._reset()
        _managers.add(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._queue: deque[Submission] = deque()
        self._orders: deque[tuple[TaskFuture | None, int]] = deque()
        self._starting: Submission | None = None
        self._running: dict[TaskFuture, _Running] = {}
        self._ending: list[_Running] = []
        self._watched: dict[Connection, int] = {}
        self._thread: threading.Thread | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake_r = self._wake_w = -1
        self._is_closing = False
        self._is_woken = False

    # ---- for any thread ----

    def submit(self, submission: Submission) -> None:
        """Have a task done as soon as there is room for it. Raises `RuntimeError` after `close`.

        A template is launched here and now: once the program has come to its end, its main module has no file any more.
        """
        with contextlib.suppress(OSError):  # it fails again when the task is to start
            self.server.ensure_launched()
        with self._lock:
            if self._is_closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.append(submission)
            if self._thread is None:
                self._launch_thread()
            elif len(self._running) < self._max_workers:
                self._wake()

    def signal(self, future: TaskFuture | None, number: int) -> None:
        """Send a signal to the process of a task, or of all that run where `future` is None.

        After the task's grace, or at once if it is that, SIGKILL goes to its process group.
        """
        with self._lock:
            self._orders.append((future, number))
            self._wake()

    def close(self, *, cancels: bool = False) -> None:
        """Take no more tasks; what has been taken is done, unless it is cancelled now."""
        with self._lock:
            if self._owns_server and self._thread is None and not self._is_closing:
                self.server.stop()
            self._is_closing = True
            if cancels:
                for submission in self._queue:
                    submission.future.cancel()
            self._wake()

    def join(self) -> None:
        """Wait until all is done, after `close`."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def after_fork_in_child(self) -> None:
        """In a process that a client has forked: its tasks are its parent's, new ones may be submitted."""
        running, waiting = self._running, [*self._queue]
        if self._starting is not None:
            waiting.append(self._starting)
        if self._selector is not None:
            self._selector.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
        self._reset()
        self._owns_server = False
        error = RuntimeError("the task belongs to the process that this one was forked from")
        for started in running.values():
            started.call.sock.close()
            started.submission.disown(error)
        for submission in waiting:
            submission.disown(error)

    def _launch_thread(self) -> None:
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="fastfork-executor")
        self._thread.start()

    def _wake(self) -> None:
        if self._wake_w >= 0 and not self._is_woken:
            self._is_woken = True
            os.write(self._wake_w, b"!")

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._start_waiting()
            while not self._is_over():
                self._take_events()
                self._obey()
                self._keep_time()
                self._settle_ends()
                self._start_waiting()
            self._await_ends()
        except BaseException as error:
            self._fail_all(error)
            raise
        finally:
            self._end_thread()

    def _fail_all(self, error: BaseException) -> None:
        """Leave nobody waiting where this thread cannot go on, for want of memory or through a fault of its own."""
        with self._lock:
            self._is_closing = True
            submissions = [running.submission for running in [*self._running.values(), *self._ending]]
            submissions += [self._starting, *self._queue] if self._starting is not None else self._queue
            self._queue.clear()
        for running in self._running.values():
            running.call.abandon()
        for submission in submissions:
            if not submission.future.cancel():
                submission.fail(error)

    def _is_over(self) -> bool:
        with self._lock:
            return self._is_closing and not self._queue and not self._running

    def _end_thread(self) -> None:
        if self._owns_server:
            self.server.stop()
        with self._lock:
            assert self._selector is not None
            self._selector.close()
            wake_r, wake_w, self._wake_r, self._wake_w = self._wake_r, self._wake_w, -1, -1
            os.close(wake_r)
            os.close(wake_w)
            self._selector = None
            self._thread = None

    def _take_events(self) -> None:
        assert self._selector is not None
        for key, mask in self._selector.select(self._timeout()):
            if isinstance(key.data, _Running):
                self._go_on(key.data, mask)
            elif key.data is None:
                self._take_wake()

    def _take_wake(self) -> None:
        with self._lock:
            self._is_woken = False
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 64)

    def _timeout(self) -> float | None:
        """Return after how many seconds there is something to look at."""
        if not self._running:
            return _STEP if self._watched else None
        timeout = _STEP if self._watched else _LOOK
        deadline = min((running.deadline for running in self._running.values()), default=0.0)
        return max(0.0, min(timeout, deadline - time.monotonic()))

    def _start_waiting(self) -> None:
        while self._queue and len(self._running) < self._max_workers:
            with self._lock:
                self._starting = self._queue[0]
                submission = self._queue.popleft()
            if submission.future.running() or submission.future.set_running_or_notify_cancel():
                self._start(submission)
            self._starting = None

    def _start(self, submission: Submission) -> None:
        try:
            call = submission.start(self.server)
        except Exception as error:
            submission.fail(error)
            return
        running = _Running(submission, call)
        self._running[submission.future] = running
        is_sent = not call.unsent or call.send()
        assert self._selector is not None
        events = selectors.EVENT_READ if is_sent else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(call.sock, events, running)

    def _go_on(self, running: _Running, mask: int) -> None:
        assert self._selector is not None
        if mask & selectors.EVENT_WRITE and running.call.send():
            self._selector.modify(running.call.sock, selectors.EVENT_READ, running)
        if not mask & selectors.EVENT_READ:
            return
        try:
            if running.is_answered:
                self._await_end_of_stream(running)
            elif running.call.read():
                self._take_answer(running)
        except EOFError:
            self._part(running)
        except (OSError, MemoryError, OverflowError, ValueError) as error:  # nothing that a task sends
            running.submission.fail(error)
            running.call.kill(signal.SIGKILL, whole_group=True)
            self._part(running)

    def _await_end_of_stream(self, running: _Running) -> None:
        with contextlib.suppress(BlockingIOError):
            if not running.call.sock.recv(1):
                raise EOFError

    def _take_answer(self, running: _Running) -> None:
        """Take the answer; the next task is on its way before this one's future is settled."""
        running.is_answered = True
        reader = running.call.reader
        is_final = bool(reader.kind & task.FINAL)
        if is_final:
            self._part(running)
            self._start_waiting()
        if is_final or not running.submission.captures():
            self._settle(running)

    def _settle(self, running: _Running) -> None:
        reader = running.call.reader
        running.submission.settle(
            reader.kind & ~task.FINAL, reader.parts, is_over_limit=running.is_over_limit
        )

    def _part(self, running: _Running) -> None:
        """Take leave of a process: there is room for another one."""
        assert self._selector is not None
        self._selector.unregister(running.call.sock)
        running.call.sock.close()
        del self._running[running.submission.future]
        self._ending.append(running)
        if running.is_over_limit:
            running.call.kill(signal.SIGKILL, whole_group=True)  # whoever it has left
        is_settled = running.submission.future.done() or (running.is_answered and self._is_final(running))
        if not is_settled or running.call.is_due_a_signal():
            running.awaits_end = True
            self._watch(running.call.connection)

    def _is_final(self, running: _Running) -> bool:
        return bool(running.call.reader.kind & task.FINAL)

    # ---- ends ----

    def _watch(self, connection: Connection) -> None:
        """Learn of what a server tells of ends: otherwise it is taken along with the next request."""
        assert self._selector is not None
        if connection not in self._watched and not connection.is_over():
            self._watched[connection] = connection.fileno()
            self._selector.register(self._watched[connection], selectors.EVENT_READ, connection)

    def _unwatch_all(self) -> None:
        assert self._selector is not None
        for fd in self._watched.values():
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(fd)
        self._watched.clear()

    def _settle_ends(self) -> None:
        """Forget the processes that have ended; the futures of those that had not answered are settled now."""
        left = []
        for running in self._ending:
            if self._has_ended(running):
                continue
            left.append(running)
        self._ending = left
        if self._watched and not any(running.awaits_end for running in left):
            self._unwatch_all()

    def _has_ended(self, running: _Running) -> bool:
        try:
            has_ended = running.call.update() if running.awaits_end else running.call.has_ended()
        except OSError as error:  # there was no process
            if running.submission.may_start_again(error):
                self._queue.appendleft(running.submission)
            else:
                running.submission.fail(error)
            return True
        if has_ended and running.awaits_end and not running.submission.future.done():
            self._settle_dead(running)
        return has_ended

    def _settle_dead(self, running: _Running) -> None:
        child = running.call.child()
        if running.is_answered:
            self._settle(running)
        elif child is not None:
            running.submission.settle_dead(child, is_over_limit=running.is_over_limit)

    def _await_ends(self) -> None:
        deadline = time.monotonic() + _END_DEADLINE
        while self._ending and time.monotonic() < deadline:
            for running in self._ending:
                self._watch(running.call.connection)
            assert self._selector is not None
            self._selector.select(_STEP)
            for running in self._ending:
                with contextlib.suppress(OSError):
                    running.call.update()
            self._settle_ends()
        self._unwatch_all()

    # ---- time and orders ----

    def _keep_time(self) -> None:
        now = time.monotonic()
        for running in list(self._running.values()):
            if running.deadline <= now:
                self._end_for_time(running, now)

    def _end_for_time(self, running: _Running, now: float) -> None:
        grace = running.submission.settings.grace
        running.is_over_limit |= not running.is_told_to_end
        if running.is_told_to_end or grace == 0:
            running.call.kill(signal.SIGKILL, whole_group=True)
            running.deadline = now + _STEP  # again, in case that it was not there yet
        else:
            running.call.kill(signal.SIGTERM)
            running.deadline = now + grace
        running.is_told_to_end = True

    def _obey(self) -> None:
        """Do what other threads have asked for."""
        for _ in range(len(self._orders)):
            future, number = self._orders.popleft()
            if future is None:
                for running in self._running.values():
                    self._end_for_order(running, number)
            elif future in self._running:
                self._end_for_order(self._running[future], number)
            elif not future.done():  # its template has died, and it is to start again
                self._orders.append((future, number))

    def _end_for_order(self, running: _Running, number: int) -> None:
        """End a task: one that is interrupted and goes on is killed after its grace."""
        running.is_told_to_end = True
        running.deadline = time.monotonic()
        if number != signal.SIGKILL:
            running.call.kill(number)
            running.deadline += running.submission.settings.grace


_managers: weakref.WeakSet[Manager] = weakref.WeakSet()


def known_managers() -> list[Manager]:
    """Return those that there are in this process."""
    return list(_managers)


def _close_all() -> None:
    """At the end of the interpreter: what has been submitted is done, as with the executors of the standard library."""
    for manager in known_managers():
        manager.close()


def _after_fork_in_child() -> None:
    for manager in known_managers():
        manager.after_fork_in_child()


threading._register_atexit(_close_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork_in_child)
