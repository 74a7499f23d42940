"""What targets demand of their rows: refused where values are concrete, found out under a trace."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from imr._checks import is_concrete
from imr._typing import Array
from imr.errors import ImrError


def check_shape(targets: tuple[int, ...], logits: tuple[int, ...]) -> None:
    """Demands targets of the shape of the logits."""
    if tuple(targets) != tuple(logits):
        raise ImrError(
            f"targets must be labels, shape ({logits[0]},), or distributions, shape {tuple(logits)} as "
            f"the logits; found shape {tuple(targets)}."
        )


def read_rows(where: Any, n: int) -> Any:
    """The rows whose targets are read: those that a concrete mask leaves an entry."""
    if where is None or not is_concrete(where):
        return np.ones(n, bool)
    return np.any(np.asarray(where), axis=1)


def check_hidden(hidden: np.ndarray, where: Any) -> None:
    """Refuses rows that are read and have weight on excluded entries."""
    bad = hidden & read_rows(where, len(hidden))
    if bad.any():
        raise ImrError(
            f"targets puts weight on entries that where excludes in row {int(np.argmax(bad))}: its "
            "loss would be infinite. Change one of them."
        )


def bad_rows(least: Any, sums: Any, tolerance: float, hidden: Any, where: Any) -> Array:
    """The rows that are read and hold no distribution, or one with weight on excluded entries."""
    bad = ~((least >= 0) & (jnp.abs(sums - 1) <= tolerance))
    return bad if where is None else (bad | (hidden > 0)) & where.any(axis=1)


def rounding(dtype: Any, num_columns: int) -> float:
    """A row of m numbers of precision eps sums to 1 within about m eps."""
    return max(1e-6, 4 * num_columns * float(jnp.finfo(dtype).eps))


def check_rows(least: Any, sums: Any, dtype: Any, shape: tuple[int, int], where: Any) -> None:
    """Demands rows whose least entries and sums are those of distributions, if they are read."""
    tolerance = rounding(dtype, shape[1])
    bad = ~((least >= 0) & (np.abs(sums - 1) <= tolerance)) & read_rows(where, shape[0])
    if bad.any():
        row = int(np.argmax(bad))
        raise ImrError(
            "targets must be distributions, non-negative rows that sum to 1; row "
            f"{row} has least entry {least[row]:.6g} and sum {sums[row]:.6g}."
        )
