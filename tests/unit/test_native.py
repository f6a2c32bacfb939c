"""The C core through fastfork._native: servers that know nothing of multiprocessing."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest
from support.processes import DEADLINE, children_of, descriptors, exit_code_of, fork, wait_until

from fastfork import _native
from fastfork.auth import authenticate

AUTHKEY = b"k" * 32
FRAME = struct.Struct("=IHHIiII")
FIELDS = ("magic", "version", "type", "id", "value", "payload", "fds")


class Served:
    """A server in a process of its own, and the way to it."""

    def __init__(self, path, pid, alive_w):
        self.path = path
        self.pid = pid
        self.alive_w = alive_w
        self.sockets = []

    def connect(self, authkey=AUTHKEY):
        """Return an authenticated connection."""
        sock = self.connect_only()
        authenticate(sock, authkey)
        return sock

    def connect_only(self):
        """Return a connection that has said nothing yet."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(sock)
        sock.settimeout(DEADLINE)
        sock.connect(str(self.path))
        sock.setblocking(True)
        return sock

    def stop(self):
        """Have the server leave; return its exit code."""
        for sock in self.sockets:
            sock.close()
        os.close(self.alive_w)
        return exit_code_of(self.pid)


def no_modules(_bits):
    pytest.fail("no client has told of modules")


def serve(listener, alive_r, work, *, before=None, after=None):
    """Serve, as a process does that becomes a template; `work` is what the children do with their requests."""
    if before is not None:
        before()
    server = _native.Server(listener.detach(), alive_r, AUTHKEY)
    request = server.serve(no_modules)
    if request is not None:
        os._exit(work(request) or 0)
    server.close()
    if after is not None:
        after()


@pytest.fixture
def serving(tmp_path):
    """Start servers as forks of this process; they end with the test."""
    started = []

    def start(work=lambda _request: 0, **hooks):
        path = tmp_path / f"server-{len(started)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        alive_r, alive_w = os.pipe()

        def become_server():
            os.close(alive_w)
            for other in started:
                os.close(other.alive_w)
            serve(listener, alive_r, work, **hooks)

        pid = fork(become_server)
        listener.close()
        os.close(alive_r)
        started.append(Served(path, pid, alive_w))
        return started[-1]

    yield start
    assert [served.stop() for served in started] == [0] * len(started)


def request(sock, payload=b"", fds=(), flags=0, request_id=1):
    """Have a child forked; return the frame that answers."""
    _native.send_request(sock.fileno(), request_id, flags, payload, fds)
    return receive(sock)


def receive(sock):
    frame = _native.receive_frame(sock.fileno(), DEADLINE)
    assert frame is not None
    return frame


def run(sock, payload=b"", fds=(), request_id=1):
    """Have a child run to its end; return its exit code."""
    started = request(sock, payload, fds, request_id=request_id)
    assert started.type == _native.FRAME_STARTED
    exited = receive(sock)
    assert (exited.type, exited.id) == (_native.FRAME_EXITED, request_id)
    return exited.value


def exit_with_payload(job):
    return int(job.payload)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 127, 1000, 65536])
def test_hmac_is_that_of_hashlib(size):
    key, text = os.urandom(max(1, size % 200)), os.urandom(size)
    assert _native.hmac_sha256(key, text) == hmac.new(key, text, hashlib.sha256).digest()


def test_a_fork_of_the_asking_process_serves_it_with_what_it_had_in_memory(serving):
    answer = 42
    served = serving(lambda _request: answer)
    assert run(served.connect()) == 42


def test_a_request_carries_payload_and_descriptors(serving):
    sock = serving(lambda job: os.write(job.fds[0], job.payload[::-1]) - 7).connect()
    read_end, write_end = os.pipe()
    assert run(sock, b"payload", [write_end]) == 0
    os.close(write_end)
    with open(read_end, "rb") as stream:
        assert stream.read() == b"daolyap"


def test_a_payload_of_the_largest_size_arrives_whole(serving):
    payload = os.urandom(_native.MAX_PAYLOAD)
    served = serving(lambda job: int(job.payload != payload))
    assert run(served.connect(), payload) == 0


def test_more_payload_is_not_sent(serving):
    sock = serving(exit_with_payload).connect()
    with pytest.raises(OSError, match="Message too long"):
        _native.send_request(sock.fileno(), 1, 0, bytes(_native.MAX_PAYLOAD + 1), [])
    assert run(sock, b"5") == 5


def test_more_descriptors_are_not_sent(serving):
    sock = serving(exit_with_payload).connect()
    with pytest.raises(OSError, match="Message too long"):
        _native.send_request(sock.fileno(), 1, 0, b"", [0] * (_native.MAX_FDS + 1))
    assert run(sock, b"5") == 5


@pytest.mark.parametrize("count", [252, 253, 254, 255, 256, _native.MAX_FDS])
def test_descriptors_beyond_what_one_message_takes_arrive_in_order(serving, tmp_path, count):
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(tmp_path / f"file-{i}", "w")) for i in range(count)]
        inodes = [os.fstat(file.fileno()).st_ino for file in files]
        served = serving(lambda job: int([os.fstat(fd).st_ino for fd in job.fds] != inodes))
        assert run(served.connect(), b"", [file.fileno() for file in files]) == 0


def test_a_signal_is_a_negative_exit_code(serving):
    served = serving(lambda _request: os.kill(os.getpid(), signal.SIGKILL))
    assert run(served.connect()) == -signal.SIGKILL


def test_a_server_forgets_what_children_it_has_reported(serving):
    served = serving(exit_with_payload)
    sock = served.connect()
    assert [run(sock, b"%d" % code, request_id=code + 1) for code in range(50)] == list(range(50))
    assert children_of(served.pid) == []


def test_two_servers_serve_side_by_side(serving):
    first, second = serving(lambda _request: 1), serving(lambda _request: 2)
    connections = [served.connect() for served in (first, second, first)]
    assert [run(sock) for sock in connections] == [1, 2, 1]


def test_the_server_is_the_parent_of_its_children(serving):
    served = serving(lambda job: int(os.getppid() != int(job.payload)))
    assert run(served.connect(), b"%d" % served.pid) == 0


def test_a_child_of_a_server_becomes_a_server(serving):
    """The request brings the child a listener and an alive pipe; grandchildren leave with their payload plus one."""

    def become_server(job):
        server = _native.Server(job.fds[0], job.fds[1], AUTHKEY)
        request = server.serve(no_modules)
        if request is not None:
            return int(request.payload) + 1
        server.close()
        return 7

    outer = serving(become_server)
    outer_sock = outer.connect()
    inner_path = outer.path.with_name("inner")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(inner_path))
    listener.listen()
    alive_r, alive_w = os.pipe()
    started = request(outer_sock, b"", [listener.fileno(), alive_r])
    listener.close()
    os.close(alive_r)
    inner = Served(inner_path, started.value, alive_w)
    assert run(inner.connect(), b"10") == 11
    assert run(inner.connect(), b"20") == 21
    for sock in inner.sockets:
        sock.close()
    os.close(alive_w)
    assert receive(outer_sock).value == 7


def test_a_server_leaves_when_the_alive_pipe_ends_and_another_can_follow_in_its_process(tmp_path):
    ends = [os.pipe(), os.pipe()]
    paths = [tmp_path / "first", tmp_path / "second"]
    listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in paths]
    for listener, path in zip(listeners, paths):
        listener.bind(str(path))
        listener.listen()

    def serve_twice():
        for _, alive_w in ends:
            os.close(alive_w)
        for listener, (alive_r, _), code in zip(listeners, ends, (1, 2)):
            serve(listener, alive_r, lambda _request, code=code: code)

    pid = fork(serve_twice)
    for listener, (alive_r, _) in zip(listeners, ends):
        listener.close()
        os.close(alive_r)
    for path, (_, alive_w), code in zip(paths, ends, (1, 2)):
        served = Served(path, pid, alive_w)
        assert run(served.connect()) == code
        for sock in served.sockets:
            sock.close()
        os.close(alive_w)
    assert exit_code_of(pid) == 0


def test_a_server_reaps_only_what_it_has_forked(serving):
    """A subprocess of the process that serves, dead before and after children were reaped, keeps its status."""
    subprocesses = []

    def start_subprocesses():
        for code in (3, 4):
            command = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"]
            subprocesses.append(subprocess.Popen(command))
        os.waitid(os.P_PID, subprocesses[0].pid, os.WEXITED | os.WNOWAIT)

    def check_subprocesses():
        assert [process.wait(DEADLINE) for process in subprocesses] == [3, 4]

    served = serving(exit_with_payload, before=start_subprocesses, after=check_subprocesses)
    sock = served.connect()
    assert [run(sock, b"%d" % code) for code in range(20)] == list(range(20))
    zombies = {process.pid for process in subprocesses}
    assert zombies <= set(children_of(served.pid))


def test_sigchld_that_a_thread_takes_is_not_lost(serving):
    """Threads that were there before the server have SIGCHLD unblocked: any of them may get it."""

    def start_threads():
        for _ in range(4):
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    sock = serving(exit_with_payload, before=start_threads).connect()
    assert [run(sock, b"%d" % code) for code in range(50)] == list(range(50))


def test_a_held_descriptor_ends_when_the_child_has_been_reaped(serving):
    sock = serving().connect()
    read_end, write_end = os.pipe()
    assert request(sock, b"", [write_end], flags=_native.FORK_HELD).type == _native.FRAME_STARTED
    os.close(write_end)
    assert _native.wait_readable(read_end, DEADLINE)
    with open(read_end, "rb") as stream:
        assert stream.read() == b""


def test_a_stream_tells_pid_and_exit_code(serving):
    sock = serving(lambda _request: 9).connect()
    read_end, write_end = os.pipe()
    frame = request(sock, b"", [write_end], flags=_native.FORK_HELD | _native.FORK_STREAM)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        assert struct.unpack("qq", stream.read()) == (frame.value, 9)


@pytest.mark.skipif(not _native.has_pidfds(), reason="no pidfds, by the kernel or FASTFORK_BACKEND=poll")
def test_a_pidfd_comes_with_the_answer_and_becomes_readable_at_the_end(serving):
    frame = request(serving(lambda _request: 1).connect(), flags=_native.FORK_PIDFD)
    assert select.select([frame.fd], [], [], DEADLINE)[0] == [frame.fd]
    os.close(frame.fd)


def test_no_pidfd_comes_unless_asked_for(serving):
    assert request(serving().connect()).fd == -1


def test_a_child_has_nothing_of_the_server_open(serving):
    """Its listener, its loop, the sockets of other clients: all closed; what the request brought is open."""
    of_process = set()

    def channels():
        """Return sockets, pipes and what belongs to an event loop; a library may open a file whenever it likes."""
        return {fd for fd, target in descriptors().items() if ":" in target}

    def compare(job):
        closed = of_process - channels()
        opened = channels() - of_process
        return int(len(closed) != 2 or opened != set(job.fds))  # closed: the listener and the alive pipe

    served = serving(compare, before=lambda: of_process.update(channels()))
    others = [served.connect(), served.connect_only()]
    sock = served.connect()
    assert run(sock, b"", [sock.fileno()]) == 0
    assert len(others) == 2


def test_signals_in_a_child_are_as_they_were_before_the_server(serving):
    def arrange():
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def compare(_request):
        return int(signal_masks() != {"SigBlk": {signal.SIGUSR1}, "chld, pipe": set()})

    def signal_masks():
        with open("/proc/self/status") as stream:
            fields = dict(line.split(":", 1) for line in stream)
        blocked, ignored, caught = (int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt"))
        return {
            "SigBlk": members(blocked),
            "chld, pipe": members(ignored | caught) & {signal.SIGCHLD, signal.SIGPIPE},
        }

    def members(mask):
        return {number for number in range(1, 65) if mask >> (number - 1) & 1}

    assert run(serving(compare, before=arrange).connect()) == 0


# ---- what no client may do ----


def header(**fields):
    """Return a frame that asks for a child without payload or descriptors, but for the fields given."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _native.send_request(ours.fileno(), 1, 0, b"", [])
        sound = dict(zip(FIELDS, FRAME.unpack(theirs.recv(FRAME.size))))
    return FRAME.pack(*{**sound, **fields}.values())


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"magic": 0xDEADBEEF}, "not a fastfork frame"),
        ({"version": 999}, "another version"),
        ({"type": 0}, "frame type or flag"),
        ({"type": 2}, "frame type or flag"),
        ({"type": 77}, "frame type or flag"),
        ({"value": 64}, "frame type or flag"),
        ({"value": -1}, "frame type or flag"),
        ({"value": 4}, "frame type or flag"),
        ({"value": 2}, "frame type or flag"),
        ({"payload": 65537}, "payload of more than"),
        ({"payload": 2**32 - 1}, "payload of more than"),
        ({"fds": 1}, "descriptors than announced"),
        ({"fds": 265}, "descriptors than announced"),
    ],
)
def test_a_frame_that_is_not_sound_is_refused_and_the_cause_told(serving, fields, cause):
    served = serving(exit_with_payload)
    bystander, sock = served.connect(), served.connect()
    sock.sendall(header(**fields))
    frame = receive(sock)
    assert frame.type == _native.FRAME_REFUSED
    assert cause in _native.REFUSALS[frame.value]
    with pytest.raises(BrokenPipeError):
        _native.receive_frame(sock.fileno(), DEADLINE)
    assert run(bystander, b"6") == 6


def test_descriptors_that_were_not_announced_are_refused(serving):
    served = serving(exit_with_payload)
    sock = served.connect()
    socket.send_fds(sock, [header()], [0, 1])
    assert receive(sock).type == _native.FRAME_REFUSED
    assert run(served.connect(), b"6") == 6


def test_garbage_is_refused(serving):
    served = serving(exit_with_payload)
    sock = served.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert receive(sock).type == _native.FRAME_REFUSED
    assert run(served.connect(), b"6") == 6


@pytest.mark.parametrize("sent", [0, 1, 10])
def test_a_client_that_stalls_or_leaves_amid_a_request_makes_nobody_wait(serving, sent):
    served = serving(exit_with_payload)
    stalled, leaving, other = served.connect(), served.connect(), served.connect()
    stalled.sendall(header(payload=100)[:sent])
    leaving.sendall(header(payload=100) + b"x" * sent)
    leaving.close()
    assert run(other, b"6") == 6


def test_a_client_that_never_authenticates_makes_nobody_wait(serving):
    served = serving(exit_with_payload)
    silent = served.connect_only()
    assert run(served.connect(), b"6") == 6
    silent.close()
    assert run(served.connect(), b"7") == 7


def test_a_request_before_authentication_is_not_served(serving):
    served = serving(exit_with_payload)
    sock = served.connect_only()
    _native.send_request(sock.fileno(), 1, 0, b"1", [])
    sock.settimeout(DEADLINE)
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1000):
            pass
    assert children_of(served.pid) == []
    assert run(served.connect(), b"6") == 6


def test_a_request_sent_byte_by_byte_is_served(serving):
    sock = serving(exit_with_payload).connect()
    for byte in header(payload=2) + b"33":
        sock.sendall(bytes([byte]))
    assert receive(sock).type == _native.FRAME_STARTED
    assert receive(sock).value == 33


def test_requests_sent_at_once_are_all_served(serving):
    sock = serving(exit_with_payload).connect()
    sock.sendall(b"".join(header(id=code, payload=2) + b"%02d" % code for code in range(50)))
    codes = {}
    while len(codes) < 50:
        frame = receive(sock)
        if frame.type == _native.FRAME_EXITED:
            codes[frame.id] = frame.value
    assert codes == {code: code for code in range(50)}


def test_a_client_that_leaves_has_its_children_reaped(serving):
    served = serving(lambda job: len(os.read(job.fds[0], 1)))
    sock = served.connect()
    release_r, release_w = os.pipe()
    request(sock, b"", [release_r])
    sock.close()
    assert len(children_of(served.pid)) == 1
    os.close(release_r)
    os.write(release_w, b"x")
    wait_until(lambda: not children_of(served.pid))
    os.close(release_w)


@pytest.mark.parametrize("authkey", [b"", b"x" * 257])
def test_an_authkey_of_another_size_is_an_error(authkey):
    with pytest.raises(OSError, match="Invalid argument"):
        _native.Server(0, -1, authkey)
