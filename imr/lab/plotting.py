"""Figures: functions from arrays to a matplotlib Figure. Nothing is shown or saved here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.errors import ImrError, missing_package

_MARKERS = "osD^vPX*hp"


def new_figure(**options: Any) -> Any:
    """A Figure without a window or any state of pyplot's."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "experiments") from error
    return Figure(layout="constrained", **options)


def panels(
    rows: int, columns: int, size: tuple[float, float], *, title: str = "", **share: Any
) -> tuple[Any, np.ndarray]:
    """A Figure of several axes with a title above them.

    Args:
      rows, columns: of axes.
      size: width and height of the whole, in inches.
      title: above it all.
      share: `sharex`, `sharey` of matplotlib.

    Returns:
      The Figure, and its axes, shape (rows, columns).
    """
    figure = new_figure(figsize=size)
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False, **share)


def band(axis: Any, x: Any, runs: np.ndarray, label: str, colour: str, **style: Any) -> None:
    """Draws the median of several runs, shape (runs, s), and their range as a band."""
    axis.plot(x, np.median(runs, axis=0), color=colour, label=label, **style)
    axis.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def iteration_strip(image: Any, states: Any, *, title: str = "", trained: int | None = None) -> Any:
    """One image on its way through the blocks: X, Z(0), ..., Z(L), and below Z(l) - Z(0).

    Args:
      image: the clean image X, shape (h, w).
      states: the features Z(0) ... Z(L) as images, shape (L + 1, h, w).
      title: above it all.
      trained: the trained depth, marked by a star.

    Returns:
      A matplotlib Figure. The images share one grey scale, that of the clean image and Z(0); the
      differences share one diverging scale, symmetric about zero.

    Raises:
      ImrError: where the shapes do not fit.
    """
    image, states = np.asarray(image), np.asarray(states)
    if image.ndim != 2 or states.shape[1:] != image.shape:
        raise ImrError(
            f"image must have shape (h, w) and states (L + 1, h, w); found {image.shape} and "
            f"{states.shape}."
        )
    columns = len(states) + 1
    figure = new_figure(figsize=(1.25 * columns + 1.0, 3.2))
    axes = figure.subplots(2, columns, squeeze=False)
    low, high = min(0.0, states[0].min()), max(1.0, states[0].max())
    differences = states - states[0]
    bound = float(np.abs(differences).max()) or 1.0
    axes[0, 0].set_title("X")
    grey = axes[0, 0].imshow(image, cmap="gray", vmin=low, vmax=high)
    axes[1, 0].set_visible(False)
    for l, (state, difference) in enumerate(zip(states, differences, strict=True)):
        star = "*" if l == trained else ""
        axes[0, l + 1].set_title(f"Z({l}){star}")
        axes[0, l + 1].imshow(state, cmap="gray", vmin=low, vmax=high)
        axes[1, l + 1].set_title(f"Z({l}) − Z(0)", fontsize=8)
        change = axes[1, l + 1].imshow(difference, cmap="RdBu_r", vmin=-bound, vmax=bound)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(grey, ax=axes[0, :], label="pixel", shrink=0.9)
    figure.colorbar(change, ax=axes[1, :], label="difference", shrink=0.9)
    star = f"   (* trained depth {trained})" if trained is not None else ""
    figure.suptitle(title + star, fontsize=10)
    return figure


def accuracy_by_iteration(
    panels: Sequence[str], lines: Sequence[Mapping[str, Any]], *, title: str = ""
) -> Any:
    """Accuracy against the iteration at which the features are read out.

    Args:
      panels: the name of each panel, one for each level of test noise.
      lines: mappings with `label`, `mean` and `std` of shape (panels, iterations + 1), and
        `trained`, the trained depth, where the line has its marker.
      title: above it all.

    Returns:
      A matplotlib Figure; bands are one standard deviation over seeds.
    """
    figure = new_figure(figsize=(3.4 * len(panels), 3.9))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for index, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        for number, line in enumerate(lines):
            mean, std = np.asarray(line["mean"])[index], np.asarray(line["std"])[index]
            steps, colour = np.arange(mean.size), f"C{number % 10}"
            if mean.size == 1:
                axis.axhline(mean[0], color=colour, linestyle="--", label=line["label"])
                continue
            axis.plot(steps, mean, color=colour, label=line["label"])
            axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
            trained = line["trained"]
            axis.plot(trained, mean[trained], color=colour, marker="o")
        axis.set_title(panel)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.suptitle(title, fontsize=10)
    return figure


def frontier(
    panels: Sequence[str],
    curves: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
) -> Any:
    """Clean accuracy against noisy accuracy: regression's curve over penalties, the others on it.

    Args:
      panels: the name of each panel, one for each noise level.
      curves: mappings with `label`, `clean` (penalties,) and `noisy` (panels, penalties).
      points: mappings with `label`, `clean`, `noisy` (panels,), `clean_std`, `noisy_std` (panels,)
        and, to tell them apart, integers `colour` and `marker` and a boolean `filled`.
      title: above it all.

    Returns:
      A matplotlib Figure; error bars are one standard deviation over seeds. Up and to the right is
      better; what lies beyond the curve no penalty reaches.
    """
    figure = new_figure(figsize=(5.2 * len(panels), 5.6))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for index, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        for number, curve in enumerate(curves):
            axis.plot(
                curve["clean"],
                np.asarray(curve["noisy"])[index],
                color="0.2" if number == 0 else "0.6",
                marker=".",
                label=curve["label"],
            )
        for point in points:
            colour = f"C{point['colour'] % 10}"
            axis.errorbar(
                point["clean"],
                point["noisy"][index],
                xerr=point["clean_std"],
                yerr=point["noisy_std"][index],
                color=colour,
                marker=_MARKERS[point["marker"] % len(_MARKERS)],
                markerfacecolor=colour if point["filled"] else "white",
                linestyle="none",
                label=point["label"],
            )
        axis.set_title(panel)
        axis.set_xlabel("accuracy on clean images")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on noisy images")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.suptitle(title, fontsize=10)
    return figure
