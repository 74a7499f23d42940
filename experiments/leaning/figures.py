"""Figures of the leaning experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.leaning.explanations import Readings
from imr.lab.plotting import band, label_edges, legend_below, panels


def courses(
    steps: np.ndarray, readings: Mapping[str, Readings], nulls: Mapping[str, float],
    titles: Mapping[str, str],
) -> Any:  # fmt: skip
    """The mean cosine of a net's heads against the step, for each way of training."""
    rows = -(-len(readings) // 3)
    columns = min(3, len(readings))
    title = "Cosine of the value circuit with θᵀ, mean over heads (negative descends)"
    figure, axes = panels(
        rows, columns, (3.5 * columns, 2.7 * rows + 1.0), title=title, sharex=True
    )
    for axis in axes.flat[len(readings) :]:
        axis.set_visible(False)
    x = np.maximum(steps, 5)  # step 0 has no place on a logarithmic axis
    for axis, (name, one) in zip(axes.flat, readings.items(), strict=False):
        width = 3 * nulls[name]
        axis.axhspan(-width, width, color="0.88", zorder=0, label="random directions, 3 sd")
        for number, (way, cosines) in enumerate(one.cosines.items()):
            if way in ("climbing", "descending"):
                continue
            dashes = "--" if "decay" in way else "-"
            means = cosines.mean(axis=(2, 3))
            band(axis, x, means, way, f"C{number}", marker=".", linestyle=dashes)
        axis.set(xscale="log")
        axis.set_title(titles[name], fontsize=9)
        axis.grid(alpha=0.3)
    label_edges(axes, "step (the first point is the start)", "mean cosine")
    legend_below(figure, axes[0, 0], 4, fontsize=8)
    return figure


def parts(
    measured: Mapping[str, np.ndarray], ways: Sequence[str], names: Sequence[str],
    titles: Mapping[str, str],
) -> Any:  # fmt: skip
    """What each part has added to the mean cosine; arrays (ways, seeds, parts)."""
    rows = -(-len(measured) // 3)
    columns = min(3, len(measured))
    title = "What training has added to the mean cosine, to first order, each seed a point"
    figure, axes = panels(rows, columns, (3.5 * columns, 2.8 * rows + 1.2), title=title)
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    shown = [way for way in ways if way not in ("climbing", "descending")]
    x = np.arange(len(shown))
    for axis, (name, values) in zip(axes.flat, measured.items(), strict=False):
        for number, part in enumerate(names):
            at, colour = x + 0.27 * (number - 1), f"C{number}"
            kept = np.array([values[ways.index(way), :, number] for way in shown])
            axis.bar(at, np.median(kept, axis=1), 0.25, color=colour, alpha=0.6, label=part)
            axis.plot(at, kept, ".", color=colour, markersize=4)
        axis.axhline(0, color="k", linewidth=0.8)
        axis.set_xticks(x, [way.replace(" ", "\n") for way in shown])
        axis.tick_params(axis="x", labelsize=5.5)
        axis.set_title(titles[name], fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("change of the mean cosine")
    legend_below(figure, axes[0, 0], 3, fontsize=8)
    return figure
