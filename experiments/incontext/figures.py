"""Figures of the incontext experiment, one or two for each part."""

from typing import Any

import numpy as np

from experiments.incontext.classification import block_name
from experiments.incontext.config import Sizes
from experiments.incontext.images import FEW
from experiments.incontext.readings import Part
from experiments.incontext.regression import Net
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
    found = np.stack([arrays[Net(l, n).tag][:, 0, 1] for l in sizes.layers], axis=1)
    figure, axis = _axis(
        5.6, f"Linear regression in context, {n} examples", xlabel="layers, or steps",
        ylabel="mean of log(1 + loss of a fresh context)", yscale="log",
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
    """Modes of the first seed at the smallest rate beside the flow, and how far off each rate is."""
    figure, axes = panels(1, 2, (9.6, 3.9), title="Modes of one linear layer of attention")
    times, (left, right) = arrays["times"][1:], axes[0]
    rate, spectrum = sizes.rates[-1], arrays["spectrum"]
    for i, s in enumerate(spectrum):
        colour = _ordered(i, len(spectrum))
        modes = arrays[f"modes_{rate:g}"][0, 1:, i]
        left.plot(times, modes, color=colour, label=f"eigenvalue {s:.2f}")
        left.plot(times, arrays["theory"][1:, i], color="black", linestyle="--", linewidth=0.8)
    left.set(title=f"gradient descent at rate {rate:g}; dashed: its flow", ylabel="mode of v U")
    for i, rate in enumerate(sizes.rates):
        apart = np.abs(arrays[f"modes_{rate:g}"] - arrays["theory"]) / arrays["limits"]
        colour = _ordered(i, len(sizes.rates))
        band(right, times, apart.max(axis=2)[:, 1:], f"rate {rate:g}", colour, np.mean)
    right.set(title="largest deviation of a mode, share of its limit", yscale="log")
    right.legend(fontsize=7)
    for axis in axes[0]:
        axis.set(xlabel="time", xscale="log")
        axis.grid(alpha=0.3)
    legend_below(figure, left, 4, fontsize=7)
    run.save_figure("dynamics", figure, **arrays)


def _ordered(index: int, count: int) -> Any:
    """A colour from dark to light for what has an order."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * index / max(count - 1, 1))


def _depth(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Cross-entropy against depth, with ridge and without."""
    figure, axis = _axis(
        5.8, "Gaussian-process latents, blocks of softmax attention over examples", xlabel="layers",
        ylabel="cross-entropy on fresh tasks, nats",
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
        runs = np.tile(arrays[f"process: {name}"][:, 1:], len(sizes.depths))
        band(axis, sizes.depths, runs, label, colour, np.mean, linestyle="--")
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
        2,
        3,
        (7.2, 5.2),
        title="A block of exponential attention and ridge, first seed; theory at the trained scale",
    )
    for row, key in zip(axes, keys, strict=True):
        shown = {kind: arrays[f"{key}, {kind}"] for kind in ("untrained", "trained")}
        shape = shown["trained"].shape[0]
        theory = np.eye(shape) - (1 / shape if key == "classes" else 0)
        shown["theory"] = theory * np.sum(shown["trained"] * theory) / np.sum(theory**2)
        bound = max(np.abs(matrix).max() for matrix in shown.values())
        for axis, (kind, matrix) in zip(row, shown.items(), strict=True):
            image = axis.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound)
            axis.set_title(f"{'W Wᵀ' if key == 'metric' else 'θ θᵀ, centred'}, {kind}", fontsize=9)
            axis.set(xticks=range(shape), yticks=range(shape))
            axis.tick_params(labelsize=6)
            axis.set_xlabel("covariate" if key == "metric" else "class", fontsize=7)
        figure.colorbar(image, ax=list(row), shrink=0.8).ax.tick_params(labelsize=6)
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
        6.2, f"{arrays['dataset']}: five held-out classes", xlabel="examples of each class",
        ylabel="accuracy less that of rbf kernel regression", xscale="log",
    )  # fmt: skip
    saved = {"shots": np.array(sizes.shots)}
    for name in _IMAGE_METHODS:
        saved[name.replace(", ", "_").replace(" ", "_")] = np.stack(
            [arrays[f"{name}, {s}"] for s in sizes.shots], axis=1
        )
    best = saved["rbf_kernel_regression"]
    for name, (colour, line) in _IMAGE_METHODS.items():
        # On the same tasks, so that what is hard in a split cancels.
        apart = saved[name.replace(", ", "_").replace(" ", "_")] - best
        _means(axis, sizes.shots, apart, name, colour, linestyle=line)
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
        5.6, f"{arrays['dataset']}: labels spread over all queries, less over one at a time",
        xlabel="examples of each class", ylabel="difference in accuracy",
    )  # fmt: skip
    place, gain = np.arange(len(shots)), together - alone
    axis.plot(place, gain.mean(axis=0), "D", color="C0", label="mean")
    axis.plot(np.tile(place, (len(gain), 1)).T, gain.T, ".", color="C1")
    axis.plot([], [], ".", color="C1", label="one split of the classes")
    axis.axhline(0.02, color="0.5", linestyle="--", label="0.02, claimed of 1 shot")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(place, map(str, shots))
    axis.legend(fontsize=8)
    run.save_figure("transduction", figure, shots=np.array(shots), together=together, alone=alone)


def _recurrences(sizes: Sizes, run: RunFolder, arrays: dict[str, np.ndarray]) -> None:
    """Error by position."""
    del sizes
    figure, axis = _axis(
        6.4, "Affine recurrences x' = a x + b with noise 0.1", xlabel="pairs seen",
        ylabel="mean squared error over that of Bayes", yscale="log",
    )  # fmt: skip
    saved = {
        n.replace(", ", "_").replace(" ", "_"): r for n, r in arrays.items() if n != "positions"
    }
    others = [name for name in arrays if name not in ("positions", "Bayes")]
    for i, name in enumerate(others):
        line = "-" if name == "squared-loss flow" else "-." if "transformer" in name else ":"
        _means(
            axis, arrays["positions"], arrays[name] / arrays["Bayes"], name, f"C{i}", linestyle=line
        )
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(arrays["positions"])
    axis.grid(alpha=0.3, which="minor")
    axis.legend(fontsize=7, ncols=2)
    run.save_figure("recurrences", figure, positions=arrays["positions"], **saved)
