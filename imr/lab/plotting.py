"""Figures: functions from arrays to a matplotlib Figure. Nothing is shown or saved here."""

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from imr.errors import ImrError, missing_package

_MARKERS = "osD^vPX*hp"
# Petroff's ten, arXiv 2107.02270, which readers who are colour-blind tell apart.
_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip


def style() -> dict[str, Any]:
    """Settings of matplotlib in which every figure of imr is drawn, for `rc_context` or `rcParams.update`.

    Raises:
      ImrError: if matplotlib is missing.
    """
    try:
        from cycler import cycler
    except ImportError as error:
        raise missing_package("matplotlib", "experiments") from error
    return {
        "axes.prop_cycle": cycler(color=_COLOURS),
        "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9,
        "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "figure.titlesize": 10,
        "legend.frameon": False, "axes.edgecolor": "0.4", "axes.linewidth": 0.6,
        "lines.linewidth": 1.4, "grid.alpha": 0.3, "savefig.dpi": 150,
    }  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """What is drawn and saved within has the style of imr; the settings of matplotlib come back after."""
    settings: Any = style()
    import matplotlib

    with matplotlib.rc_context(settings):
        yield


def png(figure: Any) -> bytes:
    """A figure as a PNG of at most 256 colours, a third to a half as large as one of all colours."""
    from PIL import Image  # comes with matplotlib

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, dpi=150, format="png", facecolor="white")
    image = Image.open(whole).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


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
    """A Figure of several axes with a title above them."""
    figure = new_figure(figsize=size)
    figure.suptitle(textwrap.fill(title, int(12 * size[0])), fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False, **share)


def ribbon(
    axis: Any, x: Any, middle: Any, low: Any, high: Any, label: str, colour: Any, **style: Any
) -> None:
    """Draws a line and, as a band, what lies between two others."""
    axis.plot(x, middle, color=colour, label=label, **style)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def band(
    axis: Any, x: Any, runs: np.ndarray, label: str, colour: Any,
    average: Callable[..., Any] = np.median, **style: Any,
) -> None:  # fmt: skip
    """Draws the average of several runs, shape (runs, s), and their range as a band."""
    middle, low, high = average(runs, axis=0), runs.min(axis=0), runs.max(axis=0)
    ribbon(axis, x, middle, low, high, label, colour, **style)


def label_edges(axes: np.ndarray, x: str, y: str) -> None:
    """Labels of the x-axes below the last row and of the y-axes beside the first column."""
    for axis in axes[-1]:
        axis.set_xlabel(x)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)


def legend_below(figure: Any, axis: Any, columns: int, **style: Any) -> None:
    """The legend of one axis, below all of them."""
    marks = axis.get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower center", ncols=columns, **style)


def iteration_strip(image: Any, states: Any, *, title: str = "", trained: int | None = None) -> Any:
    """One image on its way through the blocks: X, Z(0), ..., Z(L), and below Z(l) - Z(0).

    The clean image X has shape (h, w), the features Z(0) ... Z(L) as images (L + 1, h, w). Images share
    one grey scale, differences one that is symmetric about zero; a star marks the trained depth.

    Raises:
      ImrError: if the shapes do not fit.
    """
    image, states = np.asarray(image), np.asarray(states)
    if image.ndim != 2 or states.shape[1:] != image.shape:
        raise ImrError(
            f"image must have shape (h, w) and states (L + 1, h, w); found {image.shape} and "
            f"{states.shape}."
        )

    # One picture a row, white lines between the images: an axis for each image would take seconds.
    def join(images):
        return np.hstack([np.pad(i, ((0, 0), (0, 1)), constant_values=np.nan) for i in images])

    names = ["X", *(f"Z({l}){'*' if l == trained else ''}" for l in range(len(states)))]
    star = f"   (* trained depth {trained})" if trained is not None else ""
    figure, axes = panels(2, 1, (1.25 * len(names) + 1.0, 3.2), title=title + star)
    low, high = min(0.0, states[0].min()), max(1.0, states[0].max())
    differences = states - states[0]
    bound = float(np.abs(differences).max()) or 1.0
    features = axes[0, 0].imshow(join([image, *states]), cmap="gray", vmin=low, vmax=high)
    blank = np.full(image.shape, np.nan)
    changes = axes[1, 0].imshow(join([blank, *differences]), cmap="RdBu_r", vmin=-bound, vmax=bound)
    figure.colorbar(features, ax=axes[0, 0], label="pixel")
    figure.colorbar(changes, ax=axes[1, 0], label="Z(l) − Z(0)")
    for axis in axes.flat:
        centres = (image.shape[1] + 1) * np.arange(len(names)) + (image.shape[1] - 1) / 2
        axis.set(xticks=centres, xticklabels=names, yticks=[], frame_on=False)
    return figure


def accuracy_by_iteration(
    names: Sequence[str], lines: Sequence[Mapping[str, Any]], *, title: str = ""
) -> Any:
    """Accuracy against the iteration at which the features are read out, a panel for each noise level.

    Lines have `label`, `mean` and `std` over seeds, shape (panels, iterations + 1), drawn as a band, and
    `trained`, the trained depth, at which the line has its marker.
    """
    figure, axes = panels(1, len(names), (3.4 * len(names), 3.9), title=title)
    for index, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        for number, line in enumerate(lines):
            mean, std = np.asarray(line["mean"])[index], np.asarray(line["std"])[index]
            steps, colour = np.arange(mean.size), f"C{number % 10}"
            if mean.size == 1:
                axis.axhline(mean[0], color=colour, linestyle="--", label=line["label"])
                continue
            ribbon(axis, steps, mean, mean - std, mean + std, line["label"], colour)
            axis.plot(line["trained"], mean[line["trained"]], color=colour, marker="o")
        axis.set(title=name, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("test accuracy")
    legend_below(figure, axes[0, 0], 3, fontsize=8)
    return figure


def frontier(
    names: Sequence[str],
    curves: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
) -> Any:
    """Clean accuracy against noisy accuracy, a panel for each noise level; beyond the curve is better.

    Curves, of regression over its penalties, have `label`, `clean` (penalties,) and `noisy` (panels,
    penalties). Points have `label`, `clean`, `noisy` (panels,), their standard deviations over seeds
    `clean_std` and `noisy_std`, and integers `colour` and `marker` and a boolean `filled`.
    """
    figure, axes = panels(1, len(names), (5.2 * len(names), 5.6), title=title)
    for index, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        for number, curve in enumerate(curves):
            colour, noisy = "0.2" if number == 0 else "0.6", np.asarray(curve["noisy"])[index]
            axis.plot(curve["clean"], noisy, color=colour, marker=".", label=curve["label"])
        for point in points:
            colour = f"C{point['colour'] % 10}"
            axis.errorbar(
                point["clean"], point["noisy"][index], xerr=point["clean_std"],
                yerr=point["noisy_std"][index], color=colour, linestyle="none", label=point["label"],
                marker=_MARKERS[point["marker"] % len(_MARKERS)],
                markerfacecolor=colour if point["filled"] else "white",
            )  # fmt: skip
        axis.set(title=name, xlabel="accuracy on clean images")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy on noisy images")
    legend_below(figure, axes[0, 0], 3, fontsize=8)
    return figure
