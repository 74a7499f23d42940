"""Figures of the collapse experiment: from the arrays saved beside them to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.lab.plotting import band, legend_below, panels

TITLES = {
    "nc1": "nc1, scatter within classes", "nc2": "nc2, distance to a simplex frame",
    "nc3": "nc3, theta against class means", "nc4": "nc4, not at the nearest mean",
}  # fmt: skip
_FLOOR = 1e-7
_FRAMES = (
    ("alignment", "alignment of class means with a simplex frame",
     "alignment_bound", "bound, √(f / (k − 1)) up to 1"),
    ("interference", "mean interference of theta", "welch_bound", "Welch's bound, from below"),
    ("distance", "least distance, one against rest", "code_distance", "softmax code, where known"),
)  # fmt: skip


def collapse(a: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Any:
    """The four measures of neural collapse in time."""
    from matplotlib import colormaps

    fs = a["dimensions"]
    figure, axes = panels(len(names), 4, (14, 3.3 * len(names) + 0.9), title=title)
    colours: Any = colormaps["viridis"](np.linspace(0.05, 0.92, len(fs)))
    for row, ts in enumerate(a["ts"]):
        for axis, (key, text) in zip(axes[row], TITLES.items(), strict=True):
            for f, colour, runs in zip(fs, colours, a[key][row], strict=True):
                runs = runs if key == "nc4" else np.maximum(runs, _FLOOR)
                band(axis, ts, runs, f"f = {f}", colour)
            axis.set(xscale="log", yscale="linear" if key == "nc4" else "log", xlabel="time t")
            axis.set_title(text, fontsize=9)
            axis.grid(alpha=0.3)
        axes[row, 0].set_ylabel(names[row])
    legend_below(figure, axes[0, 0], len(fs), fontsize=9)
    return figure


def plane(a: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Any:
    """Features and theta in two dimensions at the end."""
    rows, seeds = a["theta"].shape[:2]
    size = (2.7 * seeds + 0.4, 2.75 * rows + 0.9)
    figure, axes = panels(rows, seeds, size, title=title, sharex=True, sharey=True)
    angle = np.linspace(0, 2 * np.pi, 200)
    for (row, seed), axis in np.ndenumerate(axes):
        axis.plot(np.cos(angle), np.sin(angle), color="0.8", linewidth=0.8, zorder=0)
        for c, weight in enumerate(a["theta"][row, seed]):
            colour, features = f"C{c % 10}", a["features"][row, seed, a["labels"] == c]
            axis.plot([0, weight[0]], [0, weight[1]], color=colour, linewidth=1.2)
            axis.scatter(*weight, marker="^", s=60, facecolor="none", edgecolor=colour)
            axis.scatter(*features.T, s=14, color=colour, alpha=0.7)
        axis.set(aspect="equal")
        axis.grid(alpha=0.2)
        if row == 0:
            axis.set_title(f"seed {seed}", fontsize=9)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(f"{name}\nsecond coordinate")
    for axis in axes[-1]:
        axis.set_xlabel("first coordinate")
    # Drawn nowhere: marks of no class's colour, for the legend.
    corner = axes[0, 0]
    corner.plot([], [], color="0.3", marker="o", linestyle="", markersize=4, label="features")
    corner.plot([], [], color="0.3", marker="^", markerfacecolor="none", label="rows of theta")
    corner.plot([], [], color="0.8", label="unit circle")
    legend_below(figure, corner, 3, fontsize=9)
    return figure


def frames(a: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Any:
    """What frames the runs end in, against the dimension, beside the bounds."""
    figure, axes = panels(1, len(_FRAMES), (4.2 * len(_FRAMES), 4.1), title=title)
    x = a["dimensions"].astype(float)
    for axis, (key, label, bound, bound_label) in zip(axes[0], _FRAMES, strict=True):
        axis.plot(x, a[bound], color="k", linestyle="--", marker="_", label=bound_label)
        for number, (name, values) in enumerate(zip(names, a[key], strict=True)):
            shifted, colour = x + 0.12 * (number - (len(names) - 1) / 2), f"C{number}"
            axis.plot(shifted, values.mean(axis=1), color=colour, linewidth=1, label=name)
            axis.plot(shifted, values, "o", color=colour, markersize=4, alpha=0.5)
        axis.set(xlabel="dimensions f", ylabel=label, xticks=x)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
