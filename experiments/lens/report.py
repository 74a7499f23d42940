"""The tables and figures of the lens experiment."""

from typing import Any

import numpy as np

from experiments.lens import figures
from experiments.lens.config import Config
from experiments.lens.findings import Rows, findings, z_score
from experiments.lens.measures import Measured
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lens import Energies, LabelCosines, TermCosines

HEADS = (
    "Heads: does W_V W_O lie along theta^T = W_K W_Q^T / sqrt(r)? A head that descends the log-sum-exp "
    "of its attention has weight cosine -1, one that climbs it +1. In brackets: z against the theta of "
    "other heads, or against theta rotated at random if a model has too few heads. Within: in the "
    "subspace of the circuit. Folded: with scale and centring of the layer norms in the weights. "
    "Descent and climb left: the share of the head that its best fit by one matrix leaves. Symmetric: "
    "share of theta, 0.5 at random."
)
ON_TEXT = (
    "On text: cosine of the head's update with minus the row term of the gradient of its log-sum-exp, "
    "with minus the column term, with minus the sum (z against terms by the theta of other heads, or "
    "against permuted features). Energy: change of that log-sum-exp for each token by the head's own "
    "update (z against the update with permuted features). Gradient: share of the symmetric part of the "
    "map's Jacobian, 1 for a gradient field, 0.5 at random (z against other heads' values)."
)
LAYERS = (
    "Layers: the same for the sum of all heads (z against permuted features). Label: cosine of what the "
    "MLP adds with C theta, with C predicted by the lens from the end of the layer, and from the end of "
    "the model (z against the MLP's features in random order, from there on). E: log-sum-exp for each "
    "head and token before attention, between attention and MLP, and after, by the heads of that layer, "
    "which read all three through their own norm."
)
SEEDS = "By kind of net: means over heads and layers, then mean ± standard deviation over seeds."


def report(config: Config, run: RunFolder, results: list[Measured]) -> None:
    """Writes figures, tables and summary.

    Args:
      config: the flags.
      run: the folder.
      results: of `measure`.
    """
    for number, measured in enumerate(results):
        draw(run, measured, "" if len(results) == 1 else f"_{number}")
    heads = [row for measured in results for row in measured.heads]
    layers = [row for measured in results for row in measured.layers]
    words = findings(heads, layers) if len(results) == 1 else []
    summary = {"heads": heads, "layers": layers, "findings": words}
    run.finish(summary, tables(config, heads, layers, words))


def tables(config: Config, heads: Rows, layers: Rows, words: list[str]) -> str:
    """The tables to read, in Markdown.

    Args:
      config: the flags.
      heads: a row for each head of each model.
      layers: a row for each layer of each model that has read texts.
      words: the findings of one model; none for several.

    Returns:
      The text.
    """
    parts = [HEADS, ON_TEXT, markdown_table([_head_row(row, not words) for row in heads])]
    if layers:
        parts += [LAYERS, markdown_table([_layer_row(row, not words) for row in layers])]
    if words:
        parts += ["What holds and what does not:", "\n".join(f"- {line}" for line in words)]
    else:
        parts += [SEEDS, markdown_table(by_kind(heads, layers))]
    if config.smoke:
        parts.append("A smoke run: too few texts for the numbers to mean anything.")
    return "\n\n".join(parts)


def _head_row(row: dict[str, Any], named: bool) -> dict[str, Any]:
    columns = {
        "weight": "weight_cosine", "within": "within_cosine", "folded": "folded_weight_cosine",
        "descent left": "descent_residual", "climb left": "climb_residual",
        "symmetric": "symmetric_share", **{term: f"{term}_cosine" for term in TermCosines._fields},
        "energy": "energy_change", "gradient": "gradient_share",
    }  # fmt: skip
    first = {"model": row["model"]} if named else {}
    first |= {"layer": row["layer"], "head": row["head"]}
    return first | {name: _with_z(row, key) for name, key in columns.items()}


def _layer_row(row: dict[str, Any], named: bool) -> dict[str, Any]:
    columns = {term: f"{term}_cosine" for term in TermCosines._fields}
    columns |= {f"label, {read}": f"label_{read}_cosine" for read in LabelCosines._fields}
    return {
        **({"model": row["model"]} if named else {}),
        "layer": row["layer"],
        **{name: _with_z(row, key) for name, key in columns.items()},
        **{f"E {place}": row[f"energy_{place}"] for place in Energies._fields},
    }


def _with_z(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return "-"
    z = z_score(row, key)
    return f"{row[key]:.3f}" + ("" if np.isnan(z) else f" ({z:+.1f})")


def by_kind(heads: Rows, layers: Rows) -> Rows:
    """Nets of one kind together: means over heads or layers, then mean and spread over seeds.

    Args:
      heads: a row for each head of each net.
      layers: a row for each layer of each net that has read texts.

    Returns:
      A row for each kind of net.
    """
    columns = {
        "weight": "weight_cosine", "within": "within_cosine", "symmetric": "symmetric_share",
        **{term: f"{term}_cosine" for term in TermCosines._fields}, "energy": "energy_change",
        "gradient": "gradient_share", "label, next": "label_next_cosine",
        "label, final": "label_final_cosine",
    }  # fmt: skip
    seeds: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["model"] for row in heads):
        seeds.setdefault(name.rsplit(", seed ", 1)[0], []).append(name)
    lines = []
    for kind, names in seeds.items():
        line: dict[str, Any] = {"nets": kind, "seeds": len(names)}
        for column, key in columns.items():
            rows = layers if key.startswith("label") else heads
            values = [
                [row[key] for row in rows if row["model"] == name and key in row] for name in names
            ]
            if values[0]:
                means = [np.mean(each) for each in values]
                line[column] = f"{np.mean(means):.3f} ± {np.std(means):.3f}"
        lines.append(line)
    return lines


def draw(run: RunFolder, measured: Measured, tag: str) -> None:
    """Draws heat maps of the measures beside their nulls, energy along depth, and spectra.

    Args:
      run: the folder.
      measured: of one model.
      tag: at the end of the names of files.
    """
    name, shape = measured.subject.name, measured.subject.model.heads.query.shape[:2]

    def panels(*columns: tuple[str, str, bool]) -> list[figures.Panel]:
        def grid(key):
            return np.array([row[key] for row in measured.heads]).reshape(shape)

        return [
            figures.Panel(key, title, signed, grid(key), grid(f"{key}_null"), grid(f"{key}_z"))
            for key, title, signed in columns
        ]

    def save(file, what, panels):
        arrays = {}
        for each in panels:
            arrays |= {each.key: each.value, f"{each.key}_null": each.null, f"{each.key}_z": each.z}
        run.save_figure(
            f"{file}{tag}", figures.heat_maps(panels, title=f"{name}: {what}"), **arrays
        )

    weights = panels(
        ("weight_cosine", "weight cosine", True),
        ("within_cosine", "within the circuit's subspace", True),
        ("folded_weight_cosine", "layer norms folded in", True),
        ("descent_residual", "descent, share left", False),
        ("climb_residual", "climb, share left", False),
        ("symmetric_share", "symmetric share of theta", False),
    )
    save("weights", "what the weights say", weights)
    spectra = measured.spectra
    figure = figures.spectra(spectra.singular_values, title=f"{name}: singular values of theta")
    run.save_figure(
        f"spectra{tag}",
        figure,
        singular_values=spectra.singular_values,
        eigenvalues=spectra.eigenvalues,
    )
    if not measured.layers:
        return
    texts = panels(
        ("row_cosine", "row term", True),
        ("column_cosine", "column term", True),
        ("sum_cosine", "sum of terms", True),
        ("energy_change", "change of energy", True),
        ("gradient_share", "share of a gradient field", False),
    )
    save("texts", "what heads do on text", texts)
    energies = np.array([
        [row[f"energy_{place}"] for row in measured.layers] for place in Energies._fields
    ])  # fmt: skip
    figure = figures.energy(energies, title=f"{name}: log-sum-exp of each layer's heads")
    run.save_figure(f"energy{tag}", figure, energies=energies)
