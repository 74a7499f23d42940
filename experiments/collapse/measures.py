"""The runs of the collapse experiment, and flat rows: where they end, and what that is."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.collapse import theory
from experiments.collapse.config import Config, dimensions
from experiments.collapse.flows import DECAYS, MEASURED, Course, flows, starts, times
from imr import FlowError
from imr.lab.console import say
from imr.lab.folder import RunFolder
from imr.lab.seeds import std
from imr.metrics import welch_bound

TOLERANCE = 0.01
"""Of the verdicts: above what rounding and the last of the start leave, below what frames differ by."""


class Results(NamedTuple):
    """All that the tables and figures show."""

    ts: np.ndarray
    runs: Course
    labels: np.ndarray
    rows: list[dict[str, Any]]


def measure(config: Config, run: RunFolder) -> Results:
    """Runs every flow, and writes its course to the metrics of the run folder."""
    fs = dimensions(config)
    say(
        f"{config.classes} classes, f = {', '.join(map(str, fs))}, {len(DECAYS)} decays, "
        f"{config.seeds} seeds: {len(DECAYS) * len(fs) * config.seeds} runs in one program"
    )
    ts, start = times(config), starts(config)
    labels = np.repeat(np.arange(config.classes), config.rows)
    grids = jnp.asarray(ts, start[0].dtype)
    runs = jax.tree.map(np.asarray, flows(*start, jnp.asarray(labels), grids, config.decay))
    if runs.result.any():
        d, i, s = (int(index[0]) for index in np.nonzero(runs.result))
        raise FlowError(
            f"the flow with decay {DECAYS[d]}, f = {fs[i]}, seed {config.seed + s} did not reach t = "
            f"{ts[d, -1]:g} (code {runs.result[d, i, s]}); lower "
            f"{'--decay-times' if d else '--t1'}."
        )
    rows = []
    for d, i in np.ndindex(len(DECAYS), len(fs)):
        course = Course(*(a[d, i] for a in runs))
        metrics = run.metrics(f=fs[i], decay=DECAYS[d])
        for step, t in enumerate(ts[d]):
            means = {name: getattr(course, name)[:, step].mean() for name in MEASURED}
            metrics.append(step, t=t, **means)
        drift = _drift(config.rows, course, *(np.asarray(a[i]) for a in start))
        rows.append(end_row(config, fs[i], DECAYS[d], float(ts[d, -1]), course, drift))
    return Results(ts, runs, labels, rows)


def end_row(config: Config, f: int, decay: str, t: float, course: Course, drift) -> dict[str, Any]:
    """Means and standard deviations over seeds at the end, bounds, and verdicts."""
    theta = course.theta - course.theta.mean(axis=1, keepdims=True)
    norms, units = np.linalg.norm(theta, axis=2), theory.unit_rows(course.theta)
    values = {
        **{name: getattr(course, name)[:, -1] for name in MEASURED},
        "angle": np.array([theory.least_angle(u) for u in units]),
        "distance": np.array([theory.one_against_rest(u) for u in units]),
        "norm_spread": norms.std(axis=1) / norms.mean(axis=1), "balance_drift": drift,
    }  # fmt: skip
    row: dict[str, Any] = {"f": f, "decay": decay, "t": t}
    for name, value in values.items():
        row |= {name: float(value.mean()), f"{name}_std": std(value)}
    blocks, seeds = Counter(theory.blocks(u) for u in units).most_common(1)[0]
    row |= {**_known(config, row), "blocks": blocks, "blocks_seeds": seeds}
    return {**row, **_verdicts(row, values), "seeds": config.seeds}


def _drift(n: int, course: Course, z0: np.ndarray, theta0: np.ndarray) -> np.ndarray:
    """Change of Z^T Z - n theta^T theta, which the flow without decay keeps, over |Z^T Z|."""

    def square(a):
        return np.swapaxes(np.float64(a), 1, 2) @ np.float64(a)

    end = square(course.z)
    change = (end - n * square(course.theta)) - (square(z0) - n * square(theta0))
    return np.linalg.norm(change, axis=(1, 2)) / np.linalg.norm(end, axis=(1, 2))


def _known(config: Config, row: dict[str, Any]) -> dict[str, float | None]:
    """Bounds, known codes, and closed forms of the collapsed simplex frame if there is room for it."""
    k, f, on = config.classes, row["f"], row["decay"] == "on"
    rank, room = min(f, k - 1), f >= k - 1  # what is centred has no more than k - 1 dimensions
    pace = row["loss"] * row["t"] * 2 * k * row["margin"] / (k - 1)
    return {
        "alignment_bound": (rank / (k - 1)) ** 0.5, "welch_bound": welch_bound(k, rank),
        "code_distance": theory.code_distance(k, f), "code_angle": theory.code_angle(k, f),
        "margin_predicted": theory.margin_with_decay(k, config.decay) if room and on else None,
        "loss_pace": pace if room and not on else None,  # 1 for that frame, at late times
    }  # fmt: skip


def _verdicts(row: dict[str, Any], values: dict[str, np.ndarray]) -> dict[str, int | None]:
    """How many seeds are within the tolerance of each kind of frame; None if it is not known."""
    near, code = 1 - TOLERANCE, row["code_distance"]
    within = {
        "settled": values["pace"] < TOLERANCE,
        "collapsed": (values["nc1"] < TOLERANCE) & (values["nc4"] == 0),
        "self_dual": values["nc3"] < TOLERANCE, "simplex": values["alignment"] > near,
        "at_alignment_bound": values["alignment"] > near * row["alignment_bound"],
        "at_welch_bound": values["interference"] < (1 + TOLERANCE) * row["welch_bound"],
        "softmax_code": None if code is None else values["distance"] > near * code,
    }  # fmt: skip
    return {name: None if seeds is None else int(seeds.sum()) for name, seeds in within.items()}
