"""Figures of the images experiment, written into the run folder."""

from pathlib import Path

import numpy as np

from experiments.images.config import MODELS, REGRESSION, Config, level_name
from imr.lab import plotting
from imr.lab.data import ImageData
from imr.lab.folder import RunFolder
from imr.lab.seeds import std


def draw_strip(
    config: Config, run: RunFolder, name: str, depth: int, states, data: ImageData
) -> Path:
    """The first test image on its way through the blocks of a model."""
    image, most = data.test_images[0].reshape(data.image_shape), max(config.train_noise)
    states = np.asarray(states).reshape(-1, *data.image_shape)
    label = data.class_names[int(data.test_labels[0])]
    title = (
        f"{name} on {data.name} ({label}), trained with noise {most:g}, Z(0) with {most or 0.5:g}"
    )
    figure = plotting.iteration_strip(image, states, title=title, trained=depth)
    run.save_figure(f"iterations_{name}_{depth}", figure, image=image, states=states)
    return run.figures / f"iterations_{name}_{depth}.png"


def draw_iterations(config: Config, run: RunFolder, results, data: ImageData) -> None:
    """Accuracy against the iteration of the read-out, one figure for each train noise."""
    panels = [level_name(level) for level in config.test_noise]
    for noise in config.train_noise:
        lines = [
            {
                "label": label(r), "mean": r.accuracy.mean(axis=0), "trained": r.trained_iterations,
                # 0 for one seed
                "std": np.nan_to_num(np.apply_along_axis(std, 0, r.accuracy)),
            }
            for r in results
            if r.train_noise == noise
        ]  # fmt: skip
        title = f"{data.name}, trained with noise {noise:g}; marker: trained depth"
        figure = plotting.accuracy_by_iteration(panels, lines, title=title)
        arrays = {f"{k}_{i}": line[k] for i, line in enumerate(lines) for k in ("mean", "std")}
        names = np.array([line["label"] for line in lines])
        run.save_figure(f"accuracy_train_noise_{noise:g}", figure, labels=names, **arrays)


def draw_frontier(config: Config, run: RunFolder, results, curves, data: ImageData) -> None:
    """Clean against noisy accuracy: the curves of regression over penalties, and every model."""
    levels = [i for i, level in enumerate(config.test_noise) if level > 0]
    if not levels:
        return
    clean = config.test_noise.index(0.0)
    drawn_curves = [
        {
            "label": f"multinomial regression, train noise {noise:g}, all penalties",
            "clean": accuracy[:, :, clean].mean(axis=1),
            "noisy": accuracy[:, :, levels].mean(axis=1).T,
        }
        for noise, accuracy in curves.items()
    ]
    drawn_points = [
        {
            "label": f"{label(result)}, train noise {result.train_noise:g}",
            "colour": [REGRESSION, *MODELS].index(result.model),
            "marker": [0, *config.iterations].index(result.trained_iterations),
            "filled": result.train_noise > 0, "clean": at[:, clean].mean(),
            "clean_std": np.nan_to_num(std(at[:, clean])), "noisy": at[:, levels].mean(axis=0),
            "noisy_std": np.nan_to_num([std(at[:, i]) for i in levels]),
        }
        for result, at in ((result, result.at_depth) for result in results)
    ]  # fmt: skip
    panels = [level_name(config.test_noise[i]) for i in levels]
    title = f"{data.name}: the frontier"
    figure = plotting.frontier(panels, drawn_curves, drawn_points, title=title)
    run.save_figure(
        "frontier", figure, penalties=np.array(sorted(config.penalties)),
        labels=np.array([p["label"] for p in drawn_points]),
        curves_clean=np.stack([c["clean"] for c in drawn_curves]),
        curves_noisy=np.stack([c["noisy"] for c in drawn_curves]),
        points_clean=np.array([p["clean"] for p in drawn_points]),
        points_noisy=np.stack([p["noisy"] for p in drawn_points]),
    )  # fmt: skip


def label(result) -> str:
    """A result's name in a legend."""
    name = result.model.replace("_", " ")
    if result.model == REGRESSION:
        return f"{name} (validated l2 {result.l2:g})"
    return f"{name}, {result.trained_iterations} iterations, l2 {result.l2:g}"
