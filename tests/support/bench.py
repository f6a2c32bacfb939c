"""What tests of the benchmark share."""

from __future__ import annotations

from fastfork.bench import environment

ENVIRONMENT = environment.Environment(
    date="2030-01-02 03:04 UTC",
    system="Linux",
    kernel="6.1.0",
    machine="x86_64",
    cpu="A CPU",
    cores=4,
    thp="madvise",
    python="CPython 3.13.0",
    fastfork="1.0",
)
"""A machine, made up."""
