"""Claims and their controls: what is measured, and the bound that every measurement must keep.

A claim holds if every seed keeps its bound. Its controls are measurements of something else, such as an
untrained net, that must break the bound: without one, a claim could be true of anything.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from imr.lab.bounds import Bound

Role = Literal["claim", "control"]


class Check(NamedTuple):
    """One number that a claim measures, and the bound that it must keep."""

    name: str
    bound: Bound


class Control(NamedTuple):
    """What must fail a claim; None stands for what the claim has, and refutes its bound."""

    subject: Hashable
    bound: Bound | None = None
    measure: Callable[[Any], Any] | None = None
    name: str | None = None


class Line(NamedTuple):
    """One row of a table: a claim, or one of its controls."""

    role: Role
    subject: Any
    name: str
    bound: Bound
    measure: Callable[[Any], Any]


@dataclass(frozen=True)
class Claim:
    """A statement, in words or as a formula, and how it is measured."""

    id: str  # of the rows of a table
    statement: str
    # From one problem, or from what is known of one net, to a number for each check.
    measure: Callable[[Any], Any] = field(repr=False)
    checks: tuple[Check, ...]
    subject: Hashable = None  # whose measurements it is about, if an experiment has several
    controls: tuple[Control, ...] = ()  # what must fail it, if it has one check

    def lines(self) -> Iterator[Line]:
        """The claim, then its controls."""
        ((name, bound),) = self.checks
        yield Line("claim", self.subject, name, bound, self.measure)
        for c in self.controls:
            shows, measure = c.bound or bound.refuted, c.measure or self.measure
            yield Line("control", c.subject, c.name or name, shows, measure)


class Verdict(NamedTuple):
    """The numbers of all seeds, shape (seeds,), against the bound that each of them must keep."""

    bound: Bound
    values: np.ndarray

    @property
    def holds(self) -> int:
        """How many seeds keep the bound."""
        return sum(self.bound.holds(value) for value in self.values)

    @property
    def passed(self) -> bool:
        """Whether every seed does."""
        return self.holds == len(self.values)

    @property
    def worst(self) -> float:
        """The number that decides."""
        return self.bound.worst(self.values)

    @property
    def median(self) -> float:
        """The median over the seeds."""
        return float(np.median(self.values))


def verdict_words(role: Role, passed: bool) -> str:
    """What a table says of a claim that holds or fails, and of a control, which must fail."""
    if role == "claim":
        return "holds" if passed else "FAILS"
    return "fails, as it must" if passed else "DOES NOT FAIL"
