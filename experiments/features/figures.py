"""Figures of the features experiment: from the arrays saved beside them to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.lab.plotting import band, label_edges, legend_below, panels, ribbon

_COLOURS = {"free": "C0", "anchored": "C1"}
_LAW = {"color": "k", "linestyle": "--"}


def law(a: Mapping[str, np.ndarray], *, title: str) -> Any:
    """Loss and margins against time beside what theta predicts of late times."""
    figure, axes = panels(1, 3, (13, 4.2), title=title)
    left, middle, right = axes[0]
    ts, late = a["ts"], a["ts"][a["ts"] >= 1]
    for kind, colour in _COLOURS.items():
        band(left, ts, a[f"loss_{kind}"], kind, colour, np.mean)
        low, median, high = a[f"margin_{kind}"]
        ribbon(middle, ts, median, low, high, kind, colour)
    low, median, high = a["scaled"]
    ribbon(right, ts, median, low, high, "free", _COLOURS["free"])
    left.plot(late, a["loss_law"].mean() / late, label="predicted, 1/(γ²t)", **_LAW)
    predicted = np.log(late) + a["margin_law"][1]
    middle.plot(late, predicted, label="predicted median, log(t / max α)", **_LAW)
    right.axhline(1, label="predicted limit", **_LAW)
    left.set(yscale="log", ylabel="mean cross-entropy of a row (nats)")
    left.set_title("loss: mean and range of seeds", fontsize=10)
    middle.set(ylabel="margin of a row (nats)")
    middle.set_title("margins: median and 5 to 95 % of rows", fontsize=10)
    right.set(ylim=(0, 1.15), ylabel="loss · γ² · t")
    right.set_title("each row against its own law: median, 5 to 95 %", fontsize=10)
    _against_time(axes)
    return figure


def classes(a: Mapping[str, np.ndarray], *, title: str) -> Any:
    """Class structure in time: collapse of variability, of features and of logits, and accuracy."""
    figure, axes = panels(1, 2, (9, 4.0), title=title)
    (left, right), ts = axes[0], a["ts"]
    for kind, colour in _COLOURS.items():
        features, logits = a[f"nc1_{kind}"], a[f"nc1_logits_{kind}"]
        band(left, ts, features, f"features, {kind}", colour, np.mean)
        band(left, ts, logits, f"logits, {kind}", colour, np.mean, linestyle=":")
        band(right, ts, a[f"accuracy_{kind}"], kind, colour, np.mean)
    left.set(yscale="log", ylabel="nc1, within-class over between-class scatter")
    right.set(ylabel="accuracy on the flowing images")
    _against_time(axes, which="both")
    return figure


def _against_time(axes: np.ndarray, which: Any = "major") -> None:
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="time t")
        axis.grid(alpha=0.3, which=which)
        axis.legend(fontsize=8)


def _short(time: float) -> str:
    """Three digits, and no exponent where none is needed."""
    return f"{float(f'{time:.3g}'):g}"


def projection(a: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Any:
    """Features in one fixed plane at several times, coloured by class."""
    times, points, theta = a["ts"], a["points"], a["theta"]
    columns = (len(times) + 1) // 2
    size = (3.5 * columns, 7.4)
    figure, axes = panels(2, columns, size, title=title, sharex=True, sharey=True)
    longest = np.linalg.norm(theta, axis=1).max()
    reach = 0.5 * np.abs(points - points.mean(axis=(0, 1))).max()
    for axis, time, panel in zip(axes.flat, times, points, strict=False):
        centre = panel.mean(axis=0)
        for c, name in enumerate(names):
            own, colour = a["labels"] == c, f"C{c % 10}"
            axis.scatter(*panel[own].T, s=7, color=colour, alpha=0.6, linewidth=0, label=name)
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1}
            axis.annotate("", centre + reach * theta[c] / longest, centre, arrowprops=arrow)
        axis.set_title(f"t = {_short(time)}", fontsize=10)
        axis.set_aspect("equal", adjustable="box")
        axis.grid(alpha=0.3)
    label_edges(axes, "first principal axis of theta", "second principal axis of theta")
    for axis in axes.flat[len(times) :]:
        axis.set_visible(False)
    legend_below(figure, axes[0, 0], min(len(names), 10), fontsize=8, markerscale=2)
    return figure


def pictures(a: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Any:
    """Images on their way, and how far they have come: Z(t) and Z(t) - Z(0).

    The difference lies in the span of theta's rows, whatever the image: what is drawn is a
    combination of class weights, and of late times the same for all images of a class.
    """
    times, states = a["ts"], a["states"]
    count, columns = len(states), 2 * len(times)
    figure, axes = panels(count, columns, (1.05 * columns + 1.2, 1.25 * count + 0.9), title=title)
    low, high = states[:, 0].min(), states[:, 0].max()
    parts = zip(axes, states, a["limits"], names, a["read"], strict=True)
    for row, images, limit, name, read in parts:
        row[0].set_ylabel(name, fontsize=8)
        for axis, image, word in zip(row, images, read, strict=False):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_xlabel(word, fontsize=7, color="k" if word == name else "C3", labelpad=2)
        _differences(row[len(times) : -1], images[1:] - images[0])
        _differences(row[-1:], limit[None])
    short = [_short(time) for time in times]
    titles = [f"t = {t}" for t in short] + [f"Z({t}) − Z(0)" for t in short[1:]]
    for axis, text in zip(axes[0], [*titles, "predicted, w"], strict=True):
        axis.set_title(text, fontsize=7)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def block(a: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Any:
    """A step of the flow, split into its operators: attention, and the label term."""
    tau, states = float(a["tau"]), a["states"]
    heads = ("Z", "− τ CA(Z, θ)\nattention to classes", "Z′", "+ τ C θ\nlabel term: the MLP's part",
             "Z⁺\none block", f"Z({_short(tau)})\nthe flow")  # fmt: skip
    figure, axes = panels(len(states), len(heads), (8.6, 1.35 * len(states) + 1.0), title=title)
    low, high = states[:, 0].min(), states[:, 0].max()
    for row, images, name in zip(axes, states, names, strict=True):
        start, attended, after, end = images
        row[0].set_ylabel(name, fontsize=8)
        for axis, image in zip(row[[0, 2, 4, 5]], (start, attended, after, end), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        _differences(row[[1, 3]], np.stack([attended - start, after - attended]))
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def _differences(axes: np.ndarray, images: np.ndarray) -> None:
    bound = np.abs(images).max()
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image, cmap="RdBu_r", vmin=-bound, vmax=bound)
