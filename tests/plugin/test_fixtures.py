"""Wide fixtures are set up and torn down as in plain pytest, once, and each test begins with a pristine copy."""

from __future__ import annotations

FIXTURES = """
    import os, pytest
    from journal import log

    def make(scope, **options):
        @pytest.fixture(scope=scope, **options)
        def fixture(request):
            log("up", scope, getattr(request, "param", ""))
            print("printed by the set-up of", scope)
            yield [os.getpid()]
            print("printed by the teardown of", scope)
            log("down", scope, getattr(request, "param", ""))
        return fixture

    session = make("session")
    package = make("package")
    module = make("module")
    cls = make("class")
"""


def test_set_up_once_and_torn_down_in_order(project):
    project.write("conftest.py", FIXTURES)
    for name in ("one", "two"):
        project.write(
            f"pkg/test_{name}.py",
            """
            from journal import log

            def test_plain():
                log("test")

            def test_module(module, session):
                log("test")
                module.append(1)
                assert len(module) == 2

            def test_pristine(module, session, package):
                log("test")
                assert len(module) == 1

            class TestIt:
                def test_class(self, cls, module):
                    log("test")
                    cls.append(1)

                def test_class_pristine(self, cls, module):
                    log("test")
                    assert len(cls) == 1

            def test_end():
                log("test")
            """,
        )
    project.write("pkg/__init__.py", "")
    project.write("pkg/conftest.py", "")
    for test in ("one", "two"):  # plain pytest hands on what tests have changed
        path = project.folder / f"pkg/test_{test}.py"
        path.write_text(path.read_text().replace("assert len(module) == 1", "assert module"))
        path.write_text(path.read_text().replace("assert len(cls) == 1", "assert cls"))
    project.compare_with_log()


PACKAGE = """
    from conftest import make
    package = make("package")
"""
INIT = """
    from journal import log
    def setup_module(): log("setup_module", __name__)
    def teardown_module(): log("teardown_module", __name__)
"""
TESTS_OF_A_PACKAGE = """
    from journal import log
    def test_without(): log("test", __name__)
    def test_package(package): log("test", __name__)
    def test_module(module, package, session): log("test", __name__)
    def test_package_again(package): log("test", __name__)
"""


def test_packages(project):
    """The fixtures of a package, and what its __init__.py sets up, end with it, in the midst of the run."""
    project.write("conftest.py", FIXTURES)
    for package in ("first", "first/inner", "second", "third"):
        project.write(f"{package}/__init__.py", INIT if package != "second" else "")
        project.write(f"{package}/conftest.py", PACKAGE if package != "third" else "")
        project.write(f"{package}/test_one.py", TESTS_OF_A_PACKAGE)
        project.write(f"{package}/test_two.py", TESTS_OF_A_PACKAGE)
    project.write("test_outside.py", TESTS_OF_A_PACKAGE)
    plain, *_ = project.compare_with_log()
    assert plain.log.count("up package ") == 4
    assert plain.log.index("down package ") < plain.log.index("test second.test_one")


def test_an_outer_fixture_that_is_needed_later_than_an_inner_one(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        "def test_a(module): pass\ndef test_b(session): pass\ndef test_c(module): pass\n",
    )
    plain, *runs = project.compare()
    assert [run.log for run in runs] == [plain.log] * 2


def test_set_up_of_packages_without_fixtures(project):
    project.write("conftest.py", FIXTURES)
    project.write("modules/__init__.py", INIT)
    project.write("modules/test_one.py", "def test_a(module): pass\ndef test_b(module): pass\n")
    project.write("modules/test_two.py", "def test_a(module): pass\ndef test_b(session): pass\n")
    project.write("broken/__init__.py", "def setup_module(): raise ValueError('of a package')\n")
    project.write("broken/test_one.py", "def test_a(): pass\ndef test_b(module): pass\n")
    project.write("skipped/__init__.py", INIT)
    project.write("skipped/test_one.py", "import pytest\n@pytest.mark.skip\ndef test_a(): pass\n")
    plain, *_ = project.compare_with_log()
    assert len(plain.failures()) == 2
    assert plain.log.count("setup_module modules") == 1


def test_pristine_state(project):
    project.write(
        "test_it.py",
        """
        import pytest

        state = []

        @pytest.fixture(scope="module")
        def numbers():
            return [1]

        @pytest.mark.parametrize("n", range(5))
        def test_pristine(numbers, n):
            assert numbers == [1]
            assert state == []
            numbers.append(2)
            state.append(1)
        """,
    )
    assert project.run("--fastfork=2").code == 0
    assert project.run().code == 1


def test_processes(project):
    project.write(
        "test_it.py",
        """
        import os, pytest
        from journal import log

        @pytest.fixture(scope="module", autouse=True)
        def template():
            return os.getpid()

        @pytest.mark.parametrize("n", range(6))
        def test_it(template, n):
            assert os.getppid() == template
            log(os.getpid())
        """,
    )
    run = project.run("--fastfork=2")
    assert run.code == 0, run.out
    assert len(set(run.log)) == 6


def test_parametrised_wide_fixtures(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        import pytest
        from conftest import make
        from journal import log

        outer = make("session", params=["a", "b"])
        inner = make("module", params=[1, 2])

        @pytest.fixture(scope="module")
        def both(outer, inner):
            log("up both")
            yield
            log("down both")

        def test_outer(outer, module): log("test")
        def test_inner(inner, module): log("test")
        def test_both(both): log("test")
        def test_none(): log("test")

        @pytest.mark.parametrize("inner", ["x", "y"], indirect=True, scope="module")
        def test_indirect(inner): log("test")

        @pytest.mark.parametrize("direct", ["x", "y"], scope="module")
        def test_direct(direct, module): log("test")
        """,
    )
    project.compare_with_log()


def test_errors_are_on_the_right_tests(project):
    project.write(
        "conftest.py",
        """
        import pytest

        @pytest.fixture(scope="module")
        def broken_elsewhere(): raise ValueError("in set-up")

        @pytest.fixture(scope="module")
        def breaks_late_elsewhere():
            yield
            raise ValueError("in teardown")
        """,
    )
    project.write(
        "test_it.py",
        """
        import pytest

        @pytest.fixture(scope="module")
        def broken():
            print("before the error")
            raise ValueError("in set-up")

        @pytest.fixture(scope="module")
        def breaks_late():
            yield
            print("before the late error")
            raise ValueError("in teardown")

        @pytest.fixture(scope="class", params=[1, 2])
        def breaks_between(request):
            yield
            raise ValueError(f"in teardown of {request.param}")

        def test_first(broken): pass
        def test_second(broken): pass
        def test_late(breaks_late): pass

        class TestClass:
            def test_a(self, breaks_between): pass
            def test_b(self, breaks_between): pass

        @pytest.mark.xfail
        def test_expected(broken): pass

        def test_last(): pass
        """,
    )
    project.write(
        "test_that.py",
        """
        def test_elsewhere(broken_elsewhere): pass
        def test_last(breaks_late_elsewhere): pass
        """,
    )
    plain, *_ = project.compare()
    assert len(plain.failures()) == 6  # by name: two are of a test_last


def test_parameters_of_a_module_for_one_class(project):
    """The class's own template cannot have its module's fixture with two values."""
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        import pytest
        from journal import log

        class TestIt:
            def test_before(self, cls): log("test")

            @pytest.mark.parametrize("value", [1, 2], scope="module")
            def test_it(self, cls, value): log("test", value)
        """,
    )
    project.compare_with_log()


def test_an_override_that_needs_a_wider_fixture_of_its_name(project):
    """That one is set up once, though the name means one for each test, or each module."""
    project.write("conftest.py", FIXTURES)
    for name in ("one", "two"):
        project.write(
            f"test_{name}.py",
            """
            import pytest
            from journal import log

            @pytest.fixture
            def module(module):
                log("up function")
                return [*module, 1]

            @pytest.fixture(scope="module")
            def session(session):
                log("up module")
                return [*session, 2]

            def test_module(module):
                assert len(module) == 2
                log("test")

            def test_both(module, session):
                assert len(module) == len(session) == 2
                log("test")
            """,
        )
    plain, *_ = project.compare_with_log()
    assert plain.log.count("up session ") == 1


def test_what_another_fixtures_error_has_kept_from_being_set_up_is_set_up_later_once(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        import pytest
        from conftest import make
        from journal import log

        @pytest.fixture(scope="module")
        def broken():
            log("up broken")
            raise ValueError("in set-up")

        @pytest.fixture(scope="module", params=[1, 2])
        def breaks_between(request):
            yield request.param
            raise ValueError(f"in teardown of {request.param}")

        def test_broken(broken, module): log("test")
        def test_module(module): log("test")
        def test_broken_again(broken, module, session): log("test")
        def test_session(session, module): log("test")
        def test_session_again(session): log("test")

        @pytest.mark.parametrize("n", [1, 2])
        def test_between(breaks_between, n): log("test", breaks_between, n)
        """,
    )
    project.compare_with_log()


def test_what_has_failed_is_set_up_again_once_with_another_parameter_of_what_it_needs(project):
    project.write(
        "test_it.py",
        """
        import pytest
        from journal import log

        @pytest.fixture(scope="session", params=[1, 2])
        def parametrised(request):
            log("up", request.param)
            yield request.param
            log("down")

        @pytest.fixture(scope="session", autouse=True)
        def skips(parametrised):
            log("skips")
            pytest.skip(f"with {parametrised}")

        def test_one(): log("test")
        def test_two(skips): log("test")
        def test_three(parametrised): log("test")
        """,
    )
    plain, *_ = project.compare_with_log()
    assert plain.log == ["up 1", "skips", "down", "up 2", "skips", "down"]


def test_what_is_torn_down_is_told_once_where_a_failure_ends_the_session(project):
    """That is after the template has made ready for the next module."""
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_one.py",
        """
        import pytest

        @pytest.fixture(scope="module")
        def prints():
            yield
            print("down")

        @pytest.mark.parametrize("value", [1, 2], scope="session")
        @pytest.mark.usefixtures("session", "module")
        def test_it(prints, value):
            assert value == 1
        """,
    )
    project.write("test_two.py", "def test_it(module): pass")
    project.compare("-x", workers=(1,))


def test_a_wide_fixture_that_fails_under_unittest(project):
    project.write(
        "test_it.py",
        """
        import unittest, pytest

        @pytest.fixture(autouse=True, scope="module")
        def broken(): raise ValueError("in set-up")

        class Case(unittest.TestCase):
            def test_it(self): pass
        """,
    )
    plain, *_ = project.compare()
    assert len(plain.failures()) == 1


def test_a_scope_that_does_not_fit_is_said_as_by_plain_pytest(project):
    project.write(
        "test_it.py",
        """
        import pytest

        @pytest.fixture
        def narrow(): pass

        @pytest.fixture(scope="module")
        def wide(narrow): pass

        def test_it(wide): pass
        """,
    )
    project.compare()


def test_a_teardown_that_is_expected_to_fail(project):
    project.write(
        "test_it.py",
        """
        import pytest

        class TestIt:
            @pytest.fixture(scope="class")
            def breaks_late(self):
                yield
                raise ValueError("in teardown")

            @pytest.mark.xfail
            def test_it(self, breaks_late): pass
        """,
    )
    project.compare()


def test_addfinalizer_xunit_and_unittest(project):
    project.write(
        "test_it.py",
        """
        import unittest, pytest
        from journal import log

        def setup_module(module): log("setup_module"); module.value = 1
        def teardown_module(module): log("teardown_module")
        def setup_function(function): log("setup_function")

        @pytest.fixture(scope="module")
        def final(request):
            request.addfinalizer(lambda: log("finalizer 1"))
            request.addfinalizer(lambda: log("finalizer 2"))

        def test_value(final): assert value == 1

        class TestX:
            @classmethod
            def setup_class(cls): log("setup_class"); cls.value = 2
            @classmethod
            def teardown_class(cls): log("teardown_class")
            def setup_method(self, method): log("setup_method")
            def test_a(self): assert self.value == 2
            def test_b(self): assert self.value == 2

        class Case(unittest.TestCase):
            @classmethod
            def setUpClass(cls): log("setUpClass"); cls.value = 3; cls.addClassCleanup(log, "class cleanup")
            @classmethod
            def tearDownClass(cls): log("tearDownClass")
            def setUp(self): log("setUp")
            def tearDown(self): log("tearDown")
            def test_c(self): self.assertEqual(self.value, 3)
            def test_d(self): self.skipTest("why not")
            @unittest.expectedFailure
            def test_e(self): self.fail()
        """,
    )
    project.compare_with_log()


def test_subtests_of_unittest(project):
    project.write(
        "test_it.py",
        """
        import unittest

        class Case(unittest.TestCase):
            def test_it(self):
                for n in range(4):
                    with self.subTest("s", n=n): self.assertTrue(n % 2)
        """,
    )
    # Plain pytest prints its progress into what it captures there.
    project.compare("-o", "junit_logging=no")


def test_skipped_tests_set_nothing_up(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        import pytest

        @pytest.mark.skip
        def test_skipped(session): pass

        @pytest.mark.skipif("True", reason="so")
        def test_skipped_if(module): pass

        @pytest.mark.xfail(run=False)
        def test_not_run(module): pass

        def test_run(): pass
        """,
    )
    for run in project.compare():
        assert run.log == []


def test_lazily_and_not_before(project):
    project.write(
        "test_it.py",
        """
        import os, pytest

        @pytest.fixture(scope="session")
        def variable():
            os.environ["OF_THE_PROJECT"] = "1"
            yield
            del os.environ["OF_THE_PROJECT"]

        @pytest.fixture(scope="module", autouse=True)
        def module(): pass

        def test_before(): assert "OF_THE_PROJECT" not in os.environ
        def test_with(variable): assert "OF_THE_PROJECT" in os.environ
        def test_after(): assert "OF_THE_PROJECT" in os.environ
        """,
    )
    project.compare()


def test_dynamically_requested(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        def test_it(request):
            assert request.getfixturevalue("module") is request.getfixturevalue("module")

        def test_again(request): request.getfixturevalue("session")
        """,
    )
    run = project.run("--fastfork=1")
    assert run.code == 0, run.out
    assert [line.split()[:2] for line in run.log] == [
        ["up", "module"],
        ["down", "module"],
        ["up", "session"],
        ["down", "session"],
    ]


def test_kept_per_test(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        import os, pytest

        @pytest.fixture(scope="module")
        def user(session): return os.getpid()

        def test_a(session, user): assert user == os.getpid()
        def test_b(session): assert session == [os.getpid()]
        def test_c(module): assert module == [os.getppid()]

        @pytest.mark.fastfork_per_test("module")
        def test_d(module): assert module == [os.getpid()]

        @pytest.mark.fastfork_per_test
        def test_e(module): assert module == [os.getpid()]
        """,
    )
    run = project.run("--fastfork=2", "-o", "fastfork_per_test=session")
    assert run.code == 0, run.out
    assert sorted(run.log) == sorted(
        ["up session "] * 2 + ["down session "] * 2 + ["up module "] * 3 + ["down module "] * 3
    )


def test_all_per_test(project):
    project.write("conftest.py", FIXTURES)
    project.write(
        "test_it.py",
        """
        import os
        def test_a(session): assert session == [os.getpid()]
        def test_b(session): assert session == [os.getpid()]
        """,
    )
    run = project.run("--fastfork", "--fastfork-fixtures=test")
    assert run.code == 0, run.out
    assert sorted(run.log) == sorted(["up session ", "down session "] * 2)
