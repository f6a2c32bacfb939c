"""pytest's own process during a run: it has templates do what the plan says, and takes what comes of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from . import internals, system, template, wire
from .driver import Action, Driver
from .durations import Durations
from .plan import Group, Planner
from .records import Results, how_it_ended
from .run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from .settings import Settings
    from .slot import Slot

_AHEAD = 1
"""Test processes that are forked before they may run."""
_LOOK_AROUND = 0.2
"""Seconds between looks at what nothing tells of."""
_GRACE = 5.0
"""Seconds that fixtures get to be torn down after ^C."""
_STACKS = 1.0
"""Seconds that a hanging process gets to write its stacks."""
_TRIES = 3
"""How often a template may die without a test having ended."""
_BUSY_ERRORS = 20
"""How often a fork is tried again while nothing else runs, a tenth of a second apart."""


class Task:
    """What goes on in a slot."""

    __slots__ = (
        "action",
        "begun",
        "driver",
        "ended",
        "index",
        "is_going",
        "is_test",
        "reason",
        "slot",
        "stopped",
    )

    def __init__(self, driver: Driver, slot: Slot, index: int, action: Action) -> None:
        self.driver = driver
        self.slot = slot
        self.index = index
        self.action = action
        self.is_test = action.verb == wire.RUN
        self.is_going = not self.is_test
        self.ended = False
        self.begun = time.monotonic()
        self.stopped = 0.0
        self.reason = ""


class Supervisor:
    """Runs the tests of a session."""

    def __init__(self, session: pytest.Session, settings: Settings) -> None:
        internals.check(session)
        internals.create_base_temp(session.config)
        internals.locate(session.items)
        self._settings = settings
        self._run = Run(session, settings, 2 * settings.workers + 2)
        self._needs = self._run.needs
        self._durations = Durations(session.config, session.items)
        self.results = Results(self._run, self._close)
        self._free = list(reversed(self._run.slots))
        self._tasks: dict[int, Task] = {}
        self._drivers: dict[int, Driver] = {}
        self._given: dict[int, Driver] = {}
        """Those that have been given a template, and may have none any more."""
        self._root_pid = 0
        self._root_pidfd = -1
        self._poll = select.poll()
        self._poll.register(self._run.notes, select.POLLIN)
        self._caution = 0
        self._next_look = 0.0
        self._is_closing = False
        self._repeated: set[int] = set()
        self._own_children = set(system.child_pids())

    # The whole run

    def run(self) -> None:
        """Run all tests, and raise what plain pytest raises where a session ends early."""
        planner = Planner(self._needs, len(self._run.items))
        planner.plan()
        for group in planner.groups:
            driver = self._add_driver(group)
            for index in (*driver.holds, group.last):
                self.results[index].holds += 1
        with self._lifetime():
            while not self.results.is_finished() or self._root_pid:
                self._step()

    @contextlib.contextmanager
    def _lifetime(self) -> Iterator[None]:
        """Have nothing be left at the end, whatever that is."""
        system.adopt_orphans()
        try:
            yield
        except KeyboardInterrupt as error:
            if not isinstance(error, self._run.session.Interrupted):
                self._interrupt()
            raise
        finally:
            self._close(-1)
            system.adopt_orphans(False)
            self._durations.save()
            self._run.close()

    def _add_driver(self, group: Group) -> Driver:
        driver = Driver(group, self._needs, self._durations, self._order_for())
        self._drivers[group.number] = driver
        return driver

    def _order_for(self) -> int:
        """Return for how many workers the order is to be made: tests that may end the session keep theirs."""
        return 1 if self._run.config.getoption("maxfail") else self._settings.workers

    def _step(self) -> None:
        """Begin what can be begun; then show the results of one test, or wait for news."""
        self._dispatch()
        shown = self.results.show_next()
        self._receive(block=not shown)

    # One test at a time, for pytest-xdist's workers

    def run_one(self, index: int, next_index: int) -> None:
        """Run one test, show its results, and tear down what the next one does not need. -1: there is no next one."""
        if not self._drivers:
            self._add_driver(Group(0, 0, 0, len(self._run.items) - 1)).await_more()
            self.results.ends_session = False
            system.adopt_orphans()
        driver = self._drivers[0]
        self.results.next = self._caution = index
        driver.add(index)
        self._step_while(lambda: not self.results[index].complete or bool(driver.busy))
        if driver.would_leave(next_index):
            self._begin_last(driver, index, next_index)
            self._step_while(lambda: bool(driver.busy))
        self.results.show_next()

    def _step_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            self._dispatch()
            self._receive(block=True)

    def finish(self) -> None:
        """End all that `run_one` has begun."""
        if self._drivers:
            self._close(-1)
            system.adopt_orphans(False)
        self._run.close()

    # Dispatching

    def _dispatch(self) -> None:
        self._let_go()
        while self._free and not self._is_closing:
            if not any(self._begin(driver) for driver in self._by_preference()):
                break
            self._let_go()

    def _by_preference(self) -> list[Driver]:
        """Return the drivers with a template: inner ones first, so that few templates live at a time.

        With one worker the innermost one alone: what comes after its tests waits until it has ended.
        """
        if not self._root_pid and self._drivers[0].rest():
            self._start_root()
        serving = self._serving()
        return serving if self._settings.workers > 1 else serving[:1]

    def _serving(self) -> list[Driver]:
        """Return the drivers with a template, the innermost first: few of all."""
        self._given = {
            number: driver for number, driver in self._given.items() if driver.commands is not None
        }
        return sorted(self._given.values(), key=lambda driver: (-driver.group.depth, driver.group.number))

    def _give_template(self, driver: Driver, commands: socket.socket) -> None:
        driver.commands = commands
        self._given[driver.group.number] = driver

    def _let_go(self) -> None:
        """Let test processes that have been forked ahead run."""
        for task in list(self._tasks.values()):
            if not task.is_going and self._running() < self._settings.workers and self._may_go(task.index):
                task.is_going = True
                task.begun = time.monotonic()
                os.write(task.slot.go_writer, b"g")
                self.results.show_start(task.index)

    def _may_go(self, index: int) -> bool:
        """Whether a test may run: one at a time, not before a failure has been shown, as that may end the session."""
        if self._settings.interactive:
            return self.results.next == index
        return self._settings.workers > 1 or self.results.next >= min(self._caution, index)

    def _running(self) -> int:
        return sum(task.is_going and not task.ended for task in self._tasks.values())

    def _begin(self, driver: Driver) -> bool:
        """Have a template do the next thing; whether there was one that can be done now."""
        action = driver.next_action()
        if action is None:
            return False
        if action.verb == wire.RUN:
            return self._begin_test(driver, action)
        if action.verb == wire.SPAWN:
            return self._begin_group(driver, action)
        if action.verb == wire.END:
            self._end_template(driver)
            return True
        return self._begin_work(driver, action)

    def _begin_test(self, driver: Driver, action: Action) -> bool:
        in_flight = sum(not task.ended for task in self._tasks.values())
        ahead = 0 if self._settings.interactive else _AHEAD
        if in_flight >= self._settings.workers + ahead:
            return False
        assert isinstance(action.unit, int)
        self._begin_task(driver, action, wire.command(wire.RUN, action.unit, self._free[-1].number))
        driver.begin_unit()
        return True

    def _begin_group(self, driver: Driver, action: Action) -> bool:
        group = action.unit
        assert isinstance(group, Group)
        outer = driver.and_outer()
        others = sum(other not in outer for other in self._serving())
        if others >= self._settings.workers or not self._is_calm():
            return False
        inner = self._drivers[group.number]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            assert driver.commands is not None
            with contextlib.suppress(OSError):  # as in `_command`
                socket.send_fds(driver.commands, [wire.command(wire.SPAWN, group.number)], [theirs.fileno()])
        inner.parent = driver
        self._give_template(inner, ours)
        driver.begin_unit()
        return True

    def _is_calm(self) -> bool:
        """With one worker, whether all before has ended: then no two fixtures or tests are active at a time."""
        return self._settings.workers > 1 or not any(not task.ended for task in self._tasks.values())

    def _begin_work(self, driver: Driver, action: Action) -> bool:
        assert isinstance(action.unit, int)
        if self._running() >= self._settings.workers or any(
            not task.is_going for task in self._tasks.values()
        ):
            return False
        if any(not task.is_test for task in self._tasks_of(driver)):
            return False
        if action.verb == wire.PREPARE and not self._may_go(action.unit):
            return False
        slot = self._free[-1].number
        if action.verb == wire.PREPARE:
            message = wire.command(wire.PREPARE, action.unit, slot, action.keys, action.depth)
        else:
            driver.is_ending = action.next_index < 0
            message = wire.command(wire.LEAVE, action.unit, slot, action.next_index)
        self._begin_task(driver, action, message)
        driver.busy += 1
        return True

    def _begin_task(self, driver: Driver, action: Action, message: bytes) -> None:
        slot = self._free.pop()
        assert isinstance(action.unit, int)
        self._tasks[slot.number] = Task(driver, slot, action.unit, action)
        self._command(driver, message)

    def _command(self, driver: Driver, message: bytes) -> None:
        if driver.commands is not None:
            with contextlib.suppress(OSError):  # it has died, which will be told
                driver.commands.send(message)

    def _end_template(self, driver: Driver) -> None:
        driver.is_ending = True
        self._command(driver, wire.command(wire.END))

    # The template of the session

    def _start_root(self) -> None:
        root = self._drivers[0]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        pid = internals.fork_without_warning()
        if pid == 0:
            ours.close()
            self._run.notes.close()
            template.start(self._run, 0, theirs)
        theirs.close()
        self._give_template(root, ours)
        self._root_pid = pid
        self._watch_root()

    def _watch_root(self) -> None:
        """Have waiting for news end when the session's template does; without pidfds that is noticed a little later."""
        with contextlib.suppress(AttributeError, OSError):
            self._root_pidfd = os.pidfd_open(self._root_pid)
            self._poll.register(self._root_pidfd, select.POLLIN)

    def _root_has_ended(self) -> None:
        self._root_pid = 0
        if self._root_pidfd >= 0:
            self._poll.unregister(self._root_pidfd)
            os.close(self._root_pidfd)
            self._root_pidfd = -1

    def _look_at_root(self) -> None:
        """Notice that the session's template has ended; what has lived in it is gone."""
        if not self._root_pid:
            return
        pid, status = os.waitpid(self._root_pid, os.WNOHANG)
        if not pid:
            return
        self._root_has_ended()
        self._end_orphans()
        self._receive_all()  # what they have told to the last: their slots are given to others from now on
        root = self._drivers[0]
        if not root.is_ending or status != 0:
            self._mourn(root, status)
        self._hand_on(root)

    def _end_orphans(self) -> None:
        """Kill what is left of all templates and tests."""
        while True:
            strays = [pid for pid in system.child_pids() if pid not in self._own_children]
            if not strays:
                return
            for pid in strays:
                system.kill(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    # News

    def _receive(self, block: bool) -> None:
        """Take the news that there are; wait for some, if there are none. However many come, look around meanwhile."""
        received = self._receive_all()
        if block and not received:
            self._poll.poll(_LOOK_AROUND * 1000)
            received = self._receive_all()
        if not received or time.monotonic() >= self._next_look:
            self._look_around()

    def _look_around(self) -> None:
        """Look at what nothing tells of."""
        self._next_look = time.monotonic() + _LOOK_AROUND
        self._look_at_root()
        self._look_at_clock()

    def _receive_all(self) -> bool:
        """Take the news that there are; whether there were any."""
        received = False
        while self._receive_one():
            received = True
        return received

    def _receive_one(self) -> bool:
        try:
            message = self._run.notes.recv(wire.MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        self._take(wire.Note(message))
        return True

    def _take(self, note: wire.Note) -> None:
        if note.kind == wire.TEMPLATE_EXITED:
            self._template_exited(note)
        elif note.slot < 0:
            self._group_not_forked(note)
        elif note.kind == wire.ENDED:
            self._test_ended(self._tasks[note.slot], note)
        elif note.kind == wire.EXITED:
            self._test_exited(note)
        elif note.kind == wire.DONE:
            self._work_done(note)
        elif note.kind == wire.NOT_FORKED:
            self._test_not_forked(note)

    def _test_ended(self, task: Task, note: wire.Note) -> None:
        task.ended = True
        task.driver.failures = 0
        if note.value:
            self._caution = task.index + 1
        self.results.read_test(task.slot, task.index)
        record = self.results[task.index]
        self._durations.note(task.index, sum(report.get("duration", 0.0) for report in record.reports))
        record.complete = True
        self._let_go()

    def _test_exited(self, note: wire.Note) -> None:
        task = self._tasks[note.slot]
        if not task.ended and not self._is_closing:
            reason = (
                task.reason or f"The test's process {how_it_ended(note.value)} before the test had ended."
            )
            self._crash(task, reason)
        if self._settings.reports_leftovers:
            nodeid = self._run.items[task.index].nodeid
            self.results.leftovers += [(nodeid, f"process {pid} ({line})") for pid, line in note.rest or ()]
        self._free_slot(task)

    def _crash(self, task: Task, reason: str) -> None:
        self._caution = task.index + 1
        task.ended = True
        task.driver.failures = 0
        self.results.crash(task.slot, task.index, reason, time.monotonic() - task.begun)

    def _free_slot(self, task: Task) -> None:
        del self._tasks[task.slot.number]
        task.slot.clear()
        self._free.append(task.slot)
        task.driver.busy -= 1

    def _work_done(self, note: wire.Note) -> None:
        task = self._tasks[note.slot]
        driver = task.driver
        self.results.read_work(task.slot, task.index)
        self._free_slot(task)
        if task.action.verb == wire.PREPARE:
            driver.note_prepared(task.action, *(note.rest or ((), ())))
            return
        driver.note_left(task.action.next_index)
        if driver.is_ending:
            self._end_template(driver)
        else:
            self._release(driver, task.index)

    def _release(self, driver: Driver, index: int) -> None:
        """Let the results of a test be shown: what was to be torn down after it has been, or has gone."""
        if index in driver.holds:
            driver.holds.discard(index)
            self.results[index].holds -= 1

    def _release_lost(self, driver: Driver) -> None:
        """Let those results be shown that waited for what a template will not tear down any more."""
        for index in driver.lose_holds():
            self.results[index].holds -= 1

    def _test_not_forked(self, note: wire.Note) -> None:
        task = self._tasks[note.slot]
        self._free_slot(task)
        task.driver.busy += 1
        if self._try_again(task.driver):
            task.driver.repeat(task.index)
        else:
            task.driver.busy -= 1
            self._fail(task.index, f"No process could be forked for the test: {os.strerror(note.value)}")

    def _group_not_forked(self, note: wire.Note) -> None:
        inner = self._drivers[note.index]
        assert inner.parent is not None
        inner.forget_template()
        if not self._try_again(inner):
            self._give_up(inner, f"No process could be forked for its fixtures: {os.strerror(note.value)}")
        self._hand_on(inner)

    def _try_again(self, driver: Driver) -> bool:
        """Whether a fork that failed is worth another try: while others run, they may give back what it takes."""
        if self._tasks:
            return True
        driver.failures += 1
        time.sleep(0.1)
        return driver.failures < _BUSY_ERRORS

    def _fail(self, index: int, reason: str) -> None:
        self.results.fail(index, "setup", reason, [])

    # The ends of templates

    def _template_exited(self, note: wire.Note) -> None:
        driver = self._drivers[note.index]
        if not driver.is_ending or note.value != 0:
            self._mourn(driver, note.value)
        self._hand_on(driver)

    def _hand_on(self, driver: Driver) -> None:
        """Have the rest of what a template was to do done by another one; forget it, if there is no rest."""
        parent = driver.parent
        if not driver.rest():
            self._forget(driver)
            if parent is not None:
                parent.busy -= 1
        elif parent is not None:
            parent.repeat(driver.group)

    def _forget(self, driver: Driver) -> None:
        """Forget a template that has done its work."""
        driver.hang_up()
        if driver.group.last < len(self._run.items) and self.results[driver.group.last].holds:
            self.results[driver.group.last].holds -= 1

    def _mourn(self, driver: Driver, status: int) -> None:
        """Take the death of a template: what it worked at has failed, the rest is for another one."""
        how = how_it_ended(status)
        driver.failures += 1
        self._lose_inner(driver, how)
        tasks = self._tasks_of(driver)
        if any(not task.is_test for task in tasks):  # then no test has killed it
            self._repeated.difference_update(task.index for task in tasks)
        for task in tasks:
            self._lose(task, how)
        self._forget_template(driver)
        if driver.failures >= _TRIES:
            self._give_up(driver, f"The process for its fixtures {how}, {_TRIES} times over.")

    def _lose_inner(self, driver: Driver, how: str) -> None:
        """Take what the death of a template has ended along with it: the templates forked from it, and their tests."""
        for inner in self._serving():
            if inner.parent is driver:
                self._lose_inner(inner, how)
                for task in self._tasks_of(inner):
                    if task.action.verb == wire.PREPARE:  # the next template will begin with that
                        self._free_slot(task)
                    else:
                        self._lose(task, how)
                self._forget_template(inner)
                self._hand_on(inner)

    def _tasks_of(self, driver: Driver) -> list[Task]:
        return [task for task in self._tasks.values() if task.driver is driver]

    def _forget_template(self, driver: Driver) -> None:
        """Have a driver begin anew, with another template; what the last one had set up is not torn down."""
        driver.forget_template()
        self._release_lost(driver)

    def _lose(self, task: Task, how: str) -> None:
        if task.is_test and not task.ended and not task.reason and self._may_repeat(task):
            task.driver.repeat(task.index)
            task.driver.busy += 1
        elif not task.ended and task.action.verb == wire.LEAVE:
            self._lose_teardown(task, how)
        elif not task.ended:
            what = "its fixtures were being set up" if not task.is_test else "it had been forked"
            reason = task.reason or f"The process in which {what} {how}."
            if task.is_test:
                reason = (
                    task.reason
                    or f"The process from which it had been forked {how}, and took the test along."
                )
            task.driver.skip(task.index)
            self._crash(task, reason)
        self._free_slot(task)

    def _may_repeat(self, task: Task) -> bool:
        """Whether a test that its template has taken along is run again: once, as it may be what has killed that."""
        may = not task.is_going or task.index not in self._repeated
        if task.is_going:
            self._repeated.add(task.index)
        return may

    def _lose_teardown(self, task: Task, how: str) -> None:
        """Report that a template has died while it tore down, on the test before."""
        record = self.results[task.index]
        if record.complete and record.crash is None:
            self.results.fail(
                task.index,
                "teardown",
                task.reason or f"The process in which fixtures were torn down {how}.",
                [],
            )
        self._release(task.driver, task.index)

    def _give_up(self, driver: Driver, reason: str) -> None:
        for index in driver.rest():
            self._fail(index, reason)
        driver.abandon()
        self._release_lost(driver)

    # Time

    def _look_at_clock(self) -> None:
        limit = self._settings.timeout
        now = time.monotonic()
        for task in list(self._tasks.values()):
            if task.stopped:
                self._see_to_end(task, now)
            elif limit is not None and task.is_going and not task.ended and now - task.begun > limit:
                self._stop_hanging(task, limit, now)

    def _stop_hanging(self, task: Task, limit: float, now: float) -> None:
        """Have a test that hangs write its stacks."""
        task.stopped = now
        what = {wire.PREPARE: "The set-up of its fixtures", wire.LEAVE: "The teardown of fixtures"}
        subject = what.get(task.action.verb, "The test")
        task.reason = f"{subject} took longer than {limit:g} s (--fastfork-timeout), and was stopped."
        self._signal(task, template.STACKS_SIGNAL)

    def _see_to_end(self, task: Task, now: float) -> None:
        """Kill a test that hangs, once its stacks are written."""
        waited = now - task.stopped
        size = os.fstat(task.slot.crash).st_size
        if waited > _STACKS or (size and waited > 2 * _LOOK_AROUND):
            self._signal(task, signal.SIGKILL)

    def _signal(self, task: Task, number: int) -> None:
        """Send a signal to a test, through its template, or to a template."""
        if task.is_test:
            self._command(task.driver, wire.command(wire.SIGNAL, task.slot.number, int(number)))
            return
        pid = wire.journal_pid(task.slot.journal)
        if pid:
            system.kill(pid, number)

    # The end

    def _interrupt(self) -> None:
        """Stop at once, and show what has been done."""
        with contextlib.suppress(Exception):
            self._receive(block=False)
        self._close(-1)
        self.results.show_rest()

    def _close(self, index: int) -> None:
        """End all tests and templates. What is torn down is reported on a test; -1: on none."""
        if self._is_closing:
            return
        self._is_closing = True
        deadline = time.monotonic() + _GRACE
        for task in list(self._tasks.values()):
            if task.is_test and not task.ended:
                self._signal(task, signal.SIGKILL)
        for driver in self._drivers.values():
            driver.abandon()
        try:
            self._close_templates(index, deadline)
        finally:
            self._kill_root()

    def _close_templates(self, index: int, deadline: float) -> None:
        while self._root_pid and (index >= 0 or time.monotonic() < deadline):
            for driver in self._serving():
                if self._free:
                    action = driver.next_action()
                    if action is not None and action.verb == wire.END:
                        self._end_template(driver)
                    elif action is not None:
                        self._begin_last(driver, index if index >= 0 else driver.group.last)
            self._receive(block=True)

    def _begin_last(self, driver: Driver, index: int, next_index: int = -1) -> None:
        """Have a template tear down what a test does not need; by default all, as it is to end."""
        driver.is_ending = next_index < 0
        message = wire.command(wire.LEAVE, index, self._free[-1].number, next_index)
        self._begin_task(driver, Action(wire.LEAVE, index, next_index=next_index), message)
        driver.busy += 1

    def _kill_root(self) -> None:
        """Kill what has not ended by itself."""
        if self._root_pid:
            system.kill(self._root_pid)
            os.waitpid(self._root_pid, 0)
            self._root_has_ended()
        self._end_orphans()
        for driver in self._serving():
            driver.hang_up()
