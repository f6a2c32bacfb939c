"""Outcomes, their order, and what was captured are what plain pytest reports."""

from __future__ import annotations

import os
import pty
import re
import select
import time
from pathlib import Path

import pytest

MIXED = """
    import logging, os, sys, warnings, pytest

    def test_pass(): print("out"); print("err", file=sys.stderr)
    def test_fail(): print("before"); logging.warning("logged"); os.system("echo from a child"); assert 1 == 2
    def test_error(no_such_fixture): pass
    def test_skip(): pytest.skip("because")
    def test_xfail(): pytest.xfail("known")
    @pytest.mark.xfail
    def test_xpass(): pass
    @pytest.mark.xfail(strict=True)
    def test_xpass_strict(): pass
    def test_capsys(capsys): print("x"); assert capsys.readouterr().out == "x\\n"
    def test_capfd(capfd): os.system("echo y"); assert capfd.readouterr().out == "y\\n"
    def test_caplog(caplog): logging.warning("z"); assert caplog.messages == ["z"]
    def test_tmp_path(tmp_path): (tmp_path / "f").write_text("x")
    def test_monkeypatch(monkeypatch): monkeypatch.setenv("V", "1")
    def test_record(record_property): record_property("key", 3)
    def test_raises(): raise RuntimeError("x" * 300)
    def test_sysexit(): sys.exit(3)
    def test_large(): print("x" * 1_000_000)
"""


def test_all_outcomes(project):
    project.write("test_it.py", MIXED)
    project.compare()


@pytest.mark.parametrize("option", ["-s", "--capture=sys", "--capture=tee-sys", "-p no:logging"])
def test_ways_to_capture(project, option):
    project.write("test_it.py", MIXED)
    project.compare(*option.split(), workers=(2,))


@pytest.mark.parametrize(
    "option", ["-x", "--maxfail=2", "--maxfail=100", "-k fail", "--durations=3", "--tb=short -v"]
)
def test_options(project, option):
    project.write("test_it.py", MIXED)
    plain, *runs = project.compare(*option.split())
    for run in runs:
        assert _summary(run.out) == _summary(plain.out)


def _summary(text):
    lines = [re.sub(r"in \d+\.\d+s.*", "", line).strip("= ") for line in text.splitlines()]
    start = next((n for n, line in enumerate(lines) if line.startswith("short test summary")), len(lines) - 1)
    return [line for line in lines[start:] if not line.startswith("-")]


def test_terminal_output_is_the_same(project):
    project.write("test_it.py", MIXED)
    outputs = [_comparable(run.out) for run in project.compare("-v")]
    assert outputs[1] == outputs[0]
    assert outputs[2] == outputs[0]


def _comparable(text):
    text = re.sub(r"in \d+\.\d+s", "in 0 s", text)
    text = re.sub(r"\d\.(xml|log)", "", text)
    return [line for line in text.splitlines() if not line.startswith("fastfork: ")]


def test_warnings(project):
    project.write(
        "test_it.py",
        """
        import warnings, pytest

        class Mine(UserWarning):
            pass

        @pytest.fixture(scope="module")
        def warns(): warnings.warn("from a fixture")

        def test_one(warns): warnings.warn("from a test", Mine)
        def test_two(warns): pass
        @pytest.mark.filterwarnings("error")
        def test_error(): warnings.warn("becomes an error")
        """,
    )
    plain, *runs = project.compare()
    for run in runs:
        assert _comparable(run.out) == _comparable(plain.out)
        assert "Mine: from a test" in run.out


def test_junit_extras(project):
    project.write(
        "test_it.py",
        """
        import pytest

        def test_suite(record_testsuite_property): record_testsuite_property("of the suite", 1)
        @pytest.mark.filterwarnings("ignore")
        def test_attribute(record_xml_attribute): record_xml_attribute("file", "elsewhere")
        """,
    )
    run = project.run("--fastfork", "-o", "junit_family=xunit1")
    xml = (project.folder / "1.xml").read_text()
    assert run.code == 0
    assert 'name="of the suite" value="1"' in xml
    assert 'file="elsewhere"' in xml


def test_failed_first(project):
    project.write("test_it.py", "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pass\n")
    cache = ("-p", "cacheprovider")
    project.run("--fastfork", *cache)
    assert [case.get("name") for case in project.run("--fastfork", "--ff", *cache).cases] == [
        "test_b",
        "test_a",
        "test_c",
    ]
    assert [case.get("name") for case in project.run("--fastfork", "--lf", *cache).cases] == ["test_b"]


def test_stepwise(project):
    project.write("test_it.py", "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pass\n")
    cache = ("-p", "cacheprovider", "-p", "stepwise")
    assert "1 failed, 1 passed" in project.run("--fastfork=2", "--sw", *cache).out
    project.write("test_it.py", "def test_a(): assert 0\ndef test_b(): pass\ndef test_c(): pass\n")
    assert "2 passed, 1 deselected" in project.run("--fastfork=2", "--sw", *cache).out


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan", "--fixtures-per-test"])
def test_what_only_shows_something(project, option):
    project.write("test_it.py", MIXED)
    plain = project.run(option)
    run = project.run(option, "--fastfork")
    assert run.code == plain.code
    assert _comparable(run.out) == _comparable(plain.out)


def test_durations(project):
    project.write(
        "test_it.py",
        """
        import time, pytest
        @pytest.fixture(scope="module")
        def slow():
            time.sleep(0.2)
            yield
            time.sleep(0.4)
        def test_first(slow): time.sleep(0.3)
        def test_last(slow): pass
        """,
    )
    run = project.run("--fastfork=1", "--durations=0", "-vv")
    lines = re.findall(r"^(\d+\.\d+)s (\w+) +test_it.py::(\w+)$", run.out, re.MULTILINE)
    seconds = {(phase, test): float(text) for text, phase, test in lines}
    assert seconds["setup", "test_first"] >= 0.2
    assert seconds["call", "test_first"] >= 0.3
    assert seconds["teardown", "test_last"] >= 0.4


def test_session_ended_by_a_test(project):
    project.write(
        "test_it.py",
        """
        import pytest
        def test_a(): pass
        def test_b(): pytest.exit("enough", returncode=7)
        def test_c(): pass
        """,
    )
    plain, *runs = project.compare()
    assert plain.code == 7
    assert all("enough" in run.out for run in runs)


def test_should_stop(project):
    project.write(
        "test_it.py",
        """
        def test_a(request): request.session.shouldstop = "stopped by a test"
        def test_b(): pass
        """,
    )
    for run in project.compare():
        assert "stopped by a test" in run.out


def test_doctests(project):
    project.write(
        "module.py",
        '''
        """
        >>> 1 + 1
        2
        >>> 1 + 1
        3
        """

        def f():
            """
            >>> f()
            1
            """
            return 1
        ''',
    )
    project.write("text.txt", ">>> print(1)\n1\n")
    project.compare("--doctest-modules", "--doctest-glob=*.txt")


def test_subtests(project):
    pytest.importorskip("_pytest.subtests")
    project.write(
        "test_it.py",
        """
        def test_some(subtests):
            for n in range(4):
                with subtests.test("of n", n=n):
                    assert n % 2
        def test_all(subtests):
            with subtests.test(): pass
        """,
    )
    plain, *runs = project.compare()
    assert plain.code == 1
    for run in runs:
        assert _summary(run.out) == _summary(plain.out)


def test_example_of_the_readme(project):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (example,) = (program for program in programs if "import pytest" in program)
    project.write("test_it.py", example)
    assert project.run("--fastfork").code == 0
    assert project.run().code == 1


def test_inert_without_the_option(project):
    project.write(
        "test_it.py",
        """
        import sys
        def test_it(): assert not any(name.startswith("fastfork") for name in sys.modules)
        """,
    )
    run = project.run()
    assert run.code == 0, run.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fastfork=x"], "--fastfork=x: not a number"),
        (["--fastfork=0"], "--fastfork=0: at least one"),
        (["--fastfork", "-o", "fastfork_timeout=soon"], "fastfork_timeout = soon: not a number"),
    ],
)
def test_bad_options(project, arguments, message):
    project.write("test_it.py", "def test(): pass")
    run = project.run(*arguments)
    assert run.code == 4
    assert message in run.out


def test_path_after_the_option(project):
    project.write("tests/conftest.py", "def pytest_addoption(parser): parser.addoption('--mine')")
    project.write("tests/test_it.py", "def test(): pass")
    run = project.run("--fastfork", "tests", "--mine=1")
    assert run.code == 0, run.out


def test_debugger_in_the_terminal(project):
    project.write("test_it.py", "def test_a(): value = 41; assert value == 42\ndef test_b(): pass\n")
    code, text = _run_in_terminal(project, "--fastfork", "--pdb", answers=[b"p value + 1000\n", b"c\n"])
    assert code == 1
    assert "1041" in text
    assert "1 failed" in text
    assert "1 passed" in text


@pytest.mark.parametrize("options", [(), ("-s",)])
def test_what_asks_the_terminal_fails_and_says_so(project, options):
    """It would stop for ever: one process group at a time may read from a terminal, and that is pytest's own."""
    project.write(
        "test_it.py",
        """
        import getpass, os, subprocess, pytest
        def test_breakpoint(): breakpoint()
        def test_set_trace(): pytest.set_trace()
        def test_password(): getpass.getpass()
        def test_child(): subprocess.run(["head", "-1"], stdin=os.open("/dev/tty", os.O_RDONLY))
        def test_input(): input()
        def test_fine(): pass
        """,
    )
    code, text = _run_in_terminal(project, "--fastfork=2", "--color=no", "-rN", *options)
    assert code == 1
    assert "5 failed, 1 passed" in text, text
    assert text.count("Failed: The debugger needs the terminal") == 2
    assert text.count("was stopped by SIGTT") == (3 if options else 2)
    assert "--pdb" in text


def _run_in_terminal(project, *arguments, answers=()):
    """Run pytest in a terminal of its own; return its exit code, and what it has shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.folder)
        command = project.command(*arguments)
        os.execve(command[0], command, project.environment(project.folder / "log"))
    text = _converse(terminal, list(answers))
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def _converse(terminal, answers):
    """Answer each prompt of pdb; return all that was shown until the end."""
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the program has ended
                break
            if answers and shown.endswith(b"(Pdb) "):
                os.write(terminal, answers.pop(0))
    return shown.decode()
