"""Tables of the images experiment."""

from itertools import product
from typing import Any

import numpy as np

from experiments.images.config import REGRESSION, Config, level_name
from experiments.images.figures import draw_frontier, draw_iterations
from experiments.images.measures import Result, Results
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lab.seeds import plus_minus, std


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes figures, tables and the summary into the run folder."""
    draw_iterations(config, run, results.results, results.data)
    draw_frontier(config, run, results.results, results.curves, results.data)
    margins = margin_rows(config, results)
    summary = {
        "table": [row for result in results.results for row in iteration_rows(config, result)],
        "frontier": [
            row for each in results.curves.items() for row in frontier_rows(config, *each)
        ],
        "beyond_frontier": margins,
        "penalty_selection": results.selection,
        "steps": [
            {**result.head, "tau": float(result.tau.mean()), "tau_std": std(result.tau)}
            for result in results.results
            if result.tau is not None
        ],
    }
    run.finish(summary, tables(config, results, margins))


def iteration_rows(config: Config, result: Result) -> list[dict[str, Any]]:
    """One row for each iteration and level of test noise."""
    accuracy, loss = result.accuracy, result.cross_entropy
    return [
        {
            **result.head, "test_noise": level, "iteration": iteration,
            "accuracy": float(accuracy[:, index, iteration].mean()),
            "accuracy_std": std(accuracy[:, index, iteration]),
            "cross_entropy": float(loss[:, index, iteration].mean()), "seeds": config.seeds,
        }
        for iteration in range(accuracy.shape[2])
        for index, level in enumerate(config.test_noise)
    ]  # fmt: skip


def frontier_rows(config: Config, noise: float, accuracy: np.ndarray) -> list[dict[str, Any]]:
    """Multinomial regression trained with that noise, at every penalty and level of test noise."""
    return [
        {
            "model": REGRESSION, "train_noise": noise, "l2": l2, "test_noise": level,
            "accuracy": float(accuracy[p, :, index].mean()),
            "accuracy_std": std(accuracy[p, :, index]),
        }
        for p, l2 in enumerate(sorted(config.penalties))
        for index, level in enumerate(config.test_noise)
    ]  # fmt: skip


def margin_rows(config: Config, results: Results) -> list[dict[str, Any]]:
    """How far each trained model lies beyond what regression of the same noise reaches.

    The margin of a point (clean, noisy) is the least d such that a point of the curve over
    penalties, with straight lines between them, is as good as (clean - d, noisy - d) in both. A
    model and the curve are tested with the same noise, seed by seed; the curve is of one fit.
    """
    clean, rows = config.test_noise.index(0.0), []
    for result, (index, level) in product(results.results, enumerate(config.test_noise)):
        if result.model == REGRESSION or level == 0:
            continue
        pairs = result.at_depth[:, [clean, index]]
        curves = results.curves[result.train_noise][:, :, [clean, index]].swapaxes(0, 1)
        margins = [margin(point, curve) for point, curve in zip(pairs, curves, strict=True)]
        rows.append(
            {
                **result.head, "test_noise": level, "margin": float(np.mean(margins)),
                "margin_std": std(margins), "beyond": min(margins) > 0,
            }
        )  # fmt: skip
    return rows


def margin(point: np.ndarray, curve: np.ndarray) -> float:
    """Signed distance of a point beyond a curve, shape (penalties, 2), in accuracy."""
    # A whole number of points to a stretch, so that the corners are among them.
    t = np.linspace(0, len(curve) - 1, 50 * (len(curve) - 1) + 1)
    drawn = np.stack([np.interp(t, np.arange(len(curve)), c) for c in curve.T], axis=1)
    return float((point - drawn).max(axis=1).min())


def tables(config: Config, results: Results, margins: list[dict[str, Any]]) -> str:
    """The tables that a reader wants first, in Markdown."""
    data = results.data
    accuracies = markdown_table([accuracy_row(config, result) for result in results.results])
    return f"""\
Test accuracy on {data.name} ({len(data.train_labels):,} training and {len(data.test_labels):,} test \
images) at the trained depth, mean ± standard deviation over {config.seeds} seeds; step is the learned \
tau; the penalty of multinomial regression is chosen on held-back training images.

{accuracies}

Points of accuracy beyond (+) or within (-) the frontier of multinomial regression over all penalties, \
trained with the same noise; 'beyond' if every seed is.

{markdown_table(margin_table(margins))}"""


def table_head(row: dict[str, Any]) -> dict[str, Any]:
    """The first columns of both tables."""
    return {
        "model": row["model"], "train noise": f"{row['train_noise']:g}", "l2": f"{row['l2']:g}",
        "iterations": row["trained_iterations"],
    }  # fmt: skip


def accuracy_row(config: Config, result: Result) -> dict[str, Any]:
    """A row of the table of accuracies at the trained depth."""
    at, clean = result.at_depth, config.test_noise.index(0.0)
    step = "" if result.tau is None else f"{result.tau.mean():.3f}"
    accuracies = {
        level_name(level): plus_minus(at[:, index].mean(), std(at[:, index]))
        for index, level in enumerate(config.test_noise)
    }
    loss = result.cross_entropy[:, clean, result.trained_iterations].mean()
    return {
        **table_head(result.head), "step": step, **accuracies, "clean cross-entropy": f"{loss:.3f}"
    }  # fmt: skip


def margin_table(margins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of margins: a row for each model, a column for each level of test noise."""
    rows = {}
    for m in margins:
        head = table_head(m)
        cell = plus_minus(100 * m["margin"], 100 * m["margin_std"], "+.1f")
        row = rows.setdefault(tuple(head.values()), head)
        row[level_name(m["test_noise"])] = cell + " beyond" * m["beyond"]
    return list(rows.values())
