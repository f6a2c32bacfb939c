"""Count the words of the Python standard library's sources, and index what they define, with multiprocessing.

A program as many are: it knows of no start method but the standard ones, and takes the default one. Two
pieces of work are spread over processes, and each result is compared with that of a plain loop in this one:

- word count: a `Pool` of which every worker serves one batch of files and is then replaced, so that a leak
  in one batch cannot harm the next. Each worker counts words, and the counts are added up.
- index: `Process` objects that take file names from one `Queue` and put into another which classes and
  functions each file defines. The answer is where each name is defined.

Exits with status 1 if a result differs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.context import BaseContext
    from multiprocessing.queues import Queue

_WORD = re.compile(r"[^\W\d]\w*")
_DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)
_SKIPPED = frozenset(["site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"])
_BATCH = 4  # files that one worker of the pool counts

Index = dict[str, list[str]]
"""The files that define a name, by name."""


def find_sources(folder: Path) -> list[str]:
    """Return the paths of the Python sources below `folder`, without tests and installed packages."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED)
        found += [os.path.join(path, name) for name in sorted(files) if name.endswith(".py")]
    return found


def read(path: str) -> str:
    """Return the text of a source file, whatever its encoding."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def count_words(paths: Sequence[str]) -> tuple[int, Counter[str]]:
    """Count the words in some files: the id of the process that did it, and the number of each word."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(_WORD.findall(read(path)))
    return os.getpid(), counts


def definitions(path: str) -> list[str]:
    """Return the names of the classes and functions that a file defines, each once."""
    return sorted(set(_DEFINITION.findall(read(path))))


def batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut `paths` into batches."""
    return (paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH))


def count_in_pool(context: BaseContext, paths: Sequence[str], workers: int) -> tuple[Counter[str], int]:
    """Count words with a pool: the counts, and how many different processes have worked on them."""
    total: Counter[str] = Counter()
    pids = set()
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for pid, counts in pool.imap_unordered(count_words, batches(paths)):
            pids.add(pid)
            total.update(counts)
    return total, len(pids)


def serve_definitions(tasks: Queue[str | None], results: Queue[tuple[str, list[str]]]) -> None:
    """Answer each path in `tasks` with the names that it defines, until None comes."""
    for path in iter(tasks.get, None):
        results.put((path, definitions(path)))


def index_in_processes(context: BaseContext, paths: Sequence[str], workers: int) -> Index:
    """Index definitions with processes that are fed through a queue.

    Raises RuntimeError for a worker that did not end well.
    """
    tasks: Queue[str | None] = context.Queue()
    results: Queue[tuple[str, list[str]]] = context.Queue()
    processes = [
        context.Process(target=serve_definitions, args=(tasks, results))  # type: ignore[attr-defined]
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    for task in [*paths, *[None] * workers]:
        tasks.put(task)
    names_by_path = dict(results.get() for _ in paths)
    for process in processes:
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{process.name} ended with exit code {process.exitcode}")
    return invert(names_by_path)


def invert(names_by_path: dict[str, list[str]]) -> Index:
    """Turn the names that each file defines into the files that define each name."""
    index: Index = {}
    for path in sorted(names_by_path):
        for name in names_by_path[path]:
            index.setdefault(name, []).append(path)
    return index


def run(method: str | None, paths: Sequence[str], workers: int) -> tuple[Counter[str], Index]:
    """Do all work with a start method (None: the default one), and print how long it took."""
    context = multiprocessing.get_context(method)
    begin = time.perf_counter()
    counts, processes = count_in_pool(context, paths, workers)
    counted = time.perf_counter()
    index = index_in_processes(context, paths, workers)
    indexed = time.perf_counter()
    print(
        f"{context.get_start_method() or 'default':>12}: "
        f"words {counted - begin:6.2f} s ({processes} processes), "
        f"index {indexed - counted:6.2f} s ({workers} processes)",
        flush=True,
    )
    return counts, index


def show(counts: Counter[str], index: Index, words: int) -> None:
    """Print the most frequent words, and the names that most files define."""
    often = counts.most_common(words)
    defined = sorted(index.items(), key=lambda item: (-len(item[1]), item[0]))
    print(f"\n{'word':<16}{'times':>10}    {'defined name':<20}{'files':>6}")
    for (word, times), (name, files) in zip(often, defined):
        print(f"{word:<16}{times:>10,}    {name:<20}{len(files):>6}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="count here (default: the standard library's folder)"
    )
    parser.add_argument(
        "--methods", metavar="NAME,...", help="do the work once with each of these start methods"
    )
    parser.add_argument(
        "--workers", type=int, default=2 * (os.cpu_count() or 1), help="at once (default: %(default)s)"
    )
    parser.add_argument("--words", type=int, default=8, help="lines to print (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = parse(arguments)
    paths = find_sources(options.folder or Path(sysconfig.get_path("stdlib")))
    print(f"{len(paths)} files, {sum(map(os.path.getsize, paths)) / 1e6:.1f} MB")
    begin = time.perf_counter()
    expected = count_words(paths)[1], invert({path: definitions(path) for path in paths})
    print(f"{'in a loop':>12}: words and index {time.perf_counter() - begin:.2f} s", flush=True)
    methods = options.methods.split(",") if options.methods else [None]
    wrong = [method for method in methods if run(method, paths, options.workers) != expected]
    show(*expected, options.words)
    if wrong:
        print(f"\nWRONG: another result than in a loop ({wrong})", file=sys.stderr)
        return 1
    print(f"\nchecked: {sum(expected[0].values())} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
