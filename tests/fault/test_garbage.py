"""What no client should send: it is refused with a word that says why, and nothing of it is kept."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import random
import resource
import select
import socket
import struct
import time
from multiprocessing import AuthenticationError

import pytest
from support import targets
from support.processes import DEADLINE, descriptors, exit_code_of, fork

import fastfork
from fastfork import _native, shared_modules

from .wire import FIELDS, FRAME, Request, Witness, header, say, send_with_fds, serve_newcomer, work

NOBODY = 65534


def send(sock, data, fds=()):
    """Send as much as the server takes before it ends the connection."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        send_with_fds(sock, data, fds)


def cause_of_refusal(sock):
    """Return the name of the cause that the server tells before it ends the connection."""
    frame = _native.receive_frame(sock.fileno(), DEADLINE)
    assert frame is not None, "hangs"
    assert frame.type == _native.FRAME_REFUSED
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        _native.receive_frame(sock.fileno(), DEADLINE)
    assert _native.REFUSALS[frame.value]
    return _native.REFUSAL_NAMES[frame.value]


def errno_of_failure(sock):
    """Return why the server could not serve a request: the client stays."""
    frame = _native.receive_frame(sock.fileno(), DEADLINE)
    assert frame is not None, "hangs"
    assert frame.type == _native.FRAME_FAILED
    return frame.value


@contextlib.contextmanager
def counted(server, *causes):
    """See that the server counts refused connections: these, by cause, and no other ones."""
    before = refused(server)
    yield
    assert server.kind == "stdlib" or refused(server) - before == collections.Counter(causes)


def refused(server):
    """Return how many clients have been refused, by cause; the standard library's server keeps no count."""
    return collections.Counter({} if server.kind == "stdlib" else fastfork.server_status().refused)


def last_words(sock):
    """Return what the server says until it ends the connection."""
    words = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1000):
            words += part
    return words


# ---- requests ----


def unsound_requests(server):
    """Return requests that are wrong by their own account: bytes, how many descriptors come along, and the cause."""
    if server.kind == "stdlib":
        return [(bytes([said]), sent, "") for said, sent in ((0, 5), (4, 5), (6, 5), (5, 0), (1, 1), (0, 0))]
    return [*unsound_fields(), *unsound_sizes()]


def unsound_fields():
    for magic in (0, 0xDEADBEEF, struct.unpack("<I", b"GET ")[0], 0xFFFFFFFF):
        yield header(magic=magic, fds=5), 5, "magic"
    for version in (0, 2, 999, 0xFFFF):
        yield header(version=version, fds=5), 5, "version"
    for kind in (0, 2, 3, 4, 5, 77, 0xFFFF):
        yield header(type=kind, fds=5), 5, "type"
    for flags in (4, 64, 1 << 15, -1, -(1 << 31)):
        yield header(value=flags, fds=5), 5, "type"
    yield header(value=_native.FORK_HELD), 0, "type"  # which descriptor?


def unsound_sizes():
    most, largest = _native.MAX_FDS, _native.MAX_PAYLOAD
    for size in (largest + 1, 1 << 31, 0xFFFFFFFF):
        yield header(payload=size, fds=5), 5, "payload"
    for said, sent in ((0, 1), (0, 5), (4, 5), (5, 0), (6, 5), (most, 5), (most + 1, 5), (0xFFFFFFFF, 5)):
        yield header(fds=said), sent, "descriptors"


@pytest.mark.fault("A request that is wrong: magic, version, type, flags, lengths, counts")
def test_unsound_requests_are_refused_and_the_cause_told(server):
    unsound = unsound_requests(server)
    with server.unharmed(), counted(server, *(cause for _, _, cause in unsound)):
        for data, fd_count, cause in unsound:
            with server.connect() as sock, Witness() as witness:
                server.authenticate(sock)
                send(sock, data, [witness.fd] * fd_count)
                witness.give_away()
                if cause:
                    assert cause == cause_of_refusal(sock)
                assert not witness.is_open(), "descriptors left open"
            server.check_starts()


def test_the_program_is_told_the_cause_and_its_next_start_works(ctx, monkeypatch):
    for name in ("FORK_PIDFD", "FORK_HELD"):
        monkeypatch.setattr(_native, name, getattr(_native, name) | 64)
    with pytest.raises(ConnectionAbortedError, match="refused the request: a frame type or flag"):
        ctx.Process(target=targets.nothing).start()
    monkeypatch.undo()
    process = ctx.Process(target=targets.leave, args=(5,))
    process.start()
    process.join()
    assert process.exitcode == 5


def test_modules_that_have_no_name_are_none(ctx, monkeypatch):
    """A client tells of its modules by bits: these are more than there are names for."""
    monkeypatch.setattr(shared_modules, "loaded", lambda: MODULES)
    process = ctx.Process(target=targets.leave, args=(7,))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 7


TIME_LIMIT = 10.0
"""Seconds that a request has from its first byte to its last (FF_REQUEST_MS)."""

SLACK = 3.0
"""Seconds after which it is refused at the latest: the server looks once in a second, and the machine may be busy."""


class BegunRequest:
    """A request of which a client has sent the first bytes."""

    def __init__(self, sock, data):
        self.sock = sock
        self._before = time.monotonic()
        sock.sendall(data)
        self._after = time.monotonic()

    def check_refused(self):
        """See that the server has just refused it, no earlier and no later than it is to be."""
        assert time.monotonic() - self._before >= TIME_LIMIT
        assert time.monotonic() - self._after < TIME_LIMIT + SLACK
        assert cause_of_refusal(self.sock) == "time"


def check_refused_in_time(*requests):
    """See that requests are refused, each in its time."""
    waiting = {request.sock: request for request in requests}
    while waiting:
        answered, _, _ = select.select(list(waiting), [], [], DEADLINE)
        assert answered, "hangs"
        for sock in answered:
            waiting.pop(sock).check_refused()


def test_requests_that_do_not_end_in_time_are_refused(server):
    """A client that has begun none has all the time that it wants, and each request has its own time."""
    if server.kind == "stdlib":
        pytest.skip("it has no time limit")
    whole = header(payload=100) + bytes(100)
    with server.unharmed(), contextlib.ExitStack() as stack, counted(server, *["time"] * 5):

        def client():
            return server.authenticate(stack.enter_context(server.connect()))

        patient, slow = client(), client()
        with Request(server) as request:
            slow.sendall(request.bytes[:1])
            late = [BegunRequest(client(), whole[:length]) for length in (1, len(header()), len(whole) - 1)]
            time.sleep(TIME_LIMIT / 2)
            send_with_fds(slow, request.bytes[1:], request.fds)
            request.tell(5)
            assert request.exit_code(slow) == 5
        late_again = BegunRequest(slow, whole[:1])
        check_refused_in_time(*late)
        check_refused_in_time(late_again, BegunRequest(client(), whole[:1]))
        with Request(server) as request:
            request.send(patient)
            request.tell(5)
            assert request.exit_code(patient) == 5


@pytest.mark.fault("Requests of the smallest and the largest size")
def test_requests_at_the_limits_are_served(server):
    largest = _native.MAX_PAYLOAD if server.kind == "fastfork" else 0
    with server.unharmed():
        for payload in (b"", work(5).ljust(largest, b".")):
            with server.connect() as sock, Request(server, payload, extra_fds=200) as request:
                request.send(server.authenticate(sock))
                request.tell(5)
                assert request.exit_code(sock) == 5


@pytest.mark.fault("More descriptors than a request may bring")
def test_descriptors_without_end_are_refused(server):
    """The kernel takes 253 with one message; a fastfork request takes 264."""
    with server.unharmed(), counted(server, "descriptors"), Witness() as witness, server.connect() as sock:
        server.authenticate(sock)
        data = header(fds=5) if server.kind == "fastfork" else bytes(8)
        for byte in data[:8]:
            send(sock, bytes([byte]), [witness.fd] * 253)
        witness.give_away()
        if server.kind == "fastfork":
            assert cause_of_refusal(sock) == "descriptors"
        assert not witness.is_open(), "descriptors left open"


@pytest.mark.fault("Descriptors for which the server has no room")
def test_descriptors_that_the_server_has_no_room_for(server):
    """The kernel drops them and says so (MSG_CTRUNC). It is the server's own lack: the client stays."""
    with server.unharmed(), server.connect() as sock:
        server.authenticate(sock)
        for room in range(4):
            with Request(server) as request, room_for_descriptors(server.pid, room):
                request.send(sock)
                request.tell(5)
                request.give_away()
                if server.kind == "fastfork":
                    assert errno_of_failure(sock) == errno.EMFILE
                assert not request.witness.is_open(), "descriptors left open"
            server.check_starts()
        with Request(server) as request:
            request.send(sock)
            request.tell(5)
            assert request.exit_code(sock) == 5


@contextlib.contextmanager
def room_for_descriptors(pid, count):
    """Have a process that can open so many descriptors more."""
    used = descriptors(pid)
    limit = 0
    while count >= 0:
        count -= limit not in used
        limit += 1
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit - 1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


KINDS = (
    "file",
    "directory",
    "O_PATH",
    "device",
    "epoll",
    "listener",
    "full pipe",
    "read end",
    "socket with descriptors in flight",
    "the connection itself",
)
NO_STREAMS = ("file", "directory", "O_PATH", "device", "epoll")
STREAM = _native.FORK_HELD | _native.FORK_STREAM
MODULES = 0x7FFF0000
"""Flags that tell of modules (FF_FORK_MODULES)."""


@contextlib.contextmanager
def odd_descriptors(sock):
    """Have descriptors of kinds that no request brings, by their names."""
    with contextlib.ExitStack() as stack:

        def closing(fd):
            stack.callback(os.close, fd)
            return fd

        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        with Witness() as witness:
            socket.send_fds(ours, [b"x"], [witness.fd, theirs.fileno(), sock.fileno()])
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind("")  # the kernel chooses a name
        listener.listen()
        full_r, full_w = os.pipe()
        os.set_blocking(closing(full_w), False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full_w, bytes(4096))
        os.set_blocking(full_w, True)
        yield {
            "file": closing(os.open(__file__, os.O_RDONLY)),
            "directory": closing(os.open("/", os.O_RDONLY)),
            "O_PATH": closing(os.open("/", os.O_PATH)),
            "device": closing(os.open("/dev/full", os.O_RDWR)),
            "epoll": stack.enter_context(select.epoll()).fileno(),
            "listener": listener.fileno(),
            "full pipe": full_w,
            "read end": closing(full_r),
            "socket with descriptors in flight": theirs.fileno(),
            "the connection itself": sock.fileno(),
        }


@pytest.mark.fault("Descriptors of the wrong kind")
@pytest.mark.parametrize("place", range(4))
def test_descriptors_of_the_wrong_kind(server, place):
    """What they are is the child's business, but for the first: the server may have to hold it and to write to it."""
    payload = work(5) if server.kind == "fastfork" else b""
    flags = [0] if server.kind == "stdlib" or place > 0 else [0, _native.FORK_HELD, STREAM]
    with server.unharmed():
        for kind in KINDS:
            for value in flags:
                with (
                    server.connect() as sock,
                    odd_descriptors(sock) as odd,
                    Request(server, payload) as request,
                ):
                    server.authenticate(sock)
                    request.fds[place] = odd[kind]
                    request.set_flags(value)
                    request.send(sock)
                    request.tell(5)
                    if value == STREAM and kind in NO_STREAMS:
                        assert errno_of_failure(sock) == errno.EINVAL
                    elif value == _native.FORK_HELD and kind == "the connection itself":
                        last_words(sock)  # it ends with the process, as a sentinel does
                    elif server.kind == "fastfork":
                        assert request.exit_code(sock) == 5
                server.check_starts()


@pytest.mark.fault("Descriptors of the wrong kind in a request that is refused")
def test_descriptors_of_the_wrong_kind_go_with_the_request_that_is_refused(server):
    with server.unharmed(), counted(server, *["descriptors"] * len(KINDS)):
        for kind in KINDS:
            with server.connect() as sock, odd_descriptors(sock) as odd:
                server.authenticate(sock)
                data = header() if server.kind == "fastfork" else b"\0"
                send(sock, data, [odd[kind]])
                if server.kind == "fastfork":
                    assert cause_of_refusal(sock) == "descriptors"
            server.check_starts()


@pytest.mark.fault("Descriptors of the wrong kind from a client that goes away amid its request")
@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_of_the_wrong_kind_go_with_their_client(server, kind):
    """A server that holds a client's own end of the connection could wait for its end forever."""
    with server.unharmed():
        with server.connect() as sock, odd_descriptors(sock) as odd:
            server.authenticate(sock)
            data = header(fds=3)[:5] if server.kind == "fastfork" else b"\1"
            send(sock, data, [odd[kind]])
        server.check_starts()


# ---- bytes at random ----

SEEDS = 100


def random_bytes():
    """Yield bytes at random, and how many descriptors come along."""
    for seed in range(SEEDS):
        chance = random.Random(seed)
        yield chance.randbytes(chance.randrange(1, 2000)), chance.choice([0, 0, 1, 9])


@pytest.mark.fault("Random bytes")
def test_random_bytes_in_place_of_the_handshake(server):
    causes = [
        "descriptors" if fd_count else "key"
        for data, fd_count in random_bytes()
        if fd_count or len(data) >= 4
    ]
    with server.unharmed(), counted(server, *causes):
        for number, (data, fd_count) in enumerate(random_bytes()):
            with server.connect() as sock, Witness() as witness:
                send(sock, data, [witness.fd] * fd_count)
                sock.shutdown(socket.SHUT_WR)
                assert WELCOME not in last_words(sock)
                witness.give_away()
                assert not witness.is_open(), "descriptors left open"
            server.check_starts(number % 8 == 0)


@pytest.mark.fault("Random bytes")
def test_random_bytes_in_place_of_requests(server):
    whole = [data for data, _ in random_bytes() if len(data) >= FRAME.size]
    with server.unharmed(), counted(server, *["magic"] * len(whole)):
        for number, (data, fd_count) in enumerate(random_bytes()):
            with server.connect() as sock, Witness() as witness:
                server.authenticate(sock)
                send(sock, data, [witness.fd] * fd_count)
                if server.kind == "fastfork" and data in whole:
                    assert cause_of_refusal(sock) == "magic"
                sock.shutdown(socket.SHUT_WR)
                last_words(sock)
                witness.give_away()
                assert not witness.is_open(), "descriptors left open"
            server.check_starts(number % 8 == 0)


@pytest.mark.fault("Random bytes")
def test_requests_with_a_few_bytes_changed(server):
    """Most are refused; some ask for another child, and some for a payload that does not come."""
    with server.unharmed():
        for seed in range(SEEDS):
            chance = random.Random(seed)
            before = refused(server)
            with (
                server.connect() as sock,
                Request(server, work() if server.kind == "fastfork" else b"") as request,
            ):
                request.tell()
                server.authenticate(sock)
                data = bytearray(request.bytes)
                for _ in range(chance.randrange(1, 4)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                fds = request.fds[: chance.choice([len(request.fds)] * 3 + [0, 1])]
                send(sock, bytes(data), fds)
                sock.shutdown(socket.SHUT_WR)
                last_words(sock)
                request.give_away()
                assert not request.witness.is_open(), "descriptors left open"
            if server.kind == "fastfork":
                assert list((refused(server) - before).elements()) in outcomes(data, len(fds))
            server.check_starts(seed % 8 == 0)


def outcomes(data, fd_count):
    """Return the lists of causes of which a server may refuse what a client sends before it goes away."""
    sound, told = (dict(zip(FIELDS, FRAME.unpack(frame[: FRAME.size]))) for frame in (header(), data))
    left = len(data) - FRAME.size - told["payload"]
    causes = [
        ("magic", told["magic"] != sound["magic"]),
        ("version", told["version"] != sound["version"]),
        ("payload", told["payload"] > _native.MAX_PAYLOAD),
        ("descriptors", told["fds"] > _native.MAX_FDS),
        ("type", told["type"] != sound["type"] or not are_sound_flags(told["value"], told["fds"])),
        ("descriptors", left >= 0 and told["fds"] != fd_count),
        ("options", left >= 0 and told["value"] & _native.FORK_OPTIONS),
    ]
    for cause, holds in causes:
        if holds:
            return [[cause]]
    # What is left would be another request, unless the server has seen that its client goes away.
    return [[], ["magic"]] if left >= FRAME.size else [[]]


def are_sound_flags(flags, fd_count):
    """Whether a request may have these flags, and so many descriptors."""
    known = _native.FORK_PIDFD | _native.FORK_DIE_WITH_CLIENT | _native.FORK_OPTIONS | STREAM | MODULES
    if flags & ~known or flags & STREAM == _native.FORK_STREAM:
        return False
    return not flags & _native.FORK_HELD or fd_count > 0


# ---- the handshake ----

CHALLENGE, WELCOME, FAILURE, DIGEST = b"#CHALLENGE#", b"#WELCOME#", b"#FAILURE#", b"{sha256}"
STAGES = 3
"""Messages of a client: its answer, its own challenge, its welcome."""


class Impostor:
    """A socket on which the message of one stage of the handshake is another one."""

    def __init__(self, sock, stage, message):
        self._sock = sock
        self._stage = stage
        self._message = message
        self.recv = sock.recv

    def sendall(self, data):
        if self._stage == 0:
            send(self._sock, self._message)
            raise EOFError
        self._stage -= 1
        self._sock.sendall(data)


def prefixed(text):
    return len(text).to_bytes(4, "big") + text


UNSOUND_LENGTHS = [struct.pack("!I", size) + b"x" * 300 for size in (0, 257, 1 << 31, 0xFFFFFFFF)]
UNSOUND_MESSAGES = [
    prefixed(text)
    for text in (
        b"x",
        b"x" * 256,
        FAILURE,
        CHALLENGE,
        CHALLENGE + bytes(20),
        CHALLENGE + b"{md5}" + bytes(40),
        CHALLENGE + DIGEST + bytes(19),
        DIGEST,
        DIGEST + bytes(31),
        DIGEST + bytes(32),
        DIGEST + bytes(33),
        WELCOME + b"x",
    )
]


@pytest.mark.fault("A handshake that goes wrong at any message")
@pytest.mark.parametrize("stage", range(STAGES))
def test_messages_of_the_handshake_that_are_wrong(server, stage):
    if server.authkey is None:
        pytest.skip("it asks for no key")
    unsound = UNSOUND_LENGTHS + UNSOUND_MESSAGES
    with server.unharmed(), counted(server, *["key"] * len(unsound)):
        for message in unsound:
            with server.connect() as sock:
                with pytest.raises(EOFError):
                    server.authenticate(Impostor(sock, stage, message))
                words = last_words(sock)
                assert words == (b"" if message in UNSOUND_LENGTHS else prefixed(FAILURE))
            server.check_starts()


@pytest.mark.fault("A client that does not know the key")
def test_a_client_with_another_key(server):
    assert server.authkey is not None, "lets in who reaches it"
    # Not the key less its last byte: HMAC fills a key up with zeros, and that byte may be one.
    keys = (b"x", bytes(32), os.urandom(32), server.authkey[1:], server.authkey + b"x", b"x" * 256)
    with server.unharmed(), counted(server, *["key"] * len(keys)):
        for key in keys:
            with server.connect() as sock, pytest.raises(AuthenticationError):
                server.authenticate(sock, key)
            server.check_starts()


@pytest.mark.fault("A client that asks without a handshake")
def test_a_request_before_the_handshake_is_not_served(server):
    if server.authkey is None:
        pytest.skip("it asks for no key")
    with server.unharmed(), counted(server, "key"), server.connect() as sock:
        send(sock, header(payload=len(work())) + work())
        words = last_words(sock)
        assert CHALLENGE in words
        assert WELCOME not in words


@pytest.mark.fault("Descriptors that come with the handshake")
@pytest.mark.parametrize("whole", [False, True])
def test_descriptors_that_come_with_the_handshake_are_refused(server, whole):
    """Nobody has a right to the server's descriptors who has not proved to know the key."""
    if server.authkey is None:
        pytest.skip("it asks for no key")
    with (
        server.unharmed(),
        counted(server, "descriptors"),
        server.connect() as sock,
        Request(server) as request,
    ):
        send(sock, request.bytes if whole else b"\0", request.fds)
        request.give_away()
        assert not request.witness.is_open(), "descriptors left open"
        last_words(sock)


@pytest.mark.fault("A client of another user")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_client_of_another_user(server):
    """Where it can reach the socket at all, the kernel tells who it is."""
    for path in (server.address, os.path.dirname(server.address)):
        os.chmod(path, 0o777)

    def ask_as_nobody():
        with Request(server) as request:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with server.connect() as sock, contextlib.suppress(EOFError, ConnectionError):
                say(server, sock, None, request)
                request.tell(5)
                os._exit(request.exit_code(sock))

    with server.unharmed(), counted(server, "user"):
        assert exit_code_of(fork(ask_as_nobody)) == 0, "served another user"
        serve_newcomer(server)
