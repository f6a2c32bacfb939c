"""What a child needs of the standard library for what it is sent, its template has: no child imports it."""

from __future__ import annotations

import sys

import pytest

from fastfork import shared_modules

PROGRAM = """
    import concurrent.futures
    import sys
    import fastfork

    def write_modules(path, *sent):
        with open(path, "w") as stream:
            print(*sys.modules, file=stream)

    def read_modules(path):
        with open(path) as stream:
            return set(stream.read().split())

    def run(ctx, *sent):
        process = ctx.Process(target=write_modules, args=("modules", *sent))
        process.start()
        process.join()
        assert process.exitcode == 0
        return read_modules("modules")

    def run_all(ctx, *sent):
        process = ctx.Process(target=write_modules, args=("modules", *sent))
        fastfork.start_all([process])
        process.join()
        return read_modules("modules")

    def run_in_pool(ctx):
        with ctx.Pool(1) as pool:
            pool.apply(write_modules, ("modules",))
        return read_modules("modules")

    def run_in_executor(ctx):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=ctx) as executor:
            executor.submit(write_modules, "modules").result()
        return read_modules("modules")

    NEEDING = {
        "queue": lambda ctx: run(ctx, ctx.Queue()),
        "pipe": lambda ctx: run(ctx, *ctx.Pipe()),
        "lock": lambda ctx: run(ctx, ctx.Lock(), ctx.Event(), ctx.Barrier(2)),
        "value": lambda ctx: run(ctx, ctx.Value("i"), ctx.RawArray("i", 2)),
        "start_all": lambda ctx: run_all(ctx, ctx.SimpleQueue()),
        "pool": run_in_pool,
        "executor": run_in_executor,
    }

    if __name__ == "__main__":
        ctx = fastfork.get_context()
        before = run(ctx)
        NEEDING[sys.argv[1]](ctx)
        needed = NEEDING[sys.argv[1]](ctx)
        since = run(ctx)
        print("imported:", *sorted(needed - since))
        print("shared:", *sorted(since - before))
        assert fastfork.server_status().failures == {}
"""


@pytest.mark.parametrize(
    ("needing", "shared"),
    [
        ("queue", "multiprocessing.queues"),
        ("pipe", "multiprocessing.connection"),
        ("lock", "multiprocessing.synchronize"),
        ("value", "multiprocessing.sharedctypes"),
        ("start_all", "multiprocessing.queues"),
        ("pool", "multiprocessing.pool"),
        ("executor", "concurrent.futures.process"),
    ],
)
def test_a_template_that_runs_already_loads_what_its_client_has_since(programs, needing, shared):
    imported, since = programs.run(PROGRAM, needing).lines
    assert imported == "imported:"
    assert shared in since.split()


def test_modules_are_told_by_their_places(monkeypatch):
    for name in shared_modules.NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    every = shared_modules.loaded()
    assert every & ~0x7FFF0000 == 0
    for name in shared_modules.NAMES:
        monkeypatch.delitem(sys.modules, name)
        rest = shared_modules.loaded()
        assert bin(every ^ rest).count("1") == 1
        every = rest
    assert every == 0


def test_a_module_that_cannot_be_imported_is_left_to_the_children(monkeypatch):
    monkeypatch.setitem(sys.modules, "multiprocessing.shared_memory", None)
    monkeypatch.delitem(sys.modules, "multiprocessing.sharedctypes", raising=False)
    shared_modules.load(0x7FFF0000)
    assert sys.modules["multiprocessing.shared_memory"] is None
    assert "multiprocessing.sharedctypes" in sys.modules


SHADOWED = """
    import sys
    import fastfork
    from fastfork import forkserver

    def run(ctx):
        process = ctx.Process(target=int)
        process.start()
        process.join()
        return process.exitcode, forkserver._forkserver._forkserver_pid

    if __name__ == "__main__":
        moment, folder = sys.argv[1:]
        ctx = fastfork.get_context()
        before = run(ctx) if moment == "later" else None
        sys.path.remove(folder)
        import multiprocessing.shared_memory
        sys.path.insert(0, folder)
        found = [run(ctx) for _ in range(3)]
        assert {code for code, _ in found} == {0}, found
        assert len({*found, before or found[0]}) == 1, (before, found)
"""


@pytest.mark.parametrize("source", ["import sys; sys.exit(3)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("moment", ["at the launch", "later"])
def test_a_module_of_the_same_name_that_is_found_first_ends_no_template(programs, moment, source):
    programs.write("plugins/secrets.py", source)
    folder = str(programs.folder / "plugins")
    programs.run(SHADOWED, moment, folder, environment={"PYTHONPATH": folder})
