"""Figures of the incontext experiment, one or two for each part."""

from typing import Any

import numpy as np

from experiments.incontext.classification import block_name
from experiments.incontext.config import Sizes
from experiments.incontext.images import FEW
from experiments.incontext.readings import Part
from imr.lab.folder import RunFolder
from imr.lab.plotting import band, legend_below, new_figure, panels


def draw(name: str, sizes: Sizes, run: RunFolder, part: Part) -> None:
    """The figures of a part."""
    functions = {
        "regression": _regression, "dynamics": _dynamics, "classification": _depth,
        "images": _images, "recurrences": _recurrences,
    }  # fmt: skip
    if name in functions:
        functions[name](sizes, run, part.arrays)
    if name == "classification":
        _geometry(run, part.arrays)


def _axis(width: float, title: str, **settings: Any) -> tuple[Any, Any]:
    figure = new_figure(figsize=(width, 4.2))
    axis = figure.subplots()
    axis.set(**settings)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    return figure, axis


def _means(axis: Any, x: Any, runs: np.ndarray, label: str, colour: str, **style: Any) -> None:
    band(axis, x, runs, label, colour, np.mean, marker="o", markersize=3, **style)


def _regression(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Loss against layers, trained and tuned."""
    n = sizes.examples[0]
    found = np.stack([arrays[f"loss_{l}_{n}"][:, 0] for l in sizes.layers], axis=1)
    figure, axis = _axis(
        5.6, f"Linear regression in context, {n} examples", xlabel="layers, or steps",
        ylabel="loss on fresh tasks", yscale="log",
    )  # fmt: skip
    for k, (label, colour) in enumerate((("trained net", "C0"), (None, ""), ("best GD++", "C1"), ("best GD", "C2"))):  # fmt: skip
        if label:
            _means(
                axis, sizes.layers, found[..., k], label, colour, linestyle="-" if k == 0 else "--"
            )
    axis.set_xticks(sizes.layers)
    axis.legend(fontsize=8)
    run.save_figure("regression", figure, layers=np.array(sizes.layers), loss=found)


def _dynamics(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Each mode of the first seed against the flow."""
    figure, axes = panels(
        1, len(sizes.rates), (3.6 * len(sizes.rates), 3.8), sharey=True,
        title="Modes of one linear layer: gradient descent (solid) and its flow (dashed)",
    )  # fmt: skip
    times = arrays["times"][1:]
    for axis, rate in zip(axes[0], sizes.rates, strict=True):
        for i, s in enumerate(arrays["spectrum"]):
            colour = f"C{i}"
            axis.plot(
                times,
                arrays[f"modes_{rate:g}"][0, 1:, i],
                color=colour,
                label=f"eigenvalue {s:.2f}",
            )
            axis.plot(
                times,
                arrays["theory"][1:, i],
                color="black",
                linestyle="--",
                linewidth=0.8,
            )
        axis.set(title=f"rate {rate:g}", xlabel="time", xscale="log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mode of v U")
    legend_below(figure, axes[0, 0], 4, fontsize=7)
    run.save_figure("dynamics", figure, **arrays)


def _depth(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Cross-entropy against depth, with ridge and without."""
    figure, axis = _axis(
        5.8, "Gaussian-process latents, blocks of softmax attention over examples", xlabel="layers",
        ylabel="cross-entropy on fresh tasks",
    )  # fmt: skip
    shown = {}
    for ridge, label, colour in (
        (False, "trained, no ridge", "C3"),
        (True, "trained, learned ridge", "C0"),
    ):
        shown[label] = np.stack(
            [arrays[f"process: {block_name('softmax', d, ridge)}"][:, 1] for d in sizes.depths],
            axis=1,
        )
        _means(axis, sizes.depths, shown[label], label, colour)
    some, many = sizes.depths[1], sizes.depths[-1]
    for ridge, label, colour in ((False, "no ridge", "C3"), (True, "ridge", "C0")):
        name = f"process: {block_name('softmax', some, ridge)}"
        pair = np.stack(
            [arrays[key][:, 1] for key in (name, f"{name}, iterated to {many}")], axis=1
        )
        label = f"trained with {some} layers and iterated, {label}"
        axis.plot((some, many), pair.mean(axis=0), ":", color=colour, marker="s", label=label)
        shown[label] = pair
    for name, label, colour in (
        ("rbf kernel regression", "kernel regression at its optimum", "black"),
        ("standard transformer", "standard transformer", "0.5"),
    ):
        axis.axhline(
            arrays[f"process: {name}"][:, 1].mean(), color=colour, linestyle="--", label=label
        )
    axis.set_xticks(sizes.depths)
    axis.legend(fontsize=8)
    run.save_figure(
        "depth",
        figure,
        depths=np.array(sizes.depths),
        **{k.replace(", ", "_").replace(" ", "_"): v for k, v in shown.items()},
    )


def _geometry(run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """The metric and the Gram matrix of a block of the first seed, before and after its training."""
    keys = ("metric", "classes")
    figure, axes = panels(
        2, 3, (7.2, 4.8), title="A block of exponential attention and ridge, first seed"
    )
    for row, key in zip(axes, keys, strict=True):
        shown = {kind: arrays[f"{key}, {kind}"] for kind in ("untrained", "trained")}
        shape = shown["trained"].shape[0]
        theory = np.eye(shape) - (1 / shape if key == "classes" else 0)
        shown["theory"] = theory * np.sum(shown["trained"] * theory) / np.sum(theory**2)
        for axis, (kind, matrix) in zip(row, shown.items(), strict=True):
            bound = np.abs(matrix).max()
            image = axis.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound)
            axis.set_title(f"{'W Wᵀ' if key == 'metric' else 'θ θᵀ, centred'}, {kind}", fontsize=9)
            axis.set(xticks=[], yticks=[])
            figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=6)
    run.save_figure(
        "geometry",
        figure,
        **{k.replace(", ", "_"): arrays[k] for k in arrays if k.startswith(keys)},
    )


_IMAGE_METHODS = {
    "rbf flow": ("C0", "-"), "softmax flow": ("C1", "-"), "softmax, one step": ("C1", ":"),
    "linear flow": ("C2", "-"), "rbf kernel regression": ("black", "--"),
    "nearest neighbours": ("0.5", "--"), "class mean": ("0.5", ":"),
}  # fmt: skip


def _images(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Accuracy against shots; and what a query gains from the others."""
    figure, axis = _axis(
        6.2, "Images of five held-out classes, mean over splits", xlabel="examples of each class",
        ylabel="accuracy", xscale="log",
    )  # fmt: skip
    saved = {"shots": np.array(sizes.shots)}
    for name, (colour, line) in _IMAGE_METHODS.items():
        runs = saved[name.replace(", ", "_").replace(" ", "_")] = np.stack(
            [arrays[f"{name}, {s}"] for s in sizes.shots], axis=1
        )
        axis.plot(
            sizes.shots,
            runs.mean(axis=0),
            color=colour,
            linestyle=line,
            marker="o",
            markersize=3,
            label=name,
        )
    axis.set_xticks(sizes.shots, map(str, sizes.shots))
    axis.minorticks_off()
    axis.legend(fontsize=8)
    run.save_figure("shots", figure, **saved)
    shots = [s for s in sizes.shots if s <= FEW]
    together, alone = (
        np.stack([arrays[f"propagated, {how}, {s}"] for s in shots], axis=1)
        for how in ("all queries", "one query at a time")
    )
    figure, axis = _axis(
        5.2,
        "Labels spread in the diffusion kernel",
        xlabel="examples of each class",
        ylabel="accuracy",
    )
    place = np.arange(len(shots))
    for runs, label, shift, colour in (
        (together, "over all queries", -0.1, "C0"),
        (alone, "over one query at a time (control)", 0.1, "C1"),
    ):
        axis.plot(place + shift, runs.mean(axis=0), "D", color=colour, label=label)
        axis.plot(np.tile(place + shift, (len(runs), 1)).T, runs.T, ".", color=colour)
    axis.set_xticks(place, map(str, shots))
    axis.legend(fontsize=8, loc="upper left")
    run.save_figure("transduction", figure, shots=np.array(shots), together=together, alone=alone)


def _recurrences(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Error by position."""
    del sizes
    figure, axis = _axis(
        6.4, "Affine recurrences x' = a x + b with noise 0.1", xlabel="pairs seen",
        ylabel="mean squared error", yscale="log",
    )  # fmt: skip
    saved = {}
    for i, (name, runs) in enumerate((n, r) for n, r in arrays.items() if n != "positions"):
        style = {"Bayes": ("black", "--"), "squared-loss flow": ("C0", "-")}.get(
            name, (f"C{i % 10}", ":")
        )
        if "transformer" in name or "linear attention" in name:
            style = (style[0], "-.")
        axis.plot(
            arrays["positions"],
            runs.mean(axis=0),
            color=style[0],
            linestyle=style[1],
            marker="o",
            markersize=3,
            label=name,
        )
        saved[name.replace(", ", "_").replace(" ", "_")] = runs
    axis.set_xticks(arrays["positions"])
    axis.grid(alpha=0.3, which="minor")
    axis.legend(fontsize=7, ncols=2)
    run.save_figure("recurrences", figure, positions=arrays["positions"], **saved)
