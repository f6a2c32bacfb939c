"""What came of a suite, and the standard library's figures that are kept from an earlier run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .evidence import Served

BASELINE = Path(__file__).with_name("baseline.json")

PASSED = "passed"
SKIPPED = "skipped"
FAILED = "failed"
MISSING = "missing"  # listed by regrtest, but without an outcome: a crash, a time limit, a failed subtest
BEST_FIRST = (PASSED, SKIPPED, FAILED, MISSING)

KINDS = ("stdlib", "fastfork")


@dataclass(frozen=True)
class Figures:
    """A suite's tests: how many were there, and the outcome of each that did not pass.

    `complaints` are about a run as a whole: an environment altered, a process left behind, a crash.
    `served` says for each kind of fork server what it did meanwhile.
    """

    tests: int = 0
    imperfect: dict[str, str] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()
    served: dict[str, Served] = field(default_factory=lambda: {kind: Served() for kind in KINDS})
    seconds: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.tests + other.tests,
            {**self.imperfect, **other.imperfect},
            self.complaints + other.complaints,
            {kind: self.served[kind] + other.served[kind] for kind in KINDS},
            self.seconds + other.seconds,
        )

    def outcome(self, test: str) -> str:
        return self.imperfect.get(test, PASSED)

    def count(self, outcome: str) -> int:
        if outcome == PASSED:
            return self.tests - len(self.imperfect)
        return Counter(self.imperfect.values())[outcome]

    @property
    def run(self) -> int:
        """How many tests have an outcome, the skipped ones included, as unittest counts them."""
        return self.tests - self.count(MISSING)

    def as_json(self) -> dict[str, Any]:
        return {
            "tests": self.tests,
            **{outcome: self.count(outcome) for outcome in BEST_FIRST},
            "imperfect": dict(sorted(self.imperfect.items())),
            "complaints": list(self.complaints),
            "served": {kind: asdict(served) for kind, served in self.served.items()},
            "seconds": round(self.seconds, 1),
        }


def from_json(stored: dict[str, Any]) -> Figures:
    return Figures(
        stored["tests"],
        stored["imperfect"],
        tuple(stored["complaints"]),
        {kind: Served(**served) for kind, served in stored["served"].items()},
        stored["seconds"],
    )


def worse(outcome: str, than: str) -> bool:
    """Whether one outcome is worse than another: failing and having none are equally bad."""
    severity = {PASSED: 0, SKIPPED: 1, FAILED: 2, MISSING: 2}
    return severity[outcome] > severity[than]


def load_baseline(path: Path = BASELINE) -> dict[str, dict[str, Figures]]:
    """The stored figures of the standard library, by interpreter version and suite."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {
        version: {suite: from_json(figures) for suite, figures in suites.items()}
        for version, suites in stored.items()
    }


def store_baseline(baseline: dict[str, dict[str, Figures]], path: Path = BASELINE) -> None:
    stored = {
        version: {suite: figures.as_json() for suite, figures in sorted(suites.items())}
        for version, suites in sorted(baseline.items())
    }
    path.write_text(json.dumps(stored, indent=1) + "\n")
