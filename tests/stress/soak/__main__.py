"""The command line. What conducts the run is a process of its own: so this one sees what is left after its end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.processes import marked, state_of, wait_until

from . import __doc__ as description
from . import report
from .report import Options
from .servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MARK = "FASTFORK_SOAK"
FIGURES = "figures.json"
SHARED_MEMORY = Path("/dev/shm")
LEFT_DEADLINE = 170.0
"""Seconds that processes whose clients have been killed may take to end by themselves."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.soak",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--starts", type=int, default=200_000, metavar="N", help="at least so many")
    parser.add_argument("--minutes", type=float, default=20.0, metavar="M", help="at least so long")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="processes that start others")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each client")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all that is drawn at random")
    parser.add_argument("--on", choices=SERVERS, default="fastfork", help="whose fork server")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument(
        "--logs", type=Path, metavar="FOLDER", help="keep the journals and the standard error of all there"
    )
    parser.add_argument("--conduct", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def options(arguments: argparse.Namespace) -> Options:
    mark = f"{MARK}={os.environ[MARK]}"
    return Options(*(getattr(arguments, name) for name in Options._fields[:-1]), mark=mark)


def conduct(arguments: argparse.Namespace) -> int:
    from .conductor import Conductor

    figures = Conductor(options(arguments), arguments.conduct).run()
    (arguments.conduct / FIGURES).write_text(json.dumps(figures), encoding="utf-8")
    return 0


def run(arguments: argparse.Namespace, logs: Path, temporary: Path) -> dict[str, Any]:
    """Have a process conduct the run, with a temporary folder of its own, and see what it leaves."""
    shared = _in_shared_memory()
    value = uuid.uuid4().hex
    variables = {**os.environ, MARK: value, "TMPDIR": str(temporary)}
    with (logs / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", __package__, *sys.argv[1:], "--conduct", str(logs)],
            env=variables,
            stderr=stderr,
            start_new_session=True,
        )
        status = _wait(process)
    path = logs / FIGURES
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"problems": []}
    if status != 0:
        figures["problems"].append(f"the conductor has ended with {status}")
    figures["problems"] += _left(f"{MARK}={value}", temporary, shared, figures.get("may be left", ()))
    return figures


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the conductor; ^C has it finish early."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()


def _left(mark: str, folder: Path, shared: set[Path], may_be_left: Collection[str]) -> list[str]:
    """End what is left of the run, and say what that was."""
    problems = []
    try:
        wait_until(lambda: not marked(mark), LEFT_DEADLINE)
    except AssertionError:
        for pid in marked(mark):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            problems.append(f"process {pid} is left, in state {state_of(pid)}: {command[:200]}")
            os.kill(pid, signal.SIGKILL)
    left = {*folder.iterdir(), *_in_shared_memory()} - shared
    return problems + [_description(path) for path in sorted(left) if str(path) not in may_be_left]


def _description(left: Path) -> str:
    held = [path.name for path in left.iterdir()] if left.is_dir() else None
    return f"{left} is left" + ("" if held is None else f", with {held} in it")


def _in_shared_memory() -> set[Path]:
    """Return what fastfork has there: where a socket is put if there is no other place."""
    return set(SHARED_MEMORY.glob("fastfork*"))


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    if chosen.conduct:
        return conduct(chosen)
    if chosen.logs:
        chosen.logs.mkdir(parents=True)
    logs = chosen.logs or Path(tempfile.mkdtemp(prefix="soak-logs-"))
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        figures = run(chosen, logs.resolve(), Path(temporary))
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(report.table(figures) if "starts" in figures else "\n".join(figures["problems"]))
    if figures["problems"]:
        print(f"journals and standard error: {logs}")
    elif not chosen.logs:
        shutil.rmtree(logs)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
