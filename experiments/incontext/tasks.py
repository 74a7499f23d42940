"""Random tasks: what a context holds, and what is asked. Each function draws one from a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

FEATURES = 10  # of linear regression
QUERIES = 14  # of a context
CLASSES = 5
PROTOTYPE_EXAMPLES, PROCESS_EXAMPLES = 25, 50
SPREAD, NOISE = 0.5, 0.3  # of prototypes, and of examples about them
AMPLITUDE, LENGTH = 3.0, 0.8  # of Gaussian-process latents
SLOPE, INTERCEPT, RECURRENCE_NOISE = 0.5, 1.0, 0.1  # standard deviations of affine recurrences


class Values(NamedTuple):
    """A regression task: covariates (n, p), values (n, o), and which tokens are examples."""

    x: Float[Array, "n p"]
    y: Float[Array, "n o"]
    labelled: Bool[np.ndarray, "n"]


class Labels(NamedTuple):
    """A classification task: covariates (n, p), labels (n,), and which tokens are examples."""

    x: Float[Array, "n p"]
    y: Int[Array, "n"]
    labelled: Bool[np.ndarray, "n"]


def keys_for(seed: int, use: str, count: int) -> Array:
    """Keys of tasks; those of training, of choices and of tests are drawn apart."""
    offset = ("train", "choose", "test").index(use)
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 7_000_000 + offset), count)


def linear_task(key, examples: int, scale: float = 1.0) -> Values:
    """y = w x with w ~ N(0, I), x ~ U(-scale, scale); the examples come first."""
    of_x, of_w = jax.random.split(key)
    n = examples + QUERIES
    x = scale * jax.random.uniform(of_x, (n, FEATURES), minval=-1, maxval=1)
    return Values(x, x @ jax.random.normal(of_w, (FEATURES, 1)), np.arange(n) < examples)


def rotation_task(key, features: int = 5, length: int = 16) -> Float[Array, "l p"]:
    """A sequence s' = W s with a random orthogonal W, from a random start of norm sqrt(p)."""
    of_w, of_s = jax.random.split(key)
    w = jnp.linalg.qr(jax.random.normal(of_w, (features, features)))[0]
    start = jax.random.normal(of_s, (features,))
    start = start * (features**0.5 / jnp.linalg.norm(start))

    def step(s, _):
        return w @ s, s

    return jax.lax.scan(step, start, length=length)[1]


def prototype_task(key, features: int = 8) -> Labels:
    """Gaussian classes of random means, as many examples of each; queries of any class."""
    of_mean, of_label, of_noise = jax.random.split(key, 3)
    means = SPREAD * jax.random.normal(of_mean, (CLASSES, features))
    asked = jax.random.randint(of_label, (QUERIES,), 0, CLASSES)
    labels = jnp.concatenate([jnp.arange(PROTOTYPE_EXAMPLES) % CLASSES, asked])
    x = means[labels] + NOISE * jax.random.normal(of_noise, (len(labels), features))
    return Labels(x, labels, np.arange(len(labels)) < PROTOTYPE_EXAMPLES)


def process_task(key) -> Labels:
    """Points of the unit sphere; labels by the softmax of Gaussian-process latents over it."""
    of_x, of_f, of_y = jax.random.split(key, 3)
    n = PROCESS_EXAMPLES + QUERIES
    x = jax.random.normal(of_x, (n, 3))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    # On the sphere |x - x'|^2 = 2 - 2 x.x'.
    covariance = jnp.exp((x @ x.T - 1) / LENGTH**2) + 1e-4 * jnp.eye(n)
    f = AMPLITUDE * jnp.linalg.cholesky(covariance) @ jax.random.normal(of_f, (n, CLASSES))
    return Labels(x, jax.random.categorical(of_y, f), np.arange(n) < PROCESS_EXAMPLES)


def recurrence_task(key, length: int = 10) -> Float[Array, "l"]:
    """x' = a x + b and noise, with its own random a and b."""
    of_a, of_b, of_x, of_noise = jax.random.split(key, 4)
    # Within two standard deviations, for sequences that grow would be all that a mean shows.
    a, b = SLOPE * jax.random.truncated_normal(of_a, -2, 2), INTERCEPT * jax.random.normal(of_b)
    noise = RECURRENCE_NOISE * jax.random.normal(of_noise, (length,))

    def step(x, e):
        return a * x + b + e, x

    return jax.lax.scan(step, jax.random.normal(of_x), noise)[1]
