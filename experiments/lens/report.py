"""The tables of the lens experiment, what they say in plain words, and its figures."""

from typing import Any

import numpy as np

from experiments.lens import figures
from experiments.lens.config import Config
from experiments.lens.measures import Measured, Subject
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder

Rows = list[dict[str, Any]]

_BEYOND = 3.0  # standard deviations of a null


def report(config: Config, heads: Rows, layers: Rows, count: int) -> str:
    """The tables to read, in Markdown."""
    shown = [
        {
            **({"model": row["model"]} if count > 1 else {}),
            "layer": row["layer"],
            "head": row["head"],
            "weight": _with_z(row, "weight_cosine"),
            "within": _with_z(row, "within_cosine"),
            "folded": _with_z(row, "folded_weight_cosine"),
            "descent left": _with_z(row, "descent_residual"),
            "climb left": _with_z(row, "climb_residual"),
            "symmetric": _with_z(row, "symmetric_share"),
            "row": _with_z(row, "row_cosine"),
            "column": _with_z(row, "column_cosine"),
            "sum": _with_z(row, "sum_cosine"),
            "energy": _with_z(row, "energy_change"),
            "gradient": _with_z(row, "gradient_share"),
        }
        for row in heads
    ]
    by_layer = [
        {
            **({"model": row["model"]} if count > 1 else {}),
            "layer": row["layer"],
            **{name: _with_z(row, f"{name}_cosine") for name in ("row", "column", "sum")},
            "label, next": _with_z(row, "label_next_cosine"),
            "label, final": _with_z(row, "label_final_cosine"),
            **{f"E {place}": row[f"energy_{place}"] for place in ("before", "middle", "after")},
        }
        for row in layers
    ]
    parts = [
        "Heads: does W_V W_O lie along theta^T = W_K W_Q^T / sqrt(r)? A head that descends the "
        "log-sum-exp of its attention has weight cosine -1, one that climbs it +1. In brackets z, "
        "against the null of other heads' theta, or of theta rotated at random where a model has too "
        "few heads. Within: in the subspace of the circuit. Folded: with "
        "scale and centring of the layer norms in the weights. Descent and climb left: the share of "
        "the head that its best fit by one matrix leaves. Symmetric: share of theta, 0.5 at random.",
        "On text: cosine of the head's update with minus the row term of the gradient of its log-sum-"
        "exp, minus the column term, minus the sum (z against terms by other heads' theta, or permuted features); energy: change of "
        "that log-sum-exp for each token by the head's own update (z against the update with permuted "
        "features); gradient: share of the symmetric part of the map's Jacobian, 1 for a gradient "
        "field, 0.5 at random (z against other heads' values).",
        markdown_table(shown),
    ]
    if by_layer:
        parts += [
            "Layers: the same for the sum of all heads (z against permuted features). Label: cosine of what "
            "the MLP adds with C theta, C predicted by the lens from the end of the layer, and from the "
            "end of the model (z against the MLP's features in random order, from there on). E: log-sum-exp for each head and token before "
            "attention, between attention and MLP, and after, by the heads of that layer, which read all "
            "three through their own norm.",
            markdown_table(by_layer),
        ]
    if count > 1:
        parts += [
            "By kind of net: means over heads and layers, then mean ± standard deviation over seeds.",
            markdown_table(by_kind(heads, layers)),
        ]
    else:
        parts += [
            "What holds and what does not:",
            "\n".join(f"- {line}" for line in findings(heads, layers)),
        ]
    if config.smoke:
        parts.append("A smoke run: too few texts for the numbers to mean anything.")
    return "\n\n".join(parts)


def findings(heads: Rows, layers: Rows) -> list[str]:
    """What the rows of one model say, in plain words."""
    count = len(heads)
    value = lambda key: np.array([row[key] for row in heads])  # noqa: E731
    many = sorted({row["layer"] for row in heads})

    def beyond(key, sign):
        """How many heads lie that way beyond three deviations of the null; None without a null."""
        z = np.array([_z(row, key) for row in heads])
        return None if np.isnan(z).all() else int((sign * z > _BEYOND).sum())

    def tail(key, low, high):
        below, above = beyond(key, -1), beyond(key, 1)
        if below is None:
            return "there are too few heads for a null"
        return f"{below} {low} and {above} {high} by more than {_BEYOND:g} deviations of the null"

    weight = value("weight_cosine")
    lines = [
        f"Weights: {int((weight < 0).sum())} of {count} heads have a negative cosine, as descent asks (mean "
        f"{weight.mean():.3f}, from {weight.min():.3f} to {weight.max():.3f}; heads of the flow have -1); "
        f"{tail('weight_cosine', 'descend', 'climb')}."
    ]
    lines.append(
        f"Within the circuit's own subspace the mean is {value('within_cosine').mean():.3f}; "
        f"{tail('within_cosine', 'descend', 'climb')}. With layer norms folded in: "
        f"{tail('folded_weight_cosine', 'descend', 'climb')}."
    )
    lines.append(
        f"One matrix for attention and value circuit leaves {value('descent_residual').mean():.2f} of a "
        f"head where it descends and {value('climb_residual').mean():.2f} where it climbs: "
        + (
            "there are too few heads for a null."
            if (fitted := beyond("descent_residual", -1)) is None
            else f"better than other heads' theta by more than {_BEYOND:g} deviations in {fitted} and "
            f"{beyond('climb_residual', -1)} heads of {count}."
        )
    )
    means = {
        term: np.array([value(f"{term}_cosine")[value("layer") == l].mean() for l in many])
        for term in ("row", "column", "sum")
    }
    listed = ", ".join(f"{x:.2f}" for x in means["row"])
    positive = (
        "positive in every layer" if (means["row"] > 0).all() else "not positive in every layer"
    )
    lines.append(
        f"On text the row term's cosine, averaged over heads, is {listed} by layer: {positive}. "
        f"{tail('row_cosine', 'climb', 'descend')}."
    )
    for term in ("column", "sum"):
        listed = ", ".join(f"{x:.2f}" for x in means[term])
        lines.append(f"The {term}{' of both terms' if term == 'sum' else ' term'}: {listed}; {tail(f'{term}_cosine', 'climb', 'descend')}.")  # fmt: skip
    down = int((value("energy_change") < 0).sum())
    lines.append(
        f"The head's own update lowers its own log-sum-exp in {down} of {count} heads; "
        f"beside updates with permuted features {tail('energy_change', 'lower it', 'raise it')}."
    )
    lines.append(
        f"Share of a gradient field: mean {value('gradient_share').mean():.3f}, largest "
        f"{value('gradient_share').max():.3f}, where a gradient has 1 and a random map 0.5."
    )
    for key, what in (("next", "at the end of the layer"), ("final", "at the end of the model")):
        cosines = np.array([row[f"label_{key}_cosine"] for row in layers])
        z = np.array([row[f"label_{key}_cosine_z"] for row in layers])
        lines.append(
            f"The MLP's update with C theta predicted {what}: {', '.join(f'{x:.2f}' for x in cosines)} by "
            f"layer, {int((z > _BEYOND).sum())} of {len(layers)} above what features in random order give, {int((z < -_BEYOND).sum())} below."
        )
    return lines


def draw(run: RunFolder, subject: Subject, measured: Measured, tag: str) -> None:
    """Heat maps of the measures beside their nulls, energy along depth, spectra."""
    l, h = subject.model.heads.query.shape[:2]
    grid = lambda key: np.array([row[key] for row in measured.heads]).reshape(l, h)  # noqa: E731
    groups = {
        "weights": {
            "weight_cosine": "weight cosine", "within_cosine": "within the circuit's subspace",
            "folded_weight_cosine": "layer norms folded in", "descent_residual": "descent, share left",
            "climb_residual": "climb, share left", "symmetric_share": "symmetric share of theta",
        },
        "texts": {
            "row_cosine": "row term", "column_cosine": "column term", "sum_cosine": "sum of terms",
            "energy_change": "change of energy", "gradient_share": "share of a gradient field",
        },
    }  # fmt: skip
    for name, keys in groups.items():
        if name == "texts" and not measured.layers:
            continue
        arrays = {
            f"{key}{part}": grid(f"{key}{part}") for key in keys for part in ("", "_null", "_z")
        }
        figure = figures.heat_maps(
            {title: tuple(arrays[f"{key}{part}"] for part in ("", "_null", "_z")) for key, title in keys.items()},
            title=f"{subject.name}: {'what the weights say' if name == 'weights' else 'what heads do on text'}",
        )  # fmt: skip
        run.save_figure(f"{name}{tag}", figure, **arrays)
    values = measured.spectra["singular_values"]
    figure = figures.spectra(values, title=f"{subject.name}: singular values of theta")
    run.save_figure(f"spectra{tag}", figure, **keep)
    if not measured.layers:
        return
    column = lambda key: np.array([row[key] for row in measured.layers])  # noqa: E731
    energies = np.stack([column(f"energy_{place}") for place in ("before", "middle", "after")])
    figure = figures.energy(energies, title=f"{subject.name}: log-sum-exp of each layer's heads")
    run.save_figure(f"energy{tag}", figure, energies=energies)


def by_kind(heads: Rows, layers: Rows) -> Rows:
    """Nets of one kind together: means over heads or layers, then mean and spread over seeds."""
    kinds = dict.fromkeys(row["model"].rsplit(", seed ", 1)[0] for row in heads)
    columns = {
        "weight": "weight_cosine", "within": "within_cosine", "symmetric": "symmetric_share",
        "row": "row_cosine", "column": "column_cosine", "sum": "sum_cosine",
        "energy": "energy_change", "gradient": "gradient_share",
        "label, next": "label_next_cosine", "label, final": "label_final_cosine",
    }  # fmt: skip
    found = []
    for kind in kinds:
        seeds = dict.fromkeys(
            row["model"] for row in heads if row["model"].startswith(f"{kind}, seed ")
        )
        line: dict[str, Any] = {"nets": kind, "seeds": len(seeds)}
        for name, key in columns.items():
            rows = layers if key.startswith("label") else heads
            if not any(row["model"] in seeds and key in row for row in rows):
                continue
            means = [np.mean([row[key] for row in rows if row["model"] == seed]) for seed in seeds]
            line[name] = f"{np.mean(means):.3f} ± {np.std(means):.3f}"
        found.append(line)
    return found


def _with_z(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return "-"
    z = _z(row, key)
    return f"{row[key]:.3f}" + ("" if np.isnan(z) else f" ({z:+.1f})")


def _z(row: dict[str, Any], key: str) -> float:
    """Against other heads, or where they are too few against what is drawn at random; or NaN."""
    found = (row.get(f"{key}{kind}", np.nan) for kind in ("_z", "_z_rotated", "_z_permuted"))
    return next((z for z in found if not np.isnan(z)), np.nan)
