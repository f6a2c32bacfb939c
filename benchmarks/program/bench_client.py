"""The program whose processes are counted: a small script with a guarded main, as most programs are.

Its directory is a plain directory, not a package: a program is started by the path of its script, its
modules lie beside it, and a child that runs the main script again (spawn always, forkserver before 3.13.8
and 3.14.1) pays for just this file and `bench_tasks`. What measures is imported under the guard only, so
no child pays for that.
"""

from __future__ import annotations

import sys

import bench_tasks


def main() -> None:
    """Serve the runner, whose socket is descriptor `argv[1]`, until it hangs up."""
    import bench_measure
    import bench_serve

    bench_serve.serve(int(sys.argv[1]), bench_measure.Client(bench_tasks.nop))


if __name__ == "__main__":
    main()
