"""Figures of the collapse experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.lab.plotting import new_figure

_TITLES = {
    "nc1": "nc1, scatter within classes", "nc2": "nc2, distance to a simplex frame",
    "nc3": "nc3, theta against class means", "nc4": "nc4, not at the nearest mean",
}  # fmt: skip


def collapse(
    ts: np.ndarray, measures: Mapping[str, np.ndarray], names: Sequence[str],
    dimensions: Sequence[int], *, floor: float = 1e-7, title: str = "",
) -> Any:  # fmt: skip
    """The four measures of neural collapse in time."""
    figure = new_figure(figsize=(14, 3.3 * len(names) + 0.9))
    axes = figure.subplots(len(names), 4, squeeze=False)
    shades = np.linspace(0.05, 0.92, len(dimensions))
    colours = _colours(shades)
    for row, name in enumerate(names):
        for axis, (key, values) in zip(axes[row], measures.items(), strict=True):
            for f, colour, runs in zip(dimensions, colours, values[row], strict=True):
                runs = runs if key == "nc4" else np.maximum(runs, floor)
                axis.plot(ts[row], np.median(runs, axis=0), color=colour, label=f"f = {f}")
                axis.fill_between(
                    ts[row], runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.2,
                    linewidth=0,
                )  # fmt: skip
            axis.set(xscale="log", yscale="linear" if key == "nc4" else "log")
            axis.set_title(_TITLES[key], fontsize=9)
            axis.set_xlabel("time t")
            axis.grid(alpha=0.3)
        axes[row, 0].set_ylabel(name)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
        ncols=len(dimensions), fontsize=9,
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    return figure


def _colours(shades: np.ndarray) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](shades)


def plane(
    features: np.ndarray, theta: np.ndarray, labels: np.ndarray, names: Sequence[str], *,
    title: str = "",
) -> Any:  # fmt: skip
    """Features and theta in two dimensions at the end."""
    rows, seeds = features.shape[:2]
    figure = new_figure(figsize=(2.7 * seeds + 0.4, 2.75 * rows + 0.9))
    axes = figure.subplots(rows, seeds, squeeze=False, sharex=True, sharey=True)
    angle = np.linspace(0, 2 * np.pi, 200)
    for row in range(rows):
        for seed in range(seeds):
            axis, weights = axes[row, seed], theta[row, seed]
            axis.plot(np.cos(angle), np.sin(angle), color="0.8", linewidth=0.8, zorder=0)
            for c, weight in enumerate(weights):
                colour = f"C{c % 10}"
                axis.plot([0, weight[0]], [0, weight[1]], color=colour, linewidth=1.2)
                axis.scatter(*weight, marker="^", s=60, facecolor="none", edgecolor=colour)
                axis.scatter(*features[row, seed, labels == c].T, s=14, color=colour, alpha=0.7)
            axis.set_aspect("equal")
            axis.grid(alpha=0.2)
            if row == 0:
                axis.set_title(f"seed {seed}", fontsize=9)
            if row == rows - 1:
                axis.set_xlabel("first coordinate")
        axes[row, 0].set_ylabel(f"{names[row]}\nsecond coordinate")
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color="0.3", marker="o", linestyle="", markersize=4, label="features"),
        Line2D([], [], color="0.3", marker="^", markerfacecolor="none", label="rows of theta"),
        Line2D([], [], color="0.8", label="unit circle"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def frames(
    dimensions: Sequence[int], panels: Sequence[Mapping[str, Any]], names: Sequence[str], *,
    title: str = "",
) -> Any:  # fmt: skip
    """What frames the runs end in, against the dimension, beside the bounds."""
    figure = new_figure(figsize=(4.2 * len(panels), 4.1))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    x = np.asarray(dimensions, float)
    for axis, panel in zip(axes, panels, strict=True):
        axis.plot(
            x, panel["bound"], color="k", linestyle="--", marker="_", label=panel["bound_label"]
        )
        for number, (name, values) in enumerate(zip(names, panel["values"], strict=True)):
            shift = 0.12 * (number - (len(names) - 1) / 2)
            colour = f"C{number}"
            axis.plot(x + shift, values.mean(axis=1), color=colour, linewidth=1, label=name)
            axis.plot(x + shift, values, color=colour, marker="o", markersize=4, alpha=0.5,
                      linestyle="")  # fmt: skip
        axis.set_xlabel("dimensions f")
        axis.set_ylabel(panel["label"])
        axis.set_xticks(x)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
