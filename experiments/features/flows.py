"""Fitting, flowing and measuring: one program for all seeds."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.features.config import FIRST_TIME, Config
from imr import Linear, feature_loss, solve_reduced
from imr.metrics import accuracy, class_means, neural_collapse
from imr.regression import fit_regression


class Course(NamedTuple):
    """A flow at the saved times, s of them; of `flows` with leading axes (seeds, 2). Arrays are of
    jax in the program and of numpy after it."""

    loss: Any  # cross-entropy of each row, shape (s, n)
    margin: Any  # the label's logit less the largest other, shape (s, n)
    accuracy: Any  # shape (s,)
    nc1: Any  # shape (s,)
    nc1_logits: Any  # of the logits, that is, of the part of the features in the span of theta
    chosen: Any  # the class read, shape (s, n)
    shown: Any  # coordinates of the first rows, shape (s, shown, d)
    field: Any  # Frobenius norm of the field, shape (s,)
    steps: Any  # of the solver
    result: Any  # of the solver


class Flows(NamedTuple):
    """What comes out for each seed: the fit, the basis (f, d) of the coordinates, and the flows, of
    which the first is free and the second anchored."""

    theta: Any
    converged: Any
    basis: Any
    course: Course


def times(config: Config) -> np.ndarray:
    """0 and a logarithmic grid that ends at t1."""
    count = round(config.per_decade * np.log10(config.t1 / FIRST_TIME)) + 1
    grid = np.geomspace(FIRST_TIME, config.t1, count)
    return np.append(0.0, np.append(grid[:-1], config.t1))


def bootstrap(labels: np.ndarray, config: Config) -> np.ndarray:
    """Rows of each seed, shape (seeds, n): drawn with replacement within each class, shuffled."""
    members, samples = [np.flatnonzero(labels == c) for c in np.unique(labels)], []
    for seed in range(config.seed, config.seed + config.seeds):
        random = np.random.default_rng(seed)
        rows = np.concatenate([random.choice(m, m.size) for m in members])
        samples.append(random.permutation(rows))
    return np.stack(samples)


@partial(jax.jit, static_argnames=("k", "shown"))
def flows(x, y, rows, ts, l2, lam, k: int, shown: int) -> Flows:
    """Fits theta on each sample of rows and lets that sample flow, free and anchored.

    Seed after seed within one program: a fit under `jax.vmap` would cost as much as the slowest line
    search of all at every step, and saved features of one seed are as much as memory should hold.
    """
    return jax.lax.map(lambda r: _one_seed(x[r], y[r], ts, l2, lam, k, shown), rows)


def _one_seed(x, y, ts, l2, lam, k, shown) -> Flows:
    fit = fit_regression(x, y, k, l2)
    # The flow stays in Z_0 + span(theta), and classes differ within span(theta, class means). In an
    # orthonormal basis of both, of 2k dimensions at most, all that is measured here is what it is in
    # f dimensions: norms, logits, neural collapse.
    spanning = jnp.concatenate([fit.theta, class_means(x, y, k)])
    basis, _ = jnp.linalg.qr(spanning.T)
    z0 = jnp.matmul(x, basis, precision="highest")
    theta = jnp.matmul(fit.theta, basis, precision="highest")
    course = partial(_course, z0, theta, fit.bias, y, ts, shown)
    # An anchor of weight 0 is none; as one map both flows are compiled once.
    courses = jax.lax.map(course, jnp.array([0.0, lam], x.dtype))
    return Flows(fit.theta, fit.converged, basis, courses)


def _course(z0, theta, bias, y, ts, shown, lam) -> Course:
    model, identity = Linear(theta, bias), jnp.eye(theta.shape[0], dtype=z0.dtype)
    anchored = feature_loss(model, y, anchor=(lam, z0))
    flow: Any = solve_reduced(anchored, z0, t1=ts[-1], ts=ts, rtol=1e-6, atol=1e-8)

    def measure(z):
        logits = model(z)
        label = jnp.take_along_axis(logits, y[:, None], axis=1)
        behind = jnp.where(identity[y] == 1, -jnp.inf, logits - label)
        # log(1 + sum of exp(-margins)): as log-sum-exp less the label's logit a late loss is nothing
        # but rounding.
        loss = jax.nn.softplus(jax.nn.logsumexp(behind, axis=1))
        nc1 = neural_collapse(z, theta, y, bias).nc1
        nc1_logits = neural_collapse(logits, identity, y).nc1
        chosen = jnp.argmax(logits, axis=1).astype(jnp.int32)
        return loss, -jnp.max(behind, axis=1), accuracy(logits, y), nc1, nc1_logits, chosen

    measures: Any = jax.lax.map(measure, flow.zs)
    return Course(
        *measures, shown=flow.zs[:, :shown], field=flow.grad_norm, steps=flow.num_steps,
        result=flow.result,
    )  # fmt: skip
