"""What a child is to be before it runs: its environment, directory, limits, streams and so on.

The values are checked here, where they are given. What can only be found out by trying is applied by the core, in the
child, and told as the `OSError` of the start.
"""

from __future__ import annotations

import operator
import os
import resource
import struct
import subprocess
from collections.abc import Iterable, Mapping
from typing import IO, Any, Union

from . import _native

Stream = Union[int, IO[Any]]
"""A descriptor, an object that has one, or one of subprocess's constants."""

Text = Union[str, bytes]

_LARGEST_NICENESS = 19
_SMALLEST_NICENESS = -20

_HEAD = struct.Struct("=II")
"""``struct ff_option``."""

_SIZE = struct.Struct("=I")
_NUMBER = struct.Struct("=i")
_LIMIT = struct.Struct("=QQ")
_NO_LIMIT = 2**64 - 1

_MAX_BLOCK = _native.MAX_PAYLOAD
"""Bytes that all options of a child may take: they travel inside the request."""

_NAMES = {
    _native.OPTION_STDIN: "stdin",
    _native.OPTION_STDOUT: "stdout",
    _native.OPTION_STDERR: "stderr",
    _native.OPTION_NEW_SESSION: "new_session",
    _native.OPTION_UMASK: "umask",
    _native.OPTION_CWD: "cwd",
    _native.OPTION_ENV: "env",
    _native.OPTION_NICE: "nice",
    _native.OPTION_AFFINITY: "affinity",
}

_RESOURCES = {
    value: name
    for name, value in vars(resource).items()
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE" and 0 <= value < _native.MAX_RLIMITS
}


class ChildOptions:
    """What a process is to be before its first line of Python runs.

    What is None is as the template has it, whatever the process that asks is: that goes for those that processes start.

    Parameters
    ----------
    env:
        The whole environment, names and values as str or bytes, as for `subprocess.Popen`: nothing else is in it.
        ``{**os.environ, "NAME": "value"}`` adds to this process's. `os.environ` and the C library agree in the child.
        The mapping is read here and now.
    cwd:
        The directory, str, bytes or a path; a relative one is sought from that of the process that asks, at the start.
        None is the directory of the process that asks.
    umask:
        The file mode creation mask, 0 to 0o777.
    nice:
        The niceness, -20 to 19; not what is added to it. One below the template's takes privileges.
    affinity:
        The numbers of the processors that it may run on.
    rlimits:
        Limits by the constants of `resource`, each a pair of the soft and the hard one, or a number for both;
        `resource.RLIM_INFINITY` for none. To raise a hard one takes privileges.
    stdin, stdout, stderr:
        A descriptor, an object that has one by ``fileno()``, or `subprocess.DEVNULL`; for stderr also
        `subprocess.STDOUT`. The process gets duplicates; the caller's own stay open, and have to be open at the start.
        `sys.stdin` then reads from it; without, a process has an empty one, as with multiprocessing.
    new_session:
        Whether it leads a session, and a process group, of its own: then a terminal's signals do not reach it, and
        `os.killpg` ends it with those that it starts.
    die_with_client:
        Whether it is killed, and all below it, when the process that has started it ends; see `fastfork.get_context`.

    Raises `TypeError` or `ValueError` for a value that cannot be right; both name the option. What the system refuses
    in the child is an `OSError` of the start, which names it too; nothing of the process has run then.

    """

    __slots__ = (
        "affinity",
        "cwd",
        "die_with_client",
        "env",
        "new_session",
        "nice",
        "rlimits",
        "stderr",
        "stdin",
        "stdout",
        "umask",
    )

    def __init__(
        self,
        *,
        env: Mapping[Any, Any] | None = None,
        cwd: Text | os.PathLike[str] | os.PathLike[bytes] | None = None,
        umask: int | None = None,
        nice: int | None = None,
        affinity: Iterable[int] | None = None,
        rlimits: Mapping[int, int | tuple[int, int]] | None = None,
        stdin: Stream | None = None,
        stdout: Stream | None = None,
        stderr: Stream | None = None,
        new_session: bool = False,
        die_with_client: bool | None = None,
    ) -> None:
        self.env = None if env is None else _environment(env)
        self.cwd = None if cwd is None else _path("cwd", cwd)
        self.umask = None if umask is None else _number("umask", umask, 0, 0o777)
        self.nice = None if nice is None else _number("nice", nice, _SMALLEST_NICENESS, _LARGEST_NICENESS)
        self.affinity = None if affinity is None else _processors(affinity)
        self.rlimits = None if rlimits is None else _limits(rlimits)
        self.stdin = _stream("stdin", stdin)
        self.stdout = _stream("stdout", stdout)
        self.stderr = _stream("stderr", stderr, subprocess.STDOUT)
        self.new_session = _truth("new_session", new_session)
        self.die_with_client = None if die_with_client is None else _truth("die_with_client", die_with_client)

    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.__slots__)
        given = ", ".join(
            f"{name}={value!r}" for name, value in values if value is not None and value is not False
        )
        return f"ChildOptions({given})"

    def encode(self) -> tuple[bytes, list[int]]:
        """Return what a request has to carry: the beginning of its payload, and of its descriptors.

        Without a need for any of it both are empty. That it is there is said by FORK_OPTIONS, and `die_with_client` by
        FORK_DIE_WITH_CLIENT: two of the core's ``ff_fork_flags``.

        Raises `ValueError` for a stream that is not open, and where all is too much for a request; it names the option.
        """
        fds: list[int] = []
        # In the order in which they are applied: limits come when nothing is left that they could hinder, and before
        # the niceness, which one of them is about.
        parts = [*self._streams(fds), *self._surroundings(), *self._limits(), *self._schedule()]
        if not parts:
            return b"", fds
        content = b"".join(parts)
        block = _SIZE.pack(_SIZE.size + len(content)) + content
        if len(block) > _MAX_BLOCK:
            raise ValueError(f"env and cwd are too large: {len(block)} bytes, at most {_MAX_BLOCK} fit")
        return block, fds

    def _streams(self, ret_fds: list[int]) -> Iterable[bytes]:
        streams = {
            _native.OPTION_STDIN: self.stdin,
            _native.OPTION_STDOUT: self.stdout,
            _native.OPTION_STDERR: self.stderr,
        }
        for kind, stream in streams.items():
            if stream is not None:
                yield _part(kind, _NUMBER.pack(_source(_NAMES[kind], stream, ret_fds)))

    def _surroundings(self) -> Iterable[bytes]:
        if self.new_session:
            yield _part(_native.OPTION_NEW_SESSION)
        if self.umask is not None:
            yield _part(_native.OPTION_UMASK, _NUMBER.pack(self.umask))
        if self.cwd is not None:
            yield _part(_native.OPTION_CWD, _absolute(self.cwd) + b"\0")
        if self.env is not None:
            variables = (name + b"=" + value + b"\0" for name, value in self.env.items())
            yield _part(_native.OPTION_ENV, b"".join(variables))

    def _limits(self) -> Iterable[bytes]:
        for number, (soft, hard) in (self.rlimits or {}).items():
            yield _part(_native.OPTION_RLIMIT + number, _LIMIT.pack(_limit(soft), _limit(hard)))

    def _schedule(self) -> Iterable[bytes]:
        if self.nice is not None:
            yield _part(_native.OPTION_NICE, _NUMBER.pack(self.nice))
        if self.affinity is not None:
            bits = sum(1 << cpu for cpu in self.affinity)
            yield _part(_native.OPTION_AFFINITY, bits.to_bytes(max(self.affinity) // 8 + 1, "little"))


def name_of_option(kind: int) -> str:
    """Return the name of an option, by the number that the core has for it."""
    number = kind - _native.OPTION_RLIMIT
    if number >= 0:
        return f"rlimits[{_RESOURCES.get(number, number)}]"
    return _NAMES.get(kind, str(kind))


def _part(kind: int, value: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(value)) + value


# ---- checking ----


def _number(name: str, value: object, smallest: int, largest: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not smallest <= number <= largest:
        raise ValueError(f"{name} must be from {smallest} to {largest}, not {number}")
    return number


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _encoded(name: str, text: object) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"{name} must be str or bytes, not {text!r}")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} cannot be encoded: {error}") from error
    if b"\0" in encoded:
        raise ValueError(f"{name} must not contain null characters: {text!r}")
    return encoded


def _environment(env: Mapping[object, object]) -> dict[bytes, bytes]:
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping, not {env!r}")
    variables = {}
    for name, value in env.items():
        encoded = _encoded("a name in env", name)
        if not encoded or b"=" in encoded:
            raise ValueError(f"a name in env must not be empty or contain '=': {name!r}")
        variables[encoded] = _encoded(f"the value of {name!r} in env", value)
    size = sum(len(name) + len(value) + 2 for name, value in variables.items())
    if size > _MAX_BLOCK:
        raise ValueError(f"env is too large: {size} bytes, at most some {_MAX_BLOCK} fit")
    return variables


def _path(name: str, path: object) -> bytes:
    try:
        encoded = _encoded(name, os.fspath(path))  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"{name} must be a path, not {path!r}") from None
    if not encoded:
        raise ValueError(f"{name} must not be empty")
    return encoded


def _processors(affinity: object) -> frozenset[int]:
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("affinity is not to be had on this system")
    if not isinstance(affinity, Iterable):
        raise TypeError(f"affinity must be numbers of processors, not {affinity!r}")
    numbers = frozenset(_number("affinity", cpu, 0, _native.MAX_CPUS - 1) for cpu in affinity)
    if not numbers:
        raise ValueError("affinity must not be empty")
    return numbers


def _limits(rlimits: object) -> dict[int, tuple[int, int]]:
    if not isinstance(rlimits, Mapping):
        raise TypeError(f"rlimits must be a mapping, not {rlimits!r}")
    return {_resource(number): _soft_and_hard(number, limit) for number, limit in rlimits.items()}


def _resource(number: object) -> int:
    if not isinstance(number, int):
        raise TypeError(f"a resource in rlimits must be one of resource's constants, not {number!r}")
    if number not in _RESOURCES:
        raise ValueError(f"rlimits has a resource that is not known: {number}")
    return number


def _soft_and_hard(number: int, limit: object) -> tuple[int, int]:
    name = f"rlimits[{_RESOURCES[number]}]"
    pair = limit if isinstance(limit, (tuple, list)) else (limit, limit)
    if len(pair) != 2:
        raise ValueError(f"{name} must be a number or a pair of the soft and the hard limit, not {limit!r}")
    soft, hard = (_number(name, value, resource.RLIM_INFINITY, _NO_LIMIT - 1) for value in pair)
    if _limit(soft) > _limit(hard):
        raise ValueError(f"{name} has a soft limit above its hard one: {limit!r}")
    return soft, hard


def _limit(value: int) -> int:
    return _NO_LIMIT if value == resource.RLIM_INFINITY else value


def _stream(name: str, stream: Any, *more: int) -> Stream | None:
    constants = (subprocess.DEVNULL, *more)
    given: Stream | None = stream
    if stream is None or hasattr(stream, "fileno") or stream in constants:
        return given
    if not isinstance(stream, int) or isinstance(stream, bool):
        raise TypeError(f"{name} must be a descriptor, a file or subprocess.DEVNULL, not {stream!r}")
    if stream == subprocess.PIPE:
        raise ValueError(f"{name} must not be subprocess.PIPE: make a pipe by os.pipe() and pass its end")
    if stream < 0:
        raise ValueError(f"{name} must be a descriptor, a file or subprocess.DEVNULL, not {stream}")
    return given


# ---- what is known only at the start ----


def _source(name: str, stream: Stream, ret_fds: list[int]) -> int:
    """Return the ``ff_stream``; a descriptor that is to be sent joins `ret_fds`."""
    if stream == subprocess.DEVNULL:
        return _native.STREAM_NULL
    if stream == subprocess.STDOUT:
        return _native.STREAM_STDOUT
    try:
        fd = stream if isinstance(stream, int) else stream.fileno()
        os.fstat(fd)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not open: {error}") from error
    ret_fds.append(fd)
    return _native.STREAM_FD


def _absolute(path: bytes) -> bytes:
    return path if os.path.isabs(path) else os.path.join(os.getcwdb(), path)
