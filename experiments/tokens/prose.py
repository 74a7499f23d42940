"""Which number of the README is which entry of the kept summary; `scripts/docs --check` holds them together."""

from collections.abc import Callable, Iterator
from typing import Any

TOKENS = 32


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    summary = run("tokens")
    sphere = [row for row in summary["table"] if row["sphere"]]
    up, down = ([row for row in sphere if row["sign"] == sign] for sign in (1, -1))
    yield "{} tokens on the circle, {} seeds:", TOKENS, up[0]["seeds"]
    several = min(row["beta"] for row in up if row["single_cluster_share"] < 1)
    one = max(row["beta"] for row in up if row["beta"] < several)
    yield "up, β ≤ {:.1f} | one cluster in every seed", one
    alone, both = (next(r for r in reversed(up) if r["column_term"] == c) for c in (False, True))
    yield (
        "last long: {:.1f} ± {:.1f} clusters at β = {:g}, t = {:g} ({:.1f} ± {:.1f} with the column term)",
        alone["clusters"], alone["clusters_std"], alone["beta"], alone["last_time"],
        both["clusters"], both["clusters_std"],
    )  # fmt: skip
    pairs = [row for row in summary["column_term"] if row["sphere"] and row["sign"] == 1]
    ratios = [row["half_time_ratio"] for row in pairs]
    yield "half-clustering takes {:.1f} to {:.1f} times as long", min(ratios), max(ratios)
    rest = max(abs(row["mean_cosine"] + 1 / (TOKENS - 1)) for row in down)
    yield "mean cosine is {} |", "−1/(n − 1)" if rest < 1e-6 else f"{rest:.0e} from it"


SETTINGS = ()
UNKEPT: dict[str, tuple[str, ...]] = {}
