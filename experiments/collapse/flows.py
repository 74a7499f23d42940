r"""The flows of all dimensions, decays and seeds in one program.

Features Z (k n, f), n rows a class, and theta (k, f) descend the sum of cross-entropies together,

$$\dot Z = -dL/dZ - \lambda Z, \quad \dot\theta = -\frac1n dL/d\theta - \lambda \theta:$$

theta at 1/n of the rate and n times the decay, so that both speeds are those of one row, and a
collapsed state, all rows of a class equal, is symmetric in class means and theta.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.collapse.config import FIRST_TIME, Config, dimensions
from imr import Linear, joint_field, solve
from imr.metrics import class_means, interference, neural_collapse, simplex_alignment

DECAYS = ("off", "on")


class Course(NamedTuple):
    """Runs at the saved times; leading axes (decays, dimensions, seeds), s times."""

    z: Any  # at the end, shape (k n, F); F is the largest f
    theta: Any  # at the end, shape (k, F)
    nc1: Any  # to nc4: of `neural_collapse`, shape (s,)
    nc2: Any
    nc3: Any
    nc4: Any
    alignment: Any  # of class means with a simplex frame, shape (s,)
    alignment_theta: Any  # of theta with a simplex frame, shape (s,)
    interference: Any  # mean over the rows of theta less their mean, shape (s,)
    loss: Any  # mean cross-entropy of a row, shape (s,)
    margin: Any  # the least of a row, shape (s,)
    normalised: Any  # the same over root mean squares of norms of theta's rows and the features
    pace: Any
    """Norm of the field times 1 + t over the norm of the state, shape (s,): how fast the state moves
    in log(1 + t)."""
    result: Any  # of the solver


MEASURED = Course._fields[2:-1]
"""Those over time."""


def times(config: Config) -> np.ndarray:
    """0 and logarithmic grids that end at t1 and, with decay, at so many times 1 / decay.

    Without decay the flow slows down like 1 / t and has no limit: it is cheap to follow far. With
    decay it is at its limit after some 1 / decay, and steps cannot grow beyond that.
    """
    ends = np.array([config.t1, config.decay_times / config.decay])
    count = round(config.per_decade * np.log10(ends.max() / FIRST_TIME)) + 1
    grids = np.geomspace(FIRST_TIME, ends, count, axis=1)
    grids[:, -1] = ends
    return np.concatenate([np.zeros((2, 1)), grids], axis=1)


def starts(config: Config) -> tuple[jax.Array, jax.Array]:
    """Features (dimensions, seeds, k n, F) and theta (dimensions, seeds, k, F).

    Columns beyond f are zero. They then stay zero, for the field of theta lies in the span of the
    features and the other way round: so dimensions of all sizes run side by side, exactly.
    """
    k, fs = config.classes, np.array(dimensions(config))
    keys = jnp.stack([jax.random.key(config.seed + s) for s in range(config.seeds)])
    shape = (k * config.rows + k, int(fs.max()))
    both = config.scale * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    inside = np.arange(shape[1]) < fs[:, None, None, None]
    both = jnp.where(inside, both[None], 0)
    return both[:, :, k:], both[:, :, :k]


@jax.jit
def flows(z0, theta0, labels, ts, decay) -> Course:
    """Every run, without and with decay, from the states of `starts`."""
    n = z0.shape[-2] // theta0.shape[-2]

    def both(pair):
        grid, lam = pair
        one = jax.vmap(jax.vmap(partial(_one, labels=labels, ts=grid, lam=lam, n=n)))
        return one(z0, theta0)

    # One after the other: side by side the flow without decay would wait for the other's steps.
    return jax.lax.map(both, (ts, jnp.array([0.0, decay], z0.dtype)))


def _one(z, theta, *, labels, ts, lam, n) -> Course:
    field = joint_field(Partial(_loss, labels), decay=(lam, n * lam), rates=(1.0, 1 / n))
    # In log(1 + t), in which the flow without decay keeps its pace: in t, late fields are so small
    # that the first step after a saved time cannot be told from zero in float32.
    flow: Any = solve(
        Partial(_in_log_time, field), (z, theta), t1=jnp.log1p(ts[-1]), ts=jnp.log1p(ts),
        rtol=1e-6, atol=1e-8, max_steps=50_000,
    )  # fmt: skip
    measures: Any = jax.lax.map(partial(_measure, labels), flow.zs)
    size = jnp.sqrt(sum(jnp.sum(a**2, axis=(1, 2)) for a in flow.zs))
    z, theta = flow.z
    return Course(z, theta, *measures, pace=flow.grad_norm / size, result=flow.result)


def _in_log_time(field, s, state, args):
    """d/ds of the state for t = exp(s) - 1; the field does not depend on t."""
    return jax.tree.map(lambda x: jnp.exp(s) * x, field(s, state, args))


def behind(labels, z, theta):
    """Every other logit less the label's, shape (k n, k); -inf at the label."""
    logits = Linear(theta)(z)
    own = jax.nn.one_hot(labels, theta.shape[0], dtype=bool)
    return jnp.where(own, -jnp.inf, logits - jnp.take_along_axis(logits, labels[:, None], axis=1))


def _loss(labels, z, theta):
    """Sum of cross-entropies as log(1 + sum of exp(-margins)): gradients keep their digits where
    the probability of the label has rounded to 1."""
    return jnp.sum(jax.nn.softplus(jax.nn.logsumexp(behind(labels, z, theta), axis=1)))


def _measure(labels, state):
    z, theta = state
    means = class_means(z, labels, theta.shape[0])
    margin = -jnp.max(behind(labels, z, theta))
    norms = jnp.sqrt(jnp.mean(jnp.sum(z**2, axis=1)) * jnp.mean(jnp.sum(theta**2, axis=1)))
    return (
        *neural_collapse(z, theta, labels), simplex_alignment(means), simplex_alignment(theta),
        jnp.mean(interference(theta - theta.mean(axis=0, keepdims=True))),
        _loss(labels, z, theta) / len(labels), margin, margin / norms,
    )  # fmt: skip
