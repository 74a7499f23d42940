"""Tables to read and figures of the tokens experiment."""

from typing import Any

import numpy as np

from experiments.tokens import figures
from experiments.tokens.config import Config
from experiments.tokens.flows import SETTINGS, Flows, Setting
from experiments.tokens.measures import Results, nearest, seed_mean
from experiments.tokens.theory import orthogonal_cosine
from imr import Result
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lab.seeds import cell

SIGNS = {1: "ascent", -1: "descent"}
_YES = {True: "yes", False: "no"}


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the figures, the tables and the summary into the run folder."""
    draw(config, run, results.betas, results.ts, results.solved)
    summary = {"table": results.rows, "column_term": results.changes, "later": results.later}
    run.finish(summary, tables(config, results.betas, results.rows, results.changes))


def tables(config: Config, betas, rows, changes) -> str:
    """The tables that a reader wants first, in Markdown."""
    chosen = [float(betas[i]) for i in nearest(betas, config.shown)]
    phi = "random phi" if config.rank is not None else "phi the identity"
    return "\n\n".join(
        [
            f"{config.tokens} tokens in {config.dim} dimensions, {phi}, {config.seeds} seeds: mean ± "
            "standard deviation over seeds at the last time reached. Time is that of Geshkovski et al., "
            "beta times that of imr's gradient flow; half time is the median over seeds of when half as "
            "many clusters as tokens are left; plateau is the longest stay, in decades of time, at a "
            "number of clusters above one and up to half the tokens.",
            markdown_table([_printed(row) for row in rows if row["beta"] in chosen]),
            "What the column term changes, the same tokens with it and without it:",
            markdown_table([_printed_change(row) for row in changes if row["beta"] in chosen]),
            "\n".join(findings(config, rows, changes)),
        ]
    )


def _printed(row) -> dict[str, Any]:
    time, plateau = row["half_clustering_time"], row["plateau_clusters"]
    codes = [f"{row[c.name.lower()]} {c.name.lower()}" for c in Result if row[c.name.lower()]]
    return {
        "sign": SIGNS[row["sign"]], "sphere": _YES[row["sphere"]], "column": _YES[row["column_term"]],
        "beta": f"{row['beta']:.3g}", "mean cosine": cell(row, "mean_cosine", "+.3f"),
        "clusters": cell(row, "clusters", ".1f"),
        "half time": "never" if time is None else f"{time:.3g}",
        "plateau": "-" if plateau is None else f"{row['plateau_decades']:.2f} at {plateau:g}",
        "antisymmetric": f"{row['antisymmetric_share_start']:.1e}",
        "energy falls": f"{100 * row['attention_violations']:.2g}%",
        "last time": f"{row['last_time']:.3g}", "results": ", ".join(codes),
    }  # fmt: skip


def _printed_change(row) -> dict[str, Any]:
    ratio = row["half_time_ratio"]
    return {
        "sign": SIGNS[row["sign"]], "sphere": _YES[row["sphere"]], "beta": f"{row['beta']:.3g}",
        "half time without / with": "-" if ratio is None else f"{ratio:.2f}",
        "clusters": cell(row, "clusters_change", "+.1f"),
        "seeds that differ": f"{100 * row['clusters_differ_share']:.0f}%",
        "mean cosine": cell(row, "mean_cosine_change", "+.3f"),
    }  # fmt: skip


def _column(rows, key: str) -> list[float]:
    return [row[key] for row in rows if row[key] is not None]


def findings(config: Config, rows, changes) -> list[str]:
    """Computed sentences: energies, gradients, and what the column term changes."""
    lines = []
    for column, words in ((True, "With"), (False, "Without")):
        own = [row for row in rows if row["column_term"] == column]
        shares = _column(own, "antisymmetric_share_start")
        lines.append(
            f"- {words} the column term: antisymmetric share of the Jacobian at the start "
            f"{min(shares):.1e} to {max(shares):.1e} over beta; the least cosine with the gradient "
            f"of the log-sum-exp on any path {min(_column(own, 'gradient_cosine_min')):.3f}; steps "
            "against the sign, at most over flows and beta: log-sum-exp "
            f"{100 * max(_column(own, 'attention_violations')):.2g}%, interaction energy "
            f"{100 * max(_column(own, 'interaction_violations')):.2g}%."
        )
    for setting in [s for s in SETTINGS if s.column_term]:
        own = [r for r in changes if (r["sign"], r["sphere"]) == (setting.sign, setting.sphere)]
        ratios, change = _column(own, "half_time_ratio"), np.mean(_column(own, "clusters_change"))
        differ = np.mean(_column(own, "clusters_differ_share"))
        speed = "no pair of flows comes to half as many clusters as tokens"
        if ratios:
            times = f"{min(ratios):.2f} to {max(ratios):.2f} times as long, by beta"
            speed = f"without the column term half-clustering takes {times}"
        lines.append(
            f"- {setting.direction.capitalize()} {setting.place}: {speed}; at the last time that both "
            f"reach, the number of clusters differs in {100 * differ:.0f}% of pairs, by {change:+.2f} "
            "on average with the column term."
        )
    short = [row for row in rows if row["success"] < config.seeds]
    if short:
        times, norms = _column(short, "last_time"), _column(short, "norm")
        kinds = sorted({f"{SIGNS[r['sign']]} {'on' if r['sphere'] else 'off'}" for r in short})
        lines.append(
            f"- Not solved to the end: {len(short)} of {len(rows)} rows ({', '.join(kinds)} the "
            f"sphere), last measured at median times {min(times):.3g} to {max(times):.3g} with mean "
            f"norms {min(norms):.1e} to {max(norms):.1e}. Rows of a softmax average and columns sum "
            "to n at most, so that features grow no faster than exponentially, never to infinity in "
            "finite time; the logits, quadratic in them, run out of digits and then of range."
        )
    return lines


def draw(config: Config, run: RunFolder, betas, ts, solved: dict[Setting, Flows]) -> None:
    """Every figure of the run folder, with its arrays; imr's own time is times / beta."""
    some = nearest(betas, config.shown)
    for sign, direction in SIGNS.items():
        own = [setting for setting in SETTINGS if setting.sign == sign]
        _draw_phases(config, run, own, betas, ts, solved)
        for sphere in (True, False):
            paths = {s: solved[s].paths[some][:, 1:] for s in own if s.sphere == sphere}
            _draw_paths(run, paths, betas[some], ts)
        pairs = config.tokens * (config.tokens - 1) / 2
        shares = {
            s: seed_mean(solved[s].measures.histogram)[some][:, 1:] / pairs for s in own if s.sphere
        }
        title = f"Cosines of pairs of tokens, {direction} on the sphere, {config.seeds} seeds"
        figure = figures.cosine_histograms(shares, betas[some], ts, title=title)
        _save(run, f"cosines_{direction}", figure, shares, betas[some], ts)
    _draw_single(config, run, betas, ts, solved)
    _draw_energy(config, run, betas[some], ts, solved, some)


def _save(run: RunFolder, name: str, figure, values: dict[Setting, np.ndarray], betas, ts, **more):
    arrays = {setting.key: array for setting, array in values.items()}
    run.save_figure(name, figure, betas=betas, times=ts, **arrays, **more)


# Arrays of measures have time 0 first, which a log axis has no place for.


def _draw_phases(config: Config, run: RunFolder, own: list[Setting], betas, ts, solved) -> None:
    direction = own[0].direction
    title = f"{direction.capitalize()}, {config.tokens} tokens in {config.dim} dimensions"
    for name, measure, label, cmap in (
        ("cosine", "mean_cosine", "mean cosine of two tokens", "viridis"),
        ("clusters", "clusters", "clusters", "cividis"),
    ):
        means = {s: seed_mean(getattr(solved[s].measures, measure)[..., 1:]) for s in own}
        values = np.stack(list(means.values()))
        # Descent changes little: its own range shows it.
        log = name == "clusters" and direction == "ascent"
        limits = (1, config.tokens) if log else (np.nanmin(values), np.nanmax(values))
        figure = figures.phase_diagram(
            {f"{s.place}, {s.terms}": array for s, array in means.items()}, betas, ts,
            title=title, label=label, limits=limits, log=log, cmap=cmap, curves={},
        )  # fmt: skip
        _save(run, f"phase_{name}_{direction}", figure, means, betas, ts)


def _draw_paths(run: RunFolder, paths: dict[Setting, np.ndarray], betas, ts) -> None:
    first, kind = next(iter(paths)), "disc"
    title = f"{first.direction.capitalize()} {first.place}"
    if first.sphere and paths[first].shape[-1] == 2:
        kind = "angle"
    elif not first.sphere and first.sign > 0:
        kind, title = "scaled", f"{title}, over the largest norm at the time"
    figure = figures.trajectories(paths, betas, ts, kind=kind, title=title)
    _save(run, f"trajectories_{first.surface}_{first.direction}", figure, paths, betas, ts)


def _draw_single(config: Config, run: RunFolder, betas, ts, solved) -> None:
    """As Geshkovski et al. draw it: how likely it is that there is one cluster."""
    shares, curves, arrays = {}, {}, {}
    fine, curve = np.geomspace(ts[0], ts[-1], 400), np.geomspace(betas[0], betas[-1], 100)
    for setting in [s for s in SETTINGS if s.sphere and s.sign > 0]:
        clusters = solved[setting].measures.clusters[..., 1:]
        shares[setting] = seed_mean(np.where(np.isfinite(clusters), clusters == 1, np.nan))
        if config.rank is None:
            cosine = orthogonal_cosine(config.tokens, curve, fine, 1.0 + setting.column_term)
            there = cosine >= 1 - config.threshold
            reached = np.where(there.any(axis=1), fine[there.argmax(axis=1)], np.nan)
            curves[setting.terms] = (reached, curve)
            arrays[f"{setting.key}_curve"] = reached
    figure = figures.phase_diagram(
        {s.terms: share for s, share in shares.items()}, betas, ts, limits=(0, 1), cmap="Blues",
        label="share of seeds in one cluster", curves=curves,
        curve_label="closed form: all cosines reach 1 − threshold, orthogonal start",
        title=f"Ascent on the sphere, {config.tokens} tokens in {config.dim} dimensions, "
        f"{config.seeds} seeds",
    )  # fmt: skip
    _save(run, "phase_one_cluster", figure, shares, betas, ts, curve_betas=curve, **arrays)


def _draw_energy(config: Config, run: RunFolder, betas, ts, solved, some) -> None:
    places, arrays = {}, {}
    for setting in SETTINGS:
        if setting.sign > 0 and not setting.sphere:
            continue  # it grows without bound
        energy = solved[setting].measures.attention_energy
        change = seed_mean(energy - energy[..., :1])[some, 1:] / config.tokens
        places.setdefault(f"{setting.direction} {setting.place}".capitalize(), {})[setting] = change
        arrays[f"{setting.key}_{setting.direction}"] = change
    figure = figures.energy_curves(
        places, betas, ts, label=r"change of $\frac{1}{n\beta} \sum_i \mathrm{LSE}_i$",
        title=f"The log-sum-exp along the flows, mean over {config.seeds} seeds",
    )  # fmt: skip
    run.save_figure("energy", figure, betas=betas, times=ts, **arrays)
