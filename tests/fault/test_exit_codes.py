"""Exit codes of processes that are not their client's to look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from support.kernel import kernel_tells_exit_codes

from fastfork import _native

from .interposing import compiler
from .test_limits import NOBODY, as_nobody

PRIVILEGED = "#include <unistd.h>\nint main(void) { char byte; return read(0, &byte, 1) == 0 ? 3 : 4; }\n"
"""A program that ends with 3 at the end of its input."""

UNTOLD = """
import ctypes, os, signal, sys, threading, time

import fastfork
from fastfork import client, forkserver

PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    _, program, is_reaped = sys.argv
    context = fastfork.get_context()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a template leaves becomes this process's
    read_end, write_end = os.pipe()
    options = fastfork.ChildOptions(stdin=read_end)
    process = context.Process(target=os.execv, args=(program, [program]), options=options)
    process.start()
    deadline = time.monotonic() + 60
    while open(f"/proc/{process.pid}/comm").read().strip() != os.path.basename(program):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    template = forkserver._forkserver._forkserver_pid
    os.kill(template, signal.SIGKILL)
    os.waitid(os.P_PID, template, os.WEXITED | os.WNOWAIT)
    if is_reaped:
        client._INIT_DEADLINE = 60
        threading.Thread(target=os.waitpid, args=(process.pid, 0)).start()
    else:
        client._INIT_DEADLINE = 0.3
    os.close(write_end)
    process.join()
    print(os.stat(program).st_uid, process.exitcode)
"""


@pytest.fixture
def privileged(tmp_path):
    """A set-uid program of root's that another user can run: its path."""
    if os.getuid() != 0:
        pytest.skip("takes root to make a set-uid program of root's")
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("no set-uid programs in the folder of temporary files")
    path = tmp_path / "privileged"
    path.with_suffix(".c").write_text(PRIVILEGED)
    try:
        subprocess.run([*compiler(), "-o", str(path), str(path.with_suffix(".c"))], check=True)
    except FileNotFoundError as error:
        pytest.skip(f"no C compiler: {error}")
    path.chmod(0o4755)
    return path


@pytest.mark.skipif(not _native.has_pidfds(), reason="without pidfds a sentinel ends with the template")
@pytest.mark.parametrize("is_reaped", ["", "reaped"])
def test_an_exit_code_that_the_kernel_does_not_show_is_not_taken_for_a_success(
    programs, privileged, tmp_path, is_reaped
):
    """The record in /proc of a process that has taken on privileges says 0 to those who have not."""
    folder = tmp_path / "of nobody"
    folder.mkdir()
    shutil.chown(folder, NOBODY, NOBODY)
    path = programs.write("program.py", UNTOLD)
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*as_nobody(), sys.executable, str(path), str(privileged), is_reaped]
    outcome = programs.command(*command, environment=environment)
    code = 3 if is_reaped and kernel_tells_exit_codes() else 255
    assert (outcome.lines, outcome.stderr) == ([f"0 {code}"], "")
