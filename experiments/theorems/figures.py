"""Figures: functions from arrays to a matplotlib Figure, and which of them a run can draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.theorems.splitting import FLOOR
from imr.lab.folder import RunFolder
from imr.lab.plotting import panels

PANELS = {  # ids of rows, without A6.order
    "linear model": ("euler", "untied", "lie", "strang", "triple_jump"),
    "quadratic model": ("sphere", "quadratic.lie", "quadratic.strang", "quadratic.triple_jump"),
}
STYLES = {  # label, colour, marker, size, filled; wide and empty is seen behind another curve
    "euler": ("Euler, tied layers", "C0", "o", 5, True),
    "untied": ("Euler, untied layers", "C4", "v", 5, True),
    "sphere": ("Euler, normalised rows", "C5", "v", 9, False),
    "lie": ("Lie", "C1", "s", 5, True),
    "strang": ("Strang", "C2", "D", 5, True),
    "triple_jump": ("triple jump of Strang", "C3", "^", 5, True),
}
_GUIDE = {"color": "0.45", "linewidth": 1}


def orders(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Error against the step, median and range over seeds, and the slopes of the theory.

    Curves, by title of the panel, have a `style` of `STYLES`, `tau` (s,), `error` (seeds, s), the median order
    `measured`, and `expected`.
    """
    figure, axes = panels(1, len(curves), (5.0 * len(curves), 5.2), sharey=True)
    for axis, (title, each) in zip(axes[0], curves.items(), strict=True):
        for curve in each:
            tau, error = curve["tau"], curve["error"]
            label, colour, marker, size, filled = curve["style"]
            look = {"marker": marker, "markersize": size, "color": colour}
            look["markerfacecolor"] = colour if filled else "white"
            label = f"{label}: {curve['measured']:.2f}"
            axis.loglog(tau, np.median(error, axis=0), label=label, **look)
            ends = error.min(axis=0), error.max(axis=0)
            axis.fill_between(tau, *ends, color=colour, alpha=0.15, linewidth=0)
        for order in sorted({curve["expected"] for curve in each}):
            _slope(axis, order, [curve for curve in each if curve["expected"] == order])
        axis.axhline(FLOOR, linestyle=":", label="not fitted below", **_GUIDE)
        axis.set(title=title, xlabel="step τ (time)")
        axis.grid(alpha=0.3)
        axis.legend(
            title="integrator: measured order", fontsize=8, title_fontsize=8, ncols=2,
            loc="upper center", bbox_to_anchor=(0.5, -0.14),
        )  # fmt: skip
    axes[0, 0].set_ylabel("error at the end, relative")
    return figure


def _slope(axis, order, curves):
    """The slope of the theory above the highest curve of that order, so that it is seen beside it."""
    at = len(curves[0]["tau"]) // 2
    top = max(np.median(curve["error"][:, at]) for curve in curves)
    tau = curves[0]["tau"]
    line = 3 * top * (tau / tau[at]) ** order
    name = "slope of the theory" if order == 1 else None
    axis.loglog(tau, line, linestyle="--", label=name, **_GUIDE)
    offset = {"textcoords": "offset points", "xytext": (-4, 5), "ha": "right"}
    axis.annotate(f"$\\tau^{order:g}$", (tau[at], line[at]), color="0.3", **offset)


def closed_forms(two_class: Mapping[str, Any], frame: Mapping[str, Any]) -> Any:
    """Closed forms beside solves: the first seed in lines and markers, differences over all seeds.

    Both have `times` (s,). `two_class` has margins `solve` and `closed` (seeds, s, n), `frame` margins
    `solve` (seeds, s, n) and `closed` (seeds, s), and `loss` and `loss_closed` (seeds, s).
    """
    figure, ((left, middle, right),) = panels(1, 3, (12.6, 4.0))
    times, look = two_class["times"], {"marker": "o", "linestyle": "none", "markersize": 4}
    for row in range(min(3, two_class["solve"].shape[2])):
        closed, solve = (two_class[name][0, :, row] for name in ("closed", "solve"))
        names = ("closed form (three rows)", "reduced flow") if row == 0 else (None, None)
        left.plot(times, closed, color=f"C{row}", label=names[0])
        left.plot(times, solve, color=f"C{row}", label=names[1], **look)
    title = "two classes: $u + e^u = u_0 + e^{u_0} + \\|\\Delta\\theta\\|^2 t$"
    left.set(ylabel="margin u (nats)")
    left.set_title(title, fontsize=10)
    middle.loglog(times, frame["loss_closed"][0], color="C0", label="closed form")
    middle.loglog(times, frame["loss"][0], color="C0", label="reduced flow", **look)
    guide = frame["loss_closed"][0, -1] * times[-1] / times
    late = guide < frame["loss_closed"][0, 0]
    middle.loglog(times[late], guide[late], color="0.45", linestyle="--", label="$1/t$")
    middle.set(ylabel="loss, sum over rows (nats)")
    middle.set_title("simplex frame: $e^m + (k - 1) m = 1 + a k t$", fontsize=10)
    pairs = ((two_class, "two classes, margin", "C1"), (frame, "simplex frame, margin", "C0"))
    for arrays, label, colour in pairs:
        closed = arrays["closed"].reshape(*arrays["closed"].shape[:2], -1)
        difference = np.abs(arrays["solve"] - closed).max(axis=(0, 2)) / np.abs(closed).max()
        difference = np.where(difference > 0, difference, np.nan)  # no logarithm of 0
        right.loglog(times, difference, color=colour, marker=".", label=label)
    right.axhline(1e-9, color="0.45", linestyle="--", label="threshold")
    right.set(ylabel="difference, relative")
    right.set_title("largest difference over all problems", fontsize=10)
    for axis in (left, middle, right):
        axis.set(xscale="log", xlabel="time t")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def draw(run: RunFolder, rows: Sequence[Mapping[str, Any]], arrays: Mapping[str, Any]) -> None:
    """Draws every figure whose rows were run, with its arrays."""
    by_id, curves = {row["id"]: row for row in rows}, {}
    for title, names in PANELS.items():
        for name in names:
            if (id := f"A6.order.{name}") in arrays:
                curve = {"style": STYLES[name.split(".")[-1]], "tau": arrays[id]["tau"][0],
                         "error": arrays[id]["error"], "measured": by_id[id]["median"],
                         "expected": by_id[id]["expected"]}  # fmt: skip
                curves.setdefault(title, []).append(curve)
    if curves:
        _save(run, "orders", orders(curves), {n: a for n, a in arrays.items() if "tau" in a})
    shown = {name: arrays[name] for name in ("A5.two_class", "A5.frame") if name in arrays}
    if len(shown) == 2:
        each = ({**a, "times": a["times"][0]} for a in shown.values())
        _save(run, "closed_forms", closed_forms(*each), shown)


def _save(run, name, figure, arrays):
    flat = {f"{id}.{key}": value for id, each in arrays.items() for key, value in each.items()}
    run.save_figure(name, figure, **flat)
