"""What is read off the flows: slopes, constants and ends, as flat rows and as curves."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.features.config import Config
from experiments.features.flows import Course, Flows, bootstrap, flows, times
from experiments.features.theory import LateTimes, bound_slack, late_times
from imr import FlowError
from imr.lab.console import say
from imr.lab.data import ImageData
from imr.lab.folder import RunFolder
from imr.lab.seeds import std

KINDS = ("free", "anchored")
CLOSE = 0.1
"""A row counts as asymptotic where its loss is within a tenth of the predicted law."""


class Seed(NamedTuple):
    """One seed in numpy: labels of its rows (n,), basis (f, d), predictions in it, and the flows."""

    labels: np.ndarray
    basis: np.ndarray
    late: LateTimes
    courses: dict[str, Course]


class Results(NamedTuple):
    """All that the tables and figures show; `images` and `theta` are those of the first seed."""

    data: ImageData
    ts: np.ndarray
    seeds: list[Seed]
    images: np.ndarray
    theta: np.ndarray
    summary: dict[str, Any]


def measure(config: Config, run: RunFolder, data: ImageData) -> Results:
    """Fits, flows and measures, and writes the course of the flows into the run folder."""
    say(f"{data.name}: {len(data.train_labels):,} images, {config.seeds} seeds, one program")
    ts, rows = times(config), bootstrap(data.train_labels, config)
    arrays = jax.device_put((data.train_images, data.train_labels, rows, ts.astype(np.float32)))
    shown = min(config.shown, rows.shape[1])
    solved = flows(*arrays, config.l2, config.anchor, len(data.class_names), shown)
    found = jax.tree.map(np.asarray, solved)
    _check_ends(config, found)
    seeds = by_seed(found, data.train_labels, rows)
    _log(run, ts, seeds)
    summary = {
        "law": law_rows(ts, seeds), "classes": class_rows(ts, seeds, data.class_names),
        "ends": end_rows(ts, seeds), "bound": [bound_row(ts, seeds)],
    }  # fmt: skip
    return Results(data, ts, seeds, data.train_images[rows[0, :shown]], found.theta[0], summary)


def _check_ends(config: Config, found) -> None:
    """Raises where a flow ended early; says so where a fit did, or where digits run out."""
    for i, kind in enumerate(KINDS):
        if found.course.result[:, i].any():
            flag = "--t1" if kind == "free" else "--anchor or --t1"
            raise FlowError(
                f"the {kind} flow did not reach t = {config.t1:g} (codes "
                f"{found.course.result[:, i].tolist()}); lower {flag}."
            )
    if not found.converged.all():
        say("the fit of theta is not at its optimum in every seed; raise --l2")
    # The field holds 1 - p of the label, which below the dtype's resolution is noise.
    loss, limit = np.median(found.course.loss[:, 0, -1]), 10 * np.finfo(found.theta.dtype).eps
    if loss < limit:
        say(f"median loss {loss:.1e} at the end is below {limit:.1e}: late times are inaccurate")


def _log(run: RunFolder, ts: np.ndarray, seeds) -> None:
    """The course of the means, one line a time and flow."""
    names = ("loss", "margin", "accuracy", "nc1", "nc1_logits", "field")
    for kind in KINDS:
        metrics, courses = run.metrics(flow=kind), [seed.courses[kind] for seed in seeds]
        for step, t in enumerate(ts):
            means = {n: np.mean([getattr(c, n)[step].mean() for c in courses]) for n in names}
            metrics.append(step, t=t, **means)


def by_seed(found: Flows, labels: np.ndarray, rows: np.ndarray) -> list[Seed]:
    """The seeds one by one; losses and margins in float64, the rest as computed."""
    wide = {name: np.float64(getattr(found.course, name)) for name in ("loss", "margin")}
    course, seeds = found.course._replace(**wide), []
    for s, sample in enumerate(rows):
        courses = {kind: Course(*(a[s, i] for a in course)) for i, kind in enumerate(KINDS)}
        basis = np.asarray(found.basis[s], np.float64)
        seeds.append(Seed(labels[sample], basis, late_times(found.theta[s] @ basis), courses))
    return seeds


def decades(ts: np.ndarray) -> dict[str, np.ndarray]:
    """The saved times of the last factor of ten, and of the one before it."""
    end, near = ts[-1], 1 - 1e-6  # the ends of a decade belong to it whatever they are rounded to
    last, before = ts >= near * end / 10, (ts >= near * end / 100) & (ts <= end / 10 / near)
    return {"last": last, "before": before}


def slope(ts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares slope against log t along the first axis."""
    x = np.log(ts) - np.log(ts).mean()
    return np.tensordot(x, values, axes=1) / np.sum(x**2)


def over_seeds(found: list[dict[str, Any]], *spread: str) -> dict[str, float]:
    """The mean of each column over seeds, and the standard deviation of the columns named."""
    columns = {key: np.array([row[key] for row in found], float) for key in found[0]}
    means = {key: float(values.mean()) for key, values in columns.items()}
    return means | {f"{key}_std": std(columns[key]) for key in spread}


def law_rows(ts: np.ndarray, seeds: list[Seed]) -> list[dict[str, Any]]:
    """Slopes of the mean loss (log-log) and of each row's margin (against log t), by decade."""
    rows = []
    for kind in KINDS:
        for decade, inside in decades(ts).items():
            found, t = [], ts[inside]
            for course in (seed.courses[kind] for seed in seeds):
                margins = slope(t, course.margin[inside])
                q05, median, q95 = np.quantile(margins, [0.05, 0.5, 0.95])
                found.append(
                    {
                        "loss_slope": slope(t, np.log(course.loss[inside].mean(axis=1))),
                        "margin_slope": median, "margin_slope_q05": q05, "margin_slope_q95": q95,
                    }
                )  # fmt: skip
            rows.append(
                {
                    "flow": kind, "decade": decade, "from": float(t[0]), "to": float(t[-1]),
                    **over_seeds(found, "loss_slope", "margin_slope"),
                    "loss_slope_predicted": -1.0 if kind == "free" else 0.0,
                    "margin_slope_predicted": 1.0 if kind == "free" else 0.0,
                }
            )  # fmt: skip
    return rows


def class_rows(ts: np.ndarray, seeds: list[Seed], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each class's law at the end of the free flow, predicted and measured; means over seeds."""
    rows = []
    for c, name in enumerate(names):
        found = []
        for seed in seeds:
            own, late, course = seed.labels == c, seed.late, seed.courses["free"]
            constant = late.distance[c] ** -2
            ratio = ts[-1] * course.loss[-1, own] / constant
            q05, median, q95 = np.quantile(ratio, [0.05, 0.5, 0.95])
            found.append(
                {
                    "distance": late.distance[c], "support": late.support[c],
                    "loss_constant_predicted": constant, "loss_constant": median * constant,
                    "ratio": median, "ratio_q05": q05, "ratio_q95": q95,
                    "share_asymptotic": np.mean(np.abs(ratio - 1) <= CLOSE),
                    "margin_constant_predicted": -np.log(late.alpha[c].max()),
                    "margin_constant": np.median(course.margin[-1, own] - np.log(ts[-1])),
                    "margin_constant_one_rival": -np.log(late.nearest[c]),
                    "exponent_predicted": late.exponent[c],
                }
            )  # fmt: skip
        rows.append({"class": name, **over_seeds(found, "ratio")})
    return rows


def end_rows(ts: np.ndarray, seeds: list[Seed]) -> list[dict[str, Any]]:
    """Where the flows start and end; means and standard deviations over seeds."""
    rows, later = [], ts >= ts[-1] / 10
    for kind in KINDS:
        found = []
        for seed in seeds:
            course = seed.courses[kind]
            correct = course.accuracy == 1
            found.append(
                {
                    "loss_start": course.loss[0].mean(), "loss_end": course.loss[-1].mean(),
                    "margin_end": np.median(course.margin[-1]),
                    "accuracy_start": course.accuracy[0], "accuracy_end": course.accuracy[-1],
                    "time_all_correct": ts[np.argmax(correct)] if correct.any() else np.nan,
                    "nc1_start": course.nc1[0], "nc1_end": course.nc1[-1],
                    "nc1_logits_end": course.nc1_logits[-1],
                    # Against log log t: the free flow's class means part like log t.
                    "nc1_slope": slope(np.log(ts[later]), np.log(course.nc1[later])),
                    "cosine_end": np.median(_cosines(course, seed)),
                    "field_end_over_start": course.field[-1] / course.field[0],
                    "solver_steps": course.steps,
                }
            )  # fmt: skip
        rows.append({"flow": kind, **over_seeds(found, *found[0])})
    return rows


def _cosines(course: Course, seed: Seed) -> np.ndarray:
    """Between each shown row's displacement and its class's direction w at late times."""
    moved = course.shown[-1] - course.shown[0]
    w = seed.late.direction[seed.labels[: len(moved)]]
    norms = np.linalg.norm(moved, axis=1) * np.linalg.norm(w, axis=1)
    return np.sum(moved * w, axis=1) / norms


def bound_row(ts: np.ndarray, seeds: list[Seed]) -> dict[str, Any]:
    """How the free flow stands to the bound on log-odds that holds at every time."""
    slack = [
        bound_slack(-np.log(np.expm1(s.courses["free"].loss)), ts, s.late.distance[s.labels])
        for s in seeds
    ]
    ends = np.concatenate([s[-1] for s in slack])
    return {
        "rows": int(ends.size), "times": len(ts),
        "least_slack": float(min(s.min() for s in slack)),
        "median_slack_end": float(np.median(ends)), "largest_slack_end": float(ends.max()),
    }  # fmt: skip
