"""How tests are run: collected once, so many at a time, and shown as they end."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

import pytest
from support.processes import wait_until


def test_imports_and_collection_happen_once(project):
    project.write("conftest.py", "from journal import log; log('conftest')")
    project.write(
        "test_it.py",
        """
        import os, pytest
        from journal import log
        log("module")
        @pytest.mark.parametrize("n", range(5))
        def test_it(n): log("test", os.getpid())
        """,
    )
    run = project.run("--fastfork=2")
    assert run.log[:2] == ["conftest", "module"]
    assert len(set(run.log[2:])) == len(run.log[2:]) == 5


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_at_a_time(project, workers):
    project.write(
        "test_it.py",
        """
        import os, time, pytest
        from journal import log

        @pytest.mark.parametrize("n", range(9))
        def test_it(n, workers):
            log("begin", n)
            deadline = time.monotonic() + 30
            while n < workers and _begun() < workers:  # the first ones wait for each other
                assert time.monotonic() < deadline
                time.sleep(0.01)
            log("end", n)

        def _begun():
            return open(os.environ["PROJECT_LOG"]).read().count("begin")

        @pytest.fixture
        def workers(): return int(os.environ["WORKERS"])
        """,
    )
    run = project.run(f"--fastfork={workers}", WORKERS=str(workers))
    assert run.code == 0, run.out
    active = most = 0
    for line in run.log:
        active += 1 if line.startswith("begin") else -1
        most = max(most, active)
    assert most == workers


def test_progress_is_shown_as_tests_end(project):
    project.write("test_a.py", "import pytest\n@pytest.mark.parametrize('n', range(3))\ndef test(n): pass\n")
    project.write(
        "test_b.py",
        """
        import os, time
        def test():
            deadline = time.monotonic() + 30
            while not os.path.exists("go") and time.monotonic() < deadline: time.sleep(0.01)
        """,
    )
    shown = _Terminal(project, "--fastfork=2")
    shown.until(b"test_a.py ...")
    (project.folder / "go").touch()
    shown.until(b"test_b.py .")
    shown.until(b"[100%]")
    shown.until(b"4 passed")
    assert shown.end() == 0


class _Terminal:
    """A run of pytest in a terminal."""

    def __init__(self, project, *arguments):
        self._text = b""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(project.folder)
            command = project.command(*arguments)
            os.execve(command[0], command, project.environment(project.folder / "log"))

    def until(self, text):
        """Read until a text has been shown."""
        deadline = time.monotonic() + 60
        while text not in _without_colours(self._text):
            assert time.monotonic() < deadline, self._text.decode()
            self._read()

    def _read(self):
        if select.select([self._terminal], [], [], 1)[0]:
            try:
                self._text += os.read(self._terminal, 4096)
            except OSError as error:  # the program has ended
                raise AssertionError(self._text.decode()) from error

    def end(self):
        """Return the exit code."""
        status = os.waitpid(self._pid, 0)[1]
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)


def _without_colours(text):
    parts = text.split(b"\x1b[")
    return parts[0] + b"".join(part.partition(b"m")[2] for part in parts[1:])


THREAD = """
    import threading, urllib.request, pytest
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_): pass

    @pytest.fixture(scope="session")
    def address():
        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.mark.parametrize("n", range(3))
    def test_it(address, n): assert urllib.request.urlopen(address).status == 204
"""


def test_a_server_in_a_thread_of_a_wide_fixture(project):
    project.write("test_it.py", THREAD)
    for run in project.compare("-W", "error"):
        assert run.code == 0, run.out


def test_a_thread_is_no_reason_for_a_warning(project):
    project.write("test_it.py", THREAD)
    run = project.run("--fastfork=2", PYTHONWARNINGS="error::DeprecationWarning")
    assert run.code == 0, run.out


def test_what_a_thread_of_a_wide_fixture_prints_disturbs_nothing(project):
    project.write(
        "test_it.py",
        """
        import os, threading, time, pytest

        @pytest.fixture(scope="session")
        def talkative():
            reader, writer = os.pipe()
            answer, answerer = os.pipe()
            def talk():
                while os.read(reader, 1):
                    print("of the thread")
                    os.system("echo of the thread")
                    os.write(answerer, b"a")
            thread = threading.Thread(target=talk)
            thread.start()
            yield lambda: (os.write(writer, b"q"), os.read(answer, 1))
            os.close(writer)

        @pytest.mark.parametrize("n", range(4))
        def test_it(talkative, n): print("of the test", n); talkative()
        """,
    )
    run = project.run("--fastfork=1")
    assert run.code == 0, run.out
    assert all(f"of the test {n}" in str(result) for n, result in enumerate(run.results()))
    assert "of the thread" not in str(run.results()) + run.out


def test_a_thread_of_pytest_itself(project):
    """As those that plugins start: tests are forked all the same."""
    project.write(
        "conftest.py",
        """
        import threading
        stop = threading.Event()
        def pytest_sessionstart(): threading.Thread(target=stop.wait).start()
        def pytest_sessionfinish(): stop.set()
        """,
    )
    project.write("test_it.py", "def test_a(): pass\ndef test_b(): pass\n")
    run = project.run("--fastfork=2", PYTHONWARNINGS="error::DeprecationWarning")
    assert run.code == 0, run.out


def test_pytest_killed_takes_its_processes_along(project):
    project.write(
        "test_it.py",
        """
        import os, time, pytest
        from journal import log
        @pytest.fixture(scope="module", autouse=True)
        def module(): log(os.getpid())
        def test_a():
            log(os.getppid(), os.getpid(), "end")
            time.sleep(99)
        """,
    )
    log = project.folder / "log"
    process = subprocess.Popen(
        project.command("--fastfork"),
        cwd=project.folder,
        env=project.environment(log),
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: log.exists() and "end" in log.read_text())
    others = [int(word) for word in log.read_text().split() if word.isdigit()]
    process.kill()
    process.wait()
    wait_until(lambda: not any(os.path.exists(f"/proc/{other}") for other in others))


COUNTS_CALLS = """
    import cProfile
    import pstats
    from journal import log

    profile = cProfile.Profile()

    def pytest_collection_finish():
        profile.enable()

    def pytest_sessionfinish():
        profile.disable()
        stats = pstats.Stats(profile).stats
        log(sum(calls for (file, *_), (_, calls, *_) in stats.items() if file.endswith("supervisor.py")))
"""

CLASS = """
class Test{}:
    @pytest.fixture(scope="class", autouse=True)
    def fixture(self): pass

    def test_it(self): pass
"""


def test_a_template_costs_the_same_beside_many_others(project):
    project.write("conftest.py", COUNTS_CALLS)

    def calls_for_each(count):
        project.write("test_it.py", "import pytest\n" + "".join(map(CLASS.format, range(count))))
        run = project.run("--fastfork=2", "-W", "ignore")
        assert run.code == 0, run.out
        return int(run.log[-1]) / count

    assert calls_for_each(100) < 2 * calls_for_each(10)
