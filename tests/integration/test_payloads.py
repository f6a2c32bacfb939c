"""What is sent to a child: of any size, and what happens to what cannot be sent or not be received."""

from __future__ import annotations

import pickle
import threading

import pytest
from support import targets
from support.processes import DEADLINE, children_of, descriptors

import fastfork
from fastfork import forkserver, popen

EDGE = popen.MAX_INLINE_PAYLOAD


def digest_sent_back(ctx, size):
    """Send so many bytes as an argument; return the bytes' length and sum as the child sees them."""
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=targets.send_length_and_sum, args=(sender, bytes([7]) * size))
    process.start()
    answer = receiver.recv()
    process.join(DEADLINE)
    assert process.exitcode == 0
    for end in (receiver, sender):
        end.close()
    return answer


@pytest.mark.parametrize("size", [0, 1, EDGE // 2, EDGE - 1, EDGE, EDGE + 1, 10_000_000])
def test_arguments_of_any_size_arrive(ctx, size):
    assert digest_sent_back(ctx, size) == (size, 7 * size)


def payload_size(ctx, argument):
    process = ctx.Process(target=targets.leave_with_length, args=(argument,), name="Process")
    unlaunched = popen.Popen.__new__(popen.Popen)
    unlaunched._fds = []
    unlaunched._server = forkserver._forkserver
    return len(unlaunched._pickle(process))


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_payload_at_the_edge_between_request_and_pipe_arrives(ctx, beyond):
    argument = bytes(EDGE // 2)
    argument = bytes(len(argument) + EDGE + beyond - payload_size(ctx, argument))
    assert payload_size(ctx, argument) == EDGE + beyond
    process = ctx.Process(target=targets.leave_with_length, args=(argument,), name="Process")
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == len(argument) % 251


def test_large_results_come_back(ctx):
    with ctx.Pool(1) as pool:
        assert pool.apply(bytes, (5_000_000,)) == bytes(5_000_000)
        pool.close()
        pool.join()


def test_a_child_that_ends_without_reading_its_payload_is_no_hindrance(capfd, ctx):
    """What comes first cannot be loaded: most of the payload stays in the pipe."""
    process = ctx.Process(target=targets.square, args=(targets.RaisesWhenLoaded(), bytes(10_000_000)))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 1
    assert "ValueError: cannot be loaded" in capfd.readouterr().err


@pytest.mark.parametrize("size", [0, 10_000_000])
def test_what_cannot_be_pickled_is_a_clear_error_and_leaves_nothing(ctx, template, size):
    assert digest_sent_back(ctx, 1) == (1, 7)
    before = descriptors()
    process = ctx.Process(target=targets.nothing, args=(bytes(size), threading.Lock()))
    with pytest.raises(TypeError, match="cannot pickle"):
        process.start()
    assert descriptors() == before
    assert children_of(template._forkserver_pid) == []
    assert process not in fastfork.get_context().active_children()
    assert digest_sent_back(ctx, 1) == (1, 7)


def test_a_local_function_is_a_clear_error(ctx):
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        ctx.Process(target=lambda: None).start()


@pytest.mark.parametrize("size", [0, 100_000])
def test_what_cannot_be_unpickled_ends_the_child_with_a_traceback(capfd, ctx, size):
    process = ctx.Process(target=targets.nothing, args=(bytes(size), targets.RaisesWhenLoaded()))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 1
    error = capfd.readouterr().err
    assert error.startswith("Traceback (most recent call last):")
    assert error.endswith("ValueError: cannot be loaded\n")
    assert digest_sent_back(ctx, 1) == (1, 7)


def test_too_many_connections_among_the_arguments_are_an_error_and_leave_nothing(ctx, template):
    pipes = [ctx.Pipe(duplex=False) for _ in range(257)]
    before = descriptors()
    process = ctx.Process(target=targets.nothing, args=([receiver for receiver, _ in pipes],))
    with pytest.raises(ValueError, match="too many fds"):
        process.start()
    assert descriptors() == before
    assert children_of(template._forkserver_pid) == []
    process = ctx.Process(target=targets.receive_from_all, args=([receiver for receiver, _ in pipes[:256]],))
    process.start()
    for number, (_, sender) in enumerate(pipes):
        sender.send(number)
    process.join(DEADLINE)
    assert process.exitcode == 0
    for ends in pipes:
        for end in ends:
            end.close()
