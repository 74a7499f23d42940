"""Standard deviations over seeds, and how tables show them."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def std(values: Any) -> float:
    """The standard deviation over seeds, the first axis of length s; NaN for one seed.

    >>> std([1.0, 2.0, 3.0]), std([1.0])
    (1.0, nan)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def plus_minus(mean: float | np.floating, spread: float | np.floating, form: str = ".3f") -> str:
    """A mean and a standard deviation in one cell; the mean alone if there is no spread.

    >>> plus_minus(0.5, 0.25, ".1f"), plus_minus(0.5, float("nan"))
    ('0.5 ± 0.2', '0.500')
    """
    return f"{mean:{form}}" + ("" if np.isnan(spread) else f" ± {spread:{form.lstrip('+')}}")


def cell(row: Mapping[str, Any], key: str, form: str = ".3f") -> str:
    """`plus_minus` of a row's entries key and key_std.

    >>> cell({"loss": 1.0, "loss_std": 0.5}, "loss", "+.1f")
    '+1.0 ± 0.5'
    """
    return plus_minus(row[key], row[f"{key}_std"], form)
