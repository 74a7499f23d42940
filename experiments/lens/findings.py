"""What the rows of one model say, in sentences."""

from typing import Any

import numpy as np

from experiments.lens.weights import BEYOND
from imr.lens import LabelCosines, TermCosines

Rows = list[dict[str, Any]]


def z_score(row: dict[str, Any], key: str) -> float:
    """z of a measure against other heads, or if they are too few, against a random null."""
    found = (row.get(f"{key}{kind}", np.nan) for kind in ("_z", "_z_rotated", "_z_permuted"))
    return next((z for z in found if not np.isnan(z)), np.nan)


def _values(rows: Rows, key: str) -> np.ndarray:
    return np.array([row[key] for row in rows])


def _beyond(heads: Rows, key: str, sign: int) -> int | None:
    """How many heads lie beyond the null on that side; None without a null."""
    z = np.array([z_score(row, key) for row in heads])
    return None if np.isnan(z).all() else int((sign * z > BEYOND).sum())


def _tails(heads: Rows, key: str, low: str, high: str) -> str:
    """How many heads lie beyond the null on each side, and what that means."""
    below, above = _beyond(heads, key, -1), _beyond(heads, key, 1)
    if below is None:
        return "there are too few heads for a null"
    return f"{below} {low} and {above} {high} by more than {BEYOND:g} deviations of the null"


def findings(heads: Rows, layers: Rows, tag: str = "") -> list[str]:
    """What the rows of one model say; with the tag "folded_" first of weights with norms folded in."""
    count, layer, weight = (
        len(heads),
        _values(heads, "layer"),
        _values(heads, f"{tag}weight_cosine"),
    )
    within, descends, climbs = (
        _values(heads, key) for key in (f"{tag}within_cosine", "descent_residual", "climb_residual")
    )
    first, other = (", norms folded in", "Without") if tag else ("", "With")
    others = "weight_cosine" if tag else "folded_weight_cosine"
    descent, climb = (_beyond(heads, f"{way}_residual", -1) for way in ("descent", "climb"))
    fits = (
        "there are too few heads for a null."
        if descent is None
        else f"better than other heads' theta by more than {BEYOND:g} deviations in {descent} and "
        f"{climb} heads of {count}."
    )
    lines = [
        f"Weights{first}: {(weight < 0).sum()} of {count} heads have a negative cosine, as descent asks (mean "
        f"{weight.mean():.3f}, from {weight.min():.3f} to {weight.max():.3f}; heads of the flow have -1); "
        f"{_tails(heads, f'{tag}weight_cosine', 'descend', 'climb')}.",
        f"Within the circuit's own subspace the mean is {within.mean():.3f}; "
        f"{_tails(heads, f'{tag}within_cosine', 'descend', 'climb')}. {other} layer norms folded in: "
        f"{_tails(heads, others, 'descend', 'climb')}.",
        f"One matrix for attention and value circuit leaves {descends.mean():.2f} of a "
        f"head where it descends and {climbs.mean():.2f} where it climbs: {fits}",
    ]
    if not layers:  # no texts
        return lines
    down, share = _values(heads, "energy_change"), _values(heads, "gradient_share")
    for term in TermCosines._fields:
        cosines = _values(heads, f"{term}_cosine")
        means = [cosines[layer == l].mean() for l in np.unique(layer)]
        listed = ", ".join(f"{x:.2f}" for x in means)
        tails = _tails(heads, f"{term}_cosine", "climb", "descend")
        if term == "row":
            sign = "positive" if min(means) > 0 else "not positive"
            lines.append(
                f"On text the row term's cosine, averaged over heads, is {listed} by layer: {sign} "
                f"in every layer. {tails}."
            )
        else:
            name = "The sum of both terms" if term == "sum" else f"The {term} term"
            lines.append(f"{name}: {listed}; {tails}.")
    lines += [
        f"The head's own update lowers its own log-sum-exp in {(down < 0).sum()} of {count} heads; "
        f"beside updates with permuted features {_tails(heads, 'energy_change', 'lower it', 'raise it')}.",
        f"Share of a gradient field: mean {share.mean():.3f}, largest {share.max():.3f}, where a "
        "gradient has 1 and a random map 0.5.",
    ]
    for read, end in zip(LabelCosines._fields, ("layer", "model"), strict=True):
        cosines, z = (_values(layers, f"label_{read}_cosine{part}") for part in ("", "_z"))
        listed = ", ".join(f"{x:.2f}" for x in cosines)
        lines.append(
            f"The MLP's update with C theta predicted at the end of the {end}: {listed} by layer, "
            f"{(z > BEYOND).sum()} of {len(layers)} above what features in random order give, "
            f"{(z < -BEYOND).sum()} below."
        )
    return lines
