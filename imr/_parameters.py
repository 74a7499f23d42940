"""Parameters that lie in an interval: refused outside of it, and NaN if they are traced."""

from reprlib import repr as shortened
from typing import Any

import jax.numpy as jnp
import numpy as np

from imr._checks import check_rank, is_concrete
from imr.errors import ImrError


def as_number(name: str, value: Any, interval: str, hint: str = "") -> float:
    """A concrete real number within an interval such as "(0, 1]"."""
    if not is_concrete(value):
        raise ImrError(
            f"{name} must be a concrete number, because its range is checked; found a traced value. "
            "Call this outside of jax.jit, vmap and grad and pass the result in as an argument."
        )
    try:
        value = complex(value)
    except (TypeError, ValueError, OverflowError):  # an integer above any float
        raise ImrError(f"{name} must be a number; found {shortened(value)}.") from None
    if value.imag:
        raise ImrError(f"{name} must be real; found {value:g}.")
    value = value.real
    if not _lies_in(value, interval):
        raise ImrError(f"{name} must lie in {interval}; found {value:g}.{hint}")
    return value


def as_parameter(name: str, value: Any, interval: str) -> Any:
    """A real number within an interval; what is traced becomes NaN outside of it."""
    if is_concrete(value):
        return as_number(name, value, interval)
    check_rank(name, value, 0, "(), a number")
    value = jnp.asarray(value, jnp.result_type(value, float))
    return jnp.where(_lies_in(value, interval), value, jnp.nan)


def _lies_in(value: Any, interval: str) -> Any:
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above & below & (abs(value) < np.inf)
