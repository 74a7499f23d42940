"""Figures: functions from arrays to a matplotlib Figure, and which of them a run can draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.theorems.splitting import FLOOR
from imr.lab.folder import RunFolder
from imr.lab.plotting import new_figure

PANELS = {
    "linear model": {
        "A6.order.euler": "Euler, tied layers",
        "A6.order.untied": "Euler, untied layers",
        "A6.order.lie": "Lie",
        "A6.order.strang": "Strang",
        "A6.order.triple_jump": "triple jump of Strang",
    },
    "quadratic model": {
        "A6.order.sphere": "Euler, normalised rows",
        "A6.order.quadratic.lie": "Lie",
        "A6.order.quadratic.strang": "Strang",
        "A6.order.quadratic.triple_jump": "triple jump of Strang",
    },
}
STYLES = {  # label: colour, marker
    "Euler, tied layers": ("C0", "o"),
    "Euler, untied layers": ("C4", "v"),
    "Euler, normalised rows": ("C5", "v"),
    "Lie": ("C1", "s"),
    "Strang": ("C2", "D"),
    "triple jump of Strang": ("C3", "^"),
}


def orders(panels: Mapping[str, Sequence[Mapping[str, Any]]], floor: float) -> Any:
    """Error against the step, and the slopes of the theory.

    Args:
      panels: title to curves; a curve has `label`, `tau` (s,), `error` (seeds, s), `measured`, the
        median order, and `expected`.
      floor: errors below it take no part in the measured order.

    Returns:
      A matplotlib Figure: medians over seeds, bands from the least to the largest error.
    """
    figure = new_figure(figsize=(5.0 * len(panels), 5.2))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for curve in curves:
            tau, error = curve["tau"], curve["error"]
            colour, marker = STYLES[curve["label"]]
            middle = np.median(error, axis=0)
            label = f"{curve['label']}: {curve['measured']:.2f}"
            # Wide and empty, to be seen behind another curve.
            hollow = curve["label"] == "Euler, normalised rows"
            face, size = ("white", 9) if hollow else (colour, 5)
            axis.loglog(
                tau, middle, color=colour, marker=marker, markersize=size, markerfacecolor=face,
                label=label,
            )  # fmt: skip
            axis.fill_between(
                tau, error.min(axis=0), error.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
        for order in sorted({curve["expected"] for curve in curves}):
            # Above the highest curve of that order, so that it is seen beside it.
            mine = [c for c in curves if c["expected"] == order]
            at = len(mine[0]["tau"]) // 2
            top = max(mine, key=lambda c: np.median(c["error"][:, at]))
            tau = top["tau"]
            line = 3 * np.median(top["error"][:, at]) * (tau / tau[at]) ** order
            name = "slope of the theory" if order == 1 else None
            axis.loglog(tau, line, color="0.45", linestyle="--", linewidth=1, label=name)
            axis.annotate(
                f"$\\tau^{order:g}$", (tau[at], line[at]), color="0.3",
                textcoords="offset points", xytext=(-4, 5), ha="right",
            )  # fmt: skip
        axis.axhline(floor, color="0.45", linestyle=":", linewidth=1, label="not fitted below")
        axis.set_title(title)
        axis.set_xlabel("step τ (time)")
        axis.grid(alpha=0.3)
        axis.legend(
            title="integrator: measured order", fontsize=8, title_fontsize=8, ncols=2,
            loc="upper center", bbox_to_anchor=(0.5, -0.14),
        )  # fmt: skip
    axes[0].set_ylabel("error at the end, relative")
    return figure


def closed_forms(two_class: Mapping[str, Any], frame: Mapping[str, Any]) -> Any:
    """Closed forms against solves over time.

    Args:
      two_class: `times` (s,), margins `solve` and `closed` (seeds, s, n).
      frame: `times` (s,), `scale` (seeds,), margins `solve` (seeds, s, n) and `closed` (seeds, s), and
        `loss`, `loss_closed` (seeds, s).

    Returns:
      A matplotlib Figure: the first seed in lines and markers, differences over all seeds.
    """
    figure = new_figure(figsize=(12.6, 4.0))
    left, middle, right = figure.subplots(1, 3)
    times, rows = two_class["times"], range(min(3, two_class["solve"].shape[2]))
    for row in rows:
        named = row == 0
        left.plot(
            times, two_class["closed"][0, :, row], color=f"C{row}",
            label="closed form (three rows)" if named else None,
        )  # fmt: skip
        left.plot(
            times, two_class["solve"][0, :, row], color=f"C{row}", marker="o", linestyle="none",
            markersize=4, label="reduced flow" if named else None,
        )  # fmt: skip
    left.set_title("two classes: $u + e^u = u_0 + e^{u_0} + \\|\\Delta\\theta\\|^2 t$", fontsize=10)
    left.set_ylabel("margin u (nats)")
    middle.loglog(times, frame["loss_closed"][0], color="C0", label="closed form")
    middle.loglog(
        times, frame["loss"][0], color="C0", marker="o", linestyle="none", markersize=4,
        label="reduced flow",
    )  # fmt: skip
    guide = frame["loss_closed"][0, -1] * times[-1] / times
    late = guide < frame["loss_closed"][0, 0]
    middle.loglog(times[late], guide[late], color="0.45", linestyle="--", label="$1/t$")
    middle.set_title("simplex frame: $e^m + (k - 1) m = 1 + a k t$", fontsize=10)
    middle.set_ylabel("loss, sum over rows (nats)")
    for name, label, colour in (
        (two_class, "two classes, margin", "C1"),
        (frame, "simplex frame, margin", "C0"),
    ):
        closed = name["closed"] if name["closed"].ndim == 3 else name["closed"][:, :, None]
        difference = np.abs(name["solve"] - closed).max(axis=(0, 2)) / np.abs(closed).max()
        difference = np.where(difference > 0, difference, np.nan)  # no logarithm of 0
        right.loglog(times, difference, color=colour, marker=".", label=label)
    right.axhline(1e-9, color="0.45", linestyle="--", label="threshold")
    right.set_title("largest difference over all problems", fontsize=10)
    right.set_ylabel("difference, relative")
    for axis in (left, middle, right):
        axis.set_xscale("log")
        axis.set_xlabel("time t")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def draw(run: RunFolder, rows: Sequence[Mapping[str, Any]], arrays: Mapping[str, Any]) -> None:
    """Every figure whose rows were run, with its arrays."""
    panels = {}
    for title, names in PANELS.items():
        curves = [
            {
                "label": label,
                "tau": arrays[name]["tau"][0],
                "error": arrays[name]["error"],
                **_order(rows, name),
            }
            for name, label in names.items()
            if name in arrays
        ]
        if curves:
            panels[title] = curves
    if panels:
        saved = {n: a for n, a in arrays.items() if "tau" in a}
        flat = {f"{n}.{key}": value for n, a in saved.items() for key, value in a.items()}
        run.save_figure("orders", orders(panels, FLOOR), **flat)
    wanted = ("A5.two_class", "A5.frame")
    if all(name in arrays for name in wanted):
        two_class, frame = ({**arrays[n], "times": arrays[n]["times"][0]} for n in wanted)
        flat = {f"{n}.{key}": value for n in wanted for key, value in arrays[n].items()}
        run.save_figure("closed_forms", closed_forms(two_class, frame), **flat)


def _order(rows, name):
    (row,) = (r for r in rows if r["id"] == name)
    return {"measured": row["median"], "expected": row["expected"]}
