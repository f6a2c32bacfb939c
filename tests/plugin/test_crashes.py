"""Whatever a test does to its process, it is one failed test, and no other one notices."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from support.processes import children_of, is_alive, wait_until

AROUND = """
    import ctypes, os, signal, sys, time, threading, pytest
    def test_before(): pass
    def test_it():
        print("printed before")
        {}
    def test_after(): pass
"""


def one_failure(project, statement, *arguments):
    project.write("test_it.py", AROUND.format(statement))
    for workers in (1, 2):
        run = project.run(f"--fastfork={workers}", *arguments)
        assert "1 failed, 2 passed" in run.out, run.out
        assert run.code == 1
        (name,) = run.failures()
        assert name == "test_it"
    return run


def names_of_cases(run):
    """Return the names of the tests that were reported; one that passed and whose teardown failed is two cases."""
    return {case.get("name") for case in run.cases}


@pytest.mark.parametrize(
    ("statement", "how"),
    [
        ("os.abort()", "killed by SIGABRT"),
        ("ctypes.string_at(0)", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(0)", "exited with code 0"),
        ("os._exit(3)", "exited with code 3"),
        ("os.killpg(os.getpgrp(), 15)", "killed by SIGTERM"),
    ],
)
def test_death(project, statement, how):
    run = one_failure(project, statement)
    assert how in run.failures()["test_it"]
    assert run.out.count(how) >= 1
    assert "printed before" in run.captured("test_it", "system-out")
    assert run.out.count("printed before") == 1


def test_what_was_printed_before_a_death_is_shown_as_for_a_failure(project):
    """In each phase, once in the terminal and once in the JUnit report, whatever is to be shown."""
    project.write(
        "test_it.py",
        """
        import os, sys, pytest
        @pytest.fixture
        def fixture():
            print("out of the set-up")
            print("err of the set-up", file=sys.stderr)
            may_end("setup")
            yield
            may_end("teardown")
        def test_it(fixture):
            print("out of the test")
            may_end("call")
        def may_end(phase):
            if os.environ["PHASE"] == phase:
                print("out of the end")
                os.abort() if "DIE" in os.environ else pytest.fail("it failed")
        """,
    )
    for phase in ("setup", "call", "teardown"):
        plain = project.run("-rA", PHASE=phase)
        run = project.run("-rA", "--fastfork", PHASE=phase, DIE="1")
        assert _of_phases(run.out) == _of_phases(plain.out)
        for stream in ("system-out", "system-err"):
            assert _of_phases(run.captured("test_it", stream)) == _of_phases(
                plain.captured("test_it", stream)
            )


def _of_phases(text):
    return [line for line in text.splitlines() if line.startswith(("out of", "err of", "---"))]


def test_traceback_of_a_crash(project):
    run = one_failure(project, "ctypes.string_at(0)")
    text = run.failures()["test_it"]
    assert "Segmentation fault" in text
    assert "in test_it" in text
    assert "pluggy" not in text


def test_memory_error(project):
    run = one_failure(
        project,
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32)); x = bytearray(1 << 40)",
    )
    assert "MemoryError" in run.failures()["test_it"]


def test_death_for_want_of_memory(project, memory_cgroup):
    """The kernel kills what has most of it in the control group: the test, and not what it was forked from."""
    project.run_below(*memory_cgroup)
    run = one_failure(project, "b'x' * (1 << 30)")
    assert "killed by SIGKILL (the kernel does so when memory runs out)" in run.failures()["test_it"]


def test_death_in_a_fixture_and_of_its_template(project):
    project.write(
        "test_it.py",
        """
        import os, pytest
        @pytest.fixture(scope="module")
        def deadly(): os.abort()
        @pytest.fixture(scope="module")
        def late():
            yield
            os.abort()
        @pytest.fixture
        def narrow(): os._exit(0)
        def test_a(): pass
        def test_b(deadly): pass
        def test_c(deadly): pass
        def test_d(): pass
        def test_e(narrow): pass
        def test_f(late): pass
        def test_g(): pass
        """,
    )
    for workers in (1, 2):
        run = project.run(f"--fastfork={workers}")
        assert len(run.cases) >= 7, run.out
        failures = run.failures()
        assert set(failures) == {"test_b", "test_c", "test_e", "test_g"}, run.out
        assert "SIGABRT" in failures["test_b"]
        assert "in deadly" in failures["test_b"]
        assert "pytest_plugin" not in failures["test_b"]


def test_death_of_a_template_from_which_another_one_was_forked(project):
    """The session's dies while a module's has a test under way: what the module's has not done is done anew."""
    project.write(
        "test_first.py",
        """
        import os, time, pytest
        from journal import log
        @pytest.fixture(scope="module", autouse=True)
        def module(): yield log("up")
        def test_a(): log("a")
        def test_b():
            deadline = time.monotonic() + 60
            while not os.path.exists("killed") and time.monotonic() < deadline: time.sleep(0.01)
        def test_c(): log("c")
        """,
    )
    project.write(
        "test_second.py",
        """
        import os, time, pytest
        from journal import log
        @pytest.fixture(scope="session")
        def deadly():
            deadline = time.monotonic() + 60
            while "a" not in open(os.environ["PROJECT_LOG"]).read() and time.monotonic() < deadline: time.sleep(0.01)
            open("killed", "w").close()
            os.abort()
        def test_d(deadly): pass
        def test_e(): log("e")
        """,
    )
    run = project.run("--fastfork=2")
    assert set(run.failures()) == {"test_d"}, run.out
    assert "4 passed" in run.out
    assert {"a", "c", "e"} <= set(run.log)


def test_death_of_a_template_after_the_last_test_of_a_scope(project):
    """Results that were to be shown after the teardown are shown without one."""
    project.write(
        "test_it.py",
        """
        import os, pytest
        @pytest.fixture(scope="class")
        def wide(): yield
        @pytest.fixture(scope="session")
        def late(): pass
        @pytest.mark.usefixtures("wide")
        class TestIt:
            def test_a(self): pass
            def test_b(self, late): os.kill(os.getppid(), 9)
        def test_c(late): pass
        def test_d(late): os.kill(os.getppid(), 9)
        """,
    )
    run = project.run("--fastfork=1")
    assert len(run.cases) == 4, run.out
    assert set(run.failures()) <= {"test_b", "test_d"}, run.out
    run = project.run("--fastfork=2")
    assert len(run.cases) == 4, (
        run.out
    )  # a test beside them may be taken along, and once more when it is repeated


@pytest.mark.parametrize("victim", ["os.getppid()", "0"])
def test_killing_others(project, victim):
    project.write(
        "test_it.py",
        f"""
        import os, pytest
        @pytest.fixture(scope="module", autouse=True)
        def module(): pass
        def test_a(): pass
        def test_b(): os.kill({victim}, 9)
        def test_c(): pass
        def test_d(): pass
        """,
    )
    run = project.run("--fastfork=1")
    assert names_of_cases(run) == {"test_a", "test_b", "test_c", "test_d"}, run.out
    assert set(run.failures()) <= {"test_b"}, run.out


def test_a_fork_that_returns_into_pytest(project):
    project.write(
        "test_it.py",
        """
        import os
        def test_a(): os.fork()
        def test_b(): assert os.fork() or False
        def test_c(): pass
        """,
    )
    run = project.run("--fastfork=2")
    assert len(run.cases) == 3, run.out


def test_a_test_that_waits_to_begin_ends_with_all_others(project):
    project.write(
        "test_it.py",
        """
        import os, time
        from journal import log
        def test_a(): log(os.getpid()); time.sleep(99)
        def test_b(): pass
        """,
    )
    log = project.folder / "log"
    process = subprocess.Popen(
        project.command("--fastfork=1"), cwd=project.folder, env=project.environment(log)
    )
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    running = int(log.read_text())
    (template,) = children_of(process.pid)
    wait_until(lambda: len(children_of(template)) == 2)
    tests = children_of(template)
    os.kill(template, signal.SIGSTOP)  # it would see to them
    process.kill()
    process.wait()
    os.kill(template, signal.SIGKILL)
    os.kill(running, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in tests))


def test_expected_crash(project):
    project.write(
        "test_it.py",
        """
        import os, pytest
        @pytest.mark.xfail
        def test_a(): os.abort()
        """,
    )
    run = project.run("--fastfork")
    assert "1 xfailed" in run.out


def test_hanging(project):
    run = one_failure(
        project,
        "threading.Thread(target=time.sleep, args=(99,), name='t').start(); time.sleep(99)",
        "--fastfork-timeout=1",
    )
    text = run.failures()["test_it"]
    assert "longer than 1 s (--fastfork-timeout)" in text
    assert text.count("most recent call first") >= 2
    assert "in test_it" in text


def test_hanging_while_others_keep_ending(project):
    """The one that hangs would end by itself once it has seen all others; these last as long as it lives."""
    project.write(
        "test_it.py",
        """
        import os, time, pytest
        from journal import log
        SHORT = 100

        def words():
            with open(os.environ["PROJECT_LOG"]) as file:
                return file.read().split()

        def wait_until(condition, deadline):
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)

        def test_hanging():
            log(os.getpid())
            wait_until(lambda: words().count("short") == SHORT, time.monotonic() + 60)

        @pytest.mark.parametrize("n", range(SHORT))
        def test_short(n):
            deadline = time.monotonic() + 60
            wait_until(words, deadline)
            hanging = "/proc/" + words()[0]
            wait_until(lambda: not os.path.exists(hanging), min(deadline, time.monotonic() + 0.1))
            log("short")
        """,
    )
    run = project.run("--fastfork=2", "--fastfork-timeout=1")
    assert "longer than 1 s (--fastfork-timeout)" in run.failures()["test_hanging"], run.out
    assert len(run.cases) == 101


def test_hanging_fixture(project):
    project.write(
        "test_it.py",
        """
        import time, pytest
        @pytest.fixture(scope="module")
        def slow(): time.sleep(99)
        def test_a(): pass
        def test_b(slow): pass
        def test_c(): pass
        """,
    )
    run = project.run("--fastfork=1", "-o", "fastfork_timeout=1")
    assert set(run.failures()) == {"test_b"}, run.out
    assert "in slow" in run.failures()["test_b"]


def test_leftovers(project):
    project.write(
        "test_it.py",
        """
        import os, subprocess, sys, threading, time
        from journal import log
        def test_process():
            log(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True).pid)
        def test_thread(): threading.Thread(target=time.sleep, args=(99,), name="lasting").start()
        def test_descriptor(): os.open(os.devnull, os.O_RDONLY)
        def test_clean(): pass
        """,
    )
    run = project.run("--fastfork=2", "--fastfork-leftovers")
    assert run.code == 0, run.out
    assert "test_process: process" in run.out
    assert "test_thread: thread lasting" in run.out
    assert "test_descriptor: descriptor" in run.out
    assert "test_clean:" not in run.out
    assert not os.path.exists(f"/proc/{run.log[0]}")


def test_interrupt(project):
    project.write(
        "test_it.py",
        """
        import time, pytest
        from journal import log
        @pytest.fixture(scope="module")
        def module():
            yield
            log("torn down")
        def test_a(module): log("a")
        def test_b(): log("b"); time.sleep(99)
        def test_c(): log("c"); time.sleep(99)
        """,
    )
    log = project.folder / "log"
    process = subprocess.Popen(
        project.command("--fastfork=2"),
        cwd=project.folder,
        env=project.environment(log),
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: log.exists() and {"b", "c"} <= set(log.read_text().split()))
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == 2
    assert "KeyboardInterrupt" in out
    assert "1 passed" in out
    assert "torn down" in log.read_text()
