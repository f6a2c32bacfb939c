"""What a template tells before it serves, and what its client makes of it, at any point."""

from __future__ import annotations

import errno
import os

import pytest

from fastfork import _native
from fastfork.report import Reader, Report


@pytest.fixture
def ends():
    """Return the two ends of a report."""
    read_end, write_end = os.pipe()
    report, reader = Report(write_end), Reader(read_end)
    yield report, reader
    end(report)
    reader.close()


def end(report):
    """Have the template's end be closed, as by its first fork or its end."""
    for fd in (report.fd, _native.close_at_fork(-1)):
        if fd >= 0:
            os.close(fd)
    report.fd = -1


def test_nothing_is_known_before_anything_was_told(ends):
    report, reader = ends
    assert (reader.is_ready(), reader.modules_begun(), reader.failure(), reader.stacks()) == (
        False,
        0,
        None,
        "",
    )
    end(report)
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


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_template_that_cannot_serve_says_why(ends, is_ready):
    report, reader = ends
    report.begin_module()
    if is_ready:
        report.be_ready()
    assert reader.error_of_serving() is None
    report.fail_to_serve(OSError(errno.EMFILE, "Too many open files"))
    assert reader.error_of_serving() == (errno.EMFILE, "Too many open files")
    assert (reader.is_ready(), reader.failure(), reader.stacks()) == (is_ready, None, "")


def test_once_it_has_forked_nothing_is_told(ends):
    report, reader = ends
    report.be_ready()
    end(report)
    report.fail_to_serve(OSError(errno.EMFILE, "Too many open files"))
    assert (reader.is_ready(), reader.error_of_serving()) == (True, None)


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
    end(report)


@pytest.mark.parametrize("character", ["x", "\u4e2d", "\ud800"])
def test_a_long_traceback_fits_into_the_pipe(ends, character):
    report, reader = ends
    report.fail("why", None, character * 100_000 + "the end")
    reason, module, traceback = reader.failure()
    assert (reason, module) == ("why", None)
    assert traceback.endswith("the end")
    assert len(traceback) > 5_000
    end(report)


def test_stacks_are_known_as_far_as_they_were_written(ends):
    report, reader = ends
    report.begin_module()
    os.write(report.fd, b"Timeout (0:00:01)!\nThread 0x")
    assert reader.stacks() == "Timeout (0:00:01)!\nThread 0x"
    assert (reader.modules_begun(), reader.failure(), reader.is_ready()) == (1, None, False)
    end(report)


def test_a_client_that_has_gone_is_no_error(ends):
    report, reader = ends
    reader.close()
    report.begin_module()
    report.fail("why", None, "")
    report.be_ready()
