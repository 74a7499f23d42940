"""Tables of the images experiment."""

from typing import Any

from experiments.images.config import REGRESSION, Config, level_name
from experiments.images.figures import draw_frontier, draw_iterations
from experiments.images.measures import Curve, Margin, Result, Results
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lab.seeds import plus_minus, std


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes figures, tables and the summary into the run folder."""
    draw_iterations(config, run, results.results, results.data)
    draw_frontier(config, run, results.results, results.curves, results.data)
    summary = {
        "table": [row for result in results.results for row in iteration_rows(config, result)],
        "frontier": [row for curve in results.curves for row in frontier_rows(config, curve)],
        "beyond_frontier": [
            {**m.result.head, **{k: getattr(m, k) for k in Margin._fields[1:]}}
            for m in results.margins
        ],
        "penalty_selection": results.selection,
        "steps": [
            {**result.head, "tau": float(result.tau.mean()), "tau_std": std(result.tau)}
            for result in results.results
            if result.tau is not None
        ],
    }
    run.finish(summary, tables(config, results))


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


def frontier_rows(config: Config, curve: Curve) -> list[dict[str, Any]]:
    """Multinomial regression at every penalty and level of test noise."""
    return [
        {
            "model": REGRESSION, "train_noise": curve.train_noise, "l2": l2, "test_noise": level,
            "accuracy": float(curve.accuracy[p, :, index].mean()),
            "accuracy_std": std(curve.accuracy[p, :, index]),
        }
        for p, l2 in enumerate(sorted(config.penalties))
        for index, level in enumerate(config.test_noise)
    ]  # fmt: skip


def tables(config: Config, results: Results) -> str:
    """The tables that a reader wants first, in Markdown."""
    data = results.data
    size = f"{len(data.train_labels):,} training and {len(data.test_labels):,} test images"
    return "\n".join(
        [
            f"Test accuracy on {data.name} ({size}) at the trained depth, mean ± standard deviation "
            f"over {config.seeds} seeds; step is the learned tau; the penalty of multinomial regression "
            "is chosen on held-back training images.",
            "",
            markdown_table([accuracy_row(config, result) for result in results.results]),
            "",
            "Points of accuracy beyond (+) or within (-) the frontier of multinomial regression over "
            "all penalties, trained with the same noise; 'beyond' if every seed is.",
            "",
            markdown_table(margin_rows(results.margins)),
        ]
    )


def table_head(result: Result) -> dict[str, Any]:
    """The first columns of both tables."""
    return {
        "model": result.model, "train noise": f"{result.train_noise:g}", "l2": f"{result.l2:g}",
        "iterations": result.trained_iterations,
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
        **table_head(result), "step": step, **accuracies, "clean cross-entropy": f"{loss:.3f}"
    }  # fmt: skip


def margin_rows(margins: list[Margin]) -> list[dict[str, Any]]:
    """The table of margins: a row for each model, a column for each level of test noise."""
    rows = {}
    for m in margins:
        row = rows.setdefault(tuple(m.result.head.values()), table_head(m.result))
        row[level_name(m.test_noise)] = plus_minus(100 * m.margin, 100 * m.margin_std, "+.1f") + (
            " beyond" if m.beyond else ""
        )
    return list(rows.values())
