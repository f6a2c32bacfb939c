"""Other plugins do in test processes, and with them, what they do in plain pytest."""

from __future__ import annotations

import re

import pytest

CODE = """
    def used_by_a_test(): return 1
    def used_by_a_fixture(): return 2
    def used_in_a_child(x):
        if x:
            return 3
        return 4
"""
TESTS = """
    import pytest, code_of_project as code
    @pytest.fixture(scope="module")
    def module(): return code.used_by_a_fixture()
    def test_a(): assert code.used_by_a_test() == 1
    def test_b(module): assert module == 2
    def test_c(): assert code.used_in_a_child(1) == 3
    def test_d(): assert code.used_in_a_child(0) == 4
"""


def _total(run):
    return re.search(r"code_of_project.py +(.*)", run.out)[1]


@pytest.mark.parametrize("option", [(), ("--cov-branch",)])
def test_coverage(project, option):
    pytest.importorskip("pytest_cov")
    project.load("pytest_cov")
    project.write("code_of_project.py", CODE)
    project.write("test_it.py", TESTS)
    plain, *runs = project.compare("--cov=code_of_project", *option)
    for run in runs:
        assert _total(run) == _total(plain)
        assert _total(run).endswith("100%")


def test_coverage_of_contexts(project):
    coverage = pytest.importorskip("coverage")
    pytest.importorskip("pytest_cov")
    project.load("pytest_cov")
    project.write("code_of_project.py", CODE)
    project.write("test_it.py", TESTS)
    project.run("--fastfork=2", "--cov=code_of_project", "--cov-context=test")
    data = coverage.CoverageData(str(project.folder / ".coverage"))
    data.read()
    assert {"test_it.py::test_a|run", "test_it.py::test_c|run"} <= data.measured_contexts()


@pytest.mark.parametrize("distribution", ["load", "loadscope", "loadfile"])
def test_inside_xdist(project, distribution):
    pytest.importorskip("xdist")
    project.load("xdist")
    project.write(
        "test_it.py",
        """
        import os, threading, time, pytest
        from journal import log

        @pytest.fixture(scope="module")
        def module():
            log("up")
            yield os.getpid()
            log("down")

        def setup_function(): log("pid", os.getpid())
        def test_a(module): assert "PLAIN" in os.environ or module == os.getppid()
        def test_b(module): assert "PLAIN" in os.environ or module == os.getppid()
        def test_c(module): assert 0 if "PLAIN" in os.environ else os.abort()
        def test_d(): threading.Thread(target=time.sleep, args=(99,), name="lasting", daemon=True).start()
        def test_e(module): print("e")
        """,
    )
    project.write(
        "test_that.py",
        """
        import pytest
        def test_f(): assert 0
        @pytest.mark.skip
        def test_g(): pass
        class TestIt:
            @pytest.mark.xfail
            def test_h(self): assert 0
            def test_i(self, no_such_fixture): pass
        """,
    )
    plain = project.run(PLAIN="1")
    run = project.run("-n", "2", f"--dist={distribution}", "--fastfork", "--fastfork-leftovers")
    assert _outcomes(run) == _outcomes(plain)
    assert "killed by SIGABRT" in run.failures()["test_c"]
    assert len({line for line in run.log if line.startswith("pid")}) == 5
    assert run.log.count("up") == run.log.count("down")
    assert run.log.count("up") in ((1, 2) if distribution == "load" else (1,))
    assert "test_it.py::test_d: thread lasting" in run.out


def _outcomes(run):
    return sorted((place, name, [tag for tag, *_ in children]) for place, name, children in run.results())


def test_asyncio(project):
    pytest.importorskip("pytest_asyncio")
    project.load("asyncio")
    project.write(
        "test_it.py",
        """
        import asyncio, pytest, pytest_asyncio

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def server():
            server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
            yield server.sockets[0].getsockname()[1]
            server.close()

        @pytest.mark.asyncio(loop_scope="module")
        @pytest.mark.parametrize("n", range(3))
        async def test_server(server, n):
            reader, writer = await asyncio.open_connection("127.0.0.1", server)
            assert await reader.read() == b""
            writer.close()

        @pytest.mark.asyncio
        async def test_own_loop(): await asyncio.sleep(0)
        """,
    )
    project.compare()


def load_hypothesis(project):
    """Load hypothesis with the database that it has at a terminal, and has not where a variable tells it of a CI."""
    project.load("hypothesispytest")
    project.write("pytest.ini", "[pytest]\naddopts = --hypothesis-profile=default\n")


def test_hypothesis(project):
    pytest.importorskip("hypothesis")
    load_hypothesis(project)
    project.write(
        "test_it.py",
        """
        from hypothesis import given, settings, strategies as st
        @given(st.integers())
        def test_fails(x): assert x < 1000
        @given(st.integers())
        def test_passes(x): pass
        """,
    )
    run = project.run("--fastfork=2", "--hypothesis-show-statistics")
    assert set(run.failures()) == {"test_fails"}, run.out
    assert "x=1000" in run.failures()["test_fails"]
    assert "Hypothesis Statistics" in run.out
    assert "during generate phase" in run.out
    assert any((project.folder / ".hypothesis" / "examples").iterdir())


@pytest.mark.parametrize("options", [(), ("--fastfork=2",)])
def test_database_of_hypothesis(project, options):
    pytest.importorskip("hypothesis")
    load_hypothesis(project)
    project.write(
        "test_it.py",
        """
        from hypothesis import given, settings, strategies as st
        from journal import log
        @given(st.integers())
        def test_fails(x):
            log(x)
            assert x < 1000
        """,
    )
    project.run("--fastfork=2")
    run = project.run(*options)
    assert run.log[0] == "1000"


def test_reruns(project):
    pytest.importorskip("pytest_rerunfailures")
    project.load("rerunfailures")
    project.write(
        "test_it.py",
        """
        import pytest
        from journal import log
        @pytest.fixture(scope="module")
        def module(): log("up")
        @pytest.mark.flaky(reruns=2)
        def test_fails(module): log("run"); assert 0
        count = []
        @pytest.mark.flaky(reruns=2)
        def test_passes_at_last(module): count.append(1); assert len(count) == 2
        """,
    )
    plain = project.run()
    run = project.run("--fastfork=2")
    assert run.log == plain.log
    assert "1 failed, 1 passed, 3 rerun" in run.out


def test_timeout(project):
    pytest.importorskip("pytest_timeout")
    project.load("timeout")
    project.write("test_it.py", "import time\ndef test_it(): time.sleep(99)\ndef test_next(): pass\n")
    run = project.run("--fastfork=2", "--timeout=1")
    assert "1 failed, 1 passed" in run.out
    assert "Timeout" in run.failures()["test_it"]


def test_randomly(project):
    pytest.importorskip("pytest_randomly")
    project.load("randomly")
    project.write(
        "test_it.py",
        """
        import random, pytest
        from journal import log
        @pytest.mark.parametrize("n", range(9))
        def test_it(n): log(n, random.random())
        """,
    )
    plain = project.run("--randomly-seed=5")
    run = project.run("--randomly-seed=5", "--fastfork=1")
    assert run.log == plain.log
    assert run.log != sorted(run.log)
