"""Figures of the features experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.lab.plotting import new_figure

_COLOURS = {"free": "C0", "anchored": "C1"}


def law(
    ts: np.ndarray, loss: Mapping[str, np.ndarray], margin: Mapping[str, np.ndarray],
    scaled: np.ndarray, loss_law: np.ndarray, margin_law: np.ndarray, *, title: str = "",
) -> Any:  # fmt: skip
    """Loss and margins against time beside what theta predicts of late times."""
    figure = new_figure(figsize=(13, 4.2))
    left, middle, right = figure.subplots(1, 3)
    late = ts >= 1
    for kind, values in loss.items():
        _band(left, ts, values.mean(axis=0), values.min(axis=0), values.max(axis=0), kind)
    left.plot(
        ts[late], loss_law.mean() / ts[late], color="k", linestyle="--", label="predicted, 1/(γ²t)"
    )
    left.set(xscale="log", yscale="log", ylabel="mean cross-entropy of a row (nats)")
    left.set_title("loss: mean and range of seeds", fontsize=10)
    for kind, (low, median, high) in margin.items():
        _band(middle, ts, median, low, high, kind)
    middle.plot(
        ts[late], np.log(ts[late]) + margin_law[1], color="k", linestyle="--",
        label="predicted median, log(t / max α)",
    )  # fmt: skip
    middle.set(xscale="log", ylabel="margin of a row (nats)")
    middle.set_title("margins: median and 5 to 95 % of rows", fontsize=10)
    _band(right, ts, scaled[1], scaled[0], scaled[2], "free")
    right.axhline(1, color="k", linestyle="--", label="predicted limit")
    right.set(xscale="log", ylim=(0, 1.15), ylabel="loss · γ² · t")
    right.set_title("each row against its own law: median, 5 to 95 %", fontsize=10)
    for axis in (left, middle, right):
        axis.set_xlabel("time t")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _band(axis, ts, middle, low, high, kind):
    axis.plot(ts, middle, color=_COLOURS[kind], label=kind)
    axis.fill_between(ts, low, high, color=_COLOURS[kind], alpha=0.2, linewidth=0)


def _short(time: float) -> str:
    """Three digits, and no exponent where none is needed."""
    return f"{float(f'{time:.3g}'):g}"


def classes(
    ts: np.ndarray, nc1: Mapping[str, np.ndarray], nc1_logits: Mapping[str, np.ndarray],
    accuracy: Mapping[str, np.ndarray], *, title: str = "",
) -> Any:  # fmt: skip
    """Class structure in time: collapse of variability, of features and of logits, and accuracy."""
    figure = new_figure(figsize=(9, 4.0))
    left, right = figure.subplots(1, 2)
    for kind, features in nc1.items():
        for values, style, of in ((features, "-", "features"), (nc1_logits[kind], ":", "logits")):
            mean, colour = values.mean(axis=0), _COLOURS[kind]
            left.plot(ts, mean, color=colour, linestyle=style, label=f"{of}, {kind}")
            left.fill_between(
                ts, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
        values = accuracy[kind]
        _band(right, ts, values.mean(axis=0), values.min(axis=0), values.max(axis=0), kind)
    left.set(xscale="log", yscale="log", ylabel="nc1, within-class over between-class scatter")
    right.set(xscale="log", ylabel="accuracy on the flowing images")
    for axis in (left, right):
        axis.set_xlabel("time t")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def projection(
    times: Sequence[float], points: np.ndarray, labels: np.ndarray, theta: np.ndarray,
    names: Sequence[str], *, title: str = "",
) -> Any:  # fmt: skip
    """Features in one fixed plane at several times, coloured by class."""
    columns = (len(times) + 1) // 2
    figure = new_figure(figsize=(3.5 * columns, 7.4))
    axes = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    length = np.linalg.norm(theta, axis=1).max()
    reach = 0.5 * np.abs(points - points.mean(axis=(0, 1))).max()
    colours = [f"C{c % 10}" for c in range(len(names))]
    for axis, time, panel in zip(axes.flat, times, points, strict=False):
        centre = panel.mean(axis=0)
        for c, name in enumerate(names):
            own = labels == c
            axis.scatter(*panel[own].T, s=7, color=colours[c], alpha=0.6, linewidth=0, label=name)
            axis.annotate(
                "", centre + reach * theta[c] / length, centre,
                arrowprops={"arrowstyle": "-|>", "color": colours[c], "linewidth": 1},
            )  # fmt: skip
        axis.set_title(f"t = {_short(time)}", fontsize=10)
        axis.set_aspect("equal", adjustable="box")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("first principal axis of theta")
    for axis in axes[:, 0]:
        axis.set_ylabel("second principal axis of theta")
    for axis in axes.flat[len(times) :]:
        axis.set_visible(False)
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(len(names), 10), fontsize=8,
                  markerscale=2)  # fmt: skip
    figure.suptitle(title, fontsize=10)
    return figure


def pictures(
    times: Sequence[float], states: np.ndarray, limits: np.ndarray, names: Sequence[str],
    read: Sequence[Sequence[str]], *, title: str = "",
) -> Any:  # fmt: skip
    """Images on their way, and how far they have come: Z(t) and Z(t) - Z(0).

    The difference lies in the span of theta's rows, whatever the image: what is drawn is a
    combination of class weights, and of late times the same for all images of a class.
    """
    count, columns = len(states), 2 * len(times)
    figure = new_figure(figsize=(1.05 * columns + 1.2, 1.25 * count + 0.9))
    axes = figure.subplots(count, columns, squeeze=False)
    low, high = states[:, 0].min(), states[:, 0].max()
    for row, (images, limit) in enumerate(zip(states, limits, strict=True)):
        differences = images[1:] - images[0]
        bound = np.abs(differences).max()
        for axis, image, word in zip(axes[row], images, read[row], strict=False):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            right = word == names[row]
            axis.set_xlabel(word, fontsize=7, color="k" if right else "C3", labelpad=2)
        for axis, change in zip(axes[row, len(times) : -1], differences, strict=True):
            axis.imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound)
        largest = np.abs(limit).max()
        axes[row, -1].imshow(limit, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes[row, 0].set_ylabel(names[row], fontsize=8)
    for axis, time in zip(axes[0], times, strict=False):
        axis.set_title(f"t = {_short(time)}", fontsize=8)
    for axis, time in zip(axes[0, len(times) : -1], times[1:], strict=True):
        axis.set_title(f"Z({_short(time)}) − Z(0)", fontsize=7)
    axes[0, -1].set_title("predicted, w", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=10)
    return figure
