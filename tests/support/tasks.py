"""Functions for lean calls."""

from __future__ import annotations

import os
import time


def echo(data, fds):
    return data


def length(data, fds):
    return str(len(data)).encode()


def many(data, fds):
    return bytearray(int(data))


def nothing(data, fds):
    return None


def no_bytes(data, fds):
    return "text"


def raise_error(data, fds):
    raise ValueError(data.decode())


def leave(data, fds):
    os._exit(int(data))


def stay(data, fds):
    time.sleep(600)


def exchange(data, fds):
    """Write to the descriptor that came along; return another one."""
    os.write(fds[0], data)
    reader, writer = os.pipe()
    os.write(writer, data[::-1])
    os.close(writer)
    return data, [reader]


def open_descriptors(data, fds):
    return str(len(os.listdir("/proc/self/fd"))).encode()
