"""What a template imports before it serves, and what an exception there does under each `on_error`."""

from __future__ import annotations

import pytest
from support import targets

import fastfork
from fastfork import forkserver

FAILURES = {
    "ImportError": "raise ImportError('no luck')",
    "ModuleNotFoundError": "import no_such_module_anywhere",
    "ValueError": "raise ValueError('no luck')",
    "SystemExit": "raise SystemExit('no luck')",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "SyntaxError": "def 1",
    "Exception": "class Own(Exception): pass\nraise Own('no luck') from OSError('below')",
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the module `preloaded` that children and templates can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(source):
        (folder / "preloaded.py").write_text(source + "\n")

    return write


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
    assert kind in caught.value.traceback or kind == "Exception"
    line = 1 + len(FAILURES[kind].splitlines())
    assert f'preloaded.py", line {line}' in caught.value.traceback
    assert caught.value.traceback in str(caught.value)
    assert caught.value.traceback in capfd.readouterr().err


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


def test_fail_reaches_every_thread_that_starts_a_process(capfd, ctx, preload, module):
    from concurrent.futures import ThreadPoolExecutor

    module("import time; time.sleep(0.2)\n" + FAILURES["ValueError"])
    preload(["preloaded"], on_error="fail")
    with ThreadPoolExecutor(4) as pool:
        errors = [pool.submit(ctx.Process(target=targets.nothing).start).exception() for _ in range(4)]
    assert {type(error) for error in errors} == {fastfork.PreloadError}
    assert "ValueError: no luck" in capfd.readouterr().err


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


# ---- what a preloaded module may do ----


def test_threads_that_a_preloaded_module_leaves_running_lose_no_exit_code(ctx, preload, module):
    module(
        "import threading\nfor _ in range(4): threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    preload(["preloaded"])
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
