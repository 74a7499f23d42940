"""The way in: `python -m experiments.images`."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp

from experiments.images.baseline import regression_results
from experiments.images.config import Config, check, shrink
from experiments.images.models import build, strip, test_model, train_model
from experiments.images.report import draw, flat_rows, frontier_points, frontier_rows, report
from experiments.images.scoring import std
from imr.lab.console import say
from imr.lab.data import ImageData, load_images
from imr.lab.experiment import run_main, run_once
from imr.lab.folder import RunFolder, open_run


def main(config: Config) -> None:
    """Does iterating the transformer block improve classification of clean and noisy images?"""
    check(config)
    if (
        config.data_dir is not None
    ):  # the same folder is the same configuration, however it is written
        config = replace(config, data_dir=config.data_dir.expanduser().resolve())
    actual = shrink(config) if config.smoke else config
    # Before the run folder: what is wrong with the data must neither claim a folder nor empty one.
    data = load_images(
        config.dataset,
        config.data_dir,
        train_limit=actual.train_limit,
        test_limit=actual.test_limit,
    )
    run = open_run("images", config, out=config.out, overwrite=config.overwrite)
    run_once(run, lambda: measure(actual, run, data))


def measure(config: Config, run: RunFolder, data: ImageData) -> None:
    """Trains and tests every model, and writes tables and figures into the run folder."""
    say(
        f"{data.name}: {len(data.train_labels):,} training and {len(data.test_labels):,} test images "
        f"of {data.image_shape[0]} x {data.image_shape[1]} pixels; {config.seeds} seeds"
    )
    config = replace(config, penalties=tuple(sorted(config.penalties)))  # the curve, in order
    arrays = jax.device_put((data.train_images, data.train_labels))
    test = jax.device_put((data.test_images, data.test_labels))
    keys = jnp.stack([jax.random.key(config.seed + s) for s in range(config.seeds)])

    results, curves, selection = regression_results(config, arrays, test, keys, data)
    strips = []
    for name, depth in product(config.models, config.iterations):
        model = build(config, name, depth, data)
        states, runs = train_model(config, run, name, depth, model, arrays, keys)
        results += test_model(config, name, depth, model, states, runs, test, keys)
        strips.append((name, depth, partial(strip, config, model, states, runs, data)))

    points = frontier_points(config, results, curves)
    draw(config, run, results, curves, points, strips, data)
    summary = {
        "table": [row for result in results for row in flat_rows(config, result)],
        "frontier": frontier_rows(config, curves),
        "beyond_frontier": [{k: v for k, v in p.items() if k != "result"} for p in points],
        "penalty_selection": selection,
        "steps": [
            {
                **{k: r[k] for k in ("model", "train_noise", "l2", "trained_iterations")},
                "tau": float(r["tau"].mean()),
                "tau_std": std(r["tau"]),
            }
            for r in results
            if "tau" in r
        ],
    }
    run.finish(summary, report(config, results, points, data))


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
