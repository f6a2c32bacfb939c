"""The main module of a program: how often its body runs, and what the template and the children see of the program.

Each program appends the name under which its main module runs to a log.
"""

from __future__ import annotations

import pytest

LOG = """
import os
with open(os.environ["LOG"], "a") as stream:
    stream.write(__name__ + "\\n")
"""

THREE_PROCESSES = """
def work(number):
    print(number * number, flush=True)

if __name__ == "__main__":
    import fastfork

    for number in (1, 2, 3):
        process = fastfork.get_context().Process(target=work, args=(number,))
        process.start()
        process.join()
        assert process.exitcode == 0
"""

SQUARES = ["1", "4", "9"]


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Return the names under which bodies have run."""
    path = tmp_path / "log"
    monkeypatch.setenv("LOG", str(path))
    return lambda: path.read_text().split()


def finish(outcome):
    assert outcome.stderr == ""
    assert outcome.status == 0
    return outcome.lines


def test_a_script_runs_once_as_main_and_once_in_the_template(programs, log):
    assert programs.run(LOG + THREE_PROCESSES).lines == SQUARES
    assert log() == ["__main__", "__mp_main__"]


def test_a_script_run_by_a_relative_path_after_a_change_of_directory(programs, log):
    programs.write(
        "program.py", LOG + THREE_PROCESSES.replace("import fastfork", "import fastfork; os.chdir('/')")
    )
    assert finish(programs.python("program.py")) == SQUARES
    assert log() == ["__main__", "__mp_main__"]


def test_a_script_that_is_not_preloaded_runs_in_every_child(programs, log):
    source = LOG + THREE_PROCESSES.replace("get_context()", "get_context(preload=[])")
    assert programs.run(source).lines == SQUARES
    assert log() == ["__main__", *["__mp_main__"] * 3]


def test_a_module_of_a_package_runs_once_as_main_and_once_in_the_template(programs, log):
    programs.write("package/__init__.py", LOG)
    programs.write("package/module.py", LOG + THREE_PROCESSES)
    assert finish(programs.python("-m", "package.module")) == SQUARES
    assert log() == ["package", "__main__", "package", "__mp_main__"]


def test_a_package_is_preloaded_and_its_main_program_runs_once(programs, log):
    """Children do not get the body of a ``__main__.py``, which is mostly not guarded: as everywhere."""
    programs.write("package/__init__.py", LOG)
    programs.write("package/work.py", THREE_PROCESSES.partition("if")[0])
    programs.write(
        "package/__main__.py",
        LOG + THREE_PROCESSES.replace('if __name__ == "__main__":', "if True:\n    from .work import work"),
    )
    assert finish(programs.python("-m", "package")) == SQUARES
    assert log() == ["package", "__main__", "package"]


def test_the_main_program_of_a_folder_runs_once(programs, log):
    programs.write("folder/work.py", THREE_PROCESSES.partition("if")[0])
    programs.write(
        "folder/__main__.py",
        LOG + THREE_PROCESSES.replace('if __name__ == "__main__":', "if True:\n    from work import work"),
    )
    assert finish(programs.python("folder")) == SQUARES
    assert log() == ["__main__"]


WITHOUT_A_FILE = """\
import fastfork
p = fastfork.get_context().Process(target=print, args=(1,)); p.start(); p.join()
p = fastfork.get_context().Process(target=print, args=(4,)); p.start(); p.join()
p = fastfork.get_context().Process(target=print, args=(9,)); p.start(); p.join()
"""


@pytest.mark.parametrize("how", ["-c", "interactive"])
def test_a_main_module_without_a_file_needs_none(programs, how):
    options = {"-c": ["-c", WITHOUT_A_FILE], "interactive": ["-i", "-q"]}[how]
    outcome = programs.python(*options, stdin=WITHOUT_A_FILE if how == "interactive" else "")
    assert outcome.lines == SQUARES
    assert outcome.status == 0
    assert outcome.stderr.replace(">>> ", "").strip() == ""


def test_a_main_module_from_standard_input_is_not_found_by_children_as_everywhere(programs):
    outcome = programs.python("-", stdin=WITHOUT_A_FILE)
    assert outcome.lines == []
    assert outcome.stderr.count("FileNotFoundError") == 3


def test_a_main_module_that_needs_the_guard_says_so(programs):
    path = programs.write(
        "program.py",
        "import fastfork\np = fastfork.get_context(preload=[]).Process(target=print)\np.start()\np.join()\n",
    )
    outcome = programs.python(str(path))
    assert "if __name__ == '__main__':" in outcome.stderr
    assert outcome.status == 0


@pytest.mark.parametrize("failure", ["raise ImportError", "raise ValueError", "raise SystemExit", "1/0"])
def test_fail_tells_where_the_main_module_failed(programs, failure):
    path = programs.write(
        "program.py",
        f"""\
        import fastfork

        if __name__ != "__main__":
            {failure}
        else:
            try:
                fastfork.get_context(on_error="fail").Process(target=print).start()
            except fastfork.PreloadError as error:
                assert error.module == "__main__"
                assert 'program.py", line 4' in error.traceback
                print("caught")
        """,
    )
    outcome = programs.python(str(path))
    assert outcome.lines == ["caught"]
    assert 'program.py", line 4' in outcome.stderr


def test_the_template_sees_the_arguments_of_the_program(programs):
    programs.write("preloaded.py", "import sys; seen = list(sys.argv)")
    outcome = programs.run(
        """
        import sys, fastfork

        seen = list(sys.argv)

        def work(argv):
            import preloaded
            assert seen == preloaded.seen == sys.argv == argv
            print(*seen[1:])

        if __name__ == "__main__":
            context = fastfork.get_context(preload=["__main__", "preloaded"])
            process = context.Process(target=work, args=(sys.argv,))
            process.start()
            process.join()
        """,
        "one",
        "--two",
        "three four",
        "",
    )
    assert outcome.stdout == "one --two three four \n"


def test_arguments_too_long_for_a_command_line_reach_template_and_children(programs):
    outcome = programs.run(
        """
        import sys, fastfork

        seen = list(sys.argv)

        def work():
            print(len(seen[1]), len(sys.argv[1]))

        if __name__ == "__main__":
            sys.argv[1:] = ["x" * 3_000_000]
            process = fastfork.get_context().Process(target=work)
            process.start()
            process.join()
        """
    )
    assert outcome.lines == ["3000000 3000000"]


def test_the_template_sees_the_path_of_the_program(programs):
    programs.write("elsewhere/far.py", "import sys; path = list(sys.path)")
    outcome = programs.run(
        """
        import os, sys, fastfork

        def work(path):
            assert "far" in sys.modules
            import far
            assert far.path == path == sys.path
            print("seen")

        if __name__ == "__main__":
            sys.path.insert(0, os.path.abspath("elsewhere"))
            process = fastfork.get_context(preload=["far"]).Process(target=work, args=(sys.path,))
            process.start()
            process.join()
        """
    )
    assert outcome.lines == ["seen"]


def test_files_of_the_program_that_are_named_like_the_standard_librarys_do_no_harm(programs):
    for name in ("socket", "tempfile", "pickle", "selectors", "json"):
        programs.write(f"elsewhere/{name}.py", "raise ZeroDivisionError")
    outcome = programs.run(
        """
        import os, sys, fastfork

        def start():
            process = context.Process(target=print, args=("started",))
            process.start()
            process.join()

        if __name__ == "__main__":
            context = fastfork.get_context()
            start()
            fastfork.forkserver._forkserver._stop()
            sys.path.insert(0, os.path.abspath("elsewhere"))
            start()
        """
    )
    assert outcome.lines == ["started", "started"]


def test_what_a_preload_prints_appears_once(programs):
    programs.write(
        "preloaded.py", "import sys; print('out', end=' '); print('err', end=' ', file=sys.stderr)"
    )
    path = programs.write(
        "program.py",
        """
        import fastfork

        if __name__ == "__main__":
            for number in range(3):
                process = fastfork.get_context(preload=["preloaded"]).Process(target=print, args=("child",))
                process.start()
                process.join()
        """,
    )
    outcome = programs.python(str(path))
    assert outcome.stdout == "out child\nchild\nchild\n"
    assert outcome.stderr == "err "


def test_a_lock_of_the_main_module_is_removed_by_each_that_made_it(programs):
    """The trackers of program and template hold standard error until they have said what was left to them."""
    programs.run(
        """
        import fastfork

        lock = fastfork.get_context().Lock()

        def work():
            with lock:
                pass

        if __name__ == "__main__":
            for number in range(3):
                process = fastfork.get_context().Process(target=work)
                process.start()
                process.join()
                assert process.exitcode == 0
        """
    )


def test_exit_functions_of_a_preload_run_once_at_the_end_of_the_template(programs):
    programs.write(
        "preloaded.py",
        """
        import atexit, os

        made_by = os.getpid()
        atexit.register(lambda: print("end of", "template" if os.getpid() == made_by else "child", flush=True))
        """,
    )
    outcome = programs.run(
        """
        import fastfork

        def work():
            print("child", flush=True)

        if __name__ == "__main__":
            for number in range(2):
                process = fastfork.get_context(preload=["__main__", "preloaded"]).Process(target=work)
                process.start()
                process.join()
            fastfork.stop()
            print("stopped")
        """
    )
    assert outcome.lines == ["child", "child", "end of template", "stopped"]


def test_an_exit_function_of_a_preload_that_raises_is_told_and_the_template_ends(programs):
    programs.write("preloaded.py", "import atexit; atexit.register(int, 'no number')")
    path = programs.write(
        "program.py",
        """
        import fastfork

        if __name__ == "__main__":
            process = fastfork.get_context(preload=["preloaded"]).Process(target=print, args=("child",))
            process.start()
            process.join()
            fastfork.stop()
        """,
    )
    outcome = programs.python(str(path))
    assert (outcome.status, outcome.stdout) == (0, "child\n")
    assert "ValueError" in outcome.stderr
    assert "no number" in outcome.stderr


@pytest.mark.parametrize("change", ["sys.path.append('added')", "sys.argv.append('added')", "os.chdir('/')"])
def test_what_a_child_changes_of_itself_its_own_children_have(programs, change):
    outcome = programs.run(
        f"""
        import os, sys

        import fastfork

        def state():
            return sys.path, sys.argv, os.getcwd()

        def check(expected):
            assert state() == expected, (state(), expected)

        def start(function, *arguments):
            process = fastfork.get_context().Process(target=function, args=arguments)
            process.start()
            process.join()
            assert process.exitcode == 0

        def work(expected):
            check(expected)
            {change}
            assert state() != expected
            start(check, state())

        if __name__ == "__main__":
            start(work, state())
            start(work, state())
            {change}
            start(check, state())
            print("done")
        """
    )
    assert outcome.lines == ["done"]


STATE = """
import multiprocessing, os, sys
from multiprocessing import process
import fastfork

def state():
    me = process.current_process()
    return (os.getcwd(), process.ORIGINAL_DIR, bytes(me.authkey), sys.argv, sys.path,
            list(sys.flags), sys.executable)

def work(expected):
    assert state() == expected, (state(), expected)
    assert process.current_process().name == "Somebody"
    assert __name__ == "__mp_main__" and sys.modules["__main__"] is sys.modules["__mp_main__"]
    print("same")

if __name__ == "__main__":
    os.mkdir("below")
    os.chdir("below")
    process.current_process().authkey = b"of this program"
    {0}
    child = fastfork.get_context().Process(target=work, args=(state(),), name="Somebody")
    child.start()
    child.join()
    assert child.exitcode == 0
"""


def test_a_child_has_the_directory_the_key_and_the_name_that_it_should_have(programs):
    assert programs.run(STATE.format("")).lines == ["same"]


def test_a_child_has_the_flags_of_its_parent(programs):
    assert programs.run(STATE.format(""), options=("-B", "-O", "-X", "utf8")).lines == ["same"]


@pytest.mark.parametrize("method", [None, "spawn", "forkserver", "fastfork"])
def test_a_start_does_not_change_the_start_method_and_children_have_that_of_their_context(programs, method):
    outcome = programs.run(
        f"""
        import multiprocessing, fastfork

        def work():
            print(multiprocessing.get_start_method(allow_none=True))

        if __name__ == "__main__":
            if {method!r}:
                multiprocessing.set_start_method({method!r})
            process = fastfork.get_context().Process(target=work)
            process.start()
            process.join()
            print(multiprocessing.get_start_method(allow_none=True))
            if not {method!r}:
                multiprocessing.set_start_method("spawn")
        """
    )
    assert outcome.lines == ["fastfork", str(method)]
