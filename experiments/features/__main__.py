"""The way in: `python -m experiments.features`."""

from dataclasses import replace

import jax
import numpy as np

from experiments.features.config import Config, check, shrink
from experiments.features.flows import bootstrap, check_classes, flows, times
from experiments.features.measures import KINDS, bound_row, by_seed, class_rows, end_rows, law_rows
from experiments.features.report import draw, report
from imr import FlowError
from imr.lab.console import say
from imr.lab.data import ImageData, load_images
from imr.lab.experiment import run_main, run_once
from imr.lab.folder import RunFolder, open_run


def main(config: Config) -> None:
    """How do images flow under a multinomial regression fitted to them, and how fast?"""
    check(config)
    if config.data_dir is not None:
        # The same folder is the same configuration, however it is written.
        config = replace(config, data_dir=config.data_dir.expanduser().resolve())
    actual = shrink(config) if config.smoke else config
    # Before the run folder: what is wrong with the data must neither claim a folder nor empty one.
    data = load_images(
        config.dataset, config.data_dir, train_limit=actual.train_limit, test_limit=1
    )
    check_classes(data.train_labels, data.class_names)
    run = open_run("features", config, out=config.out, overwrite=config.overwrite)
    run_once(run, lambda: measure(actual, run, data))


def measure(config: Config, run: RunFolder, data: ImageData) -> None:
    """Fits, flows and measures, and writes tables and figures into the run folder."""
    say(f"{data.name}: {len(data.train_labels):,} images, {config.seeds} seeds, one program")
    ts, rows = times(config), bootstrap(data.train_labels, config)
    arrays = jax.device_put((data.train_images, data.train_labels, rows, ts.astype(np.float32)))
    shown = min(config.shown, rows.shape[1])
    found = flows(*arrays, config.l2, config.anchor, len(data.class_names), shown)
    found = jax.tree.map(np.asarray, found)
    _check_ends(config, found)
    seeds = by_seed(found, data.train_labels, rows)
    _log(run, ts, seeds)
    summary = {
        "law": law_rows(ts, seeds),
        "classes": class_rows(ts, seeds, data.class_names),
        "ends": end_rows(ts, seeds),
        "bound": [bound_row(ts, seeds)],
    }
    images = data.train_images[rows[0, :shown]]
    draw(config, run, ts, seeds, images, found.theta[0], data)
    run.finish(summary, report(config, summary, data))


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


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
