"""What could make heads lean, and what each explanation predicts; written before the runs of the README.

The lean of a net is minus the mean over its heads of the cosine of W_V W_O with theta^T. An explanation
stands if every seed keeps its bound, falls if none does, and is left open otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imr.lab.bounds import Bound, above, at_least, below


@dataclass(frozen=True)
class Readings:
    """What was measured of one subject, of each way of training; shapes (seeds, ...).

    Attributes:
      cosines: of each way, (seeds, times, l, h).
      parts: of each way, what attention, values and decay did to the cosines, (seeds, 3, l, h).
      untransposed: of free nets at the end, cosine with theta, (seeds, l, h).
      null: lean of free nets at start and end with theta in random directions, (2, draws, seeds).
      loss: of each way, at the end, (seeds,).
    """

    cosines: dict[str, np.ndarray]
    parts: dict[str, np.ndarray]
    untransposed: np.ndarray
    null: np.ndarray
    loss: dict[str, np.ndarray]

    def lean(self, way: str = "free", time: int = -1) -> np.ndarray:
        """Minus the mean cosine, (seeds,)."""
        return -self.cosines[way][:, time].mean(axis=(1, 2))

    def share(self, part: int, way: str = "free") -> np.ndarray:
        """The share that a part has in the change of the mean cosine, (seeds,)."""
        means = self.parts[way].mean(axis=(2, 3))
        return means[:, part] / means.sum(axis=1)

    def z(self, time: int) -> np.ndarray:
        """The lean at the start (0) or end (-1) against random directions, (seeds,)."""
        null = self.null[time]
        return (self.lean(time=time) - null.mean(axis=0)) / null.std(axis=0, ddof=1)

    @property
    def side(self) -> int:
        """1 if every free net leans towards descent beyond random directions, -1 if towards climbing."""
        z = self.z(-1)
        return int((z > 3).all()) - int((z < -3).all())

    def from_other_side(self) -> np.ndarray:
        """How far nets that began at the other side have come to the side of free ones, (seeds,)."""
        side = self.side or 1
        return side * self.lean("climbing" if side > 0 else "descending")


class Explanation(NamedTuple):
    """A cause, what it predicts, and the number that decides, for each seed."""

    cause: str
    prediction: str
    bound: Bound
    measure: Callable[[Readings], np.ndarray]


def _ratio(way: str, other: str = "free") -> Callable[[Readings], np.ndarray]:
    return lambda r: r.lean(way) / r.lean(other)


EXPLANATIONS = (
    Explanation("It is there at the start.", "lean at step 0 over that at the end", at_least(0.5),
                lambda r: r.lean(time=0) / r.lean()),
    Explanation("Weight decay aligns circuits.", "lean without over that with decay", below(0.5),
                _ratio("free", "decay")),
    Explanation("Decay itself turns them.", "decay's share of the change, with decay", at_least(0.5),
                lambda r: r.share(2, "decay")),
    Explanation("Any training leans, whatever the task.", "lean with random over that with true targets",
                at_least(0.5), _ratio("random targets")),
    Explanation("Decay leans, whatever the task.", "the same, both with decay", at_least(0.5),
                _ratio("random targets, decay", "decay")),
    Explanation("Values turn, as attention stands.", "lean with queries and keys fixed over free",
                at_least(0.5), _ratio("attention fixed")),
    Explanation("Attention turns, as values stand.", "lean with values and outputs fixed over free",
                at_least(0.5), _ratio("values fixed")),
    Explanation("Values do most of it, beside attention.", "values' share of the change", at_least(0.5),
                lambda r: r.share(1)),
    Explanation("Attention does most of it, beside values.", "attention's share of the change",
                at_least(0.5), lambda r: r.share(0)),
    Explanation("Training leads there from anywhere.", "lean to the same side, begun at the other",
                above(0.0), Readings.from_other_side),
    Explanation("Circuits share a space, on either side.", "cosine with theta, its size over the lean",
                at_least(0.5), lambda r: np.abs(r.untransposed.mean(axis=(1, 2)) / r.lean())),
)  # fmt: skip


def verdict(explanation: Explanation, readings: Readings) -> tuple[np.ndarray, str]:
    """The numbers of all seeds, and what they say of an explanation."""
    values = np.asarray(explanation.measure(readings), float)
    held = sum(explanation.bound.holds(value) for value in values)
    if not readings.side:
        return values, "no lean"
    words = {len(values): "stands", 0: "falls"}
    return values, words.get(held, f"open ({held}/{len(values)})")
