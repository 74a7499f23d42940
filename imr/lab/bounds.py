"""Bounds on one number: of a flag, of a claim, of the control beside a claim."""

import operator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

# How each kind is written, what refutes it, and the comparison that must hold.
_KINDS = {
    "at most": ("≤", "above", operator.le), "above": (">", "at most", operator.gt),
    "at least": ("≥", "below", operator.ge), "below": ("<", "at least", operator.lt),
    "near": ("in", "far", operator.le), "far": ("not in", "near", operator.gt),
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
        _, _, compare = _KINDS[self.kind]
        if self.kind in ("near", "far"):
            return bool(compare(abs(number - self.value), self.by))
        return bool(compare(number, self.value))

    def worst(self, numbers: np.ndarray) -> float:
        """The number that decides whether all of them keep the bound; NaN if one is NaN."""
        distances = abs(numbers - self.value) if self.kind in ("near", "far") else numbers
        decides = np.argmax if self.kind in ("at most", "below", "near") else np.argmin
        return float(numbers.flat[decides(distances)])

    @property
    def refuted(self) -> "Bound":
        """The bound that the other numbers keep: what a control must show."""
        return self._replace(kind=_KINDS[self.kind][1])  # pyright: ignore[reportArgumentType]

    @property
    def words(self) -> str:
        """The bound in an error message, such as `at least 1`."""
        if self.kind in ("near", "far"):
            return f"{'not ' * (self.kind == 'far')}within {self.by:g} of {self.value:g}"
        return f"{self.kind} {self.value:g}"

    def __str__(self) -> str:
        shown = f"{self.value:g}"
        if self.kind in ("near", "far"):
            shown = f"[{self.value - self.by:.3g}, {self.value + self.by:.3g}]"
        return f"{_KINDS[self.kind][0]} {shown}"


# The bounds `number <= value` and so on; `near(value, by)` is `|number - value| <= by`.
at_most, at_least = partial(Bound, "at most"), partial(Bound, "at least")
above, below = partial(Bound, "above"), partial(Bound, "below")
near = partial(Bound, "near")
