"""What is trained: multinomial regression at its optimum, and classifiers that iterate a block."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.images.config import MODELS, Config
from imr import cross_entropy
from imr.lab import train
from imr.lab.architecture import describe
from imr.lab.console import say
from imr.lab.data import ImageData, add_noise
from imr.lab.folder import RunFolder, config_dict
from imr.lab.nets import graph_of, initialiser
from imr.lab.seeds import std
from imr.nn import Classifier, FlowBlock, PatchBlock
from imr.regression import Regression, fit_noisy_regression, fit_regression


class Group(NamedTuple):
    """Runs that differ by their seed alone."""

    train_noise: float
    l2: float


class Schedule(NamedTuple):
    """How long the models are trained; one dispatch trains several epochs of small data."""

    batch_size: int
    steps_per_epoch: int
    epochs_per_chunk: int
    num_steps: int


def schedule(config: Config, num_images: int) -> Schedule:
    """The epochs that the flags ask for, cut into chunks of equal length."""
    batch_size = min(config.batch_size, num_images)
    steps = num_images // batch_size
    at_least, at_most = -(-1000 // steps), 5000 // steps
    epochs = config.epochs or max(at_least, min(40, at_most), 1)
    largest = min(-(-50 // steps), epochs)
    per_chunk = max(d for d in range(1, largest + 1) if epochs % d == 0)
    return Schedule(batch_size, steps, per_chunk, epochs * steps)


def groups(config: Config) -> list[Group]:
    """Those of each model, in the order of its runs: every seed of the first comes first."""
    return [Group(*pair) for pair in product(config.train_noise, config.l2)]


def build(config: Config, name: str, depth: int, data: ImageData) -> Callable[..., Classifier]:
    """A function from random streams to a classifier of that name and depth."""
    block, options = MODELS[name]
    options = {"tau": config.tau, "mlp_width": config.mlp_width, **options}
    if block is FlowBlock:
        options["steps"] = config.flow_steps
    else:
        options["signed_step"] = config.signed_step
    if block is PatchBlock:
        pixels = data.train_images.shape[1] // config.grid**2
        options |= {
            "image_shape": data.image_shape, "grid": config.grid, "heads": config.heads,
            "rank": min(config.rank, pixels), "mlp_width": max(1, config.mlp_width // 8),
        }  # fmt: skip
    return partial(
        Classifier, data.train_images.shape[1], len(data.class_names), iterations=depth,
        prototypes=config.prototypes if name == "latent_attention" else 1, block=block, **options,
    )  # fmt: skip


def train_model(config: Config, run: RunFolder, name: str, depth: int, model, arrays, keys):
    """Trains a model for every train noise, penalty and seed in one vmapped program."""
    graph, n = graph_of(model), len(arrays[1])
    plan = schedule(config, n)
    chunk = plan.epochs_per_chunk * plan.steps_per_epoch

    def batches(data, key, step):
        del data, step
        keys = jax.random.split(key, plan.epochs_per_chunk)
        orders = jax.vmap(lambda key: train.epoch_of_batches(key, n, plan.batch_size))(keys)
        return orders.reshape(chunk, plan.batch_size)

    def loss(params, hyper, data, rows, key):
        images, labels = data
        x = add_noise(key, images[rows], hyper["noise"])
        logits = nnx.merge(graph, params)(x)
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim == 2)
        return jnp.mean(cross_entropy(logits, labels[rows])) + hyper["l2"] * squares

    def lines(losses):
        means = np.asarray(losses).mean(axis=1).reshape(-1, config.seeds)
        for group, row in zip(groups(config), means, strict=True):
            yield {**group._asdict(), "loss": row.mean(), "loss_std": std(row)}

    runs = [
        {"noise": group.train_noise, "l2": group.l2, "seed": config.seed + seed}
        for group, seed in product(groups(config), range(config.seeds))
    ]
    epochs = config.checkpoint_every or -(-plan.num_steps // plan.steps_per_epoch // 4)
    training = train.Training(
        initialiser(model), loss, batches,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, plan.num_steps)),
        keys=jnp.stack(len(groups(config)) * keys),
        hyper={k: np.array([each[k] for each in runs], np.float32) for k in ("noise", "l2")},
        data=arrays, num_steps=plan.num_steps,
    )  # fmt: skip
    holds = {"architecture": describe(model), "runs": runs, "net": name, "depth": depth}
    return train.fit_run(
        run, f"{name}-{depth}", training, holds={**holds, **config_dict(config)},
        every=max(1, epochs // plan.epochs_per_chunk) * chunk,
        label=f"{name}, {depth} iterations",
        tags={"model": name, "trained_iterations": depth}, metrics=lines,
    )  # fmt: skip


def fit_penalties(x, y, k: int, penalties: Sequence[float], noise: float, key, where) -> Regression:
    """Multinomial regression of some rows at each penalty; a fit that has not converged is said."""
    if noise > 0:
        fit = partial(fit_noisy_regression, key, x, y, k, noise=noise, where=where)
        fits = jax.tree.map(np.asarray, jax.vmap(fit)(l2=jnp.array(penalties, x.dtype)))
    else:
        each = [fit_regression(x, y, k, l2, where=where) for l2 in penalties]
        fits = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    for l2, gradient, converged in zip(penalties, fits.gradient, fits.converged, strict=True):
        if not converged:
            fit = f"multinomial regression, l2 {l2:g}, noise {noise:g}"
            say(f"{fit}: not converged, gradient {gradient:.1e}")
    return fits
