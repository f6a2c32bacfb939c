"""The program whose tasks are counted: it runs no-ops in fresh processes, by the executor that `argv[1]` names.

A small script with a guarded main, for the reasons that bench_client.py gives.
"""

from __future__ import annotations

import sys

import bench_tasks


def main() -> None:
    """Print the tasks per second of one run of about `argv[2]` seconds as JSON."""
    import json

    import bench_fresh

    figures = bench_fresh.measure(sys.argv[1], bench_tasks.count_tasks, float(sys.argv[2]))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
