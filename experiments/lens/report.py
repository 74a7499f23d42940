"""The tables and figures of the lens experiment."""

from typing import Any

import numpy as np

from experiments.lens import figures
from experiments.lens.config import Config
from experiments.lens.edits import edit_tables
from experiments.lens.findings import Rows, findings, z_score
from experiments.lens.measures import Measured, Results
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

CONSTRUCTION = (
    "Nets that learn in context: cosine of each circuit with the construction, median over seeds, and in "
    "standard deviations of the same with the entries permuted (p) and, where they do not leave the "
    "construction alone, rotated (r)."
)

EDITS = (
    "Edits: what the loss of next tokens, or of masked ones, becomes, in thousandths of a nat for each token "
    "(± half its 95 % interval over texts), if a part of heads is taken out: the part of W_V W_O along "
    "theta^T, or parts as large along other matrices; the part of updates along their row term, or parts as "
    "large in other directions. ± draws: standard deviation over random directions, by which z is measured. "
    "Moved: 1 - cosine of the mean of the last stream with that of the model as it is, in thousandths."
)

# By the key of a measure: its column in tables and its title in figures.
ON_WEIGHTS = {
    "weight_cosine": ("weight", "weight cosine"),
    "within_cosine": ("within", "within the circuit's subspace"),
    "folded_weight_cosine": ("folded", "layer norms folded in"),
    "descent_residual": ("descent left", "descent, share left"),
    "climb_residual": ("climb left", "climb, share left"),
    "symmetric_share": ("symmetric", "symmetric share of theta"),
}
ON_TEXTS = {
    "row_cosine": ("row", "row term"),
    "column_cosine": ("column", "column term"),
    "sum_cosine": ("sum", "sum of terms"),
    "energy_change": ("energy", "change of energy"),
    "gradient_share": ("gradient", "share of a gradient field"),
}
HEAD_COLUMNS = {column: key for key, (column, _) in (ON_WEIGHTS | ON_TEXTS).items()}
LABELS = {f"label, {read}": f"label_{read}_cosine" for read in LabelCosines._fields}
LAYER_COLUMNS = {term: f"{term}_cosine" for term in TermCosines._fields} | LABELS


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes figures, tables and summary."""
    models = results.models
    for number, measured in enumerate(models):
        draw(run, measured, "" if len(models) == 1 else f"_{number}")
    heads = [row for measured in models for row in measured.heads]
    layers = [row for measured in models for row in measured.layers]
    words = findings(heads, layers) if len(models) == 1 else []
    parts = []
    if heads:
        rows = [_line(row, HEAD_COLUMNS, not words) for row in heads]
        parts += [HEADS, ON_TEXT, markdown_table(rows)]
    if layers:
        rows = [_line(row, LAYER_COLUMNS, not words) for row in layers]
        parts += [LAYERS, markdown_table(rows)]
    if words:
        parts += ["What holds and what does not:", "\n".join(f"- {line}" for line in words)]
    elif heads:
        parts += [SEEDS, markdown_table(by_kind(heads, layers))]
    if results.construction:
        parts += [CONSTRUCTION, markdown_table(results.construction)]
    if results.edits:
        parts.append(EDITS)
        for name in dict.fromkeys(row["model"] for row in results.edits):
            own = [row for row in results.edits if row["model"] == name]
            for title, table in edit_tables(own):
                parts += [title, markdown_table(table)]
    if config.smoke:
        parts.append("A smoke run: too few texts for the numbers to mean anything.")
    summary = {"heads": heads, "layers": layers, "findings": words}
    summary |= {"construction": results.construction, "edits": results.edits}
    run.finish(summary, "\n\n".join(parts))


def _line(row: dict[str, Any], columns: dict[str, str], named: bool) -> dict[str, Any]:
    """A row of heads or layers as the table has it."""
    first = {name: row[name] for name in ("model", "layer", "head") if name in row}
    if not named:
        del first["model"]
    cells = {name: _with_z(row, key) for name, key in columns.items()}
    energies = {at: row.get(f"energy_{at}") for at in Energies._fields} if "head" not in row else {}
    return first | cells | {f"E {at}": value for at, value in energies.items()}


def _with_z(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return "-"
    z = z_score(row, key)
    return f"{row[key]:.3f}" + ("" if np.isnan(z) else f" ({z:+.1f})")


def by_kind(heads: Rows, layers: Rows) -> Rows:
    """Nets of one kind together: means over heads or layers, then mean and spread over seeds."""
    columns = HEAD_COLUMNS | LABELS
    for name in ("folded", "descent left", "climb left"):
        del columns[name]
    seeds: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["model"] for row in heads):
        seeds.setdefault(name.rsplit(", seed ", 1)[0], []).append(name)
    lines = []
    for kind, names in seeds.items():
        line: dict[str, Any] = {"nets": kind, "seeds": len(names)}
        for column, key in columns.items():
            rows = [row for row in (layers if key.startswith("label") else heads) if key in row]
            values = [[row[key] for row in rows if row["model"] == name] for name in names]
            if values[0]:
                means = [np.mean(each) for each in values]
                line[column] = f"{np.mean(means):.3f} ± {np.std(means):.3f}"
        lines.append(line)
    return lines


def draw(run: RunFolder, measured: Measured, tag: str) -> None:
    """Draws heat maps of the measures beside their nulls, energy along depth, and spectra."""
    name, shape = measured.subject.name, measured.subject.model.heads.query.shape[:2]

    def maps(file: str, what: str, measures: dict[str, tuple[str, str]]) -> None:
        titles = {key: title for key, (_, title) in measures.items()}
        keys = [key + part for key in titles for part in figures.PARTS]
        arrays = {k: np.array([row[k] for row in measured.heads]).reshape(shape) for k in keys}
        figure = figures.heat_maps(arrays, titles, title=f"{name}: {what}")
        run.save_figure(f"{file}{tag}", figure, **arrays)

    maps("weights", "what the weights say", ON_WEIGHTS)
    spectra = measured.spectra._asdict()
    del spectra["symmetric_share"]
    title = f"{name}: singular values of theta"
    figure = figures.spectra(spectra["singular_values"], title=title)
    run.save_figure(f"spectra{tag}", figure, **spectra)
    if not measured.layers:
        return
    maps("texts", "what heads do on text", ON_TEXTS)
    rows = [[row[f"energy_{at}"] for row in measured.layers] for at in Energies._fields]
    energies = np.array(rows)
    figure = figures.energy(energies, title=f"{name}: log-sum-exp of each layer's heads")
    run.save_figure(f"energy{tag}", figure, energies=energies)
