"""Bounds on one number: of a flag, of a claim, of the control beside a claim."""

from typing import Any, Literal, NamedTuple

import numpy as np

_SIGNS = {"at most": "≤", "at least": "≥", "below": "<", "above": ">"}
_OPPOSITES = {
    "at most": "above", "at least": "below", "below": "at least", "above": "at most",
    "near": "far", "far": "near",
}  # fmt: skip


class Bound(NamedTuple):
    """What a number must be: on one side of `value`, or within `by` of it (`near`), or not (`far`).

    >>> at_most(1e-9).holds(2e-9), near(1.0, by=0.1).holds(0.95), above(0).holds(float("nan"))
    (False, True, False)
    """

    kind: Literal["at most", "at least", "below", "above", "near", "far"]
    value: float
    by: float = 0.0

    def holds(self, number: Any) -> bool:
        """Whether a number keeps the bound; what is not a number keeps none."""
        if self.kind in ("near", "far"):
            distance = abs(number - self.value)
            return bool(distance <= self.by if self.kind == "near" else distance > self.by)
        compare = {
            "at most": number <= self.value, "at least": number >= self.value,
            "below": number < self.value, "above": number > self.value,
        }  # fmt: skip
        return bool(compare[self.kind])

    def worst(self, numbers: np.ndarray) -> float:
        """The number that decides whether all of them keep the bound; NaN if one is NaN."""
        if self.kind in ("near", "far"):
            distances = np.abs(numbers - self.value)
            decides = np.argmax if self.kind == "near" else np.argmin
            return float(numbers.flat[decides(distances)])
        return float(numbers.max() if self.kind in ("at most", "below") else numbers.min())

    @property
    def refuted(self) -> "Bound":
        """The bound that the other numbers keep: what a control must show."""
        return self._replace(kind=_OPPOSITES[self.kind])

    @property
    def words(self) -> str:
        """The bound in an error message, such as `at least 1`."""
        if self.kind in _SIGNS:
            return f"{self.kind} {self.value:g}"
        return f"{'within' if self.kind == 'near' else 'not within'} {self.by:g} of {self.value:g}"

    def __str__(self) -> str:
        if self.kind in _SIGNS:
            return f"{_SIGNS[self.kind]} {self.value:g}"
        ends = f"[{self.value - self.by:.3g}, {self.value + self.by:.3g}]"
        return f"{'in' if self.kind == 'near' else 'not in'} {ends}"


def at_most(value: float) -> Bound:
    """The bound `number <= value`."""
    return Bound("at most", value)


def at_least(value: float) -> Bound:
    """The bound `number >= value`."""
    return Bound("at least", value)


def above(value: float) -> Bound:
    """The bound `number > value`."""
    return Bound("above", value)


def below(value: float) -> Bound:
    """The bound `number < value`."""
    return Bound("below", value)


def near(value: float, by: float) -> Bound:
    """The bound `|number - value| <= by`."""
    return Bound("near", value, by)
