"""Templates side by side: each with its own preload, in one process and down its tree."""

from __future__ import annotations

import os
import pickle
import signal

import pytest
from support import targets
from support.processes import is_alive, wait_until

import fastfork
from fastfork import context, forkserver


def pid_of(name):
    return context._server(name)._forkserver_pid


def test_each_name_has_a_template_with_its_own_preload(ask):
    first = fastfork.get_context(template="first", preload=["colorsys"])
    second = fastfork.get_context(template="second", preload=["filecmp"])
    names = ["colorsys", "filecmp"]
    assert ask(targets.send_modules, names, context=first) == ["colorsys"]
    assert ask(targets.send_modules, names, context=second) == ["filecmp"]
    assert ask(targets.send_modules, names) == []


def test_children_come_from_the_template_of_their_context(ctx, ask):
    contexts = {None: ctx, **{name: fastfork.get_context(template=name) for name in ("first", "second")}}
    parents = {name: ask(targets.send_own_state, context=each)["ppid"] for name, each in contexts.items()}
    assert len(set(parents.values())) == 3
    assert parents == {name: pid_of(name) for name in contexts}


def test_the_end_of_one_template_does_not_touch_another(ask):
    first, second = fastfork.get_context(template="first"), fastfork.get_context(template="second")
    for each in (first, second):
        ask(targets.send_modules, [], context=each)
    before = pid_of("second")
    os.kill(pid_of("first"), signal.SIGKILL)
    ask(targets.send_modules, [], context=second)
    ask(targets.send_modules, [], context=first)
    assert pid_of("second") == before


def test_a_named_template_is_set_by_its_context_too(ask):
    named = fastfork.get_context(template="first")
    named.set_forkserver_preload(["colorsys"], on_error="fail")
    assert ask(targets.send_modules, ["colorsys"], context=named) == ["colorsys"]
    assert forkserver._forkserver._preload_modules == ["__main__"]


def test_a_named_template_fails_for_itself_alone(capfd, ask):
    named = fastfork.get_context(template="first", preload=["no_such_module_anywhere"], on_error="fail")
    with pytest.raises(fastfork.PreloadError):
        named.Process(target=targets.nothing).start()
    assert "no_such_module_anywhere" in capfd.readouterr().err
    assert ask(targets.send_modules, []) == []


def test_preload_none_leaves_what_was_set_and_a_list_replaces_it():
    fastfork.get_context(template="first", preload=["colorsys"], on_error="warn")
    fastfork.get_context(template="first")
    server = context._server("first")
    assert (server._preload_modules, server._preload_on_error) == (["colorsys"], "warn")
    fastfork.get_context(template="first", preload=[])
    assert (server._preload_modules, server._preload_on_error) == ([], "warn")


def test_everything_of_a_named_context_comes_from_its_template():
    named = fastfork.get_context(template="first")
    with named.Pool(2) as pool:
        assert set(pool.map(targets.parent_pid, range(4))) == {pid_of("first")}
        pool.close()
        pool.join()
    with named.Manager() as manager:
        assert list(manager.list([1, 2])) == [1, 2]
    assert pid_of(None) is None


def test_a_context_arrives_in_a_child_as_itself(ctx, ask):
    named = fastfork.get_context(template="first")
    for each, name in ((ctx, None), (named, "first")):
        assert ask(targets.send_template_of, each, context=each) == name
        assert ask(targets.send_template_of, each) == name


def test_a_process_object_of_a_named_context_can_be_pickled_for_a_child(ask):
    named = fastfork.get_context(template="first")
    unstarted = named.Process(target=targets.nothing, name="Carried")
    name, template = ask(targets.send_process, unstarted, context=named)
    assert (name, template) == ("Carried", "first")


def test_a_subclass_of_a_named_contexts_process(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    worker = targets.NamedWorker(sender, 7)
    worker.start()
    assert receiver.recv() == 49
    worker.join()
    assert worker.exitcode == 0
    assert pid_of("of the targets") is not None
    for end in (receiver, sender):
        end.close()


def test_a_process_class_of_a_named_context_has_the_usual_name():
    assert fastfork.get_context(template="first").Process.__name__ == "FastForkProcess"


def test_process_objects_cannot_be_pickled_elsewhere():
    for each in (fastfork.get_context(), fastfork.get_context(template="first")):
        with pytest.raises(TypeError, match="Pickling an AuthenticationString"):
            pickle.dumps(each.Process(target=targets.nothing))


# ---- nested children ----


@pytest.mark.parametrize("name", [None, "first"])
def test_nested_children_come_from_the_trees_template(ask, name):
    each = fastfork.get_context(template=name)
    assert ask(targets.send_ancestry, each, 4, context=each) == [pid_of(name)] * 4


@pytest.mark.parametrize("name", [None, "first"])
def test_nested_children_get_templates_of_their_own_by_option(ask, name):
    each = fastfork.get_context(template=name, nested="own")
    ancestry = ask(targets.send_ancestry, each, 3, context=each)
    assert ancestry[0] == pid_of(name)
    assert len(set(ancestry)) == 3


def test_a_child_of_one_template_asks_another_one(ctx, ask):
    """It starts it, since its parent's template of that name is its parent's."""
    named = fastfork.get_context(template="first", preload=["colorsys"])
    inner = ask(targets.send_ancestry_with, named, ctx)
    assert inner[0] == pid_of(None)
    assert inner[1] not in (pid_of(None), None)


def test_a_child_that_lives_on_keeps_the_template_alive(programs):
    outcome = programs.run(
        """
        import fastfork, os, sys

        def last():
            print("last", flush=True)

        def work(conn):
            assert conn.recv() == "go"
            process = fastfork.get_context().Process(target=last)
            process.start()
            process.join()

        def middle(conn):
            process = fastfork.get_context().Process(target=work, args=(conn,))
            process.start()
            os._exit(0)

        if __name__ == "__main__":
            context = fastfork.get_context()
            ours, theirs = context.Pipe()
            process = context.Process(target=middle, args=(theirs,))
            process.start()
            process.join()
            theirs.close()
            ours.send("go")
            try:
                ours.recv()
            except EOFError:
                pass
        """
    )
    assert outcome.lines == ["last"]


def test_a_template_whose_program_has_gone_serves_what_is_left_and_then_leaves(programs):
    """The grandchild outlives program and parent, starts one more process, and only then the template goes."""
    path = programs.write(
        "program.py",
        """
        import fastfork, os
        from fastfork import forkserver

        def work(reader):
            os.read(reader.fileno(), 1)
            process = fastfork.get_context().Process(target=print, args=("after the end",), kwargs={"flush": True})
            process.start()
            process.join()

        if __name__ == "__main__":
            context = fastfork.get_context()
            reader, writer = context.Pipe(duplex=False)
            context.Process(target=work, args=(reader,)).start()
            print(forkserver._forkserver._forkserver_pid, flush=True)
            os._exit(0)
        """,
    )
    outcome = programs.python(str(path))
    pid, text = outcome.lines
    assert text == "after the end"
    wait_until(lambda: not is_alive(int(pid)))
