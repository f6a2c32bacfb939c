"""`ChildOptions`: what a process is to be before it runs, alone and together, and what comes of bad values."""

from __future__ import annotations

import ast
import contextlib
import errno
import multiprocessing
import os
import pty
import resource
import subprocess
from pathlib import Path

import pytest
from support import becoming, targets
from support.processes import DEADLINE, children_of, exit_code_of, fork, is_alive, wait_until
from support.spares import have_spares

import fastfork
from fastfork import ChildOptions, _native, forkserver, lean
from fastfork.client import Claim


@pytest.fixture
def ctx():
    """The default context, whose template forks nothing ahead."""
    yield fastfork.get_context(preload=["__main__", "support.becoming"], spares=0)
    fastfork.get_context(preload=["__main__"], spares=2)


@pytest.fixture(params=["on demand", "ahead"])
def either(request, ctx):
    """The same, and with processes that have been forked ahead of requests."""
    if request.param == "ahead":
        fastfork.get_context(spares=2, spare_quiet=600)
        have_spares(ctx)
    yield ctx
    fastfork.get_context(spare_quiet=1)


def run(ctx, target, *arguments, **options):
    process = ctx.Process(target=target, args=arguments, **options)
    process.start()
    process.join(DEADLINE)
    return process.exitcode


def told(ctx, target=becoming.tell, *arguments, **values):
    """Return what a process with these options tells."""
    receiver, sender = ctx.Pipe(duplex=False)
    with receiver, sender:
        process = ctx.Process(target=target, args=(sender, *arguments), options=ChildOptions(**values))
        process.start()
        sender.close()
        answer = receiver.recv()
        process.join(DEADLINE)
        assert process.exitcode == 0
        return answer


def variables(env):
    return dict(variable.split(b"=", 1) for variable in env.split(b"\0")[:-1])


# ---- each of them ----


def test_env_is_the_whole_environment_for_python_and_for_c(ctx):
    seen = told(ctx, env={"A": "1", b"B": b"x=\xff", "EMPTY": ""})
    assert seen["env"] == {"A": "1", "B": "x=\udcff", "EMPTY": ""}
    # /usr/bin/env is told of nothing else, and tells so
    assert variables(seen["env_of_c"]) == {b"A": b"1", b"B": b"x=\xff", b"EMPTY": b""}
    assert told(ctx, env={})["env_of_c"] == b""
    added = told(ctx, env={**os.environ, "ADDED": "yes"})
    assert added["env"] == {**os.environ, "ADDED": "yes"}
    large = {f"NAME_{number}": "x" * 1000 for number in range(60)}
    assert told(ctx, env=large)["env"] == large


def test_cwd(ctx, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    for cwd in (tmp_path, str(tmp_path), os.fsencode(tmp_path)):
        assert told(ctx, cwd=cwd)["cwd"] == str(tmp_path)
    options = ChildOptions(cwd="below")
    monkeypatch.chdir(tmp_path)
    receiver, sender = ctx.Pipe(duplex=False)
    with receiver, sender:
        assert run(ctx, becoming.tell, sender, options=options) == 0
        assert receiver.recv()["cwd"] == str(tmp_path / "below")
    assert told(ctx, nice=0)["cwd"] == str(tmp_path)  # that of the process that asks


def test_numbers(ctx):
    before = told(ctx)
    assert told(ctx, umask=0o27)["umask"] == 0o27
    assert told(ctx, nice=before["nice"] + 3)["nice"] == before["nice"] + 3
    (cpu, *_) = sorted(before["affinity"])
    assert told(ctx, affinity=[cpu])["affinity"] == {cpu}
    assert told(ctx, new_session=True)["leads_session"]
    _, hard = before["files"]
    limits = told(ctx, rlimits={resource.RLIMIT_NOFILE: (100, hard), resource.RLIMIT_CORE: 0})
    assert limits["files"] == (100, hard)
    assert limits["core"] == (0, 0)
    assert told(ctx) == before


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CPU)[1] != -1, reason="there is a limit")
def test_no_limit_is_a_limit_too(ctx):
    told(ctx, rlimits={resource.RLIMIT_CPU: resource.RLIM_INFINITY})
    told(ctx, rlimits={resource.RLIMIT_CPU: (1000, resource.RLIM_INFINITY)})


def test_streams(either, tmp_path):
    (tmp_path / "in").write_text("first\nsecond\n")
    with (
        open(tmp_path / "in", "rb") as stdin,
        open(tmp_path / "out", "w") as stdout,
        open(tmp_path / "err", "w") as stderr,
    ):
        options = ChildOptions(stdin=stdin, stdout=stdout.fileno(), stderr=stderr)
        assert run(either, becoming.copy_input, options=options) == len("second\n")
        stdout.write("still open\n")
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines == ["first by print()", "first by write()", "still open"]
    assert (tmp_path / "err").read_text() == "first by print()\n"


def test_one_stream_for_both_outputs(ctx, tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"text\n")
    os.close(writer)
    with open(tmp_path / "out", "w") as stdout:
        assert (
            run(
                ctx,
                becoming.copy_input,
                options=ChildOptions(stdin=reader, stdout=stdout, stderr=subprocess.STDOUT),
            )
            == 0
        )
    os.close(reader)
    text = (tmp_path / "out").read_text()
    assert text.count("text by print()\n") == 2


def test_null_streams(ctx):
    null = os.stat(os.devnull).st_rdev
    devices, read, _ = told(
        ctx,
        becoming.tell_streams,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert devices == [null] * 3
    assert read == ""


def test_a_terminal_is_written_to_line_by_line(ctx):
    leader, follower = pty.openpty()
    assert told(ctx, becoming.tell_streams, stdout=follower)[2]
    assert not told(ctx, becoming.tell_streams, stdout=subprocess.DEVNULL)[2]
    os.close(leader)
    os.close(follower)


def test_a_process_forked_from_one_with_input_has_none(ctx):
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    receiver, sender = ctx.Pipe(duplex=False)
    with receiver, sender:
        options = ChildOptions(stdin=reader)
        assert run(ctx, becoming.tell_input_of_a_fork, sender, options=options) == 0
        assert (receiver.recv(), receiver.recv()) == ("", "text")
    os.close(reader)


def test_all_together(either, tmp_path):
    reader, writer = os.pipe()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    receiver, sender = either.Pipe(duplex=False)
    options = ChildOptions(
        env={"A": "1"},
        cwd=tmp_path,
        umask=0o7,
        nice=5,
        affinity=[min(os.sched_getaffinity(0))],
        rlimits={resource.RLIMIT_NOFILE: (128, hard), resource.RLIMIT_CORE: 0},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.STDOUT,
        new_session=True,
        die_with_client=True,
    )
    with receiver, sender:
        assert run(either, becoming.tell, sender, options=options) == 0
        seen = receiver.recv()
    os.close(reader)
    os.close(writer)
    assert (seen["env"], seen["cwd"], seen["umask"], seen["nice"]) == ({"A": "1"}, str(tmp_path), 0o7, 5)
    assert (seen["files"], seen["core"], seen["leads_session"]) == ((128, hard), (0, 0), True)
    assert seen["affinity"] == {min(os.sched_getaffinity(0))}


# ---- who asks, and how ----


@pytest.mark.parametrize("size", [0, 65_000, 1_000_000])
def test_beside_a_payload_of_any_size(ctx, size):
    seen = told(ctx, becoming.tell_with_ballast, bytes(size), env={"A": "x" * 2000})
    assert seen["env"] == {"A": "x" * 2000}


def test_processes_of_processes(ctx, monkeypatch):
    """They may have options of their own, and have none of their parents'."""
    monkeypatch.setenv("FASTFORK_BACKEND", "poll")  # which the environment of the first one does not say
    receiver, sender = ctx.Pipe(duplex=False)
    with receiver, sender:
        for inner in (ChildOptions(umask=0o1), None):
            arguments = (sender, ctx, inner)
            assert run(ctx, becoming.tell_nested, *arguments, options=ChildOptions(env={}, umask=0o33)) == 0
        first, second = receiver.recv(), receiver.recv()
    assert first["umask"] == 0o1
    assert second["umask"] == told(ctx)["umask"]
    assert first["env"] == second["env"] != {}


def test_beside_the_drop_in(ctx):
    """The standard library's own process class knows nothing of them; that of fastfork has the same template."""
    fastfork.install()
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    with receiver, sender:
        process = context.Process(target=becoming.tell, args=(sender,))
        process.start()
        process.join(DEADLINE)
        plain = receiver.recv()
    assert told(ctx, umask=0o11) == {**plain, "umask": 0o11}
    assert fastfork.server_status().starts == 2


def test_in_programs_that_run_on_fastfork(programs):
    path = programs.write(
        "program.py",
        """
        import multiprocessing, os, fastfork

        def work():
            print(oct(os.umask(0)))

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=work, options=fastfork.ChildOptions(umask=0o13))
            process.start()
            process.join()
        """,
    )
    outcome = programs.python("-m", "fastfork", "run", str(path))
    assert outcome.lines == ["0o13"]


def test_processes_that_are_started_together(ctx, tmp_path):
    receiver, sender = ctx.Pipe(duplex=False)
    processes = [
        ctx.Process(target=becoming.tell, args=(sender,), options=ChildOptions(umask=mask))
        for mask in range(3)
    ]
    wrong = ctx.Process(target=targets.nothing, options=ChildOptions(cwd=tmp_path / "nowhere"))
    with receiver, sender:
        with pytest.raises(fastfork.StartAllError, match="the option cwd") as caught:
            fastfork.start_all([*processes, wrong])
        assert list(caught.value.errors) == [wrong]
        assert sorted(receiver.recv()["umask"] for _ in processes) == [0, 1, 2]
    for process in processes:
        process.join(DEADLINE)


def test_with_a_named_template_and_what_cannot_be_pickled():
    context = fastfork.get_context("other")
    with open(os.devnull, "rb") as stdin:
        options = ChildOptions(stdin=stdin, umask=0o12)
        receiver, sender = context.Pipe(duplex=False)
        with receiver, sender:
            process = context.Process(target=becoming.tell, args=(sender,), options=options)
            process.start()
            process.join()
            assert (receiver.recv()["umask"], process.exitcode) == (0o12, 0)
    assert process._options is options


def test_none_is_what_a_process_is_without(ctx):
    assert ChildOptions().encode() == (b"", [])
    receiver, sender = ctx.Pipe(duplex=False)
    with receiver, sender:
        for options in (None, ChildOptions()):
            assert run(ctx, becoming.tell, sender, options=options) == 0
        assert receiver.recv() == receiver.recv()


def test_die_with_client(ctx):
    assert ctx.Process(options=ChildOptions(die_with_client=True))._die_with_client is True
    assert ctx.Process(options=ChildOptions(), die_with_client=True)._die_with_client is True
    assert ctx.Process(options=ChildOptions(die_with_client=True), die_with_client=True)._die_with_client
    with pytest.raises(ValueError, match="die_with_client"):
        ctx.Process(options=ChildOptions(die_with_client=True), die_with_client=False)


def test_a_process_dies_with_its_client_by_its_options(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    reader, writer = os.pipe()

    def client():
        options = ChildOptions(die_with_client=True, umask=0)
        process = ctx.Process(target=targets.wait_for_end_of, args=(receiver,), options=options)
        process.start()
        os.write(writer, b"%d" % process.pid)
        os._exit(0)

    run(ctx, targets.nothing)
    assert exit_code_of(fork(client)) == 0
    pid = int(os.read(reader, 100))
    wait_until(lambda: not is_alive(pid))
    for fd in (reader, writer):
        os.close(fd)
    receiver.close()
    sender.close()


def test_lean_calls_take_them(ctx, tmp_path):
    name = "support.becoming:describe"
    answer = lean.call(name, options=ChildOptions(cwd=tmp_path, env={"A": "1", b"B": b"\xff"}))
    assert ast.literal_eval(answer.decode()) == (str(tmp_path), {"A": "1", "B": "\udcff"}, b"\xff")
    call = lean.start(name, options=ChildOptions(cwd=tmp_path / "none"))
    with call, pytest.raises(FileNotFoundError, match="the option cwd"):
        call.result(DEADLINE)


# ---- what goes wrong in the process ----


def test_what_the_system_refuses_is_an_error_of_the_start_that_names_the_option(either, tmp_path):
    (tmp_path / "file").touch()
    refused = {
        "cwd": (errno.ENOENT, {"cwd": tmp_path / "nowhere"}),
        "cwd ": (errno.ENOTDIR, {"cwd": tmp_path / "file"}),
        "affinity": (errno.EINVAL, {"affinity": [_native.MAX_CPUS - 1]}),
        "rlimits[RLIMIT_NOFILE]": (errno.EPERM, {"rlimits": {resource.RLIMIT_NOFILE: 2**40}}),
    }
    before = fastfork.server_status() if forkserver._forkserver._forkserver_address else None
    for name, (error, values) in refused.items():
        process = either.Process(target=targets.nothing, options=ChildOptions(umask=0, **values))
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at
            process.start()
        assert caught.value.errno == error
        assert f"the option {name.strip()}: {os.strerror(error)}" in str(caught.value)
        assert process.pid is None
    status = fastfork.server_status()
    assert status.live_children == 0
    assert status.starts == (before.starts if before else 0)
    assert run(either, targets.leave, 3) == 3


def test_nothing_of_a_process_that_cannot_begin_is_left(ctx, tmp_path, template):
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            told(ctx, cwd=tmp_path / "nowhere")
    wait_until(lambda: children_of(template._forkserver_pid) == [])


def test_a_process_may_be_started_again_after_that(ctx, tmp_path):
    process = ctx.Process(target=targets.leave, args=(4,), options=ChildOptions(cwd=tmp_path / "later"))
    with pytest.raises(FileNotFoundError):
        process.start()
    (tmp_path / "later").mkdir()
    process.start()
    process.join()
    assert process.exitcode == 4


def test_what_the_template_may_not_do():
    ctx = fastfork.get_context(template="unprivileged", preload=["support.unprivileged"])
    with pytest.raises(PermissionError, match="the option nice"):
        told(ctx, nice=-20)


# ---- bad values ----

BAD_VALUES = [
    ("env", "A=1", TypeError),
    ("env", [("A", "1")], TypeError),
    ("env", {1: "x"}, TypeError),
    ("env", {"A": 1}, TypeError),
    ("env", {"A": None}, TypeError),
    ("env", {"": "x"}, ValueError),
    ("env", {"A=B": "x"}, ValueError),
    ("env", {"A\0": "x"}, ValueError),
    ("env", {"A": "x\0"}, ValueError),
    ("env", {"A": "\ud800"}, ValueError),
    ("env", {"A": "x" * 70_000}, ValueError),
    ("cwd", 3, TypeError),
    ("cwd", "", ValueError),
    ("cwd", "a\0b", ValueError),
    ("umask", "077", TypeError),
    ("umask", 0.5, TypeError),
    ("umask", -1, ValueError),
    ("umask", 0o1000, ValueError),
    ("nice", "low", TypeError),
    ("nice", 20, ValueError),
    ("nice", -21, ValueError),
    ("affinity", 3, TypeError),
    ("affinity", ["0"], TypeError),
    ("affinity", [], ValueError),
    ("affinity", [-1], ValueError),
    ("affinity", [10**6], ValueError),
    ("rlimits", [(7, 1)], TypeError),
    ("rlimits", {"RLIMIT_NOFILE": 1}, TypeError),
    ("rlimits", {1000: 1}, ValueError),
    ("rlimits", {resource.RLIMIT_NOFILE: "1"}, TypeError),
    ("rlimits", {resource.RLIMIT_NOFILE: (1, 2, 3)}, ValueError),
    ("rlimits", {resource.RLIMIT_NOFILE: (2, 1)}, ValueError),
    ("rlimits", {resource.RLIMIT_NOFILE: (resource.RLIM_INFINITY, 1)}, ValueError),
    ("rlimits", {resource.RLIMIT_NOFILE: -2}, ValueError),
    ("rlimits", {resource.RLIMIT_NOFILE: 2**64}, ValueError),
    ("stdin", "file", TypeError),
    ("stdin", True, TypeError),
    ("stdin", -7, ValueError),
    ("stdin", subprocess.STDOUT, ValueError),
    ("stdout", subprocess.PIPE, ValueError),
    ("stdout", 1.5, TypeError),
    ("stderr", object(), TypeError),
    ("new_session", 1, TypeError),
    ("new_session", None, TypeError),
    ("die_with_client", "yes", TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_VALUES)
def test_a_bad_value_is_an_error_that_names_the_option(name, value, error):
    with pytest.raises(error, match=name):
        ChildOptions(**{name: value})


def test_options_that_are_none(ctx):
    with pytest.raises(TypeError, match=r"options must be a fastfork\.ChildOptions"):
        ctx.Process(target=targets.nothing, options={"umask": 0})
    with pytest.raises(TypeError):
        ChildOptions(unknown=1)


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_not_open_is_an_error_before_anything_is_sent(ctx, template, name):
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with open(os.devnull, "rb") as closed:
        pass
    for stream in (reader, closed):
        with pytest.raises(ValueError, match=f"{name} is not open"):
            ctx.Process(target=targets.nothing, options=ChildOptions(**{name: stream})).start()
    assert fastfork.server_status().starts == 0


def test_too_much_for_a_request(ctx):
    env = {f"NAME_{number}": "x" * 1000 for number in range(64)}
    options = ChildOptions(env=env, cwd="/" + "d/" * 1000)
    with pytest.raises(ValueError, match="env and cwd are too large"):
        ctx.Process(target=targets.nothing, options=options).start()


def test_streams_are_among_the_descriptors_that_a_process_may_have():
    with pytest.raises(ValueError, match="too many fds: 257"):
        forkserver._forkserver.start(b"", 0, [0] * 256, Claim(), options=ChildOptions(stdin=0).encode())


def test_as_many_descriptors_as_there_may_be(ctx):
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(contextlib.closing(end)) for _ in range(84) for end in ctx.Pipe()]
        receivers = ends[::2] + ends[1::2]
        copies = [*receivers, *receivers[:85]][:253]
        with open(os.devnull, "r+b") as null:
            options = ChildOptions(stdin=null, stdout=null, stderr=null)
            assert run(ctx, targets.nothing, copies, options=options) == 0


def test_what_they_look_like():
    assert repr(ChildOptions()) == "ChildOptions()"
    assert repr(ChildOptions(umask=0, new_session=True)) == "ChildOptions(new_session=True, umask=0)"
    assert repr(ChildOptions(cwd=Path("/"))) == "ChildOptions(cwd=b'/')"
