"""Tables and figures of the images experiment."""

from typing import Any

import numpy as np

from experiments.images.config import MODELS, Config
from experiments.images.scoring import std
from imr.lab import plotting
from imr.lab.console import markdown_table
from imr.lab.data import ImageData
from imr.lab.folder import RunFolder


def flat_rows(config: Config, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each iteration and level of test noise."""
    head = {k: result[k] for k in ("model", "train_noise", "l2", "trained_iterations")}
    accuracy, loss = result["accuracy"], result["cross_entropy"]
    return [
        {
            **head,
            "test_noise": level,
            "iteration": iteration,
            "accuracy": float(accuracy[:, index, iteration].mean()),
            "accuracy_std": std(accuracy[:, index, iteration]),
            "cross_entropy": float(loss[:, index, iteration].mean()),
            "seeds": config.seeds,
        }
        for iteration in range(accuracy.shape[2])
        for index, level in enumerate(config.test_noise)
    ]


def frontier_rows(config: Config, curves) -> list[dict[str, Any]]:
    """Multinomial regression at every penalty."""
    return [
        {
            "model": "multinomial_regression",
            "train_noise": curve["train_noise"],
            "l2": l2,
            "test_noise": level,
            "accuracy": float(curve["accuracy"][p, :, index].mean()),
            "accuracy_std": std(curve["accuracy"][p, :, index]),
        }
        for curve in curves
        for p, l2 in enumerate(config.penalties)
        for index, level in enumerate(config.test_noise)
    ]


def frontier_points(config: Config, results, curves) -> list[dict[str, Any]]:
    """How far each trained model lies beyond what regression of the same noise reaches.

    The margin of a point (clean, noisy) is the least d such that a point of the curve over
    penalties, with straight lines between them, is as good as (clean - d, noisy - d) in both. A
    model and the curve are tested with the same noise, seed by seed; the curve is of one fit.
    """
    clean = config.test_noise.index(0.0)
    points = []
    for result in results:
        if result["model"] == "multinomial_regression":
            continue
        curve = next(c for c in curves if c["train_noise"] == result["train_noise"])["accuracy"]
        at = result["accuracy"][:, :, result["trained_iterations"]]
        for index, level in enumerate(config.test_noise):
            if level == 0:
                continue
            margins = [
                margin(at[s, clean], at[s, index], curve[:, s, clean], curve[:, s, index])
                for s in range(config.seeds)
            ]
            points.append(
                {
                    **{k: result[k] for k in ("model", "train_noise", "l2", "trained_iterations")},
                    "test_noise": level,
                    "margin": float(np.mean(margins)),
                    "margin_std": std(margins),
                    "beyond": bool(min(margins) > 0),
                    "result": result,
                }
            )
    return points


def margin(clean: float, noisy: float, curve_clean, curve_noisy) -> float:
    """Signed distance of a point beyond a curve, in accuracy; see `frontier_points`."""
    # A whole number of points to a stretch, so that the corners are among them.
    t = np.linspace(0, len(curve_clean) - 1, 50 * (len(curve_clean) - 1) + 1)
    grid = np.arange(len(curve_clean))
    p, q = np.interp(t, grid, curve_clean), np.interp(t, grid, curve_noisy)
    return float(np.min(np.maximum(clean - p, noisy - q)))


def report(config: Config, results, points, data: ImageData) -> str:
    """The tables that a reader wants first, in Markdown."""
    rows = []
    for result in results:
        at = result["accuracy"][:, :, result["trained_iterations"]]
        loss = result["cross_entropy"][
            :, config.test_noise.index(0.0), result["trained_iterations"]
        ]
        row = {
            "model": result["model"],
            "train noise": f"{result['train_noise']:g}",
            "l2": f"{result['l2']:g}",
            "iterations": result["trained_iterations"],
            "step": f"{result['tau'].mean():.3f}" if "tau" in result else "",
        }
        for index, level in enumerate(config.test_noise):
            name = "clean" if level == 0 else f"noise {level:g}"
            row[name] = f"{at[:, index].mean():.3f}" + spread(std(at[:, index]), ".3f")
        rows.append({**row, "clean cross-entropy": f"{loss.mean():.3f}"})
    margins = {}
    for p in points:
        key = (p["model"], p["train_noise"], p["l2"], p["trained_iterations"])
        row = margins.setdefault(
            key,
            {
                "model": key[0],
                "train noise": f"{key[1]:g}",
                "l2": f"{key[2]:g}",
                "iterations": key[3],
            },
        )
        row[f"noise {p['test_noise']:g}"] = (
            f"{100 * p['margin']:+.1f}{spread(100 * p['margin_std'], '.1f')}"
            + (" beyond" if p["beyond"] else "")
        )
    size = f"{len(data.train_labels):,} training and {len(data.test_labels):,} test images"
    return "\n".join(
        [
            f"Test accuracy on {data.name} ({size}) at the trained depth, mean ± standard deviation "
            f"over {config.seeds} seeds; step is the learned tau; the penalty of multinomial regression "
            "is chosen on held-back training images.",
            "",
            markdown_table(rows),
            "",
            "Points of accuracy beyond (+) or within (-) the frontier of multinomial regression over "
            "all penalties, trained with the same noise; 'beyond' where every seed is.",
            "",
            markdown_table(list(margins.values())),
        ]
    )


def draw(config: Config, run: RunFolder, results, curves, points, strips, data: ImageData) -> None:
    """Every figure of the run folder."""
    label = data.class_names[int(data.test_labels[0])]
    for name, depth, make in strips:
        image, states = make()
        most = max(config.train_noise)
        title = f"{name} on {data.name} ({label}), trained with noise {most:g}, Z(0) with {most or 0.5:g}"
        figure = plotting.iteration_strip(image, states, title=title, trained=depth)
        run.save_figure(f"iterations_{name}_{depth}", figure, image=image, states=states)

    panels = ["clean" if level == 0 else f"noise {level:g}" for level in config.test_noise]
    for noise in config.train_noise:
        lines = [
            {
                "label": describe(result),
                "mean": result["accuracy"].mean(axis=0),
                "std": np.nan_to_num(
                    [[std(a) for a in b.T] for b in result["accuracy"].swapaxes(0, 1)]
                ),
                "trained": result["trained_iterations"],
            }
            for result in results
            if result["train_noise"] == noise
        ]
        title = f"{data.name}, trained with noise {noise:g}; marker: trained depth"
        figure = plotting.accuracy_by_iteration(panels, lines, title=title)
        arrays = {
            f"{kind}_{i}": line[kind] for i, line in enumerate(lines) for kind in ("mean", "std")
        }
        names = np.array([line["label"] for line in lines])
        run.save_figure(f"accuracy_train_noise_{noise:g}", figure, labels=names, **arrays)

    levels = [i for i, level in enumerate(config.test_noise) if level > 0]
    if not levels:
        return
    clean = config.test_noise.index(0.0)
    drawn_curves = [
        {
            "label": f"multinomial regression, train noise {curve['train_noise']:g}, all penalties",
            "clean": curve["accuracy"][:, :, clean].mean(axis=1),
            "noisy": curve["accuracy"][:, :, levels].mean(axis=1).T,
        }
        for curve in curves
    ]
    drawn_points = []
    for result in results:
        at = result["accuracy"][:, :, result["trained_iterations"]]
        drawn_points.append(
            {
                "label": f"{describe(result)}, train noise {result['train_noise']:g}",
                "colour": ["multinomial_regression", *MODELS].index(result["model"]),
                "marker": [0, *config.iterations].index(result["trained_iterations"]),
                "filled": result["train_noise"] > 0,
                "clean": at[:, clean].mean(),
                "clean_std": np.nan_to_num(std(at[:, clean])),
                "noisy": at[:, levels].mean(axis=0),
                "noisy_std": np.nan_to_num([std(at[:, i]) for i in levels]),
            }
        )
    figure = plotting.frontier(
        [panels[i] for i in levels], drawn_curves, drawn_points, title=f"{data.name}: the frontier"
    )
    run.save_figure(
        "frontier",
        figure,
        penalties=np.array(config.penalties),
        labels=np.array([p["label"] for p in drawn_points]),
        curves_clean=np.stack([c["clean"] for c in drawn_curves]),
        curves_noisy=np.stack([c["noisy"] for c in drawn_curves]),
        points_clean=np.array([p["clean"] for p in drawn_points]),
        points_noisy=np.stack([p["noisy"] for p in drawn_points]),
    )


def spread(value: float, form: str) -> str:
    """A standard deviation behind its mean; of one seed there is none."""
    return "" if np.isnan(value) else f" ± {value:{form}}"


def describe(result: dict[str, Any]) -> str:
    """A result's name in a legend."""
    name = result["model"].replace("_", " ")
    if result["model"] == "multinomial_regression":
        return f"{name} (validated l2 {result['l2']:g})"
    return f"{name}, {result['trained_iterations']} iterations, l2 {result['l2']:g}"
