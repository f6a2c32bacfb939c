"""`fastfork run` and its fellows: an unmodified program runs as under plain Python, on fastfork."""

from __future__ import annotations

import os
import sys

import pytest

FASTFORK = (sys.executable, "-m", "fastfork")

PROGRAM = """
import multiprocessing, os, sys

def work(number):
    return number * number, multiprocessing.current_process()._start_method

def parent(queue):
    queue.put(os.getppid())

if __name__ == "__main__":
    print(sys.argv[1:])
    context = multiprocessing.get_context(sys.argv[1] if sys.argv[1] != "default" else None)
    with context.Pool(2) as pool:
        print(pool.map(work, [1, 2]))
"""


def run(programs, *arguments, **options):
    return programs.command(*FASTFORK, "run", *arguments, **options)


def lines_of(outcome, status=0):
    assert outcome.stderr == ""
    assert outcome.status == status
    return outcome.lines


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn", "default"])
def test_whatever_start_method_a_script_asks_for_it_runs_on_fastfork(programs, method):
    programs.write("program.py", PROGRAM)
    assert lines_of(run(programs, "program.py", method, "--flag", "-m")) == [
        str([method, "--flag", "-m"]),
        "[(1, 'fastfork'), (4, 'fastfork')]",
    ]


def test_an_option_leaves_spawn_alone(programs):
    programs.write("program.py", PROGRAM)
    for method, served_by in (("spawn", "spawn"), ("fork", "fastfork")):
        lines = lines_of(run(programs, "--keep-spawn", "program.py", method))
        assert lines[1] == f"[(1, '{served_by}'), (4, '{served_by}')]"


@pytest.mark.parametrize(("name", "module"), [("tool.py", "tool"), ("package/tool.py", "package.tool")])
def test_a_module_runs_as_after_python_m(programs, name, module):
    programs.write("package/__init__.py", "")
    programs.write(name, PROGRAM)
    lines = lines_of(run(programs, "-m", module, "fork", "x"))
    assert lines == ["['fork', 'x']", "[(1, 'fastfork'), (4, 'fastfork')]"]


def test_a_package_runs_as_after_python_m(programs):
    programs.write("package/__init__.py", "")
    programs.write("package/work.py", PROGRAM.replace('if __name__ == "__main__":', "def main():"))
    programs.write("package/__main__.py", "from package.work import main\nmain()\n")
    assert lines_of(run(programs, "-m", "package", "fork"))[1] == "[(1, 'fastfork'), (4, 'fastfork')]"


def test_modules_to_preload_are_there_in_each_process(programs):
    programs.write("large.py", "import os\nimported_by = os.getpid()\n")
    programs.write(
        "program.py",
        """
        import multiprocessing, os, sys

        def check():
            sys.exit(0 if sys.modules["large"].imported_by == os.getppid() else 1)

        if __name__ == "__main__":
            process = multiprocessing.Process(target=check)
            process.start()
            process.join()
            print(process.exitcode)
        """,
    )
    environment = {"PYTHONPATH": str(programs.folder)}
    assert lines_of(run(programs, "--preload", "large,json", "program.py", environment=environment)) == ["0"]


@pytest.mark.parametrize(
    ("ending", "status"), [("pass", 0), ("sys.exit(3)", 3), ("sys.exit()", 0), ("os._exit(4)", 4)]
)
def test_the_exit_status_is_the_program_s(programs, ending, status):
    programs.write("program.py", f"import os, sys\n{ending}\n")
    lines_of(run(programs, "program.py"), status)


def test_an_exception_ends_it_as_under_plain_python(programs):
    path = programs.write("program.py", "def f():\n    raise ValueError('wrong')\nf()\n")
    outcome = run(programs, str(path))
    assert outcome.status == 1
    assert outcome.stderr.endswith("ValueError: wrong\n")
    assert f'File "{path}", line 2, in f' in outcome.stderr


def test_it_finds_modules_beside_the_script_and_reads_standard_input(programs):
    programs.write("folder/helper.py", "NAME = 'helper'\n")
    programs.write(
        "folder/program.py", "import helper, sys\nprint(helper.NAME, sys.stdin.read(), __file__, __name__)\n"
    )
    outcome = run(programs, os.path.join("folder", "program.py"), stdin="input")
    assert lines_of(outcome) == [f"helper input {os.path.join('folder', 'program.py')} __main__"]


def test_a_program_that_is_not_there_is_one_clear_line(programs):
    for arguments, name in ((["missing.py"], "missing.py"), (["-m", "missing"], "missing")):
        outcome = run(programs, *arguments)
        assert outcome.status == 2
        assert "Traceback" not in outcome.stderr
        assert name in outcome.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["bench", "--help"], ["install-pth", "--help"]]
)
def test_help_teaches(programs, arguments):
    lines = lines_of(programs.command(*FASTFORK, *arguments))
    assert lines[0].startswith("usage: fastfork")
    assert len(lines) > 5


def test_version(programs):
    assert lines_of(programs.command(*FASTFORK, "--version"))[0].startswith("fastfork ")
