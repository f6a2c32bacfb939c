"""Who gets in: the socket's permissions, the peer's user, the key; and where the socket lies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
import tempfile
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
from support import raw, targets
from support.processes import DEADLINE, exit_code_of, fork, is_alive, wait_until

from fastfork import address, auth, forkserver, launch

NOBODY = 65534


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def folder_of(template):
    return os.path.dirname(template._forkserver_address)


def connect(address):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(address)
    return sock


def test_the_socket_is_for_its_user_alone(template):
    assert mode_of(template._forkserver_address) == 0o600
    assert mode_of(folder_of(template)) == 0o700
    assert os.stat(template._forkserver_address).st_uid == os.geteuid()


def test_the_permissions_do_not_depend_on_the_umask():
    old = os.umask(0)
    try:
        forkserver.ensure_running()
    finally:
        os.umask(old)
    template = forkserver._forkserver
    assert (mode_of(template._forkserver_address), mode_of(folder_of(template))) == (0o600, 0o700)


def test_the_socket_is_a_file_and_not_in_the_abstract_namespace(template):
    assert stat.S_ISSOCK(os.stat(template._forkserver_address).st_mode)


def test_the_folder_of_the_socket_goes_with_the_template(template):
    folder = folder_of(template)
    template._stop()
    assert not os.path.exists(folder)


def test_the_folder_of_the_socket_goes_with_the_program(programs):
    outcome = programs.run(
        """
        import fastfork, os
        from fastfork import forkserver

        if __name__ == "__main__":
            forkserver.ensure_running()
            print(os.path.dirname(forkserver._forkserver._forkserver_address))
            print(forkserver._forkserver._forkserver_pid)
        """
    )
    folder, pid = outcome.lines
    wait_until(lambda: not os.path.exists(folder))
    wait_until(lambda: not is_alive(int(pid)))


def test_the_folder_of_the_socket_goes_with_a_program_that_is_killed(programs):
    path = programs.write(
        "program.py",
        """
        import fastfork, os
        from fastfork import forkserver

        if __name__ == "__main__":
            process = fastfork.get_context().Process(target=os.getpid)
            process.start()
            process.join()
            print(os.path.dirname(forkserver._forkserver._forkserver_address), flush=True)
            os.kill(os.getpid(), 9)
        """,
    )
    outcome = programs.python(str(path))
    assert outcome.status == -signal.SIGKILL
    wait_until(lambda: not os.path.exists(outcome.stdout.strip()))


# ---- the key ----


def test_a_start_with_another_key_is_refused_and_the_next_one_works(ctx, template, monkeypatch):
    assert raw.run(targets.nothing) == 0
    process = ctx.Process(target=targets.nothing)
    monkeypatch.setattr(template, "_forkserver_authkey", b"another")
    with pytest.raises(AuthenticationError):
        process.start()
    monkeypatch.undo()
    process = ctx.Process(target=targets.nothing)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_connect_to_new_process_honours_the_key_every_time(template, monkeypatch):
    for _ in range(2):
        assert raw.run(targets.nothing) == 0
        with monkeypatch.context() as patch:
            patch.setattr(template, "_forkserver_authkey", os.urandom(32))
            with pytest.raises(AuthenticationError):
                forkserver.connect_to_new_process([])
    assert raw.run(targets.nothing) == 0


def test_the_key_is_not_the_one_of_the_process(template):
    import multiprocessing

    assert len(template._forkserver_authkey) == 32
    assert template._forkserver_authkey != bytes(multiprocessing.current_process().authkey)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="multiprocessing speaks of HMAC-SHA-256 from 3.12 on")
def test_a_client_of_the_standard_library_completes_the_handshake(template):
    Client(template._forkserver_address, authkey=template._forkserver_authkey).close()
    assert raw.run(targets.nothing) == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="multiprocessing speaks of HMAC-SHA-256 from 3.12 on")
def test_a_client_of_the_standard_library_with_another_key_is_refused(template):
    with pytest.raises(AuthenticationError):
        Client(template._forkserver_address, authkey=b"another")
    assert raw.run(targets.nothing) == 0


def test_the_client_does_not_trust_a_server_without_the_key(template):
    """It relays its challenge to nobody: a server that only says welcome is found out."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(DEADLINE)
        theirs.sendall(
            b"".join(
                len(m).to_bytes(4, "big") + m for m in (CHALLENGE, b"#WELCOME#", b"{sha256}" + bytes(32))
            )
        )
        with pytest.raises(AuthenticationError, match="digest received was wrong"):
            auth.authenticate(ours, template._forkserver_authkey)


CHALLENGE = b"#CHALLENGE#{sha256}" + bytes(40)


@pytest.mark.parametrize(
    "message",
    [b"#CHALLENGE#" + bytes(20), b"#CHALLENGE#{md5}" + bytes(40), b"hello", b"", bytes(257)],
    ids=["no digest", "md5", "other", "empty", "long"],
)
def test_the_client_answers_nothing_but_a_challenge_with_sha256(message):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(len(message).to_bytes(4, "big") + message)
        with pytest.raises(AuthenticationError, match="protocol error"):
            auth.authenticate(ours, b"key")
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@pytest.mark.parametrize("sent", [b"", b"\0\0\0", b"\0\0\0\x09#WEL"])
def test_a_client_that_goes_away_in_the_handshake_disturbs_nobody(template, sent):
    with connect(template._forkserver_address) as sock:
        sock.sendall(sent)
    assert raw.run(targets.nothing) == 0


@pytest.mark.parametrize("sent", [bytes(1000), b"\xff" * 1000, b"\0\0\0\x05hello", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_client_that_talks_nonsense_in_the_handshake_is_shown_out(template, sent):
    with connect(template._forkserver_address) as sock:
        sock.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1000):
                pass
    assert raw.run(targets.nothing) == 0


# ---- the user ----

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(action):
    """Return the exit code of a process of another user that does `action`."""

    def become_nobody():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        action()

    return exit_code_of(fork(become_nobody))


@needs_root
def test_another_user_does_not_reach_the_socket(template):
    def attempt():
        with pytest.raises(PermissionError):
            connect(template._forkserver_address)

    assert as_nobody(attempt) == 0


@needs_root
def test_another_user_who_reaches_the_socket_is_shown_out_unheard(template):
    os.chmod(folder_of(template), 0o755)
    os.chmod(template._forkserver_address, 0o666)

    def attempt():
        with connect(template._forkserver_address) as sock:
            assert sock.recv(1) == b""

    def attempt_with_key():
        sock = connect(template._forkserver_address)
        with pytest.raises((EOFError, ConnectionError)):
            auth.authenticate(sock, template._forkserver_authkey)

    assert as_nobody(attempt) == 0
    assert as_nobody(attempt_with_key) == 0
    assert raw.run(targets.nothing) == 0


# ---- where the socket lies ----

PROGRAM = """
import fastfork, os
from fastfork import forkserver

if __name__ == "__main__":
    process = fastfork.get_context().Process(target=print, args=("started",))
    process.start()
    process.join()
    address = forkserver._forkserver._forkserver_address
    print(address.startswith(os.environ["TMPDIR"]), len(address) < 108)
"""


@pytest.mark.parametrize("kind", ["long", "read-only", "missing"])
def test_no_tmpdir_is_an_obstacle(programs, tmp_path, kind):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    folder = {"long": str(long), "read-only": "/proc", "missing": str(tmp_path / "missing")}[kind]
    outcome = programs.run(PROGRAM, environment={"TMPDIR": folder})
    assert outcome.lines == ["started", "False True"]
    assert list(long.iterdir()) == []


def test_a_tmpdir_that_will_do_is_used(programs):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        assert programs.run(PROGRAM, environment={"TMPDIR": folder}).lines == ["started", "True True"]
        wait_until(lambda: os.listdir(folder) == [])


def test_a_folder_that_takes_no_file_is_passed_over(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(
            address, "_base_directories", lambda: iter(["/proc", str(tmp_path / "missing"), folder])
        )
        forkserver.ensure_running()
        assert forkserver._forkserver._forkserver_address.startswith(folder)
        assert raw.run(targets.nothing) == 0
        forkserver._forkserver._stop()
        assert os.listdir(folder) == []


def test_without_any_folder_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(address, "_base_directories", lambda: iter(["/proc"]))
    with pytest.raises(OSError, match="set TMPDIR"):
        forkserver.ensure_running()


def test_an_interpreter_that_cannot_be_started_is_an_error_and_leaves_no_folder(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(address, "_base_directories", lambda: iter([folder]))
        monkeypatch.setattr(launch.util, "spawnv_passfds", fail_to_spawn)
        with pytest.raises(BlockingIOError):
            forkserver.ensure_running()
        assert os.listdir(folder) == []


def fail_to_spawn(*_arguments):
    raise BlockingIOError
