"""Longer tests are begun first, and results are shown in pytest's order all the same."""

from __future__ import annotations

CACHE = ("-p", "cacheprovider")


def test_longest_first(project):
    project.write(
        "test_it.py",
        """
        import time, pytest
        from journal import log

        @pytest.mark.parametrize("n", [0, 0.1, 0.2, 0.3])
        def test_it(n):
            log(n)
            time.sleep(n)
        """,
    )
    project.run("--fastfork=2", *CACHE)
    run = project.run("--fastfork=2", *CACHE)
    assert set(run.log[:2]) == {"0.3", "0.2"}
    assert [case.get("name") for case in run.cases] == [f"test_it[{n}]" for n in ("0", "0.1", "0.2", "0.3")]
    assert project.run("--fastfork=2", "-x", *CACHE).log[-1] == "0.3"


def test_a_damaged_cache(project):
    project.write("test_it.py", "def test_a(): pass\ndef test_b(): pass\n")
    project.write(".pytest_cache/v/fastfork/durations", '{"test_it.py::test_a": "long", "x": [1]}')
    assert project.run("--fastfork=2", *CACHE).code == 0
