"""What SECURITY.md claims: who gets in, what arrives as data, and that nothing is trusted that others can write to."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import stat
import struct
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from support import becoming, raw, targets
from support.processes import DEADLINE, descriptors, exit_code_of, fork, stopped, wait_until

import fastfork
from fastfork import _native, auth, forkserver

NOBODY = 65534

FRAME = struct.Struct("=IHHIiII")
FIELDS = ("magic", "version", "type", "id", "value", "payload", "fds")
STATUS = 6
"""FF_FRAME_STATUS in csrc/ff_abi.h."""


def request(payload=b"", fd_count=0, **fields):
    """Return the bytes of a request for one child, but for the fields given."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _native.send_request(ours.fileno(), 1, 0, b"", [])
        sound = dict(zip(FIELDS, FRAME.unpack(theirs.recv(FRAME.size))))
    return FRAME.pack(*{**sound, "payload": len(payload), "fds": fd_count, **fields}.values()) + payload


def option(kind, value=b"", size=None):
    """Return an option of a block, which may say another size than its value has."""
    return struct.pack("=II", kind, len(value) if size is None else size) + value


def block(*options):
    """Return a block of options."""
    content = b"".join(options)
    return struct.pack("=I", 4 + len(content)) + content


NUMBER = bytes(4)


class Touch:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class Trap:
    """A request for a child that creates a file as soon as it unpickles what came for it."""

    def __init__(self, template, path):
        self.payload = pickle.dumps(Touch(path)) * 2
        self._path = path
        self._pipe = os.pipe()
        self.fds = [self._pipe[0], template._forkserver_alive_fd, resource_tracker.getfd()]
        """What a child has before it unpickles anything."""

    def send(self, sock, *, before=b"", options=b"", has_fds=True):
        """Send it, behind something else or with a block of options, and with or without the descriptors."""
        fds = self.fds if has_fds else []
        flags = _native.FORK_OPTIONS if options else 0
        data = before + request(options + self.payload, len(fds), value=flags)
        socket.send_fds(sock, [data], fds)

    def has_gone_off(self):
        """Whether some child has run it."""
        return self._path.exists()

    def close(self):
        for fd in self._pipe:
            os.close(fd)


@pytest.fixture
def armed_trap(template, tmp_path):
    """Return a trap."""
    with contextlib.closing(Trap(template, tmp_path / "run")) as trap:
        yield trap


@pytest.fixture
def trap(armed_trap):
    """Return a trap that must not go off, and see that it did not, and that no child was even forked for it."""
    before = fastfork.server_status().starts
    yield armed_trap
    assert raw.run(targets.nothing) == 0  # by then the server has long dealt with it
    assert fastfork.server_status().starts - before == 1
    assert not armed_trap.has_gone_off()


@pytest.fixture
def connect(template):
    """Return a function that connects to the template."""
    with contextlib.ExitStack() as stack:

        def connect():
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(DEADLINE)
            sock.connect(template._forkserver_address)
            return sock

        yield connect


@pytest.fixture
def enter(template, connect):
    """Return a function that connects to the template and goes through the handshake."""

    def enter():
        sock = connect()
        auth.authenticate(sock, template._forkserver_authkey)
        return sock

    return enter


def is_closed_by_peer(sock):
    """Wait for the other end's last word: whether it has closed."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


# ---- CVE-2022-42919: a socket that anybody could reach, and what came there was unpickled ----


def names_of_sockets(pid):
    """Return the names of the AF_UNIX sockets of a process; "" for one without a name."""
    inodes = {link[len("socket:[") : -1] for link in descriptors(pid).values() if link.startswith("socket:")}
    lines = [
        line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    ]
    return {fields[7] if len(fields) > 7 else "" for fields in lines if fields[6] in inodes}


def test_no_socket_is_in_the_abstract_namespace(template, connect):
    connect()
    assert raw.run(targets.nothing) == 0
    # The name that it was bound to, before it was listened on and renamed.
    folder = os.path.dirname(template._forkserver_address)
    assert {os.path.dirname(name) for name in names_of_sockets(template._forkserver_pid)} == {folder}
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0fastfork-test-{os.getpid()}")
        assert {name[:1] for name in names_of_sockets("self")} == {"", "@"}  # such a name would be seen


def test_the_folder_of_the_socket_is_for_its_user_alone_and_has_a_name_that_cannot_be_guessed(template):
    folders = set()
    for _ in range(2):
        forkserver.ensure_running()
        folder = os.path.dirname(template._forkserver_address)
        status = os.lstat(folder)
        assert stat.S_ISDIR(status.st_mode)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, os.geteuid())
        folders.add(folder)
        template._stop()
    assert len(folders) == 2


@pytest.mark.parametrize("options", [b"", block(option(_native.OPTION_UMASK, NUMBER))])
def test_a_trap_goes_off_after_the_handshake(enter, armed_trap, options):
    """Else it would prove nothing that others do not."""
    armed_trap.send(enter(), options=options)
    wait_until(armed_trap.has_gone_off)


@pytest.mark.parametrize("has_fds", [True, False])
@pytest.mark.parametrize("prefix", [b"", b"\0\0\0\x28", b"\0\0\0\x09#WELCOME#" * 3])
def test_nothing_is_run_without_the_handshake(connect, trap, prefix, has_fds):
    """Descriptors are refused themselves before it is over."""
    sock = connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        trap.send(sock, before=prefix, has_fds=has_fds)
        assert is_closed_by_peer(sock)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_nothing_is_run_for_another_user_even_with_the_key(template, trap):
    os.chmod(os.path.dirname(template._forkserver_address), 0o755)
    os.chmod(template._forkserver_address, 0o666)

    def attempt():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(template._forkserver_address)
            with pytest.raises((EOFError, ConnectionError)):
                auth.authenticate(sock, template._forkserver_authkey)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                trap.send(sock)
            assert is_closed_by_peer(sock)

    assert exit_code_of(fork(attempt)) == 0


class Recorder:
    """A socket that remembers what went out."""

    def __init__(self, sock):
        self.sent = []
        self.recv = sock.recv
        self._sock = sock

    def sendall(self, data):
        self.sent.append(data)
        self._sock.sendall(data)


@pytest.mark.parametrize("has_fds", [True, False])
def test_a_handshake_cannot_be_replayed(template, connect, trap, has_fds):
    recorder = Recorder(connect())
    auth.authenticate(recorder, template._forkserver_authkey)
    sock = connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"".join(recorder.sent))
        trap.send(sock, has_fds=has_fds)
        assert is_closed_by_peer(sock)


def test_the_server_does_not_answer_its_own_challenge(connect):
    """Without the key nobody gets it to compute an answer, which another connection would then take."""
    challenge = connect().recv(1000)
    sock = connect()
    sock.recv(1000)
    sock.sendall(challenge)
    answer = sock.recv(1000)
    assert answer[4:] in (b"#FAILURE#", b"")


def test_the_key_is_on_no_command_line_and_in_no_environment(template):
    key = template._forkserver_authkey
    for name in ("cmdline", "environ"):
        content = Path(f"/proc/{template._forkserver_pid}/{name}").read_bytes()
        assert key not in content
        assert key.hex().encode() not in content


class OwnPid:
    """What becomes the id of the process that unpickles it."""

    def __reduce__(self):
        return os.getpid, ()


@pytest.mark.parametrize("size", [0, 200_000], ids=["in the request", "through a pipe"])
def test_only_the_child_unpickles(ctx, size):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.send, args=(sender, [OwnPid(), bytes(size)]))
    process.start()
    assert receiver.recv()[0] == process.pid
    process.join()
    for end in (receiver, sender):
        end.close()


# ---- CVE-2024-31317: data that was taken for commands ----

NASTY = [
    "\n",
    "a\nb\r\n",
    "8\n--setuid=0\n--invoke-with\nid\n",
    "a\0b",
    "#WELCOME#",
    "\0\0\0\x09#WELCOME#",
    "FFRK\x01\0\x01\0",
    "'; import os; os._exit(77) #",
    '"""$(exit 77)`exit 77`',
    "-c",
    "\N{SNOWMAN}",
    "lone \udcff",
]


@pytest.mark.parametrize("text", NASTY)
def test_what_is_passed_arrives_as_it_is(ctx, text):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(
        target=targets.send,
        args=(sender,),
        kwargs={"value": [text, {text: text}, text.encode("utf-8", "replace")]},
    )
    process.start()
    assert receiver.recv() == [text, {text: text}, text.encode("utf-8", "replace")]
    process.join()
    assert process.exitcode == 0
    for end in (receiver, sender):
        end.close()


@pytest.mark.parametrize("text", NASTY)
def test_what_describes_a_process_arrives_as_it_is(ctx, monkeypatch, text):
    monkeypatch.setattr(sys, "argv", ["program", text])
    current = multiprocessing.current_process()
    authkey = text.encode("utf-8", "surrogateescape")
    monkeypatch.setitem(current._config, "authkey", multiprocessing.process.AuthenticationString(authkey))
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.send_own_state, args=(sender,), name=text)
    process.start()
    state = receiver.recv()
    assert (state["name"], state["argv"], state["authkey"]) == (text, ["program", text], authkey)
    process.join()
    assert process.exitcode == 0
    for end in (receiver, sender):
        end.close()


@pytest.mark.parametrize("text", [text for text in NASTY if "\0" not in text])
def test_what_describes_a_template_arrives_as_it_is(ask, tmp_path, monkeypatch, text):
    """Folders, the template's name and what it preloads."""
    folder = tmp_path / text.replace("/", "_")
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    context = fastfork.get_context(text, preload=[text, "colorsys"], on_error="ignore")
    state = ask(targets.send_own_state, context=context)
    assert state["directory"] == str(folder)
    assert ask(targets.send_modules, ["colorsys", text], context=context) == ["colorsys"]


@pytest.mark.parametrize("text", [text for text in NASTY if "\0" not in text])
def test_what_a_process_is_to_be_arrives_as_it_is(ask, tmp_path, text):
    """Its environment and its directory."""
    folder = tmp_path / text.replace("/", "_")
    folder.mkdir()
    env = {"FIRST": text, text.replace("=", "_"): "name", "LAST": "1"}
    state = ask(becoming.tell, options=fastfork.ChildOptions(env=env, cwd=folder))
    assert (state["env"], state["cwd"]) == (env, str(folder))
    variables = {os.fsencode(f"{name}={value}") for name, value in env.items()}
    assert set(state["env_of_c"].split(b"\0")[:-1]) == variables


@pytest.mark.parametrize("text", [text for text in NASTY if "\0" in text])
def test_what_would_end_a_variable_or_a_directory_is_refused_where_it_is_given(text):
    for values in ({"env": {"NAME": text}}, {"env": {text: "value"}}, {"cwd": text}):
        with pytest.raises(ValueError, match="null characters"):
            fastfork.ChildOptions(**values)


LACKS_A_DESCRIPTOR = "has a stream of a descriptor that is not there"

UNSOUND_BLOCKS = {
    "is smaller than its size": struct.pack("=I", 3),
    "is larger than the payload": struct.pack("=I", 60_000),
    "ends within an option's head": block(bytes(7)),
    "ends within an option's value": block(option(_native.OPTION_CWD, b"/\0", size=3)),
    "has an option of the largest size": block(option(_native.OPTION_ENV, b"A=B\0", size=2**32 - 1)),
    "has an option of no kind": block(option(0)),
    "has an option of an unknown kind": block(option(31)),
    "has a limit of an unknown resource": block(
        option(_native.OPTION_RLIMIT + _native.MAX_RLIMITS, bytes(16))
    ),
    "has half a limit": block(option(_native.OPTION_RLIMIT, bytes(8))),
    "has no number": block(option(_native.OPTION_UMASK)),
    "has two numbers": block(option(_native.OPTION_NICE, 2 * NUMBER)),
    "has a path without an end": block(option(_native.OPTION_CWD, b"/")),
    "has a path with two ends": block(option(_native.OPTION_CWD, b"/\0/\0")),
    "has an environment without an end": block(option(_native.OPTION_ENV, b"A=B\0C=D")),
    "has no processors": block(option(_native.OPTION_AFFINITY)),
    "has a stream of an unknown kind": block(option(_native.OPTION_STDIN, struct.pack("=i", 3))),
    LACKS_A_DESCRIPTOR: block(option(_native.OPTION_STDIN, NUMBER)),
    "is sound up to its last option": block(
        option(_native.OPTION_UMASK, NUMBER), option(_native.OPTION_CWD, b"/")
    ),
}


def test_nothing_is_run_for_a_block_of_options_that_is_none(template, enter, trap):
    for what, content in UNSOUND_BLOCKS.items():
        sock = enter()
        trap.send(sock, options=content, has_fds=what != LACKS_A_DESCRIPTOR)
        frame = _native.receive_frame(sock.fileno(), DEADLINE)
        assert frame.type == _native.FRAME_REFUSED, what
        assert _native.REFUSAL_NAMES[frame.value] == "options", what
        assert is_closed_by_peer(sock)
    status = fastfork.server_status()
    assert (status.refused, status.starts) == ({"options": len(UNSOUND_BLOCKS)}, 0)


def test_a_payload_of_requests_is_one_request(ctx, ask):
    """Whole frames, at every offset from a multiple of their size, do not become requests of their own."""
    frames = request() * 50
    before = fastfork.server_status().starts
    sizes = range(FRAME.size)
    for offset in sizes:
        content = bytes(offset) + frames
        assert ask(targets.send_length_and_sum, content) == (len(content), sum(content))
    assert fastfork.server_status().starts - before == len(sizes)


def test_what_follows_a_refused_request_is_not_read(template, enter, trap):
    sock = enter()
    with stopped(template._forkserver_pid):  # so that all of it is there
        sock.sendall(request(magic=0))
        for _ in range(3):
            trap.send(sock)
    assert is_closed_by_peer(sock)


# ---- CVE-2019-0211, CVE-2021-21703: memory that children write and their parent trusts ----

WRITES_EVERYWHERE = """
import os

import fastfork
from fastfork import forkserver

GARBAGE = bytes(range(256)) * 16


def wait_and_leave(connection):
    connection.recv()
    os._exit(7)


def write_everywhere(connection, _shared):
    fds = {int(fd) for fd in os.listdir("/proc/self/fd")} - {0, 1, 2, connection.fileno()}
    connection.send((sum(map(write_to, fds)), sum(fill(*area) for area in shared_areas())))


def write_to(fd):
    try:
        os.set_blocking(fd, False)
        return os.write(fd, GARBAGE) > 0
    except OSError:
        return False


def shared_areas():
    for line in open("/proc/self/maps"):
        area, access = line.split()[:2]
        if access[1] == "w" and access[3] == "s":
            yield [int(bound, 16) for bound in area.split("-")]


def fill(begin, end):
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(begin)
        return memory.write(bytes([255]) * (end - begin)) > 0


def exit_code(process):
    process.join(60)
    return process.exitcode


if __name__ == "__main__":
    context = fastfork.get_context()
    waiting_r, waiting_w = context.Pipe(duplex=False)
    waiting = context.Process(target=wait_and_leave, args=(waiting_r,))
    waiting.start()
    before = fastfork.server_status()
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=write_everywhere, args=(sender, context.RawArray("b", 100)))
    writer.start()
    descriptors, areas = receiver.recv()
    print(descriptors > 0, areas > 0, exit_code(writer))
    waiting_w.send("leave")
    print(exit_code(waiting))
    process = context.Process(target=os._exit, args=(8,))
    process.start()
    print(exit_code(process))
    after = fastfork.server_status()
    print(after.pid == before.pid, after.starts - before.starts, after.live_children)
"""


def test_a_child_that_writes_to_all_that_it_can_harms_nobody(programs):
    path = programs.write("program.py", WRITES_EVERYWHERE)
    outcome = programs.python(str(path))  # standard error: what the resource tracker says to it
    assert outcome.lines == ["True True 0", "7", "8", "True 2 0"]
    assert outcome.status == 0


SEND_SHARED_AREAS = """
from pathlib import Path
lines = Path("/proc/self/maps").read_text().splitlines()
connection.send([line for line in lines if line.split()[1][1::2] == "ws"])
"""


def test_a_child_shares_no_memory_with_its_server_that_it_could_write_to(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=exec, args=(SEND_SHARED_AREAS, {"connection": sender}))
    process.start()
    assert receiver.recv() == []
    process.join()
    for end in (receiver, sender):
        end.close()


def test_no_descriptor_of_the_server_or_of_another_client_reaches_a_child(template, enter, ask):
    ours, theirs = os.pipe()
    half = enter()
    socket.send_fds(half, [request(bytes(1000), 1)[:-1]], [theirs])
    os.close(theirs)
    wait_until(lambda: os.readlink(f"/proc/self/fd/{ours}") in descriptors(template._forkserver_pid).values())
    # No file on a disk is the server's own: a library may have one open, as libffi has itself, and children keep it.
    held = {link for link in descriptors(template._forkserver_pid).values() if not os.path.isfile(link)}
    child = ask(targets.send_descriptors)
    own = {link for fd, link in child.items() if fd <= 2}
    alive = os.readlink(
        f"/proc/self/fd/{template._forkserver_alive_fd}"
    )  # the other end of the server's pipe
    os.close(ours)
    assert len(held) > 5
    assert held & set(child.values()) - own - {alive} == set()


# ---- the status page: written by the server alone ----


@pytest.fixture
def page(enter):
    """Return the descriptor of the status page."""
    sock = enter()
    sock.sendall(request(type=STATUS))
    _, fds, _, _ = socket.recv_fds(sock, FRAME.size, 4)
    (fd,) = fds
    yield fd
    os.close(fd)


@pytest.fixture
def reopened(page):
    """Return the page opened anew for writing, as its owner may; None where even that is refused."""
    try:
        fd = os.open(f"/proc/self/fd/{page}", os.O_RDWR)
    except PermissionError:
        yield None
        return
    yield fd
    os.close(fd)


def write(fd):
    os.pwrite(fd, b"\xff" * 64, 0)


def map_to_write(fd):
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def map_and_make_writable(fd):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    failed = libc.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_WRITE)
    error = ctypes.get_errno()
    libc.munmap(address, 4096)
    if failed:
        raise OSError(error, os.strerror(error))


def shrink(fd):
    os.ftruncate(fd, 0)


def grow(fd):
    os.ftruncate(fd, 1 << 20)


def punch_hole(fd):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if libc.fallocate(fd, 0x03, 0, 4096):  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_and_truncate(fd):
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC))


ATTACKS = [write, map_to_write, map_and_make_writable, shrink, grow, punch_hole, open_and_truncate]


def test_the_status_page_comes_for_reading_alone(page):
    """Where the kernel has no seal against writing, this is what prevents it."""
    assert fcntl.fcntl(page, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_status_page_cannot_be_written(template, page, attack):
    check_attack_fails(template, page, attack)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_status_page_cannot_be_written_by_opening_it_anew(template, reopened, attack):
    if reopened is not None:
        check_attack_fails(template, reopened, attack)


def check_attack_fails(template, fd, attack):
    before = os.pread(fd, 1 << 16, 0)
    with pytest.raises(OSError, match=r"not permitted|denied|Bad file descriptor|Invalid argument"):
        attack(fd)
    assert os.pread(fd, 1 << 16, 0) == before
    assert fastfork.server_status().pid == template._forkserver_pid
    assert raw.run(targets.nothing) == 0


# ---- descriptors that clients send ----


def test_a_socket_that_lingers_makes_nobody_wait(template, enter):
    """close() of such a socket waits for its peer to take what is left, if nobody else has it open."""
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lingering = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        lingering.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lingering.send(bytes(1 << 16))
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3 * int(DEADLINE)))
        sock = enter()
        os.kill(template._forkserver_pid, signal.SIGSTOP)  # so that the last reference is on its way
        socket.send_fds(sock, [request(magic=0)], [lingering.fileno()])
        fd = lingering.detach()
        os.close(fd)
        os.kill(template._forkserver_pid, signal.SIGCONT)
        assert is_closed_by_peer(sock)
        assert raw.run(targets.nothing) == 0
    assert time.monotonic() - begin < DEADLINE


@pytest.mark.parametrize("count", [1, 100])
def test_a_socket_that_is_sent_to_itself_is_let_go(template, enter, count):
    """Sockets that hold each other in flight: the server closes what it gets and keeps nothing of it."""
    assert raw.run(targets.nothing) == 0
    before = len(descriptors(template._forkserver_pid))
    for _ in range(20):
        sock = enter()
        socket.send_fds(sock, [request(magic=0)], [sock.fileno()] * count)
        assert is_closed_by_peer(sock)
        sock.close()
    wait_until(lambda: len(descriptors(template._forkserver_pid)) <= before)
