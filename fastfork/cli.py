"""The command line: ``fastfork`` and ``python -m fastfork``."""

from __future__ import annotations

import argparse
import sys

from . import __version__
from .pth import install_pth, uninstall_pth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
fastfork: fresh Python processes from a fork server in C.

In a program it is one line:  multiprocessing.set_start_method("fastfork")  after  import fastfork.
From here, programs run on it as they are:

  fastfork run script.py a b             the script, with fastfork in place of any start method it asks for
  fastfork run --preload numpy -m tool   a module, with numpy imported once for all of its processes
  fastfork bench --quick                 how fast processes start here, beside the standard start methods
  fastfork install-pth                   let FASTFORK_INSTALL=1 put the method "forkserver" on fastfork
"""

_RUN_DESCRIPTION = """\
Run an unmodified multiprocessing program, in the manner of "python -m cProfile". Whatever start method it asks for,
its processes are forked from a template that has imported its main module and what --preload names.

As with "spawn" and "forkserver", the program needs the  if __name__ == "__main__":  idiom, and what it passes to its
processes must pickle: a program that counts on "fork" to inherit variables does not run this way.
"""

_PTH_DESCRIPTION = """\
Write two files into this environment's site-packages. With FASTFORK_INSTALL=1 in the environment, every interpreter
of it then runs multiprocessing's "forkserver" start method on fastfork, "python -I" too; without it nothing changes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    options = _parser().parse_args(arguments)
    status: int = options.command(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastfork", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"fastfork {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    _add_run(commands)
    commands.add_parser("bench", help="measure process starts beside the standard methods", add_help=False)
    for name, command, summary in (
        ("install-pth", _install_pth, "let FASTFORK_INSTALL=1 install fastfork in this environment"),
        ("uninstall-pth", _uninstall_pth, "undo install-pth"),
    ):
        command_parser = commands.add_parser(name, help=summary, description=_PTH_DESCRIPTION)
        command_parser.add_argument(
            "--directory", help="write to this directory of the site path instead of site-packages"
        )
        command_parser.set_defaults(command=command)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="run an unmodified multiprocessing program on fastfork",
        description=_RUN_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="fastfork run [-h] [--preload mod,...] [--keep-spawn] [-m module | script.py] ...",
    )
    run.add_argument(
        "--preload",
        metavar="mod,...",
        default="",
        help="modules to import once, in the template, for all processes",
    )
    run.add_argument("--keep-spawn", action="store_true", help='leave the start method "spawn" as it is')
    run.add_argument("-m", dest="is_module", action="store_true", help="run a module, as python -m does")
    run.add_argument("target", metavar="module | script.py", help="the program")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    run.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from . import program

    if not program.is_there(options.target, is_module=options.is_module):
        kind = "module" if options.is_module else "file"
        print(f"fastfork run: there is no {kind} {options.target!r}", file=sys.stderr)
        return 2
    program.run(
        options.target,
        options.arguments,
        is_module=options.is_module,
        preload=[name for name in options.preload.split(",") if name],
        keep_spawn=options.keep_spawn,
    )
    return 0


def _bench(arguments: list[str]) -> int:
    from .bench import main as bench

    return bench(arguments)


def _install_pth(options: argparse.Namespace) -> int:
    for path in install_pth(options.directory):
        print(f"wrote {path}")
    print('With FASTFORK_INSTALL=1, "forkserver" now runs on fastfork in this environment.')
    return 0


def _uninstall_pth(options: argparse.Namespace) -> int:
    removed = uninstall_pth(options.directory)
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print("nothing to remove")
    return 0
