"""Holds a suite's figures on fastfork against the standard library's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figures import worse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .figures import Figures


# A pool starts another worker where none is idle yet: the faster they start, the fewer of them.
NEARLY_ALL = 0.75


def worse_tests(tests: Sequence[str], fastfork: Figures, stdlib: Figures) -> list[str]:
    """Those of `tests` that do worse on fastfork."""
    return [test for test in tests if worse(fastfork.outcome(test), stdlib.outcome(test))]


def problems(tests: Sequence[str], fastfork: Figures, stdlib: Figures, *, whole: bool = True) -> list[str]:
    """Everything in which fastfork falls short. A `whole` suite starts processes; a part of one may start none."""
    return [
        *_outcome_problems(tests, fastfork, stdlib),
        *([] if stdlib.complaints else fastfork.complaints),
        *_proof_problems(fastfork, stdlib, whole),
    ]


def _outcome_problems(tests: Sequence[str], fastfork: Figures, stdlib: Figures) -> Iterator[str]:
    for test in worse_tests(tests, fastfork, stdlib):
        yield f"{test}: {fastfork.outcome(test)}, and on the standard library {stdlib.outcome(test)}"


def _proof_problems(fastfork: Figures, stdlib: Figures, whole: bool) -> Iterator[str]:
    """Whether it is proven that fastfork served, and served alone, in isolated interpreters too."""
    intruder = fastfork.served["stdlib"]
    ours = fastfork.served["fastfork"]
    theirs = stdlib.served["stdlib"]
    if intruder.servers:
        yield f"{intruder.servers} fork servers of the standard library served {intruder.processes} processes"
    if not ours.processes and (whole or theirs.processes):
        yield "no proof that fastfork served a single process"
    elif ours.processes < NEARLY_ALL * theirs.processes:
        yield f"proof for {ours.processes} processes only, where the standard library served {theirs.processes}"
    if theirs.isolated and not ours.isolated:
        yield f"no proof that fastfork served interpreters run with -I, where stdlib served {theirs.isolated}"
