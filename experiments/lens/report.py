"""The tables and figures of the lens experiment."""

import textwrap
from typing import Any

import numpy as np

from experiments.lens import figures, tables
from experiments.lens.config import Config
from experiments.lens.edits import edit_tables
from experiments.lens.findings import Rows, findings, z_score
from experiments.lens.measures import Measured, Results
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lens import Energies, LabelCosines

PARTS = ("", "_null", "_null_std", "_z")  # of a measure, in the names of its columns
MOST_STRIPS = 12  # models in a figure

SEEDS = "By kind of net: means over heads and layers, then mean ± standard deviation over seeds."

CONSTRUCTION = (
    "Nets that learn in context: cosine of each circuit with the construction, median over seeds, and in "
    "standard deviations of the same with the entries permuted (p) and, where they do not leave the "
    "construction alone, rotated (r)."
)

EDITS = (
    "Edits: what the loss of next tokens, or of masked ones, becomes, in thousandths of a nat for each token "
    "(± half its 95 % interval over texts), if a part of heads is taken out, or put in once more: the part of "
    "W_V W_O along theta^T, or parts as large along other matrices; the part of updates along their row term, "
    "or parts as large in other directions. In brackets: of how many random draws the mean is; their standard "
    "deviation is the unit of z. Moved: 1 - cosine of the mean of the last stream with that of the model as "
    "it is, in thousandths."
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
# The sign of a measure of a head that descends, where it has one.
DESCENT = {
    "weight_cosine": -1,
    "within_cosine": -1,
    "folded_weight_cosine": -1,
    "energy_change": -1,
}
DESCENT |= {"row_cosine": 1, "column_cosine": 1, "sum_cosine": 1}


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes figures, tables and summary."""
    models, alone = results.models, len(results.models) == 1
    for number, measured in enumerate(models):
        draw(run, measured, "" if alone else f"_{number}")
    heads = [row for measured in models for row in measured.heads]
    layers = [row for measured in models for row in measured.layers]
    lines = [measured.headline for measured in models]
    words, parts = [], []
    if models:
        draw_strips(run, models)
        names, legend = tables.names_of([line["model"] for line in lines])
        first, second = tables.headline(lines, names)
        parts += [legend] if legend else []
        parts += [tables.HEADLINE, markdown_table(first), tables.CONTROLS, markdown_table(second)]
    if config.run_dir is not None and heads:
        parts += [SEEDS, markdown_table(by_kind(heads, layers))]
    else:
        for measured in models:
            name, said = (
                measured.subject.name,
                findings(measured.heads, measured.layers, measured.tag),
            )
            parts += [*_of_model(measured), f"{name}, what holds and what does not:"]
            parts.append("\n".join(fill(line, 79, "- ", "  ") for line in said))
            words += said if alone else [f"{name}: {line}" for line in said]
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
    summary = {"models": lines, "heads": heads, "layers": layers, "findings": words}
    summary |= {"construction": results.construction, "edits": results.edits}
    parts = [part if part[0] in "|-" else fill(part, 79, "", "") for part in parts]
    run.finish(summary, "\n\n".join(parts))


def fill(text: str, width: int, first: str, then: str) -> str:
    """The words in lines of that width, none broken."""
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=then, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _of_model(measured: Measured) -> list[str]:
    """The tables of one model."""
    first, second = tables.by_layer(measured.heads, measured.tag)
    parts = [f"{measured.subject.name}. {tables.BY_LAYER}", markdown_table(first)]
    if measured.layers:
        parts += [tables.ENERGIES, markdown_table(tables.energies(second, measured.layers))]
        parts += [tables.LAYERS, markdown_table(tables.together(measured.layers))]
    return parts


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


def measures(measured: Measured, titles: dict[str, tuple[str, str]]) -> list[figures.Measure]:
    """Measures of a model and their nulls as figures take them."""

    def array(key: str) -> np.ndarray:
        return np.array([row[key] for row in measured.heads], float).reshape(measured.shape)

    def scores(key: str) -> np.ndarray:
        return np.array([z_score(row, key) for row in measured.heads]).reshape(measured.shape)

    return [
        figures.Measure(
            title, DESCENT.get(key, 0), array(key), array(f"{key}_null"), array(f"{key}_null_std"),
            scores(key),
        )
        for key, (_, title) in titles.items()
    ]  # fmt: skip


def draw_strips(run: RunFolder, models: list[Measured]) -> None:
    """Draws all heads of all models by layer: of weights, and of energies on text."""
    for file, title, label, key, raw in (
        ("strip", "Where the value circuits of heads lean", "cosine with theta^T", None, models),
        ("energy", "Change of each head's log-sum-exp by its own update", "nats a token",
         "energy_change", [each for each in models if each.layers]),
    ):  # fmt: skip
        drawn = []
        for each in raw[:MOST_STRIPS]:
            name = {key or f"{each.tag}weight_cosine": ("", "")}
            drawn.append((each.subject.name, measures(each, name)[0]))
        if drawn:
            arrays = {
                f"{part}_{number}": getattr(measure, part)
                for number, (_, measure) in enumerate(drawn) for part in ("value", "null", "std", "z")
            }  # fmt: skip
            if key:
                rows = (each.layers for each in raw[:MOST_STRIPS])
                arrays |= {
                    f"energies_{number}": np.array([[row[f"energy_{at}"] for row in layers] for at in Energies._fields])
                    for number, layers in enumerate(rows)
                }  # fmt: skip
            run.save_figure(file, figures.strips(drawn, title=title, label=label), **arrays)


def draw(run: RunFolder, measured: Measured, tag: str) -> None:
    """Draws heat maps of the measures and their z, spectra, and spectra over distance."""
    name = measured.subject.name

    def maps(file: str, what: str, titles: dict[str, tuple[str, str]]) -> None:
        drawn = measures(measured, titles)
        arrays = {
            key + part: array
            for key, measure in zip(titles, drawn, strict=True)
            for part, array in zip(PARTS, measure[2:], strict=True)
        }
        figure = figures.heat_maps(drawn, title=f"{name}: {what}")
        run.save_figure(f"{file}{tag}", figure, **arrays)

    maps("weights", "what the weights say", ON_WEIGHTS)
    spectra = measured.spectra._asdict()
    del spectra["symmetric_share"]
    title = f"{name}: singular values of theta"
    figure = figures.spectra(spectra["singular_values"], title=title)
    run.save_figure(f"spectra{tag}", figure, **spectra)
    turning = [
        each
        for each in measured.rotary
        if each.frequencies.shape == measured.rotary[0].frequencies.shape
    ]
    if turning and turning[0].frequencies.size:
        # Layers with a window may turn at frequencies of their own; the axis is that of the first.
        arrays = {
            part: np.stack([getattr(each, part) for each in turning])
            for part in ("cosine", "sine", "pairs")
        }
        frequencies = turning[0].frequencies
        title = f"{name}: <W_V W_O, theta_D^T> by frequency of rotary positions"
        figure = figures.rotary(frequencies, **arrays, title=title)
        run.save_figure(f"rotary{tag}", figure, frequencies=frequencies, **arrays)
    if measured.layers:
        maps("texts", "what heads do on text", ON_TEXTS)
