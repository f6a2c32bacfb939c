"""A client at its limits: one clear error, nothing lost, and the next start works."""

from __future__ import annotations

OUT_OF_DESCRIPTORS = """
import errno, os, resource, sys

import fastfork


def run(context):
    process = context.Process(target=sys.exit, args=(7,))
    process.start()
    process.join()
    assert process.exitcode == 7
    process.close()


if __name__ == "__main__":
    context = fastfork.get_context()
    run(context)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    fillers = []
    try:
        while True:
            fillers.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    process = context.Process(target=sys.exit)
    try:
        process.start()
    except OSError as error:
        print(errno.errorcode[error.errno])
    for filler in fillers:
        os.close(filler)
    run(context)
    print("again")
"""

BAD_DESCRIPTOR = """
import errno, os, sys
from multiprocessing import forkserver as stdlib

from fastfork import forkserver

if __name__ == "__main__":
    fd = os.open("/dev/null", os.O_RDONLY)
    for count in (1, 256):
        try:
            forkserver.connect_to_new_process([fd] * (count - 1) + [99])
        except OSError as error:
            print(errno.errorcode[error.errno])
    status, data = forkserver.connect_to_new_process([fd] * 256)
    os.close(data)
    print(stdlib.read_signed(status) > 0, stdlib.read_signed(status))
"""


def test_a_client_without_a_free_descriptor(programs):
    assert programs.run(OUT_OF_DESCRIPTORS).lines == ["EMFILE", "again"]


def test_a_descriptor_that_is_not_open(programs):
    path = programs.write("program.py", BAD_DESCRIPTOR)
    outcome = programs.python(str(path))
    assert outcome.status == 0
    assert outcome.lines == ["EBADF", "EBADF", "True 1"]
    assert "EOFError" in outcome.stderr  # of the child, which found no process to run
