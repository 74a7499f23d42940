"""Features and their classes: accuracy, margins, means, scatter.

Labels that are out of range raise if they are concrete; under a trace the result is then NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_at_least
from imr._numerics import matmul
from imr._typing import ClassWeights, Features, Labels, Logits, Rows, Scalar
from imr.metrics._arrays import class_members, matrix, mean_of_members, split_by_class


def accuracy(logits: Logits, labels: Labels) -> Scalar:
    r"""Share of rows whose largest logit is the label's: $\frac1n |\{i : argmax_j N_{ij} = y_i\}|$.

    Args:
      logits: shape (n, m). Of tied logits the first counts; a row with a NaN is wrong.
      labels: integers from 0, shape (n,).
    Returns: A scalar in [0, 1].

    >>> accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])).item()
    0.5
    """
    logits = matrix("logits", logits, "(n, m)")
    own = class_members(labels, logits, "logits", logits.shape[1])
    hit = jnp.take_along_axis(own, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]
    # To argmax a NaN is the largest.
    return jnp.mean(jnp.where(jnp.isnan(logits).any(axis=1), 0 * own[:, 0], hit))


def margins(logits: Logits, labels: Labels) -> Rows:
    r"""The label's logit minus the largest other: $N_{i y_i} - \max_{j \neq y_i} N_{ij}$.

    Args:
      logits, labels: as in `accuracy`, with m at least 2.
    Returns: Shape (n,), positive where the row is classified as its label.

    >>> margins(jnp.array([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]]), jnp.array([0, 2])).tolist()
    [1.0, -3.0]
    """
    logits = matrix("logits", logits, "(n, m)")
    check_at_least("the number of columns of logits", logits.shape[1], 2)
    members = class_members(labels, logits, "logits", logits.shape[1])
    label = jnp.where(members == 1, logits, -jnp.inf).max(axis=1)
    other = jnp.where(members == 1, -jnp.inf, logits).max(axis=1)
    return jnp.where(jnp.isnan(members[:, 0]), jnp.nan, label - other)


class ClassScatter(NamedTuple):
    """Covariances of features about their class means and of these; the sum is that of all rows."""

    within: Float[Array, "f f"]
    between: Float[Array, "f f"]


def class_means(z: Features, labels: Labels, num_classes: int) -> ClassWeights:
    r"""The mean of each class: $\mu_c = \frac{1}{n_c} \sum_{i : y_i = c} z_i$.

    Args:
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.
    Returns: Shape (k, f); zero for a class without rows.

    >>> class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1]), 2).tolist()
    [[2.0], [5.0]]
    """
    z = matrix("z", z, "(n, f)")
    return mean_of_members(z, class_members(labels, z, "z", num_classes))


def class_scatter(z: Features, labels: Labels, num_classes: int) -> ClassScatter:
    r"""Covariance of rows about their class means, and of class means about the mean of all rows.

    $$\Sigma_W = \frac1n \sum_i (z_i - \mu_{y_i}) (z_i - \mu_{y_i})^T, \quad
      \Sigma_B = \sum_c \frac{n_c}{n} (\mu_c - \mu) (\mu_c - \mu)^T$$

    Population covariances: they are divided by n, and a class counts once for each of its rows.

    Args:
      z, labels, num_classes: as in `class_means`.

    >>> scatter = class_scatter(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1]), 2)
    >>> [covariance.round(2).item() for covariance in scatter]
    [0.67, 3.56]
    """
    z = matrix("z", z, "(n, f)")
    split = split_by_class(z, class_members(labels, z, "z", num_classes))
    within = matmul(split.rest.T, split.rest) / len(z)
    return ClassScatter(within, matmul((split.shares * split.means).T, split.means))
