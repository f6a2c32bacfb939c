"""CPython's own test suites, unmodified, run on fastfork and held against the standard library's figures.

    python -m tests.compat                          every interpreter found, the wheel built from this tree
    python -m tests.compat --python PATH --wheel W  one interpreter, a wheel that is there already
    python -m tests.compat --stdlib-only            no fastfork at all: how the interpreters themselves do
    python -m tests.compat --disable all            without what makes fastfork's children cheap
    python -m tests.compat --refresh                run the standard library too and store its figures

Each interpreter gets a virtual environment with fastfork in it, switched on by `FASTFORK_INSTALL=1` through
the `.pth` file that `fastfork install-pth` writes, so that it holds under `-I` as well. The suites are run
by the interpreter's own `python -m test`, with all its resources, and every test that it lists must have an
outcome. No setting of fastfork's comes in from outside: what `--disable` names is `FASTFORK_DISABLE` there, and
otherwise nothing is left out. A run fails

- where a test does worse than on the standard library (failed or without outcome, or skipped and passed
  there);
- where `regrtest` finds its environment altered or a process is left behind, and not so on the standard
  library;
- where the standard library's fork server served a single process, or fastfork's none (see `recorder`).

The standard library's figures come from `baseline.json` where that has the very version, and from a run
otherwise. A test that does worse than those figures say is then run on the standard library here and now,
since some skip by the machine and not by the version.

The tests in which CPython itself may deadlock, whatever starts its processes, have a part of their own. Only
where regrtest's dump of the threads shows that very deadlock is it run again, and the report says how often.

One test is beyond proof: `TestFlags.test_flags` starts an interpreter with `-S`, which reads no `.pth`
file, and so is served by the standard library in any case.

Modules: `interpreters` (finding them, virtual environments), `suites` (what is run), `regrtest` (running
it), `recorder` and `evidence` (who served), `figures` and `verdict` (the comparison), `runner`, `report`.
"""
