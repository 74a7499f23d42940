"""Which number of the README is which entry of the kept summary; `scripts/docs --check` holds them together."""

from collections.abc import Callable, Iterator
from typing import Any


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    table = run("collapse")["table"]
    on, off = ([r for r in table if r["decay"] == decay] for decay in ("on", "off"))
    seeds = table[0]["seeds"]
    yield "6 classes, {} seeds, f = {} to {}; decay", seeds, on[0]["f"], on[-1]["f"]
    collapsed, kept = (sum(row["collapsed"] for row in rows) for rows in (off, on))
    runs = seeds * len(on)
    every = "every run" if kept == runs else f"{kept} of {runs} runs"
    yield "their class means | {} | {} of {} runs |", every, collapsed, runs

    simplex = [row for row in on if row["f"] >= 5]
    close = all(abs(row["margin"] - row["margin_predicted"]) < 0.01 for row in simplex)
    free = [n for row in off if row["f"] >= 5 for n in (row["simplex"], seeds)]
    yield (
        "simplex frame in {}/{} seeds, {} the margin log(k/λ − k + 1) | simplex frame in {}/{}, {}/{} and "
        "{}/{} seeds for f = 5, 6, 7:",
        min(row["simplex"] for row in simplex), seeds, "with" if close else "without", *free,
    )  # fmt: skip
    code = min(row["softmax_code"] for row in on if row["f"] < 5)
    four = next(row for row in on if row["f"] == 4)
    yield (
        "softmax code in {}/{} seeds; for f = 4 not the frame of least interference ({:.3f}, Welch's "
        "bound {:.3f})",
        code, seeds, four["interference"], four["welch_bound"],
    )  # fmt: skip


SETTINGS = (
    "f ≥ k − 1", "6 classes", "decay 0.01", "t = 10⁶ |", "k − 1 = 5 |", "log(k/λ − k + 1)",
    "for f = 5, 6, 7:", "f < 5 |", "for f = 4", "θ for f = 2",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {}
