"""The tables of the lens experiment, none wider than 80 columns; each head is in summary.json."""

from typing import Any

import numpy as np

from experiments.lens.findings import Rows, z_score
from experiments.lens.weights import BEYOND
from imr.lens import Energies

LONGEST = 16  # of the names of models in tables

HEADLINE = (
    "Does W_V W_O lean towards -theta^T, which descends, theta = W_Q W_K^T / sqrt(r)? Negative: heads "
    "whose cosine with theta^T is negative; mean: of all cosines. Beyond: heads more than 3 deviations of "
    "the null on the side of descent / of climbing, the null being theta of other key groups (random "
    "rotations if there are too few). Gauge: the same against W_V G W_O, G a random rotation. Theta: mean "
    "cosine with theta untransposed. Heads of a model are not independent; p is one figure for a model: "
    "how often its theta, dealt out anew within layers, lean as far in the mean. Norms are folded in "
    "where they come before heads."
)
CONTROLS = (
    "Controls. Layer: beyond the null of the same layer. Shared: negative heads less the 32 directions "
    "that all weights share. Sym, anti: negative with the symmetric and antisymmetric part of theta^T. "
    "Group: negative with theta of another query head of the key group. Left: what one matrix for theta "
    "and circuit leaves of a head that descends / climbs, and of one with theta of another head."
)
BY_LAYER = (
    "By layer: means over heads, and how many heads lie more than 3 deviations beyond the null on the side "
    "of descent / of climbing. Weight: cosine of W_V W_O with theta^T, negative for descent; within: in "
    "the circuit's own subspace. On text: cosines of the head's update with minus the row term of the "
    "gradient of its log-sum-exp, the column term and the sum, positive for descent."
)
ENERGIES = (
    "Energy: change of the head's log-sum-exp for each token by its own update, negative for descent. "
    "Gradient: share of a gradient field, 0.5 at random, beside how many are above / below the null. E: "
    "log-sum-exp for each head and token before attention, before the MLP, and after."
)
LAYERS = (
    "All heads of a layer together, with z against permuted features. Label: cosine of what the MLP adds "
    "with C theta, with C predicted from the end of the layer, and from the end of the model."
)


def names_of(names: list[str]) -> tuple[dict[str, str], str]:
    """What stands for each model in tables, and a paragraph that says so if names are long."""
    if max(map(len, names), default=0) <= LONGEST:
        return {name: name for name in names}, ""
    numbers = {name: str(number) for number, name in enumerate(names)}
    return numbers, "Models: " + "; ".join(f"{number} {name}" for name, number in numbers.items())


def headline(lines: Rows, names: dict[str, str]) -> tuple[Rows, Rows]:
    """The two tables of whole models."""
    first, second = [], []
    for line in lines:
        name, heads = names[line["model"]], line["heads"]
        first.append({
            "model": name, "negative": f"{line['negative']}/{heads}", "mean": short(line["mean"]),
            "beyond": _pair(line, "beyond"), "gauge": _pair(line, "gauge"),
            "theta": short(line["untransposed"]), "p": f"{line['mean_p']:.1g}",
        })  # fmt: skip
        second.append({
            "model": name, "layer": _pair(line, "layer"), "shared": line.get("unshared_negative"),
            "sym": line["symmetric_negative"], "anti": line["antisymmetric_negative"],
            "group": line.get("group_negative"),
            "left": "/".join(short(line[f"{key}_left"]) for key in ("descent", "climb", "null")),
        })  # fmt: skip
    if len(lines) > 1:
        total = {
            "model": "all",
            **{key: _sum(first, key) for key in ("negative", "beyond", "gauge")},
        }
        first.append(total)
    return first, second


def _sum(rows: Rows, key: str) -> str:
    """The sum of cells a/b."""
    return "/".join(
        str(sum(x)) for x in zip(*(map(int, row[key].split("/")) for row in rows), strict=True)
    )


def _pair(line: dict[str, Any], name: str) -> str | None:
    key = f"{name}_descent"
    return f"{line[key]}/{line[f'{name}_climb']}" if key in line else None


def short(value: float) -> str:
    """Three digits without the zero before the point."""
    return "-" if np.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)


def by_layer(heads: Rows, tag: str = "") -> tuple[Rows, Rows]:
    """The tables of one model by layer: cosines, and energies on text, which may be none.

    With the tag "folded_" cosines are those with norms folded in.
    """
    columns = {name: (f"{tag}{name}_cosine", -1) for name in ("weight", "within")}
    columns |= {name: (f"{name}_cosine", 1) for name in ("row", "column", "sum")}
    text = {"energy": ("energy_change", -1), "gradient": ("gradient_share", 1)}
    layers = sorted({row["layer"] for row in heads})
    parts = [[row for row in heads if row["layer"] == layer] for layer in layers]
    first, second = (
        [
            {"layer": layer, **{name: _mean(rows, *key) for name, key in chosen.items() if key[0] in rows[0]}}
            for layer, rows in zip(layers, parts, strict=True)
        ]
        for chosen in (columns, text)
    )  # fmt: skip
    return first, second if "energy" in second[0] else []


def _mean(rows: Rows, key: str, descent: int) -> str:
    """Mean over heads, and how many lie beyond the null: in the direction of descent / against it."""
    z = descent * np.array([z_score(row, key) for row in rows])
    mean = short(float(np.mean([row[key] for row in rows])))
    return mean if np.isnan(z).all() else f"{mean} {(z > BEYOND).sum()}/{(z < -BEYOND).sum()}"


def energies(second: Rows, layers: Rows) -> Rows:
    """The table of energies by layer."""
    return [
        line | {f"E {at}": row[f"energy_{at}"] for at in Energies._fields}
        for line, row in zip(second, layers, strict=True)
    ]


def together(layers: Rows) -> Rows:
    """The table of whole layers on text."""
    columns = {name: f"{name}_cosine" for name in ("row", "column", "sum")}
    columns |= {"label end": "label_next_cosine", "label out": "label_final_cosine"}
    return [
        {"layer": row["layer"], **{name: _with_z(row, key) for name, key in columns.items()}}
        for row in layers
    ]


def _with_z(row: dict[str, Any], key: str) -> str:
    z = z_score(row, key)
    return short(row[key]) + ("" if np.isnan(z) else f" {z:+.0f}")
