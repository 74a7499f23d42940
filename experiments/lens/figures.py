"""Figures of the lens experiment: functions from arrays to a matplotlib Figure.

Descent is blue in all of them, climbing is red, whatever the sign of the measure.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.lens.weights import BEYOND
from imr.lab.plotting import band, panels

BLUE, RED, GREY = "#2166ac", "#b2182b", "0.6"  # the ends of the colour map RdBu
MOST_Z = 10.0  # what is farther from the null is drawn like this
FEW_LAYERS = 8  # that have a range beside their median


class Measure(NamedTuple):
    """A measure of all heads of a model and its null, each (l, h).

    Attributes:
      title: its name.
      descent: the sign that descent has; 0 for a share, which has none.
      value, null, std, z: itself, mean and deviation of its null, and z; NaN without a null.
    """

    title: str
    descent: int
    value: np.ndarray
    null: np.ndarray
    std: np.ndarray
    z: np.ndarray


def strips(models: Sequence[tuple[str, Measure]], *, title: str, label: str) -> Any:
    """All heads of all models by layer, over the band of three deviations of their null."""
    title = f"{title}: beyond {BEYOND:g} deviations of the null descent is blue and climbing red"
    figure, axes = panels(len(models), 1, (8.0, 0.6 + 1.9 * len(models)), title=title)
    for axis, (name, measure) in zip(axes[:, 0], models, strict=True):
        l, h = measure.value.shape
        layer, high_low = np.arange(l), np.zeros((2, l))
        if np.isfinite(measure.null).all():
            middle, width = measure.null.mean(axis=1), BEYOND * measure.std.mean(axis=1)
            high_low = np.stack([middle + width, middle - width])
            axis.bar(layer, 2 * width, 0.9, middle - width, color="0.85", linewidth=0)
        axis.axhline(0, color="black", linewidth=0.6)
        # One head does not set the scale: what lies beyond it is drawn at the edge.
        bound = 1.1 * np.nanmax(
            [np.quantile(np.abs(measure.value), 0.98), np.nanmax(np.abs(high_low))]
        )
        outside = np.abs(measure.value) > bound
        values = np.clip(measure.value, -bound, bound)
        places = layer[:, None] + 0.8 * ((np.arange(h) + 0.5) / h - 0.5)
        leaning = measure.descent * measure.z
        for chosen, colour in (
            (~(np.abs(leaning) > BEYOND), GREY), (leaning > BEYOND, BLUE), (leaning < -BEYOND, RED),
        ):  # fmt: skip
            for among, mark in (
                (~outside, "o"),
                (outside & (values > 0), "^"),
                (outside & (values < 0), "v"),
            ):
                among = among & chosen
                axis.scatter(
                    places[among], values[among], s=9, color=colour, marker=mark, linewidths=0
                )
        down, up = ((side * leaning > BEYOND).sum() for side in (1, -1))
        right = (measure.descent * measure.value > 0).sum()
        null = "the null" if np.isfinite(measure.null).all() else "random rotations"
        words = f"{name}: {right} of {l * h} on the side of descent; beyond {null} {down} descend, {up} climb"
        axis.set_title(textwrap.fill(words, 110), fontsize=8)
        axis.set_ylabel(label, fontsize=7)
        axis.set_xlim(-0.6, l - 0.4)
        axis.set_xticks(layer[:: max(1, l // 15)])
        axis.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel("layer", fontsize=8)
    return figure


def heat_maps(measures: Sequence[Measure], *, title: str) -> Any:
    """A row for each measure: its values and its z, with a dot where |z| > 3."""
    l, h = measures[0].value.shape
    size = (2 * max(2.8, 1.7 + 0.22 * l), len(measures) * (0.9 + 0.16 * h) + 0.6)
    figure, axes = panels(len(measures), 2, size, title=title)
    for row, measure in zip(axes, measures, strict=True):
        colours = {-1: "RdBu_r", 0: "PuOr_r", 1: "RdBu"}[measure.descent]
        null = measure.null[np.isfinite(measure.null)]
        words = "random rotations"
        if null.size:
            words = f"null {null.mean():.3f} ± {np.nanmean(measure.std):.3f}"
        if measure.descent:
            # One head of a hundred does not set the scale.
            bound = float(np.nanquantile(np.abs(measure.value), 0.98)) or 1.0
            scale = {"vmin": -bound, "vmax": bound, "cmap": colours}
        else:
            low, high = np.nanquantile(measure.value, (0.02, 0.98))
            scale = {"vmin": low, "vmax": max(high, low + 1e-3), "cmap": "viridis"}
        drawn = (
            (measure.title, measure.value, scale),
            (f"z; {words}", measure.z, {"vmin": -MOST_Z, "vmax": MOST_Z, "cmap": colours}),
        )
        for axis, (name, array, options) in zip(row, drawn, strict=True):
            if np.isnan(array).all():
                axis.set_axis_off()  # but for its title
                axis.set_title("too few heads for a null", fontsize=8)
                continue
            axis.set_facecolor("0.85")  # NaN
            image = axis.imshow(array.T, aspect="auto", origin="lower", **options)
            axis.set_title(name, fontsize=8)
            axis.set(xticks=np.arange(0, l, max(1, l // 6)), yticks=np.arange(0, h, max(1, h // 6)))
            axis.tick_params(labelsize=7)
            figure.colorbar(image, ax=axis, extend="both").ax.tick_params(labelsize=6)
        beyond = np.argwhere(np.abs(measure.z) > BEYOND)
        row[1].scatter(*beyond.T, s=7, color="white", edgecolors="black", linewidths=0.5)
        row[0].set_ylabel("head", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("layer", fontsize=8)
    return figure


def spectra(values: np.ndarray, *, title: str) -> Any:
    """Singular values by rank: medians over the heads of each layer, of few layers their ranges."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_hex

    figure, axes = panels(1, 1, (6.4, 4.0), title=title)
    axis, (l, _, r) = axes[0, 0], values.shape
    scale = ScalarMappable(Normalize(0, max(l - 1, 1)), "viridis")
    colours = map(to_hex, scale.to_rgba(np.arange(l)))
    for layer, (heads, colour) in enumerate(zip(values, colours, strict=True)):
        shown = heads if l <= FEW_LAYERS else np.median(heads, axis=0, keepdims=True)
        band(axis, 1 + np.arange(r), shown, f"layer {layer}", colour)
    axis.set(xlabel="rank", ylabel="singular value", yscale="log" if values.min() > 0 else "linear")
    axis.grid(alpha=0.3)
    if l > 1:
        ticks = np.unique(np.linspace(0, l - 1, min(l, 7)).round())
        figure.colorbar(scale, ax=axis, label="layer", ticks=ticks)
    return figure


def rotary(
    frequencies: np.ndarray, cosine: np.ndarray, sine: np.ndarray, pairs: np.ndarray, *, title: str
) -> Any:
    """The agreement of circuits by frequency: a and b by layer, and the mean |cosine| of each pair.

    Frequencies (f,), the others (l, h, f).
    """
    figure, axes = panels(3, 1, (7.0, 3.0 + 0.16 * len(cosine)), title=title)
    means = cosine.mean(axis=1), sine.mean(axis=1)
    bound = float(np.quantile(np.abs(means), 0.98)) or 1.0
    ticks = np.arange(0, len(frequencies), max(1, len(frequencies) // 8))
    for axis, mean, name in zip(
        axes[:2, 0], means, ("a, of cos(wD)", "b, of sin(wD)"), strict=True
    ):
        image = axis.imshow(
            mean, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-bound, vmax=bound
        )
        axis.set_title(f"{name}, mean over heads", fontsize=8)
        axis.set_ylabel("layer", fontsize=8)
        figure.colorbar(image, ax=axis, extend="both").ax.tick_params(labelsize=6)
    axis = axes[2, 0]
    mean = np.abs(pairs).mean(axis=(0, 1))
    axis.plot(mean, color="black")
    axis.set_ylim(0, 1.1 * mean.max() or 1.0)
    axis.set_ylabel("mean |cosine|", fontsize=8)
    axis.set_xlabel("pair of features, by the tokens that it takes to turn round", fontsize=8)
    with np.errstate(divide="ignore"):
        each = 2 * np.pi / frequencies[ticks]
        turns = [f"{x:.3g}" if x < 1000 else "∞" if np.isinf(x) else f"{x:,.0f}" for x in each]
    for axis in axes[:, 0]:
        axis.set_xlim(-0.5, len(frequencies) - 0.5)
        axis.set_xticks(ticks, turns)
        axis.tick_params(labelsize=7)
    return figure
