"""What a template tells before it serves, and what its client makes of it, at any point."""

from __future__ import annotations

import os

import pytest

from fastfork.report import Reader, Report


@pytest.fixture
def ends():
    """Return the two ends of a report."""
    read_end, write_end = os.pipe()
    report, reader = Report(write_end), Reader(read_end)
    yield report, reader
    reader.close()


def test_nothing_is_known_before_anything_was_told(ends):
    report, reader = ends
    assert (reader.is_ready(), reader.modules_begun(), reader.failure(), reader.stacks()) == (
        False,
        0,
        None,
        "",
    )
    os.close(report.fd)
    assert (reader.is_ready(), reader.modules_begun(), reader.failure(), reader.stacks()) == (
        False,
        0,
        None,
        "",
    )


def test_modules_are_counted_until_the_template_is_ready(ends):
    report, reader = ends
    for count in range(1, 4):
        report.begin_module()
        assert (reader.is_ready(), reader.modules_begun()) == (False, count)
    report.be_ready()
    assert (reader.is_ready(), reader.modules_begun(), reader.failure(), reader.stacks()) == (
        True,
        3,
        None,
        "",
    )


def test_what_was_read_is_known_after_the_pipe_is_closed(ends):
    report, reader = ends
    report.be_ready()
    assert reader.is_ready()
    reader.close()
    assert reader.is_ready()


def test_a_failure_is_known_while_somebody_keeps_the_pipe_open(ends):
    report, reader = ends
    report.begin_module()
    report.fail("why", "name", "where\n")
    assert (reader.failure(), reader.stacks(), reader.is_ready()) == (("why", "name", "where\n"), "", False)
    os.close(report.fd)


@pytest.mark.parametrize("character", ["x", "\u4e2d", "\ud800"])
def test_a_long_traceback_fits_into_the_pipe(ends, character):
    report, reader = ends
    report.fail("why", None, character * 100_000 + "the end")
    reason, module, traceback = reader.failure()
    assert (reason, module) == ("why", None)
    assert traceback.endswith("the end")
    assert len(traceback) > 5_000
    os.close(report.fd)


def test_stacks_are_known_as_far_as_they_were_written(ends):
    report, reader = ends
    report.begin_module()
    os.write(report.fd, b"Timeout (0:00:01)!\nThread 0x")
    assert reader.stacks() == "Timeout (0:00:01)!\nThread 0x"
    assert (reader.modules_begun(), reader.failure(), reader.is_ready()) == (1, None, False)
    os.close(report.fd)


def test_a_client_that_has_gone_is_no_error(ends):
    report, reader = ends
    reader.close()
    report.begin_module()
    report.fail("why", None, "")
    report.be_ready()
