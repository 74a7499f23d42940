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
    """One number that a claim measures.

    Attributes:
      name: what the number is.
      bound: that it must keep.
    """

    name: str
    bound: Bound


class Control(NamedTuple):
    """What must fail a claim.

    Attributes:
      subject: that is measured instead of the claim's.
      bound: that it must show; None for what refutes the claim's own bound.
      measure: None for that of the claim.
      name: of the number; None for that of the claim.
    """

    subject: Hashable
    bound: Bound | None = None
    measure: Callable[[Any], Any] | None = None
    name: str | None = None


class Line(NamedTuple):
    """One row of a table: a claim, or one of its controls.

    Attributes:
      role: which of the two.
      subject: that is measured.
      name: of the number.
      bound: that it must keep.
      measure: from what is known of the subject to the number.
    """

    role: Role
    subject: Any
    name: str
    bound: Bound
    measure: Callable[[Any], Any]


@dataclass(frozen=True)
class Claim:
    """A statement, and how it is measured.

    Attributes:
      id: of the rows of a table.
      statement: in words or as a formula.
      measure: from one problem, or what was measured of one net, to a number for each check.
      checks: names and bounds of the numbers.
      subject: whose measurements the claim is about, where an experiment has several.
      controls: what must fail the claim; of claims with one check.
    """

    id: str
    statement: str
    measure: Callable[[Any], Any] = field(repr=False)
    checks: tuple[Check, ...]
    subject: Hashable = None
    controls: tuple[Control, ...] = ()

    def lines(self) -> Iterator[Line]:
        """The claim, then its controls.

        Yields:
          A line for each; what a control leaves out is taken from the claim.
        """
        (check,) = self.checks
        yield Line("claim", self.subject, check.name, check.bound, self.measure)
        for control in self.controls:
            yield Line(
                "control",
                control.subject,
                control.name or check.name,
                control.bound or check.bound.refuted,
                control.measure or self.measure,
            )


class Verdict(NamedTuple):
    """Numbers of all seeds against a bound.

    Attributes:
      bound: that each of them must keep.
      values: shape (seeds,).
    """

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
        """Over the seeds."""
        return float(np.median(self.values))


def verdict_words(role: Role, passed: bool) -> str:
    """What a table says of a claim that holds or fails, and of a control that must fail.

    Args:
      role: of the row.
      passed: whether the row is as it must be.

    Returns:
      A few words, in capitals if it is not.
    """
    if role == "claim":
        return "holds" if passed else "FAILS"
    return "fails, as it must" if passed else "DOES NOT FAIL"
