"""Figures of the lens experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from imr.lab.plotting import new_figure


class Measure(NamedTuple):
    """A measure, its null and z, each (l, h) with NaN left grey, in colours about 0 or from 0 to 1."""

    title: str
    signed: bool
    value: np.ndarray
    null: np.ndarray
    z: np.ndarray


def heat_maps(panels: Sequence[Measure], *, title: str = "") -> Any:
    """A row for each measure: value, mean of its null on the same scale, and z."""
    l, h = panels[0].value.shape
    size = (3 * (1.6 + 0.24 * h), len(panels) * (0.9 + 0.22 * l) + 0.8)
    figure = new_figure(figsize=size)
    axes = figure.subplots(len(panels), 3, squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        bound = float(np.nanmax(np.abs(np.stack([panel.value, panel.null])))) or 1.0
        low, high = (-bound, bound) if panel.signed else (0.0, 1.0)
        scale = {"cmap": "RdBu_r" if panel.signed else "viridis", "vmin": low, "vmax": high}
        most = max(3.0, float(np.nanmax(np.abs(panel.z))) if np.isfinite(panel.z).any() else 3.0)
        maps = (
            (panel.title, panel.value, scale), ("null", panel.null, scale),
            ("z", panel.z, {"cmap": "PuOr_r", "vmin": -most, "vmax": most}),
        )  # fmt: skip
        for axis, (label, array, options) in zip(row, maps, strict=True):
            axis.set_facecolor("0.85")
            image = axis.imshow(array, aspect="auto", **options)
            axis.set_title(label, fontsize=8)
            axis.set_xticks(np.arange(0, h, max(1, h // 6)))
            axis.set_yticks(np.arange(0, l, max(1, l // 6)))
            axis.tick_params(labelsize=7)
            figure.colorbar(image, ax=axis).ax.tick_params(labelsize=6)
        row[0].set_ylabel("layer", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("head", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def energy(energies: np.ndarray, *, title: str = "") -> Any:
    """Energy along depth, a line for each layer."""
    figure = new_figure(figsize=(6.4, 4.0))
    axis = figure.subplots()
    for layer, column in enumerate(energies.T):
        axis.plot(layer + np.array([0.0, 0.4, 0.8]), column, marker="o", color=f"C{layer % 10}")
    axis.set_xticks(np.arange(energies.shape[1]))
    axis.set_xlabel("layer: before attention, between attention and MLP, after")
    axis.set_ylabel("log-sum-exp for each head and token")
    axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure


def spectra(values: np.ndarray, *, title: str = "") -> Any:
    """Singular values by rank: medians and ranges over the heads of each layer."""
    figure = new_figure(figsize=(6.4, 4.0))
    axis = figure.subplots()
    ranks = 1 + np.arange(values.shape[-1])
    for layer, each in enumerate(values):
        colour = f"C{layer % 10}"
        axis.plot(ranks, np.median(each, axis=0), color=colour, label=f"layer {layer}")
        axis.fill_between(ranks, each.min(0), each.max(0), color=colour, alpha=0.12, linewidth=0)
    axis.set(xlabel="rank", ylabel="singular value")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.suptitle(title, fontsize=10)
    return figure
