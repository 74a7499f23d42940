"""What the README says, as `prose.py` of an experiment has it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from experiments.bench.constants import COMPILED
from experiments.bench.scale import table


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    law = next(
        r for r in run("features/digits")["law"] if r["flow"] == "free" and r["decade"] == "last"
    )
    yield (
        "the slopes are {:.3f} ± {:.3f} and {:.3f} ± {:.3f} over",
        law["loss_slope"], law["loss_slope_std"], law["margin_slope"], law["margin_slope_std"],
    )  # fmt: skip
    yield "All {} statements of the theory hold", len(run("theorems/theorems")["table"])
    compiled = json.loads(COMPILED.read_text())
    rows = [*compiled["tpu"], *compiled["cuda"]]
    for line in table(rows).splitlines()[2:]:
        cells = [each.strip() for each in line.strip("|").split("|")]
        yield "|" + " {} |" * len(cells), *cells


SETTINGS = (
    "Python 3.11 to 3.13", "jax 0.10.1", "below 0.13", "jaxlib from 0.10.2", "512 rows", "1/(γ²t)",
    "over 5 bootstrap samples", "−1 and 1 are predicted", "rank 16", "n = 8000, f = 784, k = 10, to t = 5",
    "| field of self-attention, 8,192 tokens", "the same, 65,536 tokens", "one H200",
)  # fmt: skip
UNKEPT = {
    "of a GPU that was at hand once": ("0.0005 s |", "0.015 s |", "0.017 s |"),
}
