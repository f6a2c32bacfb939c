"""Random projects, whose reports plain pytest and fastfork are to write alike.

    python -m tests.plugin.random_projects 0 100      # those of a hundred seeds

A project that differs is kept, and its folder named. What is known to differ is not generated: README says it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

from .conftest import Project

SCOPES = ("session", "package", "module", "class", "function")
IMPORTS = "import logging, unittest, warnings\nimport pytest\nfrom journal import log\n\n"
ERRORS = ("assert 0", "pytest.skip('skipped')", "pytest.xfail('expected')", "raise KeyError(1)")
MARKS = (
    "skip",
    "skipif(True, reason='why')",
    "xfail",
    "xfail(strict=True)",
    "xfail(raises=KeyError)",
    "xfail(run=False)",
)
OPTIONS = ([], [], [], ["-x"], ["--maxfail=2"], ["-k", "test_1 or Test"], ["--tb=short", "-rA"])
NOT_COMPARABLE = ("ScopeMismatch", "does not support fixtures", "recursive dependency")
"""What plain pytest says of projects that make no sense: what else happens in them is a matter of order."""


class Generator:
    """Writes the files of a project.

    Parameters
    ----------
    seed:
        The same makes the same project.
    may_fail:
        Whether the set-ups and teardowns of fixtures may.

    """

    def __init__(self, seed: int, *, may_fail: bool):
        self._random = random.Random(seed)
        self._may_fail = may_fail
        self._count = 0
        self._overridden = set()

    def write(self, project):
        """Write the files; return the options of pytest to run them with."""
        visible = {}
        project.write("conftest.py", IMPORTS + self._fixtures(self._random.randint(0, 4), visible))
        folders = [f"d{number}/" for number in range(self._random.randint(0, 2))]
        nested = ["d0/e/"] if folders and self._happens(0.4) else []
        for folder in ("", *folders, *nested):
            self._write_folder(project, folder, dict(visible))
        return self._random.choice(OPTIONS)

    def _happens(self, probability):
        return self._random.random() < probability

    def _number(self):
        self._count += 1
        return self._count

    def _write_folder(self, project, folder, visible):
        if folder and self._happens(0.7):
            project.write(f"{folder}__init__.py", "")
        if folder and self._happens(0.5):
            project.write(
                f"{folder}conftest.py", IMPORTS + self._fixtures(self._random.randint(1, 3), visible)
            )
        for number in range(self._random.randint(1, 2)):
            name = f"test_{folder.replace('/', '')}{number}.py"
            project.write(folder + name, self._module(dict(visible)))

    def _module(self, visible):
        head = IMPORTS + self._fixtures(self._random.randint(0, 3), visible)
        return head + "".join(self._class_or_test(visible) for _ in range(self._random.randint(1, 5)))

    def _class_or_test(self, visible):
        return self._class(dict(visible)) if self._happens(0.3) else self._test(visible)

    def _fixtures(self, count, visible, first=""):
        """Write fixtures, with names of which there are few: some override others."""
        return "".join(self._fixture(f"f{self._random.randrange(7)}", visible, first) for _ in range(count))

    def _fixture(self, name, visible, first):
        scope = self._random.choice(SCOPES)
        wider = [other for other, (of, _) in visible.items() if SCOPES.index(of) <= SCOPES.index(scope)]
        needs = self._random.sample(wider, min(len(wider), self._random.choice((0, 0, 1, 1, 2))))
        values = self._random.choice([None] * 5 + [[1, 2], ["a", "b"], [None, 0, False]])
        if name in visible:  # the parameter would be that of what it overrides, too
            values = None
            self._overridden.add(name)
        visible[name] = (scope, values)
        options = [f"scope={scope!r}"]
        options += [f"params={values!r}"] if values else []
        options += ["autouse=True"] if self._happens(0.12) else []
        head = f"@pytest.fixture({', '.join(options)})\n" + _def(name, first, "request", *needs)
        return head + textwrap.indent("\n".join(self._fixture_body(name, needs)) + "\n\n", "    ")

    def _fixture_body(self, name, needs):
        yield f"log('up', {name!r}, getattr(request, 'param', ''), request.node.nodeid)"
        yield f"print('up {name}')"
        yield from self._noise(name)
        if self._may_fail and self._happens(0.1):
            condition = self._random.choice(("True", "getattr(request, 'param', 1) == 1"))
            yield f"if {condition}: {self._random.choice(ERRORS[:2])}"
        yield f"yield [{', '.join([repr(name), *needs])}]"
        yield f"print('down {name}')"
        yield f"log('down', {name!r})"
        if self._may_fail and self._happens(0.07):
            yield "raise ValueError('down')"

    def _noise(self, name):
        if self._happens(0.1):
            yield f"warnings.warn('of {name}')"
        if self._happens(0.1):
            yield f"logging.warning('of {name}')"

    def _test(self, visible, first=""):
        name = f"test_{self._number()}"
        needs = self._random.sample(sorted(visible), min(len(visible), self._random.choice((0, 1, 1, 2))))
        marks = [self._random.choice(MARKS)] if self._happens(0.3) else []
        if self._happens(0.15):
            scope = self._random.choice(("", "", ", scope='module'", ", scope='class'", ", scope='session'"))
            marks.append(f"parametrize('p', [1, 2]{scope})")
            needs.append("p")
        indirect = [need for need in needs if need in visible and need not in self._overridden]
        if indirect and self._happens(0.15):
            marks.append(f"parametrize({indirect[0]!r}, [1, 'z'], indirect=True)")
        if visible and self._happens(0.1):
            marks.append(f"usefixtures({self._random.choice(sorted(visible))!r})")
        lines = [f"@pytest.mark.{mark}" for mark in marks]
        lines += [_def(name, first, *needs).rstrip(), f"    log({name!r})"]
        lines += [f"    {line}" for line in self._noise(name)]
        lines += ["    print('in the test')"] if self._happens(0.3) else []
        lines += [f"    {self._random.choice(ERRORS)}"] if self._happens(0.35) else []
        return "\n".join(lines) + "\n\n"

    def _class(self, visible):
        if self._happens(0.25):
            return self._test_case()
        body = self._pair("setup_class", "teardown_class", of="cls")
        body += self._pair("setup_method", "teardown_method", of="self")
        body += self._fixtures(self._random.choice((0, 0, 1, 2)), visible, "self")
        body += "".join(self._test(visible, "self") for _ in range(self._random.randint(1, 4)))
        return f"class Test{self._number()}:\n" + textwrap.indent(body, "    ")

    def _pair(self, *names, of):
        """Write two methods of a class, or of its objects, now and then."""
        decorator = "@classmethod\n" if of == "cls" else ""
        methods = "".join(f"{decorator}def {name}({of}): log({name!r})\n\n" for name in names)
        return methods if self._happens(0.3) else ""

    def _test_case(self):
        body = self._pair("setUpClass", "tearDownClass", of="cls")
        body += self._pair("setUp", "tearDown", of="self")
        for decorator in ("", "@unittest.expectedFailure\n", "@unittest.skip('skipped')\n"):
            if not decorator or self._happens(0.3):
                fails = "self.fail()" if self._happens(0.5) else "pass"
                body += f"{decorator}def test_{self._number()}(self):\n    log('case')\n    {fails}\n\n"
        return f"class Test{self._number()}(unittest.TestCase):\n" + textwrap.indent(body, "    ")


def _def(name, first, *others):
    """Write the head of a function; `first` may be empty."""
    return f"def {name}({', '.join(filter(None, (first, *others)))}):\n"


def difference(project, seed, *, may_fail):
    """Write and run the project of a seed; say what fastfork tells in another way than plain pytest, if anything."""
    options = Generator(seed, may_fail=may_fail).write(project)
    plain = project.run(*options)
    if any(text in plain.out for text in NOT_COMPARABLE):
        return ""
    ends_early = options[:1] in (["-x"], ["--maxfail=2"])
    for workers in (1,) if ends_early else (1, 3):
        run = project.run(f"--fastfork={workers}", *options)
        told = run.difference(plain)
        if not told and not ends_early:
            told = _log_difference(plain.log, run.log, workers)
        if told:
            return f"seed {seed}, {workers} at a time, {options}:\n{told}"
    return ""


def _log_difference(plain, log, workers):
    """Compare what was done, and for one worker its order."""
    more, less = Counter(log) - Counter(plain), Counter(plain) - Counter(log)
    if more or less:
        return f"more: {dict(more)}, less: {dict(less)}"
    in_order = [[line for line in lines if not line.startswith(_AT_NODES)] for lines in (plain, log)]
    return f"{in_order[1]}\nnot\n{in_order[0]}" if workers == 1 and in_order[0] != in_order[1] else ""


_AT_NODES = ("setup_class", "teardown_class", "setUpClass", "tearDownClass")
"""What nodes do, whose templates are forked when wider fixtures are there."""


def main():
    """Compare the projects of some seeds; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.plugin.random_projects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("end", type=int, help="the one behind the last")
    options = parser.parse_args()
    differing = 0
    for seed in range(options.first, options.end):
        folder = Path(tempfile.mkdtemp(prefix="random-project-"))
        told = difference(Project(folder), seed, may_fail=bool(seed % 2))
        if told:
            differing += 1
            print(folder, told, flush=True)
        else:
            shutil.rmtree(folder)
    print(f"{differing} of {options.end - options.first} differ")
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main())
