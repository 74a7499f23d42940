"""Figures of the lens experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from imr.lab.plotting import band, panels

PARTS = ("", "_null", "_z")  # of a measure, in the names of its columns
SHARES = {"descent_residual", "climb_residual", "symmetric_share", "gradient_share"}  # 0 to 1


def heat_maps(arrays: Mapping[str, np.ndarray], titles: Mapping[str, str], *, title: str) -> Any:
    """A row for each measure: value, mean of its null on the same scale, and z, each (l, h)."""
    l, h = next(iter(arrays.values())).shape
    size = (3 * (1.6 + 0.24 * h), len(titles) * (0.9 + 0.22 * l) + 0.8)
    figure, axes = panels(len(titles), 3, size, title=title)
    for row, (key, label) in zip(axes, titles.items(), strict=True):
        value, null, z = (arrays[key + part] for part in PARTS)
        bound = float(np.nanmax(np.abs([value, null]))) or 1.0
        low, high, colours = (0.0, 1.0, "viridis") if key in SHARES else (-bound, bound, "RdBu_r")
        most = max([3.0, *np.abs(z[np.isfinite(z)])])
        maps = (
            (label, value, low, high, colours), ("null", null, low, high, colours),
            ("z", z, -most, most, "PuOr_r"),
        )  # fmt: skip
        for axis, (name, array, low, high, colours) in zip(row, maps, strict=True):
            axis.set_facecolor("0.85")  # NaN
            image = axis.imshow(array, aspect="auto", cmap=colours, vmin=low, vmax=high)
            axis.set_title(name, fontsize=8)
            axis.set(xticks=np.arange(0, h, max(1, h // 6)), yticks=np.arange(0, l, max(1, l // 6)))
            axis.tick_params(labelsize=7)
            figure.colorbar(image, ax=axis).ax.tick_params(labelsize=6)
        row[0].set_ylabel("layer", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("head", fontsize=8)
    return figure


def energy(energies: np.ndarray, *, title: str) -> Any:
    """Energy along depth, a line for each layer."""
    figure, axes = panels(1, 1, (6.4, 4.0), title=title)
    axis = axes[0, 0]
    for layer, column in enumerate(energies.T):
        axis.plot(layer + np.array([0.0, 0.4, 0.8]), column, marker="o", color=f"C{layer % 10}")
    axis.set_xticks(np.arange(energies.shape[1]))
    axis.set_xlabel("layer: before attention, between attention and MLP, after")
    axis.set_ylabel("log-sum-exp for each head and token")
    axis.grid(alpha=0.3)
    return figure


def spectra(values: np.ndarray, *, title: str) -> Any:
    """Singular values by rank: medians and ranges over the heads of each layer."""
    figure, axes = panels(1, 1, (6.4, 4.0), title=title)
    axis = axes[0, 0]
    for layer, heads in enumerate(values):
        band(axis, 1 + np.arange(heads.shape[-1]), heads, f"layer {layer}", f"C{layer % 10}")
    axis.set(xlabel="rank", ylabel="singular value")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    return figure
