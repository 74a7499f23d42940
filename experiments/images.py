"""Iterating transformer blocks derived from multinomial regression, on clean and noisy images.

Does iterating the block improve classification? Rows: multinomial regression; attention only; MLP
only; attention + MLP; latent classes with attention only; each read out at every iteration, past
the trained depth too, trained without and with noise. Reference: arXiv 2509.04653.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from imr import ImrError, cross_entropy, plotting, train
from imr.checkpoint import Checkpoints
from imr.console import Progress, markdown_table, run_main
from imr.data import ImageData, add_noise, held_back_split, load_images
from imr.nn import Classifier
from imr.regression import fit_noisy_regression, fit_regression
from imr.run import RunFolder, config_dict, open_run

MODELS = {
    "attention": {"attention": True, "mlp_width": None},
    "mlp": {"attention": False},
    "attention_mlp": {"attention": True},
    "latent_attention": {"attention": True, "mlp_width": None},
}


@dataclass(frozen=True)
class Config:
    """Flags of the images experiment."""

    dataset: str = "digits"
    """digits (bundled with scikit-learn), fashion_mnist or mnist."""
    data_dir: Path | None = None
    """Folder with your own copy of the IDX files; without it they are downloaded once."""
    train_limit: int | None = None
    """Use the first so many training images."""
    test_limit: int | None = None
    """Use the first so many test images."""
    models: tuple[str, ...] = tuple(MODELS)
    """Which models beside multinomial regression."""
    iterations: tuple[int, ...] = (3,)
    """Trained depths: how many blocks the models are trained with."""
    extra_iterations: int = 5
    """How far past the trained depth the block is iterated in the evaluation."""
    train_noise: tuple[float, ...] = (0.0, 0.5)
    """Standard deviations of the pixel noise in training, fresh at every step (pixels in [0, 1])."""
    test_noise: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    """Standard deviations of the pixel noise in testing; 0 is clean."""
    epochs: int | None = None
    """Passes over the training images; by default 40, but 1,000 to 5,000 steps in all."""
    batch_size: int = 128
    """Images in a step."""
    learning_rate: float = 2e-3
    """Of Adam, at the start; it decays to 0 along a cosine."""
    l2: tuple[float, ...] = (1e-4,)
    """Penalties on the sum of squares of theta, W1 and W2; the models are trained with each."""
    mlp_width: int = 128
    """Hidden units of the MLP."""
    tau: float = 0.25
    """The step size that the blocks start from; it is learned, and positive."""
    signed_step: bool = False
    """Let the learned step change its sign."""
    prototypes: int = 8
    """Prototypes of each class in latent_attention."""
    penalties: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """Penalties of multinomial regression; one is chosen on held-back training images."""
    held_back: float = 0.2
    """Share of the training images held back for that choice."""
    seeds: int = 5
    """Training runs of each model, vmapped: one program, one compilation."""
    seed: int = 0
    """The first of the seeds."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    smoke: bool = False
    """A small version of everything, for tests."""
    out: Path | None = None
    """Run folder; runs/images/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def main(config: Config) -> None:
    """Does iterating the transformer block improve classification of clean and noisy images?"""
    check(config)
    run = open_run("images", config, out=config.out, overwrite=config.overwrite)
    if run.finished:
        say(f"This configuration has already run; its results, from {run.path}:")
    else:
        measure(shrink(config) if config.smoke else config, run)
    print((run.path / "table.md").read_text(encoding="utf-8"))
    for figure in sorted(run.figures.glob("*.png")):
        print(f"figure: {figure}")
    print(f"every row, by iteration: {run.path / 'summary.json'}")


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is read or written."""
    for name, least in (
        ("iterations", 0), ("train_noise", 0), ("test_noise", 0), ("l2", 0), ("penalties", 0),
        ("extra_iterations", 0), ("seeds", 1), ("batch_size", 1), ("mlp_width", 1),
        ("prototypes", 1), ("epochs", 1), ("checkpoint_every", 1),
    ):  # fmt: skip
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or any(v is not None and not v >= least for v in values):
            flag = name.replace("_", "-")
            raise ImrError(f"--{flag} takes values of at least {least}; found {value}.")
    for name in config.models:
        if name not in MODELS:
            raise ImrError(f"--models must be among {', '.join(MODELS)}; found {name!r}.")
    if not config.signed_step and not config.tau > 0:
        raise ImrError(f"--tau must be positive (or --signed-step); found {config.tau}.")
    for name in ("learning_rate", "held_back"):
        if not 0 < getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise ImrError(f"--{flag} must lie between 0 and 1; found {getattr(config, name)}.")
    if 0.0 not in config.test_noise:
        raise ImrError(f"--test-noise must hold 0, clean images; found {config.test_noise}.")


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    small = lambda value, limit: limit if value is None else min(value, limit)  # noqa: E731
    return replace(
        config,
        train_limit=small(config.train_limit, 400),
        test_limit=small(config.test_limit, 100),
        epochs=small(config.epochs, 12),
        checkpoint_every=4,
        iterations=tuple(sorted({min(depth, 2) for depth in config.iterations})),
        extra_iterations=1,
        mlp_width=16,
        prototypes=2,
        penalties=(1e-3, 1e-2),
        seeds=min(config.seeds, 2),
    )


def measure(config: Config, run: RunFolder) -> None:
    """Trains and tests every model, and writes tables and figures into the run folder."""
    data = load_images(
        config.dataset,
        config.data_dir,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
    )
    say(
        f"{data.name}: {len(data.train_labels):,} training and {len(data.test_labels):,} test images "
        f"of {data.image_shape[0]} x {data.image_shape[1]} pixels; {config.seeds} seeds"
    )
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
    }
    run.finish(summary, report(config, results, points, data))


# Multinomial regression: fitted to its optimum for each penalty


def regression_results(config: Config, arrays, test, keys, data: ImageData):
    """The baseline: a result at the validated penalty and a curve over penalties for each noise."""
    k = len(data.class_names)
    fit_rows, held_rows = held_back_split(data.train_labels, config.held_back, config.seed)
    x, y = arrays
    results, curves, selection = [], [], []
    evaluate = jax.jit(
        jax.vmap(partial(evaluate_regression, config.test_noise), in_axes=(0, 0, None))
    )
    with Progress(3 * len(config.train_noise), "multinomial regression", "fit") as progress:
        for count, noise in enumerate(config.train_noise):
            theta, bias = fit_penalties(
                x[fit_rows], y[fit_rows], k, config.penalties, noise, keys[0]
            )
            scores = [
                held_back_loss(theta[p], bias[p], x[held_rows], y[held_rows], noise)
                for p in range(len(config.penalties))
            ]
            progress.update(3 * count + 1)
            best = int(np.argmin([loss for loss, _ in scores]))
            for l2, (loss, accuracy) in zip(config.penalties, scores, strict=True):
                selection.append(
                    {"train_noise": noise, "l2": l2, "held_back_cross_entropy": loss,
                     "held_back_accuracy": accuracy, "chosen": l2 == config.penalties[best]}
                )  # fmt: skip

            def on_every_seed(theta, bias):
                same = (jnp.broadcast_to(a, (len(keys), *a.shape)) for a in (theta, bias))
                return [np.asarray(a) for a in evaluate(tuple(same), keys, test)]

            theta, bias = fit_penalties(x, y, k, config.penalties, noise, keys[0])
            scores = [on_every_seed(theta[p], bias[p]) for p in range(len(config.penalties))]
            curves.append({"train_noise": noise, "accuracy": np.stack([a for a, _ in scores])})
            progress.update(3 * count + 2)
            if noise > 0:  # the optimum without noise knows no seed
                fit = jax.vmap(fit_noisy_regression, in_axes=(0, None, None, None, None, None))
                params = fit(keys, x, y, k, config.penalties[best], noise)
                scores[best] = [np.asarray(a) for a in evaluate(params, keys, test)]
            accuracy, loss = scores[best]
            results.append(
                {"model": "multinomial_regression", "train_noise": noise,
                 "l2": config.penalties[best], "trained_iterations": 0,
                 "accuracy": accuracy[:, :, None], "cross_entropy": loss[:, :, None]}
            )  # fmt: skip
            progress.update(3 * count + 3)
    return results, curves, selection


def fit_penalties(x, y, num_classes: int, penalties: Sequence[float], noise: float, key):
    """theta (penalties, k, f) and bias (penalties, k) of multinomial regression."""
    if noise > 0:
        fit = jax.vmap(fit_noisy_regression, in_axes=(None, None, None, None, 0, None))
        return fit(key, x, y, num_classes, jnp.array(penalties, x.dtype), noise)
    fits = [fit_regression(x, y, num_classes, l2) for l2 in penalties]
    for l2, fit in zip(penalties, fits, strict=True):
        if not fit.converged:
            say(f"multinomial regression, l2 {l2:g}: gradient still {fit.gradient:.1e}")
    return jnp.stack([fit.theta for fit in fits]), jnp.stack([fit.bias for fit in fits])


def held_back_loss(theta, bias, x, y, noise: float) -> tuple[float, float]:
    """Cross-entropy and accuracy on held-back images with the noise of training."""
    logits = add_noise(jax.random.key(0), x, noise) @ theta.T + bias[None, :]
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == y)
    return float(jnp.mean(cross_entropy(logits, y))), float(accuracy)


def evaluate_regression(levels: Sequence[float], params, key, test):
    """Accuracy and cross-entropy at each noise level, shape (levels,), on the test noise of key."""
    theta, bias = params
    x, y = test
    scores = []
    for index, level in enumerate(levels):
        logits = noisy_test(key, index, x, level) @ theta.T + bias[None, :]
        scores.append(score(logits, y))
    accuracy, loss = zip(*scores, strict=True)
    return jnp.stack(accuracy), jnp.stack(loss)


# The models of the blocks: trained by gradient descent, all runs in one program


def build(config: Config, name: str, depth: int, data: ImageData) -> Callable[..., Classifier]:
    """A function from random streams to a classifier of that name and depth."""
    options = {"mlp_width": config.mlp_width, **MODELS[name]}
    return partial(
        Classifier,
        data.train_images.shape[1],
        len(data.class_names),
        iterations=depth,
        prototypes=config.prototypes if name == "latent_attention" else 1,
        tau=config.tau,
        signed_step=config.signed_step,
        **options,
    )


def graph_of(model: Callable[..., Classifier]):
    """The static part of a classifier."""
    return nnx.split(nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))), nnx.Param)[0]


def train_model(config: Config, run: RunFolder, name: str, depth: int, model, arrays, keys):
    """Trains a model for every seed, train noise and penalty in one vmapped program."""
    runs = list(product(config.train_noise, config.l2, range(config.seeds)))
    hyper = {
        "noise": jnp.array([noise for noise, _, _ in runs], jnp.float32),
        "l2": jnp.array([l2 for _, l2, _ in runs], jnp.float32),
    }
    run_keys = keys[jnp.array([seed for _, _, seed in runs])]
    graph = graph_of(model)

    n = arrays[1].shape[0]
    batch_size = min(config.batch_size, n)
    steps_per_epoch = n // batch_size
    at_least, at_most = -(-1000 // steps_per_epoch), 5000 // steps_per_epoch
    epochs = config.epochs or max(at_least, min(40, at_most), 1)
    # Small data: several epochs in one dispatch, as many as divide the whole and give 100 steps.
    wanted = -(-100 // steps_per_epoch)
    per_chunk = max(d for d in range(1, min(wanted, epochs) + 1) if epochs % d == 0)
    num_steps = epochs * steps_per_epoch

    def schedule(data, key, step):
        del step
        order = lambda key: train.epoch_of_batches(key, n, batch_size)  # noqa: E731
        batches = jax.vmap(order)(jax.random.split(key, per_chunk))
        return batches.reshape(per_chunk * steps_per_epoch, batch_size)

    def loss(params, hyper, data, rows, key):
        images, labels = data
        x = add_noise(key, images[rows], hyper["noise"])
        logits = nnx.merge(graph, params)(x)
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim == 2)
        return jnp.mean(cross_entropy(logits, labels[rows])) + hyper["l2"] * squares

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps))
    init = lambda key: nnx.state(model(rngs=nnx.Rngs(key)), nnx.Param)  # noqa: E731
    states = train.init_states(init, optimizer, run_keys)
    chunk = train.make_chunk(loss, optimizer, schedule)

    label = f"{name}, {depth} iterations"
    identity = {"model": name, "depth": depth, **config_dict(config)}
    every = max(1, config.checkpoint_every // per_chunk) * per_chunk * steps_per_epoch
    metrics = run.metrics(model=name, trained_iterations=depth)
    with Checkpoints(run.checkpoints / f"{name}-{depth}", identity, every=every) as checkpoints:
        restored = checkpoints.restore(states)
        states = states if restored is None else restored
        start = int(states.step[0])
        metrics.rewind(start)
        with Progress(num_steps, label, initial=start) as progress:

            def on_chunk(step, states, losses):
                means = np.asarray(jnp.mean(losses, axis=1)).reshape(-1, config.seeds)
                for (noise, l2), row in zip(
                    product(config.train_noise, config.l2), means, strict=True
                ):
                    metrics.append(
                        step, train_noise=noise, l2=l2, loss=row.mean(), loss_std=std(row)
                    )
                checkpoints.save(step, states, force=step == num_steps)
                progress.update(step, loss=float(means.mean()))

            states = train.fit(chunk, states, hyper, arrays, num_steps=num_steps, on_chunk=on_chunk)
    return states, runs


def test_model(config: Config, name: str, depth: int, model, states, runs, test, keys):
    """A result for each train noise and penalty: accuracies (seeds, levels, iterations + 1)."""
    graph = graph_of(model)
    count = depth + config.extra_iterations

    def one_run(params_and_key):
        params, key = params_and_key
        classifier = nnx.merge(graph, params)
        x, y = test
        accuracy, loss = [], []
        for index, level in enumerate(config.test_noise):

            def iterate(z, _):
                return classifier.blocks[0](z), score(classifier.read_out(z), y)

            z = noisy_test(key, index, x, level)
            _, (a, c) = jax.lax.scan(iterate, z, length=count + 1)
            accuracy.append(a)
            loss.append(c)
        return jnp.stack(accuracy), jnp.stack(loss)

    run_keys = keys[jnp.array([seed for _, _, seed in runs])]
    accuracy, loss = jax.jit(lambda args: jax.lax.map(one_run, args))((states.params, run_keys))
    groups = len(runs) // config.seeds
    accuracy, loss = (
        np.asarray(a).reshape(groups, config.seeds, *a.shape[1:]) for a in (accuracy, loss)
    )
    return [
        {"model": name, "train_noise": noise, "l2": l2, "trained_iterations": depth,
         "accuracy": a, "cross_entropy": c}
        for (noise, l2), a, c in zip(
            product(config.train_noise, config.l2), accuracy, loss, strict=True
        )
    ]  # fmt: skip


def noisy_test(key, index: int, x, level: float):
    """Test images with noise; of one seed and level the same for every model."""
    return add_noise(jax.random.fold_in(key, 1_000_000 + index), x, level)


def score(logits, labels):
    """Accuracy and mean cross-entropy."""
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == labels)
    return accuracy, jnp.mean(cross_entropy(logits, labels))


# Tables


def std(values) -> float:
    """Standard deviation over seeds; of one seed there is none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


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
    penalties, with straight lines between them, is as good as (clean - d, noisy - d) in both. Seeds
    are paired: a model and the curve see the same noise.
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
    t = np.linspace(0, len(curve_clean) - 1, 50 * len(curve_clean))
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
        }
        for index, level in enumerate(config.test_noise):
            name = "clean" if level == 0 else f"noise {level:g}"
            row[name] = f"{at[:, index].mean():.3f} ± {std(at[:, index]):.3f}"
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
        spread = "" if np.isnan(p["margin_std"]) else f" ± {100 * p['margin_std']:.1f}"
        row[f"noise {p['test_noise']:g}"] = (
            f"{100 * p['margin']:+.1f}{spread}{' beyond' if p['beyond'] else ''}"
        )
    size = f"{len(data.train_labels):,} training and {len(data.test_labels):,} test images"
    return "\n".join(
        [
            f"Test accuracy on {data.name} ({size}) at the trained depth, mean ± standard deviation "
            f"over {config.seeds} seeds; the penalty of multinomial regression chosen on held-back "
            "training images.",
            "",
            markdown_table(rows),
            "",
            "Points of accuracy beyond (+) or within (-) the frontier of multinomial regression over "
            "all penalties, trained with the same noise; 'beyond' where every seed is.",
            "",
            markdown_table(list(margins.values())),
        ]
    )


# Figures


def strip(config: Config, model, states, runs, data: ImageData):
    """Image, noisy Z(0) and the features at each iteration, of the first seed and most noise."""
    noise = max(config.train_noise)
    index = next(i for i, (level, _, seed) in enumerate(runs) if level == noise and seed == 0)
    classifier = nnx.merge(graph_of(model), jax.tree.map(lambda p: p[index], states.params))
    image = jnp.asarray(data.test_images[:1])
    z = add_noise(jax.random.key(config.seed), image, noise or 0.5)
    count = classifier.iterations + min(config.extra_iterations, 2)
    shape = data.image_shape
    trajectory = classifier.trajectory(z, count)[:, 0].reshape(count + 1, *shape)
    return np.asarray(image.reshape(shape)), np.asarray(trajectory)


def draw(config: Config, run: RunFolder, results, curves, points, strips, data: ImageData) -> None:
    """Every figure of the run folder."""
    label = data.class_names[int(data.test_labels[0])]
    for name, depth, make in strips:
        image, states = make()
        title = f"{name} on {data.name} ({label}), trained with noise {max(config.train_noise):g}"
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


def describe(result: dict[str, Any]) -> str:
    """A result's name in a legend."""
    name = result["model"].replace("_", " ")
    if result["model"] == "multinomial_regression":
        return f"{name} (validated l2 {result['l2']:g})"
    return f"{name}, {result['trained_iterations']} iterations, l2 {result['l2']:g}"


def say(words: str) -> None:
    """A plain line of progress."""
    sys.stderr.write(words + "\n")


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
