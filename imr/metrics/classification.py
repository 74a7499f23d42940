"""Accuracy and margins of logits.

Labels that are out of range raise if they are concrete; under a trace the result is then NaN.
"""

import jax.numpy as jnp

from imr._checks import check_at_least
from imr._typing import Labels, Logits, Rows, Scalar
from imr.metrics._arrays import class_members, matrix


def accuracy(logits: Logits, labels: Labels) -> Scalar:
    r"""Share of rows whose largest logit is the label's: $\frac1n |\{i : argmax_j N_{ij} = y_i\}|$.

    Args:
      logits: shape (n, m). Of tied logits the first counts; a row with a NaN is wrong.
      labels: integers from 0, shape (n,).

    Returns:
      A scalar in [0, 1].

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
      logits: shape (n, m), m at least 2.
      labels: integers from 0, shape (n,).

    Returns:
      Shape (n,), positive where the row is classified as its label.

    >>> margins(jnp.array([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]]), jnp.array([0, 2])).tolist()
    [1.0, -3.0]
    """
    logits = matrix("logits", logits, "(n, m)")
    check_at_least("the number of columns of logits", logits.shape[1], 2)
    members = class_members(labels, logits, "logits", logits.shape[1])
    label = jnp.where(members == 1, logits, -jnp.inf).max(axis=1)
    other = jnp.where(members == 1, -jnp.inf, logits).max(axis=1)
    return jnp.where(jnp.isnan(members[:, 0]), jnp.nan, label - other)
