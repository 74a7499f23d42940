"""Multinomial regression: fitted to its optimum for each penalty."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.images.config import Config
from experiments.images.scoring import noisy_test, score
from imr import cross_entropy
from imr.lab.console import Progress, say
from imr.lab.data import ImageData, add_noise, held_back_split
from imr.regression import Regression, fit_noisy_regression, fit_regression


def regression_results(config: Config, arrays, test, keys, data: ImageData):
    """The baseline: a result at the validated penalty and a curve over config.penalties for each noise."""
    k = len(data.class_names)
    fit_rows, held_rows = held_back_split(data.train_labels, config.held_back, config.seed)
    x, y = arrays
    results, curves, selection = [], [], []
    evaluate = jax.jit(
        jax.vmap(partial(evaluate_regression, config.test_noise), in_axes=(0, 0, None))
    )
    with Progress(3 * len(config.train_noise), "multinomial regression", "fit") as progress:
        for count, noise in enumerate(config.train_noise):
            fits = fit_penalties(x[fit_rows], y[fit_rows], k, config.penalties, noise, keys[0])
            scores = [
                held_back_loss(fit.theta, fit.bias, x[held_rows], y[held_rows], noise)
                for fit in fits
            ]
            progress.update(3 * count + 1)
            best = int(np.argmin([loss for loss, _ in scores]))

            def on_every_seed(fit):
                same = (jnp.broadcast_to(a, (len(keys), *a.shape)) for a in (fit.theta, fit.bias))
                return [np.asarray(a) for a in evaluate(tuple(same), keys, test)]

            fits = fit_penalties(x, y, k, config.penalties, noise, keys[0])
            for p, (loss, accuracy) in enumerate(scores):
                selection.append(
                    {"train_noise": noise, "l2": config.penalties[p], "chosen": p == best,
                     "held_back_cross_entropy": loss, "held_back_accuracy": accuracy,
                     "largest_gradient": float(fits[p].gradient),
                     "converged": bool(fits[p].converged)}
                )  # fmt: skip
            scores = [on_every_seed(fit) for fit in fits]
            curves.append({"train_noise": noise, "accuracy": np.stack([a for a, _ in scores])})
            progress.update(3 * count + 2)
            if noise > 0:  # the optimum without noise knows no seed
                fit = jax.vmap(fit_noisy_regression, in_axes=(0, None, None, None, None, None))
                seeds = fit(keys, x, y, k, config.penalties[best], noise)
                scores[best] = [
                    np.asarray(a) for a in evaluate((seeds.theta, seeds.bias), keys, test)
                ]
            accuracy, loss = scores[best]
            results.append(
                {"model": "multinomial_regression", "train_noise": noise,
                 "l2": config.penalties[best], "trained_iterations": 0,
                 "accuracy": accuracy[:, :, None], "cross_entropy": loss[:, :, None]}
            )  # fmt: skip
            progress.update(3 * count + 3)
    return results, curves, selection


def fit_penalties(
    x, y, num_classes: int, penalties: Sequence[float], noise: float, key
) -> list[Regression]:
    """Multinomial regression for each penalty, and a word where one has not converged."""
    if noise > 0:
        fit = jax.vmap(fit_noisy_regression, in_axes=(None, None, None, None, 0, None))
        together = fit(key, x, y, num_classes, jnp.array(penalties, x.dtype), noise)
        fits = [jax.tree.map(lambda a, p=p: a[p], together) for p in range(len(penalties))]
    else:
        fits = [fit_regression(x, y, num_classes, l2) for l2 in penalties]
    for l2, one in zip(penalties, fits, strict=True):
        if not one.converged:
            say(
                f"multinomial regression, l2 {l2:g}, noise {noise:g}: gradient still {one.gradient:.1e}"
            )
    return fits


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
