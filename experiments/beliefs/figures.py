"""Figures of the beliefs experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from imr.lab import plotting
from imr.lab.plotting import panels

Arrays = Mapping[str, np.ndarray]

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
_NAMES = "ABC"

_band = partial(plotting.band, marker="o", markersize=3)


def plane(beliefs: np.ndarray) -> np.ndarray:
    """Points of the plane of three states, shape (..., 2); differences of beliefs stay differences."""
    return np.asarray(beliefs) @ _CORNERS


def simplexes(rows: Mapping[str, Arrays], colours: np.ndarray, title: str) -> Any:
    """Beliefs (n, 3) in the simplex, a panel for each set; coordinates of `colours` are the rgb."""
    columns = max(map(len, rows.values()))
    size = (3.3 * columns, 3.2 * len(rows) + 0.5)
    figure, axes = panels(len(rows), columns, size, title=title)
    closed, middle = np.append(_CORNERS, _CORNERS[:1], axis=0), _CORNERS.mean(0)
    spread = np.ptp(colours, axis=0)
    rgb = (colours - colours.min(axis=0)) / np.where(spread > 0, spread, 1)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, (panel, beliefs) in zip(line, row.items(), strict=True):
            axis.plot(*closed.T, color="0.6", linewidth=0.8)
            for corner, letter in zip(1.08 * (_CORNERS - middle) + middle, _NAMES, strict=True):
                axis.text(*corner, letter, ha="center", va="center", color="0.4", fontsize=8)
            axis.set_aspect("equal")
            axis.set_axis_off()
            axis.scatter(*plane(beliefs).T, c=rgb, s=2, linewidths=0, rasterized=True)
            axis.set_title(panel, fontsize=9, pad=10)
        where = {"transform": line[0].transAxes, "rotation": 90, "va": "center", "ha": "right"}
        line[0].text(-0.02, 0.5, name, **where)
    return figure


def patterns(rows: Sequence[Arrays], title: str) -> Any:
    """Attention patterns (l, l) as images: rows look, columns are looked at; one colour scale."""
    columns = max(map(len, rows))
    size = (3.2 * columns + 0.8, 3.1 * len(rows) + 0.4)
    figure, axes = panels(len(rows), columns, size, title=title)
    image = None
    for line, row in zip(axes, rows, strict=True):
        for axis, (panel, weights) in zip(line, row.items(), strict=True):
            end = len(weights) + 0.5
            shown = np.where(np.tri(len(weights), dtype=bool), weights, np.nan)
            image = axis.imshow(shown, vmin=0, vmax=1, extent=(0.5, end, end, 0.5))
            axis.set_title(panel, fontsize=9)
            axis.set_xlabel("position looked at")
        line[0].set_ylabel("position that looks")
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    return figure


def _lines(runs: Arrays, x, title, width=6.4, **settings) -> tuple[Any, Any]:
    """Lines with bands, (seeds, x) each, on one axis, and that axis."""
    figure = plotting.new_figure(figsize=(width, 4.2))
    axis = figure.subplots()
    for number, (name, values) in enumerate(runs.items()):
        _band(axis, x, values, name, f"C{number}")
    axis.set(**settings)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    return figure, axis


def attention_by_lag(rows: Arrays, decays: Mapping[str, float], title: str) -> Any:
    """Mean attention of the last position by lag, (seeds, l) each, beside geometric decays."""
    # Lines of decay go through the trained weight at lag 1: that at lag 0 is free, for the embedding
    # carries a part of what the last token says.
    first = next(iter(rows.values()))
    lags = np.arange(first.shape[1])
    figure, axis = _lines(rows, lags, title, xlabel="lag", ylabel="attention", yscale="log")
    for style, (name, decay) in zip(("--", ":"), decays.items(), strict=True):
        line = np.median(first[:, 1]) * np.abs(decay) ** (lags[1:] - 1.0)
        axis.plot(lags[1:], line, style, color="0.2", label=name)
    axis.legend(fontsize=8)
    return figure


def kl_by_position(curves: Arrays, title: str) -> Any:
    """KL (seeds, l) at each position, logarithmic; below 3e-8 it is rounding of float32."""
    curves = {name: np.maximum(runs, 1e-10) for name, runs in curves.items()}
    positions = np.arange(1, next(iter(curves.values())).shape[1] + 1)
    figure, axis = _lines(curves, positions, title, xlabel="position", ylabel="KL, nats")
    axis.set_yscale("log")
    axis.axhspan(1e-10, 3e-8, color="0.9", zorder=0)
    axis.legend(fontsize=8)
    return figure


def by_site(names: Sequence[str], lines: Arrays, title: str) -> Any:
    """R2 (seeds, sites) of the belief along the residual stream."""
    figure, axis = _lines(lines, np.arange(len(names)), title, 7.2, ylabel="R²")
    axis.set_xticks(np.arange(len(names)), names, rotation=45, ha="right")
    axis.legend(fontsize=8)
    return figure


def gains_by_lag(gains: Arrays, decays: Mapping[str, float], title: str) -> Any:
    """Gains (seeds, l) of the token at each lag in the decoded belief, beside the powers predicted."""
    figure, axes = panels(1, len(gains), (4.2 * len(gains), 3.6), title=title, sharey=True)
    for axis, (name, runs) in zip(axes[0], gains.items(), strict=True):
        lags, label = np.arange(runs.shape[1]), f"powers of {decays[name]:.2f}"
        axis.axhline(0, color="0.7", linewidth=0.8)
        _band(axis, lags, runs, "measured", "C0", linewidth=1)
        axis.plot(lags, decays[name] ** lags, "x", color="0.2", label=label)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("lag")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("gain")
    return figure


def signs_by_position(shown: Arrays, title: str) -> Any:
    """OV along the token vectors, (seeds, heads, l), by the position that is looked at."""
    figure, axes = panels(1, len(shown), (4.2 * len(shown), 3.6), title=title)
    for axis, (name, runs) in zip(axes[0], shown.items(), strict=True):
        axis.axhline(0, color="0.7", linewidth=0.8)
        for seed, heads in enumerate(runs):
            for head, style in zip(heads, "-:", strict=False):
                label = f"seed {seed}" if style == "-" else None
                positions, look = np.arange(1, len(head) + 1), {"marker": "o", "markersize": 3}
                axis.plot(positions, head, style, color=f"C{seed}", label=label, **look)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("position looked at")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("OV along the token's vector")
    axes[0, 0].legend(fontsize=8)
    return figure


def values(nets: Mapping[str, tuple[Any, Any]], vectors: np.ndarray, title: str) -> Any:
    """OV vectors (heads, l, k, s) and embeddings (k, s) of each token, beside the token vectors (k, s)."""
    heads = next(iter(nets.values()))[0].shape[0]
    size = (3.6 * (heads + 1), 3.5 * len(nets) + 0.4)
    title += "\nPoints are positions; lines are the predicted directions"
    figure, axes = panels(len(nets), heads + 1, size, title=title)
    predicted = plane(vectors)
    for line, (name, (ov, embeddings)) in zip(axes, nets.items(), strict=True):
        shown = {"embedding": embeddings[None], **{f"OV of head {h}": ov[h] for h in range(heads)}}
        for axis, (what, read) in zip(line, shown.items(), strict=True):
            points = plane(read)
            size = 1.15 * np.abs(points).max()
            for x, letter in enumerate(_NAMES):
                ray = predicted[x] / np.linalg.norm(predicted[x]) * size
                ends = np.stack([-ray, ray], axis=1)
                axis.plot(*ends, color=f"C{x}", linewidth=0.7, alpha=0.5)
                axis.annotate(f"v {letter}", ray, color=f"C{x}", fontsize=8, ha="center")
                axis.scatter(*points[:, x].T, color=f"C{x}", s=18, label=f"token {letter}")
            limits = (-1.2 * size, 1.2 * size)
            axis.set(xlim=limits, ylim=limits, aspect="equal")
            axis.set_title(f"{name}: {what}", fontsize=9)
            axis.tick_params(labelsize=7)
    plotting.legend_below(figure, axes[0, 0], 3, fontsize=8)
    return figure


def walk(paths: Arrays, word: np.ndarray, title: str) -> Any:
    """Contributions (l, s) to a belief as arrows head to tail, from the stationary distribution."""
    size = (4.6 * len(paths), 4.4)
    figure, axes = panels(1, len(paths), size, title=title, sharex=True, sharey=True)
    for axis, (name, steps) in zip(axes[0], paths.items(), strict=True):
        # Parts along (1, 1, 1) are none of the belief's.
        moves = plane(steps - steps.mean(axis=1, keepdims=True))
        points = np.cumsum(np.concatenate([plane(np.full((1, 3), 1 / 3)), moves]), axis=0)
        axis.plot(*points.T, color="0.8", linewidth=0.5)  # sets the limits, too
        axis.plot(*points[0], "o", color="0.4", markersize=6)
        axis.plot(*points[-1], "*", color="black", markersize=10)
        for number, (token, a, b) in enumerate(zip(word, points[:-1], points[1:], strict=True), 1):
            arrow = {"arrowstyle": "-|>", "color": f"C{token}", "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", b, a, arrowprops=arrow)
            look = {
                "color": f"C{token}",
                "fontsize": 9,
                "va": "center",
                "textcoords": "offset points",
            }
            axis.annotate(f"{_NAMES[token]}{number}", (a + b) / 2, (5, 0), **look)
        axis.set_aspect("equal")
        axis.margins(0.15)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    return figure
