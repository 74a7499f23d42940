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


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the figures, the tables and the summary into the run folder."""
    draw(config, run, results.betas, results.ts, results.solved)
    summary = {"table": results.rows, "column_term": results.changes, "later": results.later}
    run.finish(summary, tables(config, results.betas, results.rows, results.changes))


def tables(config: Config, betas, rows, changes) -> str:
    """The tables that a reader wants first, in Markdown."""
    chosen = [float(betas[i]) for i in nearest(betas, config.shown)]
    flows = "random phi" if config.rank is not None else "phi the identity"
    parts = [
        f"{config.tokens} tokens in {config.dim} dimensions, {flows}, {config.seeds} seeds: mean ± "
        "standard deviation over seeds at the last time reached. Time is that of Geshkovski et al., "
        "beta times that of imr's gradient flow; half time is the median over seeds of when half as "
        "many clusters as tokens are left; plateau is the longest stay, in decades of time, at a "
        "number of clusters above one and up to half the tokens.",
        "",
        markdown_table([_printed(row) for row in rows if row["beta"] in chosen]),
        "",
        "What the column term changes, the same tokens with it and without it:",
        "",
        markdown_table([_printed_change(row) for row in changes if row["beta"] in chosen]),
        "",
        *findings(config, rows, changes),
    ]
    return "\n".join(parts)


def _names(row) -> dict[str, Any]:
    return {
        "sign": SIGNS[row["sign"]],
        "sphere": "yes" if row["sphere"] else "no",
        **({"column": "yes" if row["column_term"] else "no"} if "column_term" in row else {}),
        "beta": f"{row['beta']:.3g}",
    }


def _printed(row) -> dict[str, Any]:
    time, plateau = row["half_clustering_time"], row["plateau_clusters"]
    codes = [f"{row[c.name.lower()]} {c.name.lower()}" for c in Result if row[c.name.lower()]]
    return {
        **_names(row), "mean cosine": cell(row, "mean_cosine", "+.3f"),
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
        **_names(row),
        "half time without / with": "-" if ratio is None else f"{ratio:.2f}",
        "clusters": cell(row, "clusters_change", "+.1f"),
        "seeds that differ": f"{100 * row['clusters_differ_share']:.0f}%",
        "mean cosine": cell(row, "mean_cosine_change", "+.3f"),
    }


def findings(config: Config, rows, changes) -> list[str]:
    """Computed sentences: energies, gradients, and what the column term changes."""
    lines = []
    for column in (True, False):
        own = [row for row in rows if row["column_term"] == column]
        worst = {
            k: max(row[f"{k}_violations"] for row in own) for k in ("attention", "interaction")
        }
        shares = [row["antisymmetric_share_start"] for row in own]
        cosines = [r["gradient_cosine_min"] for r in own if r["gradient_cosine_min"] is not None]
        lines.append(
            f"- {'With' if column else 'Without'} the column term: antisymmetric share of the "
            f"Jacobian at the start {min(shares):.1e} to {max(shares):.1e} over beta; the least "
            f"cosine with the gradient of the log-sum-exp on any path {min(cosines):.3f}; steps "
            f"against the sign, at most over flows and beta: log-sum-exp "
            f"{100 * worst['attention']:.2g}%, interaction energy {100 * worst['interaction']:.2g}%."
        )
    for sign in SIGNS:
        for sphere in (True, False):
            own = [r for r in changes if (r["sign"], r["sphere"]) == (sign, sphere)]
            ratios = [r["half_time_ratio"] for r in own if r["half_time_ratio"] is not None]
            where = f"- {SIGNS[sign].capitalize()} {'on' if sphere else 'off'} the sphere: "
            speed = "no pair of flows comes to half as many clusters as tokens; "
            if ratios:
                speed = (
                    f"without the column term half-clustering takes {min(ratios):.2f} to "
                    f"{max(ratios):.2f} times as long, by beta; "
                )
            differ = np.mean([r["clusters_differ_share"] for r in own])
            change = np.mean([r["clusters_change"] for r in own])
            lines.append(
                f"{where}{speed}at the last time that both reach, the number of clusters differs in "
                f"{100 * differ:.0f}% of pairs, by {change:+.2f} on average with the column term."
            )
    short = [row for row in rows if row["success"] < config.seeds]
    if short:
        times, norms = ([row[key] for row in short] for key in ("last_time", "norm"))
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
    # Arrays of measures have time 0 first, which a log axis has no place for.
    means = {
        setting: [seed_mean(np.asarray(x)[..., 1:]) for x in flows.measures[:2]]
        for setting, flows in solved.items()
    }
    grid = {"betas": betas, "times": ts}
    some = nearest(betas, config.shown)
    for sign, direction in SIGNS.items():
        own = [setting for setting in SETTINGS if setting.sign == sign]
        words = f"{direction}, {config.tokens} tokens in {config.dim} dimensions"
        for index, name, label, cmap in (
            (0, "cosine", "mean cosine of two tokens", "viridis"),
            (1, "clusters", "clusters", "cividis"),
        ):
            panels = [{"title": f"{s.place}, {s.terms}", "values": means[s][index]} for s in own]
            values = np.stack([panel["values"] for panel in panels])
            # Descent changes little: its own range shows it.
            log = name == "clusters" and sign > 0
            limits = (1, config.tokens) if log else (np.nanmin(values), np.nanmax(values))
            figure = figures.phase_diagram(
                panels, betas, ts, title=words.capitalize(), label=label, limits=limits, log=log,
                cmap=cmap,
            )  # fmt: skip
            arrays = {_key(s): means[s][index] for s in own}
            run.save_figure(f"phase_{name}_{direction}", figure, **grid, **arrays)
        for sphere in (True, False):
            _draw_paths(run, [s for s in own if s.sphere == sphere], betas, ts, some, solved)
        _draw_histograms(config, run, [s for s in own if s.sphere], betas, ts, some, solved)
    _draw_single(config, run, betas, ts, solved)
    _draw_energy(config, run, betas, ts, some, solved)


def _key(setting: Setting) -> str:
    return (
        f"{'sphere' if setting.sphere else 'plane'}_{setting.terms.replace(' + ', '_').split()[0]}"
    )


def _draw_paths(run: RunFolder, own, betas, ts, some, solved) -> None:
    sphere, direction = own[0].sphere, own[0].direction
    paths = {s: solved[s].paths[some][:, 1:] for s in own}
    dim = paths[own[0]].shape[-1]
    kind = (
        "angle" if sphere and dim == 2 else "disc" if sphere or direction == "descent" else "scaled"
    )
    rows = [{"title": s.terms, "paths": paths[s]} for s in own]
    title = f"{direction.capitalize()} {own[0].place}"
    title += ", over the largest norm at the time" if kind == "scaled" else ""
    figure = figures.trajectories(rows, betas[some], ts, kind=kind, title=title)
    arrays = {_key(s): path for s, path in paths.items()}
    run.save_figure(
        f"trajectories_{'sphere' if sphere else 'plane'}_{direction}", figure,
        betas=betas[some], times=ts, **arrays,
    )  # fmt: skip


def _draw_histograms(config, run: RunFolder, own, betas, ts, some, solved) -> None:
    pairs = config.tokens * (config.tokens - 1) / 2
    shares = {
        s: seed_mean(np.asarray(solved[s].measures.histogram))[some][:, 1:] / pairs for s in own
    }
    rows = [{"title": s.terms, "shares": shares[s]} for s in own]
    title = f"Cosines of pairs of tokens, {own[0].direction} on the sphere, {config.seeds} seeds"
    figure = figures.cosine_histograms(rows, betas[some], ts, title=title)
    arrays = {_key(s): share for s, share in shares.items()}
    run.save_figure(
        f"cosines_{own[0].direction}", figure, betas=betas[some], times=ts, **arrays
    )  # fmt: skip


def _draw_single(config: Config, run: RunFolder, betas, ts, solved) -> None:
    """As Geshkovski et al. draw it: how likely it is that there is one cluster."""
    panels, arrays = [], {}
    fine, curve = np.geomspace(ts[0], ts[-1], 400), np.geomspace(betas[0], betas[-1], 100)
    for setting in SETTINGS:
        if not setting.sphere or setting.sign < 0:
            continue
        clusters = np.asarray(solved[setting].measures.clusters)[..., 1:]
        share = seed_mean(np.where(np.isfinite(clusters), clusters == 1, np.nan))
        panel = {"title": setting.terms, "values": share}
        arrays[_key(setting)] = share
        if config.rank is None:
            cosine = orthogonal_cosine(config.tokens, curve, fine, 1.0 + setting.column_term)
            there = cosine >= 1 - config.threshold
            reached = np.where(there.any(axis=1), fine[there.argmax(axis=1)], np.nan)
            panel["curve"] = (reached, curve)
            panel["curve_label"] = "closed form: all cosines reach 1 − threshold, orthogonal start"
            arrays[f"{_key(setting)}_curve"] = reached
        panels.append(panel)
    figure = figures.phase_diagram(
        panels, betas, ts, label="share of seeds in one cluster", limits=(0, 1), cmap="Blues",
        title=f"Ascent on the sphere, {config.tokens} tokens in {config.dim} dimensions, "
        f"{config.seeds} seeds",
    )  # fmt: skip
    run.save_figure("phase_one_cluster", figure, betas=betas, times=ts, curve_betas=curve, **arrays)


def _draw_energy(config: Config, run: RunFolder, betas, ts, some, solved) -> None:
    panels, arrays = [], {}
    # Off the sphere ascent grows without bound.
    for sign, sphere in ((1, True), (-1, True), (-1, False)):
        lines = []
        for setting in SETTINGS:
            if (setting.sign, setting.sphere) != (sign, sphere):
                continue
            energy = np.asarray(solved[setting].measures.attention_energy)
            change = seed_mean(energy - energy[..., :1])[some, 1:] / config.tokens
            arrays[f"{_key(setting)}_{setting.direction}"] = change
            lines += [
                {
                    "values": values, "colour": i, "dashed": not setting.column_term,
                    "label": rf"$\beta = {betas[b]:.3g}$, {setting.terms}",
                }
                for i, (b, values) in enumerate(zip(some, change, strict=True))
            ]  # fmt: skip
        label = r"change of $\frac{1}{n\beta} \sum_i \mathrm{LSE}_i$"
        place = f"{SIGNS[sign]} {'on' if sphere else 'off'} the sphere"
        panels.append({"title": place.capitalize(), "lines": lines, "label": label})
    title = f"The log-sum-exp along the flows, mean over {config.seeds} seeds"
    figure = figures.energy_curves(panels, ts, title=title)
    run.save_figure("energy", figure, betas=betas[some], times=ts, **arrays)
