"""The tables and figures of the collapse experiment."""

from typing import Any

import numpy as np

from experiments.collapse import figures
from experiments.collapse.config import Config, dimensions
from experiments.collapse.measures import TOLERANCE, Results
from experiments.collapse.theory import one_against_rest, unit_rows
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lab.seeds import cell

_SHOWN_SEEDS = 5


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the figures, the tables and the summary into the run folder."""
    draw(config, run, results)
    run.finish({"table": results.rows}, tables(config, results.rows))


def tables(config: Config, rows: list[dict[str, Any]]) -> str:
    """The tables to read, in Markdown, with what the columns mean."""
    k, seeds = config.classes, config.seeds
    collapse = [
        {
            "f": row["f"], "decay": row["decay"],
            **{name: f"{row[name]:.1e}" for name in ("nc1", "nc2", "nc3")},
            "nc4": f"{row['nc4']:.3f}", "loss": f"{row['loss']:.2e}",
            "least margin": cell(row, "margin"), "predicted": row["margin_predicted"],
            "L t 2km/(k-1)": row["loss_pace"], "pace": f"{row['pace']:.0e}",
            "balance drift": f"{row['balance_drift']:.0e}",
        }
        for row in rows
    ]  # fmt: skip
    frames = [
        {
            "f": row["f"], "decay": row["decay"], "alignment": cell(row, "alignment"),
            "bound": row["alignment_bound"], "interference": cell(row, "interference"),
            "Welch": row["welch_bound"], "one against rest": cell(row, "distance"),
            "code": row["code_distance"], "least angle": cell(row, "angle", ".1f"),
            "best": row["code_angle"], "normalised margin": cell(row, "normalised"),
            "norm spread": row["norm_spread"],
            "groups": f"{row['blocks']} ({row['blocks_seeds']}/{seeds})",
        }
        for row in rows
    ]  # fmt: skip
    names = (
        "settled", "collapsed", "self_dual", "simplex", "at_alignment_bound", "at_welch_bound",
        "softmax_code",
    )  # fmt: skip
    verdicts = [{"f": row["f"], "decay": row["decay"]} for row in rows]
    for row, shown in zip(rows, verdicts, strict=True):
        for name in names:
            shown[name.replace("_", " ")] = "-" if row[name] is None else f"{row[name]}/{seeds}"
    ends = " and ".join(f"t = {row['t']:g} (decay {row['decay']})" for row in (rows[0], rows[-1]))
    return "\n\n".join(
        [
            f"{k} classes of {config.rows} features, started at {config.scale:g} N(0, 1), followed to "
            f"{ends}; decay {config.decay:g} where it is on. Means over {seeds} seeds, ± standard "
            "deviation.",
            "Collapse. Predicted: the margin of a collapsed simplex frame, log(k / decay - k + 1). "
            "L t 2 k m / (k - 1) tends to 1 for one without decay. Pace: the field's norm times (1 + t) "
            "over the state's, the share by which the state moves while t grows by the factor e; "
            "without decay norms grow for ever. Balance drift: change of Z^T Z - "
            "n theta^T theta, which is conserved without decay and decays with it.",
            markdown_table(collapse),
            "Frames of theta's rows less their mean. One against rest: the least distance of a "
            "direction from the convex hull of the others; code: that of a softmax code, where it is "
            "known. Normalised margin: over root mean squares of norms; equal to 1 - cos(least angle) "
            "for directions of equal norm. Groups: sizes of mutually orthogonal groups, and in how "
            "many seeds.",
            markdown_table(frames),
            f"How many seeds are within {100 * TOLERANCE:g} % of each (collapsed: nc1 below "
            f"{TOLERANCE:g} and nc4 zero; settled: pace below {TOLERANCE:g}).",
            markdown_table(verdicts),
        ]
    )


def draw(config: Config, run: RunFolder, results: Results) -> None:
    """Every figure of the run folder."""
    ts, runs, rows, fs = results.ts, results.runs, results.rows, dimensions(config)
    names = ["without decay", f"decay {config.decay:g}"]
    title = f"{config.classes} classes of {config.rows} features, {config.seeds} seeds: "
    measures = {name: getattr(runs, name)[..., 1:] for name in figures.TITLES}
    arrays = {"ts": ts[:, 1:], "dimensions": np.array(fs), **measures}
    words = f"{title}neural collapse in f dimensions; medians and ranges of seeds"
    run.save_figure("collapse", figures.collapse(arrays, names, title=words), **arrays)
    distance = [[[one_against_rest(u) for u in s] for s in of] for of in unit_rows(runs.theta)]
    arrays = {
        "dimensions": np.array(fs), "alignment": runs.alignment[..., -1],
        "interference": runs.interference[..., -1],
        "distance": np.array(distance),
    }  # fmt: skip
    for key in ("alignment_bound", "welch_bound", "code_distance"):
        arrays[key] = np.array([row[key] for row in rows[: len(fs)]], float)
    words = f"{title}the frames at the end"
    run.save_figure("frames", figures.frames(arrays, names, title=words), **arrays)
    if 2 in fs:
        arrays = {"labels": results.labels}
        for key, a in (("features", runs.z), ("theta", runs.theta)):
            a = a[:, fs.index(2), :_SHOWN_SEEDS, :, :2]
            size = np.sqrt(np.mean(np.sum(a**2, axis=-1), axis=-1))
            arrays[key] = a / size[..., None, None]
        words = f"{title}two dimensions, each scaled to unit size"
        run.save_figure("plane", figures.plane(arrays, names, title=words), **arrays)
