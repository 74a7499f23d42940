"""Class means, and the scatter of features within and between classes.

Labels that are out of range raise if they are concrete; under a trace the result is then NaN.
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from imr._numerics import matmul
from imr._typing import ClassWeights, Features, Labels
from imr.metrics._arrays import class_members, matrix, mean_of_members, split_by_class


class ClassScatter(NamedTuple):
    """Covariances of features, whose sum is that of all rows.

    Attributes:
      within: about the class means, shape (f, f).
      between: of the class means, shape (f, f).
    """

    within: Float[Array, "f f"]
    between: Float[Array, "f f"]


def class_means(z: Features, labels: Labels, num_classes: int) -> ClassWeights:
    r"""The mean of each class: $\mu_c = \frac{1}{n_c} \sum_{i : y_i = c} z_i$.

    Args:
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.

    Returns:
      Shape (k, f); zero for a class without rows.

    >>> import jax.numpy as jnp
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
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.

    >>> import jax.numpy as jnp
    >>> scatter = class_scatter(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1]), 2)
    >>> [covariance.round(2).item() for covariance in scatter]
    [0.67, 3.56]
    """
    z = matrix("z", z, "(n, f)")
    split = split_by_class(z, class_members(labels, z, "z", num_classes))
    within = matmul(split.rest.T, split.rest) / len(z)
    return ClassScatter(within, matmul((split.shares * split.means).T, split.means))
