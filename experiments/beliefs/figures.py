"""Figures of the beliefs experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.lab.plotting import new_figure

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
_NAMES = "ABC"


def plane(beliefs: np.ndarray) -> np.ndarray:
    """Points of the plane of three states, shape (..., 2); differences of beliefs stay differences."""
    return np.asarray(beliefs) @ _CORNERS


def _triangle(axis):
    closed = np.append(_CORNERS, _CORNERS[:1], axis=0)
    axis.plot(closed[:, 0], closed[:, 1], color="0.6", linewidth=0.8)
    for corner, name in zip(_CORNERS, _NAMES, strict=True):
        axis.text(
            *(1.08 * (corner - _CORNERS.mean(0)) + _CORNERS.mean(0)),
            name,
            ha="center",
            va="center",
            color="0.4",
            fontsize=8,
        )
    axis.set_aspect("equal")
    axis.set_axis_off()


def simplexes(
    rows: Sequence[Mapping[str, np.ndarray]],
    names: Sequence[str],
    colours: np.ndarray,
    *,
    title: str = "",
) -> Any:
    """Beliefs as points of the simplex, one panel for each set.

    Args:
      rows: panels of each row, name to beliefs (n, 3).
      names: of the rows.
      colours: beliefs (n, 3) whose coordinates are the red, green and blue of every panel's points.
      title: above it all.
    """
    columns = max(map(len, rows))
    figure = new_figure(figsize=(3.3 * columns, 3.2 * len(rows) + 0.5))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    spread = np.ptp(colours, axis=0)
    rgb = (colours - colours.min(axis=0)) / np.where(spread > 0, spread, 1)
    for line, row, name in zip(axes, rows, names, strict=True):
        for axis, (panel, beliefs) in zip(line, row.items(), strict=True):
            _triangle(axis)
            points = plane(beliefs)
            axis.scatter(points[:, 0], points[:, 1], c=rgb, s=2, linewidths=0, rasterized=True)
            axis.set_title(panel, fontsize=9, pad=10)
        if name:
            line[0].text(
                -0.02, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="right"
            )
    figure.suptitle(title, fontsize=10)
    return figure


def patterns(rows: Sequence[Mapping[str, np.ndarray]], *, title: str = "") -> Any:
    """Attention patterns (l, l) as images: rows look, columns are looked at; one colour scale."""
    columns = max(map(len, rows))
    figure = new_figure(figsize=(3.2 * columns + 0.8, 3.1 * len(rows) + 0.4))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    image = None
    for line, row in zip(axes, rows, strict=True):
        for axis, (panel, weights) in zip(line, row.items(), strict=True):
            length = len(weights)
            shown = np.where(np.tri(length, dtype=bool), weights, np.nan)
            image = axis.imshow(
                shown, vmin=0, vmax=1, cmap="viridis", extent=(0.5, length + 0.5, length + 0.5, 0.5)
            )
            axis.set_title(panel, fontsize=9)
            axis.set_xlabel("position looked at")
        line[0].set_ylabel("position that looks")
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    figure.suptitle(title, fontsize=10)
    return figure


def _band(axis, x, runs, label, colour, **options):
    """Median of the seeds and their range."""
    axis.plot(
        x, np.median(runs, axis=0), color=colour, label=label, marker="o", markersize=3, **options
    )
    axis.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def attention_by_lag(
    rows: Mapping[str, np.ndarray], decays: Mapping[str, float], *, title: str = ""
) -> Any:
    """Mean attention of the last position by lag, (seeds, l) each, beside geometric decays.

    Lines of decay go through the trained weight at lag 1: the weight at lag 0 is free, for the
    embedding carries a part of what the last token says.
    """
    figure = new_figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    for number, (name, runs) in enumerate(rows.items()):
        _band(axis, np.arange(runs.shape[1]), runs, name, f"C{number}")
    first = next(iter(rows.values()))
    lags = np.arange(1, first.shape[1])
    for style, (name, decay) in zip(("--", ":"), decays.items(), strict=True):
        line = np.median(first[:, 1]) * np.abs(decay) ** (lags - 1.0)
        axis.plot(lags, line, style, color="0.2", label=name)
    axis.set(xlabel="lag", ylabel="attention", yscale="log")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def gains_by_lag(
    gains: Mapping[str, np.ndarray], decays: Mapping[str, float], *, title: str = ""
) -> Any:
    """Gains (seeds, l) of the token at each lag in the decoded belief, beside the powers predicted."""
    figure = new_figure(figsize=(4.2 * len(gains), 3.6))
    axes = figure.subplots(1, len(gains), squeeze=False, sharey=True)[0]
    for axis, (name, runs) in zip(axes, gains.items(), strict=True):
        lags = np.arange(runs.shape[1])
        axis.axhline(0, color="0.7", linewidth=0.8)
        _band(axis, lags, runs, "measured", "C0", linewidth=1)
        axis.plot(
            lags, decays[name] ** lags, "x", color="0.2", label=f"powers of {decays[name]:.2f}"
        )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("lag")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("gain")
    figure.suptitle(title, fontsize=10)
    return figure


def signs_by_position(panels: Mapping[str, np.ndarray], *, title: str = "") -> Any:
    """OV along the token vectors, (seeds, heads, l), by the position that is looked at."""
    figure = new_figure(figsize=(4.2 * len(panels), 3.6))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, runs) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color="0.7", linewidth=0.8)
        for seed, heads in enumerate(runs):
            for head, style in zip(heads, "-:", strict=False):
                label = f"seed {seed}" if style == "-" else None
                positions = np.arange(1, len(head) + 1)
                axis.plot(
                    positions, head, style, color=f"C{seed}", marker="o", markersize=3, label=label
                )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("position looked at")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("OV along the token's vector")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def kl_by_position(curves: Mapping[str, np.ndarray], *, title: str = "") -> Any:
    """KL (seeds, l) at each position, logarithmic; below 3e-8 it is rounding of float32."""
    figure = new_figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    for number, (name, runs) in enumerate(curves.items()):
        positions = np.arange(1, runs.shape[1] + 1)
        _band(axis, positions, np.maximum(runs, 1e-10), name, f"C{number}")
    axis.axhspan(1e-10, 3e-8, color="0.9", zorder=0)
    axis.set(xlabel="position", ylabel="KL, nats", yscale="log")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def by_site(names: Sequence[str], lines: Mapping[str, np.ndarray], *, title: str = "") -> Any:
    """R2 (seeds, sites) of the belief along the residual stream."""
    figure = new_figure(figsize=(7.2, 4.2))
    axis = figure.subplots()
    for number, (name, runs) in enumerate(lines.items()):
        _band(axis, np.arange(len(names)), runs, name, f"C{number}")
    axis.set_xticks(np.arange(len(names)), names, rotation=45, ha="right")
    axis.set_ylabel("R²")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def values(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], vectors: np.ndarray, *, title: str = ""
) -> Any:
    """OV vectors and embeddings of each token in belief space, beside the token vectors.

    Args:
      panels: name to OV vectors (heads, l, k, s), centred over tokens, and embeddings (k, s).
      vectors: v, shape (k, s): predicted directions.
      title: above it all.
    """
    heads = next(iter(panels.values()))[0].shape[0]
    columns = heads + 1
    figure = new_figure(figsize=(3.6 * columns, 3.5 * len(panels) + 0.4))
    axes = figure.subplots(len(panels), columns, squeeze=False)
    wanted = plane(vectors)
    for line, (name, (ov, embeddings)) in zip(axes, panels.items(), strict=True):
        shown = {"embedding": embeddings[None], **{f"OV of head {h}": ov[h] for h in range(heads)}}
        for axis, (what, read) in zip(line, shown.items(), strict=True):
            points = plane(read)
            size = 1.15 * np.abs(points).max()
            for x, letter in enumerate(_NAMES):
                ray = wanted[x] / np.linalg.norm(wanted[x]) * size
                axis.plot(
                    [-ray[0], ray[0]], [-ray[1], ray[1]], color=f"C{x}", linewidth=0.7, alpha=0.5
                )
                axis.annotate(f"v {letter}", ray, color=f"C{x}", fontsize=8, ha="center")
                axis.scatter(*points[:, x].T, color=f"C{x}", s=18, label=f"token {letter}")
            axis.set_aspect("equal")
            axis.set_xlim(-1.2 * size, 1.2 * size)
            axis.set_ylim(-1.2 * size, 1.2 * size)
            axis.set_title(f"{name}: {what}", fontsize=9)
            axis.tick_params(labelsize=7)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.suptitle(
        f"{title}\nPoints are positions; lines are the predicted directions", fontsize=10
    )
    return figure


def walk(paths: Mapping[str, np.ndarray], word: np.ndarray, *, title: str = "") -> Any:
    """Contributions (l, s) to a belief as arrows head to tail, from the stationary distribution."""
    figure = new_figure(figsize=(4.6 * len(paths), 4.4))
    axes = figure.subplots(1, len(paths), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (name, steps) in zip(axes, paths.items(), strict=True):
        # Parts along (1, 1, 1) are none of the belief's.
        moves = plane(steps - steps.mean(axis=1, keepdims=True))
        points = np.cumsum(np.concatenate([plane(np.full((1, 3), 1 / 3)), moves]), axis=0)
        axis.plot(*points.T, color="0.8", linewidth=0.5)  # sets the limits, too
        axis.plot(*points[0], "o", color="0.4", markersize=6)
        axis.plot(*points[-1], "*", color="black", markersize=10)
        for number, (token, a, b) in enumerate(zip(word, points[:-1], points[1:], strict=True), 1):
            arrow = {"arrowstyle": "-|>", "color": f"C{token}", "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", b, a, arrowprops=arrow)
            axis.annotate(
                f"{_NAMES[token]}{number}", (a + b) / 2, (5, 0), textcoords="offset points",
                color=f"C{token}", fontsize=9, va="center",
            )  # fmt: skip
        axis.set_aspect("equal")
        axis.margins(0.15)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure
