"""A template: a process in which wide fixtures are set up, and from which tests, and narrower templates, are forked.

It does one command of pytest's process after the other, and tells which of its children have ended.
"""

from __future__ import annotations

import array
import contextlib
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback

from . import internals, system, test_process, wire
from .coverage_data import save_coverage
from .warmth import warm_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from .needs import Key
    from .run import Run

STACKS_SIGNAL = signal.SIGRTMAX - 3 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""Has a test process write the stacks of its threads into the file for crashes."""

_PATIENCE = 2.0
"""Seconds that multiprocessing's own helpers get to end by themselves, once the test that needed them has."""
_PATIENT_WITH = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "from fastfork")
_LOOK_AROUND = 0.5
"""Seconds after which children are looked for even if nothing has told of them."""

_ANCILLARY = socket.CMSG_LEN(array.array("i").itemsize)
"""Bytes in which a descriptor comes; socket.recv_fds() ignores its flags."""


def start(run: Run, group: int, commands: socket.socket) -> NoReturn:
    """Be a template, in the process just forked for it, until told to end. Nothing unwinds past this."""
    code = 1
    try:
        Template(run, group, commands).serve()
        code = 0
    except BaseException:
        os.dup2(run.stderr_fd, 2)
        traceback.print_exc(file=sys.__stderr__)
    finally:
        with contextlib.suppress(BaseException):
            test_process.flush_streams()
        os._exit(code)


class Template:
    """The template of a group of tests."""

    def __init__(self, run: Run, group: int, commands: socket.socket) -> None:
        self._run = run
        self._group = group
        self._commands = commands
        self._tests: dict[int, tuple[int, int]] = {}
        self._templates: dict[int, int] = {}
        self._patient: dict[int, float] = {}
        self._own: set[int] = set()
        self._poll = select.poll()
        self._poll.register(commands, select.POLLIN)
        self._verbs: dict[str, Callable[..., None]] = {
            wire.RUN: self._run_test,
            wire.PREPARE: self._prepare,
            wire.LEAVE: self._leave,
            wire.SIGNAL: self._signal,
        }

    def serve(self) -> None:
        """Do what is commanded, until the end."""
        self._settle()
        while True:
            self._poll.poll(_LOOK_AROUND * 1000)
            self._wakeup.drain()
            self._reap()
            if not self._obey():
                break
        self._end_all()
        save_coverage()

    def _settle(self) -> None:
        """Become a template: what the process that forked this one has set up, is that one's to tear down."""
        test_process.become_one()
        internals.disown(self._run.session)
        self._mute()
        system.adopt_orphans()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._wakeup = Wakeup(self._poll)
        if self._group == 0:
            for slot in self._run.slots:
                os.close(
                    slot.go_writer
                )  # a test that waits to begin has to hear of the end of pytest's process
            crash = self._run.crash_fd
            if faulthandler.is_enabled():
                faulthandler.enable(file=crash)
            faulthandler.register(STACKS_SIGNAL, file=crash)
            internals.silence_reporting(self._run.config)
            self._run.config.pluginmanager.register(self._run.reporter, "fastfork-reporter")
            gc.disable()
            warm_up(self._run)
        gc.disable()
        gc.freeze()

    def _mute(self) -> None:
        """Have what threads of fixtures write be nowhere, but for what is captured while a fixture is at work."""
        if self._run.captured:
            for stream in (1, 2):
                os.dup2(self._run.null_fd, stream)

    def _obey(self) -> bool:
        """Do the commands that have come; whether to go on."""
        while True:
            try:
                message, ancillary, _, _ = self._commands.recvmsg(
                    wire.MAX_MESSAGE, _ANCILLARY, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return True
            if not message:  # pytest's process has gone
                self._kill_all()
                os._exit(1)
            verb, *words = wire.read_command(message)
            if verb == wire.END:
                return False
            if verb == wire.SPAWN:
                self._spawn(*words, *array.array("i", ancillary[0][2]))
            else:
                self._verbs[verb](*words)

    # Commands

    def _run_test(self, index: int, slot: int) -> None:
        pid = self._fork(slot, index)
        if pid == 0:
            self._wakeup.give_back()
            test_process.start(self._run, index, self._run.slots[slot])
        if pid > 0:
            self._tests[pid] = (slot, index)

    def _spawn(self, group: int, fd: int) -> None:
        commands = socket.socket(fileno=fd)
        pid = self._fork(-1, group)
        if pid == 0:
            self._wakeup.give_back()
            self._commands.close()
            start(self._run, group, commands)
        commands.close()
        if pid > 0:
            self._templates[pid] = group

    def _fork(self, slot: int, index: int) -> int:
        """Fork; -1, and a note, when that cannot be done."""
        test_process.flush_streams()  # what threads of fixtures have written is not for each child to write
        try:
            return internals.fork_without_warning()
        except OSError as error:
            self._run.send(wire.note(wire.NOT_FORKED, slot, index, error.errno or 0))
            return -1

    def _prepare(self, index: int, slot: int, keys: list[Key], depth: int) -> None:
        """Set up wide fixtures for a test, the first one that needs them."""
        item = self._run.items[index]
        prepared = self._run.prepared.setdefault(index, internals.Prepared())
        with self._work(slot, index) as told, prepared.recording(item):
            try:
                internals.set_up_wide_fixtures(item, keys, depth)
            finally:
                told.extend(internals.failed_and_missing(item, keys))

    def _leave(self, index: int, slot: int, next_index: int) -> None:
        """Tear down what the next test does not need."""
        items = self._run.items
        with self._work(slot, index):
            report = internals.tear_down(items[index], items[next_index] if next_index >= 0 else None)
            self._run.reporter.pytest_runtest_logreport(report)

    @contextlib.contextmanager
    def _work(self, slot: int, index: int) -> Iterator[list[Any]]:
        """Run code of fixtures, as the test in whose name that is done would. What is yielded is told at the end."""
        told: list[Any] = []
        journal = wire.Journal(self._run.slots[slot].journal)
        test_process.flush_streams()  # of what threads of fixtures have written meanwhile
        internals.redirect(self._run.captured, self._run.slots[slot])
        os.dup2(self._run.slots[slot].crash, self._run.crash_fd, inheritable=False)
        self._run.reporter.journal = journal
        begin = time.perf_counter()
        gc.enable()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield told
        except Exception:
            journal.add(wire.STOP, ("error", traceback.format_exc(), None))
        except BaseException:  # of a fixture: the test meets it again by itself
            pass
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            gc.disable()
            gc.freeze()
            test_process.flush_streams()
            self._mute()
            journal.add(wire.SECONDS, time.perf_counter() - begin)
            self._run.reporter.journal = None
            self._own.update(system.child_pids())
            self._run.send(wire.note(wire.DONE, slot, index, 0, told or None))

    def _signal(self, slot: int, number: int) -> None:
        for pid, (occupied, _) in self._tests.items():
            if occupied == slot:
                if number == signal.SIGKILL:
                    system.kill_group(pid)
                else:
                    system.kill(pid, number)

    # Children

    def _reap(self) -> None:
        """Tell of the children that have ended, once what they have left is gone too."""
        for pid, (slot, index) in list(self._tests.items()):
            status = self._wait_for_test(pid)
            if status is not None:
                del self._tests[pid]
                self._run.send(wire.note(wire.EXITED, slot, index, status, self._clean_up() or None))
        for pid, group in list(self._templates.items()):
            status = _wait(pid)
            if status is not None:
                del self._templates[pid]
                self._clean_up()
                self._run.send(wire.note(wire.TEMPLATE_EXITED, -1, group, status))
        self._lose_patience()

    def _wait_for_test(self, pid: int) -> int | None:
        """Reap a test's process as `_wait` does; kill it if the terminal has stopped it, as nobody would continue it.

        A test that may use the terminal is stopped and continued by the shell, as all of pytest is.
        """
        status = _wait(pid, 0 if self._run.settings.interactive else os.WUNTRACED)
        if status is None or not os.WIFSTOPPED(status):
            return status
        if os.WSTOPSIG(status) not in (signal.SIGTTIN, signal.SIGTTOU):
            return None
        system.kill_group(pid)
        os.waitpid(pid, 0)
        return status

    def _clean_up(self) -> list[tuple[int, str]]:
        """Kill the processes that a test has left. Orphans of a running test are still its own."""
        killed: list[tuple[int, str]] = []
        while True:
            strays = [pid for pid in self._strays() if _wait(pid) is None]
            if not strays:
                return killed
            for pid in strays:
                command = system.command_line(pid)
                if any(name in command for name in _PATIENT_WITH):
                    self._patient[pid] = time.monotonic() + _PATIENCE
                    continue
                system.kill(pid)
                os.waitpid(pid, 0)
                killed.append((pid, command))

    def _strays(self) -> list[int]:
        known = (self._tests, self._templates, self._patient, self._own)
        return [pid for pid in system.child_pids() if not any(pid in pids for pids in known)]

    def _lose_patience(self) -> None:
        for pid, deadline in list(self._patient.items()):
            if _wait(pid) is not None:
                del self._patient[pid]
            elif time.monotonic() > deadline:
                system.kill(pid)

    def _kill_all(self) -> None:
        for pid in self._tests:
            system.kill_group(pid)
        for pid in self._patient:
            system.kill(pid)

    def _end_all(self) -> None:
        self._kill_all()
        for pid in (*self._tests, *self._templates, *self._patient):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


class Wakeup:
    """Has a poll() return when a child has ended."""

    def __init__(self, poll: select.poll) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        poll.register(self._reader, select.POLLIN)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _do_nothing)

    def drain(self) -> None:
        """Forget what has woken up."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def give_back(self) -> None:
        """In a child: have signals do what they do in any other process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._reader.close()
        self._writer.close()


def _do_nothing(_number: int, _frame: object) -> None:
    pass


def _wait(pid: int, options: int = 0) -> int | None:
    """Reap a child if it has ended, and return its wait status."""
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG | options)
    except ChildProcessError:
        return 0
    return status if reaped else None
