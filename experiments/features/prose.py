"""Which number of the README is which entry of the kept summaries; `scripts/docs --check` holds them together."""

from collections.abc import Callable, Iterator
from typing import Any


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    digits, fashion = run("digits"), run("fashion_mnist")
    law = next(r for r in digits["law"] if r["flow"] == "free" and r["decade"] == "last")
    shares = [100 * row["share_asymptotic"] for row in digits["classes"]]
    yield (
        "last decade to t = 10⁴ | {:.3f} ± {:.3f} | {:.3f} ± {:.3f} (median over images; 5 to 95 %: "
        "{:.2f} to {:.2f}) | {:.0f} to {:.0f} % |",
        law["loss_slope"], law["loss_slope_std"], law["margin_slope"], law["margin_slope_std"],
        law["margin_slope_q05"], law["margin_slope_q95"], min(shares), max(shares),
    )  # fmt: skip
    law = next(r for r in fashion["law"] if r["flow"] == "free" and r["decade"] == "last")
    shares = [100 * row["share_asymptotic"] for row in fashion["classes"]]
    yield (
        "8,000 images, 3 samples | {:.3f} ± {:.3f} | {:.3f} ± {:.3f} | {:.0f} to {:.0f} % |",
        law["loss_slope"], law["loss_slope_std"], law["margin_slope"], law["margin_slope_std"],
        min(shares), max(shares),
    )  # fmt: skip


SETTINGS = (
    "t L → 1/γ²", "rows within 10 % of t L = 1/γ²", "digits, 5 bootstrap samples", "to t = 10⁴ |",
    "(median over images; 5 to 95 %:", "Fashion-MNIST, 8,000 images, 3 samples", "at t = 10⁴.",
    "θ's first two", "u₀ + e^u₀",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {}
