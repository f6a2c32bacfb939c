"""Reads what `recorder` wrote: how many processes each fork server served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Served:
    """What the fork servers of one kind did in a run.

    `isolated` counts those of the `processes` that were served to interpreters started with `-I`.
    """

    servers: int = 0
    processes: int = 0
    isolated: int = 0

    def __add__(self, other: Served) -> Served:
        return Served(
            self.servers + other.servers,
            self.processes + other.processes,
            self.isolated + other.isolated,
        )


def read(directory: Path, kind: str) -> Served:
    """What servers of `kind` ("stdlib" or "fastfork") wrote into `directory`."""
    return sum((_read_record(record) for record in directory.glob(f"{kind}-*")), Served())


def _read_record(record: Path) -> Served:
    processes = record.read_text().count("\n")
    isolated = record.name.split("-")[1] == "isolated"
    return Served(servers=1, processes=processes, isolated=processes if isolated else 0)
