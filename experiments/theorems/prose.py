"""Which number of the README is which entry of the kept summary; `scripts/docs --check` holds them together."""

import math
from collections.abc import Callable, Iterator
from typing import Any


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    table = run("theorems")["table"]

    def worst(beginnings: str, *checks: str, without: str = "-", limit: float = 1.0) -> float:
        """The largest error of rows by how their ids and checks begin, and by their threshold."""
        return max(
            row["worst"]
            for row in table
            if row["kind"] == "at most" and row["limit"] <= limit
            if row["id"].startswith(tuple(beginnings.split()))
            if row["check"].startswith(checks or "") and without not in row["check"]
        )  # fmt: skip

    def least(beginning: str, check: str) -> float:
        """The least value of rows that must be large."""
        found = [r for r in table if r["kind"] == "at least" and r["id"].startswith(beginning)]
        return min(row["worst"] for row in found if row["check"].startswith(check))

    def off(beginning: str) -> float:
        """How far orders are from those of the theory, rounded up."""
        orders = [r for r in table if r["check"] == "order" and r["id"].startswith(beginning)]
        return math.ceil(100 * max(abs(row["worst"] - row["expected"]) for row in orders)) / 100

    seeds = min(row["seeds"] for row in table)
    yield "drawn for {} seeds and solved", seeds
    yield "| worst of {} seeds |", seeds
    exact, differences = ("autodiff", "closed form"), "central differences"
    yield (
        "central differences; along the flow | {:.0e}; {:.0e}; {:.0e} |",
        worst("A1", *exact), worst("A1", differences), worst("A1", "along the flow"),
    )  # fmt: skip
    for rows, words in (("A2", "closed field"), ("A3", "the same")):
        errors = worst(rows, *exact), worst(rows, differences), worst(rows, "imr's")
        yield words + " | {:.0e}; {:.0e}; {:.0e} |", *errors
    largest, smallest = worst("A3.gradient"), least("A3.gradient", "Jacobian")
    yield "at most {:.0e}; at least {:.2f} |", largest, math.floor(100 * smallest) / 100
    flows = worst("A4", "full flow", "share outside")
    yield "a full solve; its gradient | {:.0e}; {:.0e} |", flows, worst("A4", "gradient")
    yield "Newton's method; automatic differentiation | {:.0e} |", worst("A5", without=differences)
    yield (
        "measured orders | {:.0e} ({:.0e} for jax's, which is float32 inside); orders within {} of",
        worst("A6 A7", without="float32"), worst("A6", "jax's"), off("A6"),
    )  # fmt: skip
    identities, flows = worst("C1", limit=1e-12), worst("C1", limit=1e-10)
    controls = math.floor(1e3 * least("C1", "control")) / 1e3
    yield (
        "{:.0e} (identities), {:.0e} (flows); controls at least {:.0e}; orders within {} of",
        identities, flows, controls, off("C1"),
    )  # fmt: skip
    holds = sum(row["passed"] for row in table)
    yield (
        "What it shows: {} {} rows hold.",
        "all" if holds == len(table) else f"{holds} of",
        len(table),
    )


SETTINGS = (
    "Theorem 1", "Theorem 2", "t = 10⁴", "of 1, 2 and 4 |", "of 1 and 2 |",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {}
