"""Preloads that do what no module should: their children are as the standard library's, or one error says why not."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import preloading, targets
from support.processes import DEADLINE, children_of, is_alive, wait_until

import fastfork

RAISED = {
    "Exception": "raise Exception('no luck')",
    "BaseException": "raise BaseException('no luck')",
    "GeneratorExit": "raise GeneratorExit('no luck')",
    "StopIteration": "raise StopIteration('no luck')",
    "CancelledError": "import asyncio; raise asyncio.CancelledError('no luck')",
    "MemoryError": "raise MemoryError('no luck')",
    "RecursionError": "def recurse(): recurse()\nrecurse()",
    "SyntaxError": "def 1",
    "TabError": "if True:\n\tpass\n        pass",
    "null bytes": "\0",
    "another encoding": "# coding: no-such-encoding",
    "ModuleNotFoundError": "import no_such_module_anywhere",
    "ImportError": "from os import no_such_name",
    "a class that is no exception": "raise 7",
    "an unprintable exception": """
class Unprintable(Exception):
    def __str__(self): raise ValueError
    __repr__ = __str__
raise Unprintable
""",
    "an exception that cannot be printed for ^C": """
class Unprintable(BaseException):
    def __str__(self): raise KeyboardInterrupt
    __repr__ = __str__
raise Unprintable
""",
    "an unpicklable exception": """
class Unpicklable(Exception):
    def __reduce__(self): raise TypeError
raise Unpicklable('no luck')
""",
    "an exception that is its own cause": "e = ValueError('no luck'); e.__cause__ = e; raise e",
    "an exception with a surrogate": "raise ValueError('\\ud800')",
    "SystemExit": "raise SystemExit('no luck')",
    "SystemExit of 0": "import sys; sys.exit(0)",
    "SystemExit of an object": "import sys; sys.exit(object())",
}
if sys.version_info >= (3, 11):
    RAISED["ExceptionGroup"] = "raise ExceptionGroup('no luck', [ValueError('one'), TypeError('two')])"
    RAISED["BaseExceptionGroup"] = "raise BaseExceptionGroup('no luck', [KeyboardInterrupt(), SystemExit(3)])"


KINDS = {
    "null bytes": "null bytes",
    "another encoding": "unknown encoding: no-such-encoding",
    "a class that is no exception": "TypeError: exceptions must derive from BaseException",
    "an unprintable exception": "Unprintable",
    "an exception that cannot be printed for ^C": "Unprintable",
    "an unpicklable exception": "Unpicklable: no luck",
    "an exception that is its own cause": "ValueError: no luck",
    "an exception with a surrogate": "ValueError: \\ud800",
    "SystemExit of 0": "SystemExit: 0",
    "SystemExit of an object": "SystemExit: <object object",
}
"""What is told of those whose kinds are not their names."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose modules every process finds.

    By PYTHONPATH: early releases of 3.13 and before do not tell their server `sys.path` (gh-117378).
    """
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def preload(server, folder):
    """Start another template, which has a module of the given source preloaded, and one of another source."""

    def preload(source, *more, **options):
        names = ["preloaded", *(f"preloaded_{number}" for number in range(len(more)))]
        for name, text in zip(names, (source, *more)):
            (folder / f"{name}.py").write_text(f"{text}\n", encoding="utf-8")
        server._module._forkserver._stop()
        server._module.set_forkserver_preload([*names, "colorsys"], **options)
        server.ensure_running()
        return server

    yield preload
    server._module.set_forkserver_preload(["__main__"])


def report(server, function, *arguments):
    """Run a function of `support.preloading` in a process; return what it returns."""
    return report_of(server.context, function, *arguments)


def check(server):
    """See that processes can be started, and that what is preloaded last is there."""
    server.check_starts(5)
    assert report(server, preloading.module_is_there, "colorsys")


def error_of_start(start):
    with pytest.raises(OSError) as caught:  # noqa: PT011 - each test says which
        start(targets.nothing)
    return caught.value


# ---- what it raises ----


@pytest.mark.fault("A preload raises an exception")
def test_whatever_preloads_raise_is_ignored(capfd, preload):
    check(preload(*RAISED.values()))


def test_whatever_preloads_raise_is_a_warning_where_asked_for(capfd, monkeypatch, preload):
    monkeypatch.setenv("PYTHONWARNINGS", "always::ImportWarning")
    check(preload(*RAISED.values(), on_error="warn"))
    assert capfd.readouterr().err.count("Failed to preload 'preloaded") == len(RAISED)


def test_a_warning_that_is_to_be_an_error_fails_the_start(capfd, monkeypatch, preload):
    monkeypatch.setenv("PYTHONWARNINGS", "error::ImportWarning")
    error = error_of_start(preload(RAISED["Exception"], on_error="warn").start)
    assert isinstance(error, fastfork.PreloadError)
    assert "no luck" in str(error)


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_preload_raises_fails_the_start_where_asked_for(capfd, preload, kind):
    error = error_of_start(preload(RAISED[kind], on_error="fail").start)
    assert isinstance(error, fastfork.PreloadError)
    assert error.module == "preloaded"
    assert "preloaded.py" in error.traceback or kind == "null bytes"  # of these the compiler names no file
    assert KINDS.get(kind, kind) in error.traceback
    assert error.traceback == capfd.readouterr().err


def test_a_failure_without_standard_error_reaches_the_caller(preload):
    server = preload(
        "import sys; sys.stdout = sys.stderr = None; raise ValueError('no luck')", on_error="fail"
    )
    error = error_of_start(server.start)
    assert isinstance(error, fastfork.PreloadError)
    assert "no luck" in error.traceback


# ---- how it ends the template ----


ENDINGS = {
    "KeyboardInterrupt": (1, "raise KeyboardInterrupt"),
    "SIGINT": (1, "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass"),
    "os._exit(3)": (3, "import os; os._exit(3)"),
    "os._exit(0)": (0, "import os; os._exit(0)"),
    "SIGKILL": (-9, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    "a null pointer": (
        -11,
        "import ctypes, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); ctypes.memset(0, 1, 1)",
    ),
    "another program": (5, "import os; os.execv('/bin/sh', ['sh', '-c', 'exit 5'])"),
}
"""What ends a template before it serves, and its exit code."""


@pytest.mark.parametrize("how", ENDINGS)
def test_a_preload_that_ends_the_template_is_one_error_that_tells_its_exit_code(
    capfd, preload, folder, monkeypatch, tmp_path, how
):
    code, source = ENDINGS[how]
    sockets = tmp_path / "t"
    sockets.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(sockets))
    server = preload(source)
    error = error_of_start(server.start)
    assert isinstance(error, ConnectionError)
    assert f"exit code {code}" in str(error)
    assert list(sockets.iterdir()) == []
    (folder / "preloaded.py").write_text("mended = True\n")
    check(server)


@pytest.fixture
def lasting(tmp_path):
    """Source that forks a process which goes on until the test has ended, and all that it has from the template."""
    released = tmp_path / "released"
    yield f"""
import os, time
if os.fork() == 0:
    while not os.path.exists({str(released)!r}): time.sleep(0.01)
    os._exit(0)
"""
    released.touch()


def error_in_time(server, released):
    """Return the error of a start in a thread, which the test outlives even where there is none."""
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(error_of_start, server.start)
        try:
            return started.result(20)
        finally:
            released.touch()


@pytest.mark.parametrize(
    ("end", "options", "error"),
    [
        ("os._exit(3)", {}, ConnectionError),
        ("raise ValueError('no luck')", {"on_error": "fail"}, fastfork.PreloadError),
    ],
)
def test_a_process_that_a_preload_has_forked_holds_up_nobody_when_the_template_dies(
    capfd, preload, lasting, tmp_path, end, options, error
):
    """It has the listener, so that connections can be made which nobody takes, and the pipe of the report."""
    server = preload(lasting + end, **options)
    assert isinstance(error_in_time(server, tmp_path / "released"), error)


def test_a_process_that_a_preload_has_forked_does_not_hinder_the_next_template(preload, lasting, tmp_path):
    server = preload(lasting)
    check(server)
    os.kill(server.pid, signal.SIGKILL)
    check(server)


@pytest.mark.fault("A preload forks a process, which lives on when the template dies")
def test_a_process_that_a_preload_has_forked_holds_up_no_other_client(preload, lasting, tmp_path):
    """A process of the template has not launched it: all that it can tell of its death is that nobody listens."""
    server = preload(lasting)
    kill_and_start = preloading.exit_code_of_start_after_death
    process, receiver = asked(server.context, kill_and_start, server.context.get_start_method())
    try:
        assert receiver.poll(20)
        assert receiver.recv() == 7
    finally:
        (tmp_path / "released").touch()
        receiver.close()
    process.join(DEADLINE)


# ---- a hang ----


HANGS = {
    "in Python": "import time\ndef hang_here(): time.sleep(600)\nhang_here()",
    "in C, with the GIL": "import ctypes\ndef hang_here(): ctypes.PyDLL(None).sleep(600)\nhang_here()",
    "in a loop": "def hang_here():\n    while True: pass\nhang_here()",
    "in a loop that nothing ends": """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
def hang_here():
    while True:
        try:
            while True: pass
        except BaseException: pass
hang_here()
""",
    "in a thread that is waited for": """
import threading, time
def hang_here(): time.sleep(600)
thread = threading.Thread(target=hang_here, name="that hangs")
thread.start()
thread.join()
""",
}


def context_that_preloads(folder, source, **options):
    """Return a context of a template of its own that has the source preloaded."""
    (folder / "preloaded.py").write_text(f"{source}\n")
    return fastfork.get_context(template="of the test", preload=["preloaded"], **options)


def start(context, target=targets.nothing, *arguments):
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("where", HANGS)
def test_a_preload_that_hangs_is_an_error_that_shows_where(capfd, folder, where):
    context = context_that_preloads(folder, HANGS[where], preload_timeout=0.5)
    before, begun = children_of(os.getpid()), time.monotonic()
    error = error_of_start(lambda target: start(context, target))
    assert 0.5 <= time.monotonic() - begun < 20
    assert isinstance(error, fastfork.PreloadError)
    assert "hang_here" in str(error)
    assert before == children_of(os.getpid())
    (folder / "preloaded.py").write_text("")
    process = start(context, targets.leave, 3)
    process.join(DEADLINE)
    assert process.exitcode == 3


def test_a_preload_that_hangs_is_an_error_for_all_who_wait(capfd, folder):
    """Whoever still waits then has another template tried, for as long: one for each of them at most."""
    begun = f"open({str(folder / 'begun')!r}, 'a').write('x')\n"
    context = context_that_preloads(folder, begun + HANGS["in Python"], preload_timeout=0.5)
    at_once = threading.Barrier(4)

    def start_at_once():
        at_once.wait()
        start(context)

    with ThreadPoolExecutor(4) as pool:
        errors = [future.exception(DEADLINE) for future in [pool.submit(start_at_once) for _ in range(4)]]
    assert {type(error) for error in errors} == {fastfork.PreloadError}
    assert len((folder / "begun").read_text()) <= 4


def test_the_time_limit_is_over_once_the_template_serves(folder):
    context = context_that_preloads(folder, "", preload_timeout=3)
    begun = time.monotonic()
    template = report_of(context, os.getppid)
    wait_until(lambda: time.monotonic() > begun + 3.5)
    assert report_of(context, os.getppid) == template


def test_a_time_limit_that_makes_no_sense_is_refused():
    for limit in (0, -1):
        with pytest.raises(ValueError, match="preload"):
            fastfork.get_context(template="of the test", preload_timeout=limit)


def asked(context, function, *arguments):
    """Have a process of the context run a function; return the process, and where what that returns comes."""
    receiver, sender = context.Pipe(duplex=False)
    process = start(context, preloading.send_result, sender, function, *arguments)
    sender.close()
    return process, receiver


def report_of(context, function, *arguments):
    """Run a function in a process of the context; return what it returns."""
    process, receiver = asked(context, function, *arguments)
    result = receiver.recv()
    receiver.close()
    process.join(DEADLINE)
    assert process.exitcode == 0
    return result


# ---- threads ----


THREADS = """
import threading
for name in ("the first", "the second"):
    threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()
ended = threading.Thread(target=int, name="the ended")
ended.start()
ended.join()
"""


def test_threads_that_a_preload_leaves_running_are_named_in_a_warning(capfd, folder):
    context = context_that_preloads(folder, THREADS)
    assert [report_of(context, preloading.preloaded_threads) for _ in range(3)] == [1] * 3
    error = capfd.readouterr().err
    assert error.count("RuntimeWarning") == 1
    assert "the first" in error
    assert "the second" in error
    assert "the ended" not in error
    assert "MainThread" not in error


def test_threads_that_a_preload_leaves_running_can_be_passed_over(capfd, folder):
    context = context_that_preloads(folder, THREADS, on_threads="ignore")
    assert report_of(context, preloading.preloaded_threads) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("on_error", ["ignore", "fail"])
def test_threads_that_a_preload_leaves_running_can_be_refused(capfd, folder, on_error):
    context = context_that_preloads(folder, THREADS, on_threads="refuse", on_error=on_error)
    error = error_of_start(lambda target: start(context, target))
    assert isinstance(error, fastfork.PreloadError)
    assert "the first" in str(error)
    assert "the second" in str(error)
    (folder / "preloaded.py").write_text("")
    assert report_of(context, preloading.preloaded_threads) == 1


@pytest.mark.parametrize("on_threads", ["warn", "refuse"])
def test_a_preload_that_leaves_no_thread_running_is_not_warned_of(capfd, folder, on_threads):
    source = THREADS.replace("Event().wait", "Event").replace("daemon=True", "")
    context = context_that_preloads(folder, source, on_threads=on_threads)
    time_of_threads = report_of(context, preloading.preloaded_threads)
    assert time_of_threads == 1
    assert capfd.readouterr().err == ""


def test_a_word_that_is_not_known_for_threads_is_refused():
    with pytest.raises(ValueError, match="on_threads"):
        fastfork.get_context(template="of the test", on_threads="kill")


# ---- signals ----


HANDLERS = """
import signal
handled = []
def handle(number, frame): handled.append(int(number))
"""


@pytest.mark.fault("A preload installs signal handlers")
@pytest.mark.parametrize(
    "number", [signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1]
)
def test_a_handler_of_a_preload_is_that_of_the_children(preload, number):
    server = preload(HANDLERS + f"signal.signal({int(number)}, handle)")
    check(server)
    assert report(server, preloading.handlers, number) == ["handle"]
    assert report(server, preloading.disposition, number) == "caught"
    assert report(server, preloading.signals_handled_by_preloaded, number) == [number]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_handler_of_a_preload_does_not_keep_the_template_from_its_end(preload, number):
    """Nobody would call it: no Python runs while the template serves."""
    server = preload(HANDLERS + f"signal.signal({int(number)}, handle)")
    check(server)
    before, folder = server.pid, os.path.dirname(server.address)
    os.kill(before, number)
    wait_until(lambda: not is_alive(before))
    assert not os.path.exists(folder)
    check(server)
    assert server.pid != before
    assert report(server, preloading.handlers, number) == ["handle"]


ENDS_BY_ITSELF = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
"""


def test_a_handler_of_a_preload_is_that_of_the_children_from_their_first_moment(preload):
    server = preload(ENDS_BY_ITSELF)
    for _ in range(100):
        process = server.start(targets.wait_for_a_signal)
        process.terminate()
        process.join(DEADLINE)
        assert process.exitcode == 7
        process.close()


@pytest.mark.fault("A preload ignores SIGCHLD")
@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_preload_ignores_is_ignored_by_the_children(preload, number):
    server = preload(f"import signal; signal.signal({int(number)}, signal.SIG_IGN)")
    check(server)
    assert report(server, preloading.handlers, number) == ["1"]
    assert report(server, preloading.disposition, number) == "ignored"


@pytest.mark.fault("A preload blocks signals")
def test_signals_that_a_preload_blocks_are_blocked_in_the_children(preload):
    server = preload("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())")
    check(server)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        assert report(server, preloading.is_blocked, number)


@pytest.mark.fault("A preload leaves a timer running")
def test_a_timer_of_a_preload_disturbs_nobody(preload):
    server = preload(
        HANDLERS + "signal.signal(signal.SIGALRM, handle)\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)"
    )
    server.check_starts(50)


FOREIGN_HANDLERS = """
#include <signal.h>
static void handle(int number) { (void)number; }
__attribute__((constructor)) static void install(void)
{
    signal(SIGINT, handle);
    signal(SIGCHLD, handle);
    signal(SIGTERM, handle);
}
"""


@pytest.mark.fault("A signal handler from outside Python")
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_handlers_that_python_does_not_know_are_those_of_the_children(preload, tmp_path, monkeypatch):
    """signal.signal() answers None to whoever comes after them (dask#5204)."""
    (tmp_path / "foreign.c").write_text(FOREIGN_HANDLERS)
    library = tmp_path / "foreign.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "foreign.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    server = preload("import signal; assert signal.getsignal(signal.SIGCHLD) is None")
    monkeypatch.delenv("LD_PRELOAD")
    check(server)
    for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM):
        assert report(server, preloading.handlers, number) == ["None"]
        assert report(server, preloading.disposition, number) == "caught"


# ---- subprocesses and forks ----


@pytest.mark.fault("A preload starts a subprocess")
def test_a_subprocess_of_a_preload_keeps_its_exit_status(capfd, preload, tmp_path):
    """The template looks at it before each fork: what it sees at last is what the subprocess has left with."""
    released, seen = tmp_path / "released", tmp_path / "seen"
    server = preload(f"""
import os, pathlib, subprocess
wait = "while [ ! -e {released} ]; do sleep 0.01; done; exit 7"
running = subprocess.Popen(["/bin/sh", "-c", wait])
ended = subprocess.Popen(["/bin/sh", "-c", "exit 5"])
def look(): pathlib.Path({str(seen)!r}).write_text(f"{{running.poll()}} {{ended.poll()}}")
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
def before_fork():
    if os.path.exists({str(tmp_path / "look")!r}): look()
os.register_at_fork(before=before_fork)
""")
    check(server)
    released.touch()
    wait_until(lambda: number_of_zombies(server.pid) >= 2)
    check(server)
    (tmp_path / "look").touch()
    check(server)
    assert seen.read_text() == "7 5"
    assert capfd.readouterr().err == ""


def number_of_zombies(parent):
    return sum(not is_alive(pid) for pid in children_of(parent))


@pytest.mark.fault("A preload starts a subprocess")
def test_a_subprocess_of_a_preload_that_lives_disturbs_nobody(capfd, preload, tmp_path):
    released = tmp_path / "released"
    server = preload(f"""
import subprocess
wait = "while [ ! -e {released} ]; do sleep 0.01; done"
running = [subprocess.Popen(["/bin/sh", "-c", wait]) for _ in range(3)]
""")
    check(server)
    assert report(server, preloading.exit_code_of_subprocess, 6) == 6
    released.touch()
    check(server)
    assert capfd.readouterr().err == ""


@pytest.mark.fault("A preload forks")
@pytest.mark.parametrize("waits", ["", "    os.waitpid(pid, 0)"])
def test_a_preload_that_forks_and_whose_child_leaves(capfd, preload, waits):
    server = preload(f"import os\npid = os.fork()\nif pid == 0:\n    os._exit(9)\nelse:\n    pass\n{waits}")
    check(server)
    assert capfd.readouterr().err == ""


@pytest.mark.fault("A preload forks")
def test_a_preload_that_forks_and_goes_on_twice(capfd, preload):
    """Both are templates then, for whoever reaches them; neither outlives its clients."""
    server = preload("import os; forked = os.fork()")
    check(server)
    for code in range(10):
        assert report(server, preloading.exit_code_of_subprocess, code) == code


@pytest.mark.fault("A preload uses multiprocessing")
def test_a_preload_that_has_processes_of_its_own(capfd, preload):
    server = preload("""
import multiprocessing
context = multiprocessing.get_context("fork")
ended = context.Process(target=exit, args=(5,))
ended.start()
ended.join()
answer = ended.exitcode
with context.Pool(2) as pool: assert pool.map(abs, [-1, 2]) == [1, 2]
lock = context.Lock()
""")
    check(server)
    assert report(server, preloading.preloaded_answer) == 5


# ---- descriptors ----


@pytest.mark.fault("A preload opens descriptors")
def test_descriptors_that_a_preload_opens_are_open_in_the_children(preload, tmp_path):
    (tmp_path / "opened").write_text("content")
    server = preload(f"""
import os, socket
file = os.open({str(tmp_path / "opened")!r}, os.O_RDONLY)
high = os.dup2(file, 900)
many = [os.open({str(tmp_path / "opened")!r}, os.O_RDONLY) for _ in range(200)]
pair = socket.socketpair()
answer = (file, pair[0].fileno(), many[-1])
""")
    check(server)
    file, sock, last = report(server, preloading.preloaded_answer)
    for fd in (file, last, 900):
        assert report(server, preloading.read_at, fd) == b"content"
    assert report(server, preloading.is_socket, sock)


STREAMS = {
    "sys.stdin": "import sys; sys.stdin.close()",
    "sys.stdout and sys.stderr": "import sys; sys.stdout.close(); sys.stderr.close()",
    "names": "import sys; sys.stdin = sys.stdout = sys.stderr = None",
    "standard input": "import os; os.close(0)",
    "standard error": "import os; os.close(2)",
    "standard output": "import os; os.close(1)",
    "all": "import os; os.closerange(0, 3)",
}


@pytest.mark.fault("A preload closes standard streams")
@pytest.mark.parametrize("which", STREAMS)
def test_a_preload_that_closes_standard_streams_hurts_nobody(capfd, preload, which):
    """What stands for them in a child is no descriptor of the server's."""
    server = preload(STREAMS[which])
    check(server)
    kinds = set(report(server, preloading.kinds_of_standard_descriptors))
    assert not any(kind and kind.startswith(("socket", "anon_inode", "pipe", "/memfd")) for kind in kinds)


# ---- surroundings ----


CHANGES = """
import gc, os, resource, sys
os.chdir("/")
os.umask(0o027)
os.environ["PRELOADED"] = "yes"
os.nice(3)
resource.setrlimit(resource.RLIMIT_NOFILE, (333, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sys.setrecursionlimit(3333)
sys.setswitchinterval(0.25)
gc.set_threshold(333, 3, 3)
sys.path.append("/from/the/preload")
os.setpgid(0, 0)
"""


@pytest.mark.fault("A preload changes its surroundings")
def test_what_a_preload_changes_is_changed_in_the_children_but_for_directory_and_path(
    preload, tmp_path, monkeypatch
):
    """As in the standard library: these two are told by the client."""
    monkeypatch.chdir(tmp_path)
    before = report(preload(""), preloading.surroundings)
    after = report(preload(CHANGES), preloading.surroundings)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert after == {
        **before,
        "directory": str(tmp_path),
        "umask": 0o027,
        "environment": "yes",
        "environment of C": "yes",
        "niceness": min(before["niceness"] + 3, 19),
        "descriptors": (333, hard_limit),
        "recursion": 3333,
        "switches": 0.25,
        "collector": (True, (333, 3, 3)),
        "path": False,
        "group": False,
    }


@pytest.mark.fault("A preload changes its surroundings")
def test_a_preload_in_a_directory_that_is_removed(preload, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    server = preload(f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})")
    check(server)


@pytest.mark.fault("A preload switches the collector off")
def test_a_preload_that_switches_the_collector_off_has_it_off_in_the_children(preload):
    assert report(preload("import gc; gc.disable()"), preloading.surroundings)["collector"][0] is False


@pytest.mark.fault("A preload switches the collector off")
def test_a_preload_that_switches_the_collector_off_and_on_has_it_on_in_the_children(preload):
    assert (
        report(preload("import gc; gc.disable(); gc.enable()"), preloading.surroundings)["collector"][0]
        is True
    )


@pytest.mark.fault("A preload seeds a generator of random numbers")
def test_children_draw_random_numbers_of_their_own(preload):
    server = preload("import random; random.seed(1)")
    assert len({report(server, preloading.random_number) for _ in range(5)}) == 5
