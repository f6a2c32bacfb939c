"""What a goal is: a quotient of two figures, and the bound that it is to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from .figures import Found

    Version = tuple[int, ...]
    Bound = Callable[[Version], "float | None"]


class Term(NamedTuple):
    """A figure of a rival."""

    figure: str
    rival: str


class Quotient(NamedTuple):
    """One term by another; the first alone where there is no other."""

    above: Term
    below: Term | None = None

    @property
    def terms(self) -> list[Term]:
        """The terms that there are."""
        return [self.above] if self.below is None else [self.above, self.below]

    def value(self, found: Found) -> float | None:
        """What it is in this run; None if a term was not measured."""
        above = found.get(*self.above)
        below = 1.0 if self.below is None else found.get(*self.below)
        return None if above is None or below is None else above / below


@dataclass(frozen=True)
class Goal:
    """A row of the table.

    The quotient is to be at least, or at most, what `reach` says for a version of Python (such as (3, 13, 0)), where
    None is for no goal; `aim` is the same for what would be better still. `beside` are quotients of rivals that are
    worth seeing with it.
    """

    name: str
    title: str
    experiment: str
    quotient: Quotient
    reach: Bound
    aim: Bound
    at_least: bool = False
    beside: tuple[Quotient, ...] = ()

    @property
    def terms(self) -> list[Term]:
        """All that has to be measured for it."""
        return [term for quotient in (self.quotient, *self.beside) for term in quotient.terms]

    def is_met(self, value: float, bound: float) -> bool:
        """Whether a value keeps a bound."""
        return value >= bound if self.at_least else value <= bound


def always(bound: float) -> Bound:
    """The same bound for every version."""
    return lambda _version: bound


def nothing(_version: Version) -> float | None:
    """No bound for any version."""
    return None
