"""The constants of `imr.parallel.cycles`, from the rows of the table that are there to fix them.

`python -m experiments.bench.constants [SUMMARY]`: of the summary.json of a run of `scripts/bench --parts tpu`,
or of the rows that stand in compiled.json beside this file.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.tpu import modelled
from imr.parallel.cycles import CONSTANTS, V5E, V6E, Constants

COMPILED = Path(__file__).with_name("compiled.json")


class Fit(NamedTuple):
    """Constants, and cycles of 1024 exponentials on a v5e and a v6e; a v5p has two cores of a v5e."""

    constants: Constants
    v5e: float
    v6e: float


# Read off single operations of the rows `fixed`, by eye.
START = Fit(Constants(0.5, 1.25e-6, 0.7, 0.25, 1.17, 2.2, 18.0), 10.5, 2.8)


def recorded() -> list[dict[str, Any]]:
    """The rows beside this file."""
    return json.loads(COMPILED.read_text())["tpu"]


def fit(rows: list[dict[str, Any]]) -> Fit:
    """The least squares of logarithms of ratios of the rows `fixed`, held near those that stand in the code.

    What no row sees would drift otherwise: a factor of e in a constant counts as 5 % in a row.
    """
    from scipy.optimize import least_squares

    rows = [row for row in rows if row["constants"] == "fixed"]
    measured = np.log([1e6 * row["Mcycles"] for row in rows])
    start = np.array([*START.constants, START.v5e, START.v6e])

    def unpacked(steps: Any) -> Fit:
        *constants, v5e, v6e = map(float, start * np.exp(steps))
        return Fit(Constants(*constants), v5e, v6e)

    def residuals(steps):
        found = unpacked(steps)
        model = [modelled(row, *found) for row in rows]
        return np.concatenate([np.log(model) - measured, 0.05 * steps])

    return unpacked(least_squares(residuals, np.zeros(len(start))).x)


if __name__ == "__main__":
    rows = json.loads(Path(sys.argv[1]).read_text())["tpu"] if sys.argv[1:] else recorded()
    print(fit(rows))
    print(f"in the code: {Fit(CONSTANTS, V5E.exponentials, V6E.exponentials)}")
    for row in rows:
        ratio = modelled(row) / (1e6 * row["Mcycles"])
        print(row["constants"], row["topology"], row["program"], row["n"], row["r"], f"{ratio:.2f}")
