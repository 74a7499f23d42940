"""The runs of the collapse experiment, and flat rows: where they end, and what that is."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.collapse import theory
from experiments.collapse.config import Config, dimensions
from experiments.collapse.flows import DECAYS, Course, flows, starts, times
from imr import FlowError
from imr.lab.console import say
from imr.lab.folder import RunFolder
from imr.lab.seeds import std
from imr.metrics import welch_bound

TOLERANCE = 0.01
"""Of the verdicts: above what rounding and the last of the start leave, below what frames differ by."""
MEASURED = (
    "nc1", "nc2", "nc3", "nc4", "alignment", "alignment_theta", "interference", "loss", "margin",
    "normalised", "pace",
)  # fmt: skip


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
    _log(run, ts, runs, fs)
    rows = table(config, ts, runs, jax.tree.map(np.asarray, start))
    return Results(ts, runs, labels, rows)


def _log(run: RunFolder, ts: np.ndarray, runs: Course, fs: tuple[int, ...]) -> None:
    """The course of the means over seeds, one line a time, dimension and decay."""
    for d, decay in enumerate(DECAYS):
        for i, f in enumerate(fs):
            metrics = run.metrics(f=f, decay=decay)
            for step, t in enumerate(ts[d]):
                means = {name: getattr(runs, name)[d, i, :, step].mean() for name in MEASURED}
                metrics.append(step, t=t, **means)


def table(config: Config, ts: np.ndarray, runs: Course, starts: Any) -> list[dict[str, Any]]:
    """A row for each dimension and decay: means and standard deviations over seeds, bounds, verdicts."""
    rows = []
    for d, decay in enumerate(DECAYS):
        for i, f in enumerate(dimensions(config)):
            values = {name: getattr(runs, name)[d, i, :, -1] for name in MEASURED}
            values |= _frames(runs.theta[d, i])
            values["balance_drift"] = _drift(config, runs, starts, d, i)
            sizes = values.pop("blocks")
            row: dict[str, Any] = {"f": f, "decay": decay, "t": float(ts[d, -1])}
            for name, value in values.items():
                row[name] = float(value.mean())
                row[f"{name}_std"] = std(value)
            most, count = Counter(sizes).most_common(1)[0]
            row |= _references(config.classes, f)
            row |= {"blocks": most, "blocks_seeds": count}
            row |= _closed_forms(config, row)
            row |= _verdicts(row, values)
            rows.append({**row, "seeds": config.seeds})
    return rows


def _frames(theta: np.ndarray) -> dict[str, Any]:
    """Of theta at the end, shape (seeds, k, F): angles, distances, norms, groups."""
    units = theory.unit_rows(np.asarray(theta, np.float64))
    norms = np.linalg.norm(theta - theta.mean(axis=1, keepdims=True), axis=2)
    return {
        "angle": np.array([theory.least_angle(u) for u in units]),
        "distance": np.array([theory.one_against_rest(u) for u in units]),
        "norm_spread": norms.std(axis=1) / norms.mean(axis=1),
        "blocks": [theory.blocks(u) for u in units],
    }


def _drift(config: Config, runs: Course, starts: Any, d: int, i: int) -> np.ndarray:
    """Change of Z^T Z - n theta^T theta, which the flow without decay keeps, over |Z^T Z|."""
    n = config.rows

    def square(a):
        return np.swapaxes(np.float64(a), 1, 2) @ np.float64(a)

    def balance(z, theta):
        return square(z) - n * square(theta)

    change = balance(runs.z[d, i], runs.theta[d, i]) - balance(starts[0][i], starts[1][i])
    return np.linalg.norm(change, axis=(1, 2)) / np.linalg.norm(square(runs.z[d, i]), axis=(1, 2))


def _references(k: int, f: int) -> dict[str, float | None]:
    """Bounds and known codes; what is centred has no more than k - 1 dimensions."""
    room = min(f, k - 1)
    return {
        "alignment_bound": (room / (k - 1)) ** 0.5, "welch_bound": welch_bound(k, room),
        "code_distance": theory.code_distance(k, f), "code_angle": theory.code_angle(k, f),
    }  # fmt: skip


def _closed_forms(config: Config, row: dict[str, Any]) -> dict[str, float | None]:
    """Of the collapsed simplex frame, where there is room for it."""
    k, room, on = config.classes, row["f"] >= config.classes - 1, row["decay"] == "on"
    pace = row["loss"] * row["t"] * 2 * k * row["margin"] / (k - 1)
    return {
        "margin_predicted": theory.margin_with_decay(k, config.decay) if room and on else None,
        # 1 for the collapsed simplex frame, at late times.
        "loss_pace": pace if room and not on else None,
    }


def count(hits) -> int:
    """How many are true."""
    return int(np.sum(hits))


def _verdicts(row: dict[str, Any], values: dict[str, np.ndarray]) -> dict[str, int | None]:
    """How many seeds are within the tolerance of each kind of frame."""
    best = row["code_distance"]
    return {
        "settled": count(values["pace"] < TOLERANCE),
        "collapsed": count((values["nc1"] < TOLERANCE) & (values["nc4"] == 0)),
        "self_dual": count(values["nc3"] < TOLERANCE),
        "simplex": count(values["alignment"] > 1 - TOLERANCE),
        "at_alignment_bound": count(values["alignment"] > (1 - TOLERANCE) * row["alignment_bound"]),
        "at_welch_bound": count(values["interference"] < (1 + TOLERANCE) * row["welch_bound"]),
        "softmax_code": None
        if best is None
        else count(values["distance"] > (1 - TOLERANCE) * best),
    }
