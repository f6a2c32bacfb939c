"""What a template imports before it serves, and what an exception there does under each `on_error`."""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import targets
from support.processes import DEADLINE, children_of

import fastfork
from fastfork import forkserver, launch
from fastfork.preload import is_main_preloaded

FAILURES = {
    "ImportError": "raise ImportError('no luck')",
    "ModuleNotFoundError": "import no_such_module_anywhere",
    "ValueError": "raise ValueError('no luck')",
    "SystemExit": "raise SystemExit('no luck')",
    "SyntaxError": "def 1",
    "Exception": "class Own(Exception): pass\nraise Own('no luck') from OSError('below')",
    "BaseException": "class Own(BaseException): pass\nraise Own('no luck')",
}
if sys.version_info >= (3, 11):
    FAILURES["BaseExceptionGroup"] = (
        "raise BaseExceptionGroup('no luck', [KeyboardInterrupt(), ValueError()])"
    )


@pytest.fixture
def preload():
    """Set what is preloaded."""
    return forkserver.set_forkserver_preload


def test_a_module_is_imported_before_the_children_begin(ask, preload, module):
    module("")
    preload(["preloaded", "colorsys"])
    names = ["preloaded", "colorsys", "sndhdr"]
    assert ask(targets.send_modules, names) == ["preloaded", "colorsys"]


def test_a_submodule_is_imported_too(ask, preload):
    preload(["xml.dom.minidom"])
    assert ask(targets.send_modules, ["xml.dom.minidom"]) == ["xml.dom.minidom"]


def test_a_module_is_executed_once_for_all_children(ask, preload, module, tmp_path):
    log = tmp_path / "log"
    module(f"open({str(log)!r}, 'a').write('x')")
    preload(["preloaded"])
    for _ in range(3):
        assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
    assert log.read_text() == "x"


def test_a_running_template_keeps_what_it_has(ask, preload):
    ask(targets.send_modules, [])
    preload(["colorsys"])
    assert ask(targets.send_modules, ["colorsys"]) == []


def test_what_is_set_takes_effect_with_the_next_template(ask, preload):
    ask(targets.send_modules, [])
    preload(["colorsys"])
    forkserver._forkserver._stop()
    assert ask(targets.send_modules, ["colorsys"]) == ["colorsys"]


@pytest.mark.parametrize("kind", FAILURES)
def test_ignore_lets_children_start_and_says_nothing(capfd, ask, preload, module, kind):
    module(FAILURES[kind])
    preload(["preloaded", "colorsys"], on_error="ignore")
    assert ask(targets.send_modules, ["preloaded", "colorsys"]) == ["colorsys"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", FAILURES)
def test_warn_lets_children_start(ask, preload, module, kind):
    module(FAILURES[kind])
    preload(["preloaded", "colorsys"], on_error="warn")
    assert ask(targets.send_modules, ["preloaded", "colorsys"]) == ["colorsys"]


@pytest.mark.parametrize("kind", ["ImportError", "SystemExit"])
def test_warn_is_an_import_warning_on_standard_error(programs, kind):
    programs.write("preloaded.py", FAILURES[kind])
    path = programs.write(
        "program.py",
        """
        import fastfork

        if __name__ == "__main__":
            context = fastfork.get_context(preload=["preloaded"], on_error="warn")
            process = context.Process(target=print, args=("started",))
            process.start()
            process.join()
        """,
    )
    outcome = programs.python("-W", "always::ImportWarning", str(path))
    assert outcome.lines == ["started"]
    assert f"ImportWarning: Failed to preload 'preloaded': {kind}: no luck" in outcome.stderr


@pytest.mark.parametrize("kind", FAILURES)
def test_fail_brings_the_traceback_to_the_caller(capfd, ctx, preload, module, kind):
    module(f"# the fault is below\n{FAILURES[kind]}")
    preload(["colorsys", "preloaded"], on_error="fail")
    with pytest.raises(fastfork.PreloadError) as caught:
        ctx.Process(target=targets.nothing).start()
    assert caught.value.module == "preloaded"
    assert kind in caught.value.traceback or kind in ("Exception", "BaseException")
    line = 1 + len(FAILURES[kind].splitlines())
    assert f'preloaded.py", line {line}' in caught.value.traceback
    assert caught.value.traceback in str(caught.value)
    assert caught.value.traceback in capfd.readouterr().err


@pytest.mark.parametrize("on_error", ["ignore", "warn", "fail"])
def test_an_interrupt_ends_the_template_and_the_next_one_preloads_anew(
    ask, preload, module, tmp_path, on_error
):
    begun = tmp_path / "begun"
    module(
        "import os, pathlib, signal\n"
        f"begun = pathlib.Path({str(begun)!r})\n"
        "is_first = not begun.exists()\n"
        "begun.touch()\n"
        "if is_first: os.kill(os.getpid(), signal.SIGINT)\n"
        "while is_first: pass\n"
    )
    preload(["preloaded"], on_error=on_error)
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]


def test_fail_tells_of_causes_too(capfd, ctx, preload, module):
    module(FAILURES["Exception"])
    preload(["preloaded"], on_error="fail")
    with pytest.raises(fastfork.PreloadError, match="OSError: below"):
        ctx.Process(target=targets.nothing).start()
    assert "OSError: below" in capfd.readouterr().err


def test_fail_is_the_connection_error_that_callers_of_the_standard_library_catch(capfd, ctx, preload):
    preload(["no_such_module_anywhere"], on_error="fail")
    with pytest.raises((ConnectionError, EOFError)):
        ctx.Process(target=targets.nothing).start()
    assert "no_such_module_anywhere" in capfd.readouterr().err


def test_every_start_fails_until_the_module_is_mended_and_then_none(capfd, ctx, ask, preload, module):
    module(FAILURES["ValueError"])
    preload(["preloaded"], on_error="fail")
    for _ in range(2):
        with pytest.raises(fastfork.PreloadError):
            ctx.Process(target=targets.nothing).start()
    module("mended = True")
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
    assert capfd.readouterr().err.count("ValueError: no luck") == 2


def test_fail_reaches_the_caller_of_connect_to_new_process_as_well(capfd, preload):
    preload(["no_such_module_anywhere"], on_error="fail")
    with pytest.raises(fastfork.PreloadError):
        forkserver.connect_to_new_process([])
    assert "no_such_module_anywhere" in capfd.readouterr().err


def test_fail_reaches_every_thread_that_starts_a_process(capfd, ctx, preload, module, tmp_path):
    begun = tmp_path / "begun"
    module(f"import time; open({str(begun)!r}, 'a').write('x'); time.sleep(0.2)\n" + FAILURES["ValueError"])
    preload(["preloaded"], on_error="fail")
    at_once = threading.Barrier(4)

    def start_at_once():
        at_once.wait()
        ctx.Process(target=targets.nothing).start()

    with ThreadPoolExecutor(4) as pool:
        errors = [future.exception(DEADLINE) for future in [pool.submit(start_at_once) for _ in range(4)]]
    assert {type(error) for error in errors} == {fastfork.PreloadError}
    assert capfd.readouterr().err.count("ValueError: no luck") == len(begun.read_text()) <= 4


def test_a_long_traceback_is_told_by_its_end(capfd, ctx, preload, module):
    module("raise ValueError('x' * 1_000_000 + 'the end')")
    preload(["preloaded"], on_error="fail")
    with pytest.raises(fastfork.PreloadError, match="the end"):
        ctx.Process(target=targets.nothing).start()
    assert "the end" in capfd.readouterr().err


def test_the_exit_of_a_template_that_failed_leaves_nothing(capfd, ctx, preload):
    preload(["no_such_module_anywhere"], on_error="fail")
    with pytest.raises(fastfork.PreloadError):
        ctx.Process(target=targets.nothing).start()
    preload([])
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "no_such_module_anywhere" in capfd.readouterr().err


# ---- exceptions that are hard to tell of ----


def test_a_traceback_of_many_bytes_does_not_block_the_template(capfd, ctx, preload, module):
    module("raise ValueError('\u4e2d' * 100_000 + 'the end')")
    preload(["preloaded"], on_error="fail")
    with pytest.raises(fastfork.PreloadError, match="the end"):
        ctx.Process(target=targets.nothing).start()
    assert "the end" in capfd.readouterr().err


@pytest.mark.parametrize("arrange", ["sys.stderr = None", "sys.stderr.close()"])
def test_a_failure_is_told_where_there_is_no_standard_error(ctx, preload, module, arrange):
    module(f"import sys; {arrange}; raise ValueError('no luck')")
    preload(["preloaded"], on_error="fail")
    with pytest.raises(fastfork.PreloadError, match="no luck"):
        ctx.Process(target=targets.nothing).start()


def test_a_warning_of_an_exception_that_cannot_be_printed(capfd, ask, preload, module):
    module("class Own(Exception):\n    def __str__(self): raise self\nraise Own")
    preload(["preloaded"], on_error="warn")
    assert ask(targets.send_modules, ["preloaded"]) == []


def test_a_warning_that_is_an_error_is_told_as_one(programs):
    programs.write("preloaded.py", "raise ValueError('no luck')")
    path = programs.write(
        "program.py",
        """
        import fastfork

        if __name__ == "__main__":
            try:
                fastfork.get_context(preload=["preloaded"], on_error="warn").Process().start()
            except fastfork.PreloadError as error:
                print(error.module, error, sep="; ")
        """,
    )
    outcome = programs.python("-W", "error::ImportWarning", str(path))
    assert outcome.stdout.startswith("preloaded; Failed to preload 'preloaded': ValueError: no luck")


def test_a_preload_error_can_be_pickled():
    error = fastfork.PreloadError("it could not be", "name", "where it was\n")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason, copy.module, copy.traceback) == (
        "it could not be; in the server:\nwhere it was\n",
        "it could not be",
        "name",
        "where it was\n",
    )


def test_a_module_that_ends_the_template_is_named(ctx, preload, module):
    module("import os; os._exit(3)")
    preload(["colorsys", "preloaded"])
    with pytest.raises(ConnectionError, match=r"exit code 3; the last module .* was 'preloaded'"):
        ctx.Process(target=targets.nothing).start()


# ---- the time limit ----


def test_a_preload_that_hangs_is_ended_and_tells_where_it_was(ctx, hanging):
    forkserver.set_forkserver_preload(["colorsys", "preloaded"], timeout=3)
    before = children_of(os.getpid())
    process = ctx.Process(target=targets.nothing)
    with pytest.raises(
        fastfork.PreloadError, match=r"'preloaded' within the time limit \(preload_timeout=3 s\)"
    ) as caught:
        process.start()
    assert caught.value.module == "preloaded"
    assert 'preloaded.py", line 1' in caught.value.traceback
    assert children_of(os.getpid()) == before


def test_a_preload_in_time_leaves_no_watchdog(ask, preload, module):
    module("")
    preload(["preloaded"], timeout=DEADLINE, on_threads="refuse")
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
    assert os.listdir(f"/proc/{forkserver._forkserver._forkserver_pid}/task") == [
        str(forkserver._forkserver._forkserver_pid)
    ]


def test_the_time_limit_does_not_depend_on_what_is_done_with_exceptions(ctx, hanging):
    forkserver.set_forkserver_preload(["preloaded"], timeout=0.1, on_error="ignore")
    for _ in range(2):
        with pytest.raises(fastfork.PreloadError, match="time limit"):
            ctx.Process(target=targets.nothing).start()


@pytest.mark.parametrize(
    "source",
    [
        "import faulthandler, time; faulthandler.cancel_dump_traceback_later(); time.sleep(600)",
        "import faulthandler, time; faulthandler.dump_traceback_later(600); time.sleep(600)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["cancels", "takes over", "is stopped"],
)
def test_a_preload_that_stops_the_watchdog_is_ended_by_the_client(ctx, preload, module, monkeypatch, source):
    monkeypatch.setattr(launch, "_LIMIT_GRACE", 0.5)
    module(source)
    preload(["colorsys", "preloaded"], timeout=1)
    before = children_of(os.getpid())
    with pytest.raises(fastfork.PreloadError, match="could not preload 'preloaded' within the time limit"):
        ctx.Process(target=targets.nothing).start()
    assert children_of(os.getpid()) == before


def test_a_dump_that_crashes_is_told_all_the_same(ctx, preload, module):
    module(
        "import faulthandler, os, sys\n"
        "faulthandler.cancel_dump_traceback_later()\n"
        "for fd in os.listdir('/proc/self/fd'):\n"
        "    try: os.write(int(fd), b'Timeout (0:00:00.100000)!\\n') if int(fd) > 2 else None\n"
        "    except OSError: pass\n"
        "os.abort()"
    )
    preload(["preloaded"], timeout=DEADLINE)
    with pytest.raises(fastfork.PreloadError, match="within the time limit") as caught:
        ctx.Process(target=targets.nothing).start()
    assert caught.value.module == "preloaded"


def test_an_hour_is_no_obstacle(ask, preload):
    preload(["colorsys"], timeout=3600)
    assert ask(targets.send_modules, ["colorsys"]) == ["colorsys"]


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_limit_is_positive(preload, timeout):
    with pytest.raises(ValueError, match="must be positive"):
        preload([], timeout=timeout)


def test_a_time_limit_is_a_number(preload):
    with pytest.raises(TypeError):
        preload([], timeout="soon")


# ---- threads ----

THREAD = "import threading; threading.Thread(target=threading.Event().wait, name='of the module', daemon=True).start()"


def native_thread(name):
    """Return a module's source that starts a thread that Python knows nothing of."""
    return (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "thread = ctypes.c_ulong()\n"
        "seconds = ctypes.c_void_p(600)\n"
        "libc.pthread_create(ctypes.byref(thread), None, libc.sleep, seconds)\n"
        f"libc.pthread_setname_np(thread, {name!r})\n"
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [(THREAD, "'of the module'"), (native_thread(b"native"), "'native' (not of Python)")],
    ids=["Python", "native"],
)
class TestThreads:
    def test_are_warned_of_by_default(self, capfd, ask, preload, module, source, name):
        module(source)
        preload(["preloaded"])
        assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
        error = capfd.readouterr().err
        assert f"RuntimeWarning: preloading left threads running in the fork server: {name}. " in error

    def test_are_refused_where_asked_for(self, capfd, ctx, preload, module, source, name):
        module(source)
        preload(["preloaded"], on_threads="refuse")
        for _ in range(2):
            with pytest.raises(
                fastfork.PreloadError, match=re.escape(f"(on_threads='refuse'): {name}")
            ) as caught:
                ctx.Process(target=targets.nothing).start()
            assert (caught.value.module, caught.value.traceback) == (None, "")
        assert name in capfd.readouterr().err

    def test_are_ignored_where_asked_for(self, capfd, ask, preload, module, source, name):
        module(source)
        preload(["preloaded"], on_threads="ignore")
        assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
        assert capfd.readouterr().err == ""


def test_threads_that_have_ended_are_not_told_of(capfd, ask, preload, module):
    module(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: list(pool.map(abs, range(100)))"
    )
    preload(["preloaded"], on_threads="refuse")
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]


def test_on_threads_takes_no_other_value(preload):
    with pytest.raises(ValueError, match="on_threads must be 'ignore', 'warn', or 'refuse'"):
        preload([], on_threads="fail")


# ---- what a preloaded module may do ----


def test_threads_that_a_preloaded_module_leaves_running_lose_no_exit_code(ctx, preload, module):
    module(
        "import threading\nfor _ in range(4): threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    preload(["preloaded"], on_threads="ignore")
    processes = [ctx.Process(target=targets.leave, args=(code,)) for code in range(30)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == list(range(30))


def test_a_subprocess_that_a_preloaded_module_started_disturbs_nobody(capfd, ctx, preload, module):
    module(
        "import subprocess, sys\n"
        "done = subprocess.Popen([sys.executable, '-S', '-c', ''])\n"
        "lasting = subprocess.Popen([sys.executable, '-S', '-c', 'import sys; sys.stdin.read()'], stdin=-1)\n"
    )
    preload(["preloaded"])
    for code in (0, 3):
        process = ctx.Process(target=targets.leave, args=(code,))
        process.start()
        process.join()
        assert process.exitcode == code
    assert capfd.readouterr().err == ""


def test_a_signal_handler_from_outside_python_disturbs_nobody(capfd, ask, preload, module):
    """signal.signal() answers None to whoever comes after such a handler (dask#5204)."""
    module(
        "import signal\n"
        "real = signal.signal\n"
        "def of_c(number, handler):\n"
        "    if handler is None: raise TypeError('signal handler must be a callable')\n"
        "    real(number, handler)\n"
        "signal.signal = of_c\n"
    )
    preload(["preloaded"])
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
    assert capfd.readouterr().err == ""


def test_a_lock_in_a_preloaded_module_leaves_standard_error_empty(capfd, ask, preload, module):
    module("import multiprocessing\nlock = multiprocessing.get_context('forkserver').Lock()")
    preload(["preloaded"])
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]
    forkserver._forkserver._stop()
    assert capfd.readouterr().err == ""


def test_a_preloaded_module_that_changes_the_directory_does_not_change_the_childrens(
    ask, preload, module, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    module("import os; os.chdir('/')")
    preload(["preloaded"])
    assert ask(targets.send_own_state)["directory"] == str(tmp_path)


def test_a_large_preload_is_shared_and_usable(ask, preload, module):
    module("table = {number: str(number) for number in range(100_000)}")
    preload(["preloaded"])
    assert ask(targets.send_modules, ["preloaded"]) == ["preloaded"]


def test_a_main_module_is_preloaded_if_a_child_finds_it(monkeypatch):
    main = types.ModuleType("__mp_main__")
    main.__file__ = "/somewhere/program.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert is_main_preloaded({"init_main_from_path": "/somewhere/program.py"})
    assert not is_main_preloaded({"init_main_from_path": "/somewhere/else.py"})
    assert not is_main_preloaded({"init_main_from_name": "program"})
    assert is_main_preloaded({})
    main.__spec__ = types.SimpleNamespace(name="program")
    assert is_main_preloaded({"init_main_from_name": "program"})
