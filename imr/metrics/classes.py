"""Of features and their classes: accuracy, margins, scatter, neural collapse.

Labels that are out of range raise where they are concrete; under a trace the result is then NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_at_least, check_axis, check_count, check_rank, is_concrete
from imr._numerics import matmul
from imr._typing import Bias, ClassWeights, Features, Labels, Logits, Rows, Scalar
from imr.errors import ImrError
from imr.metrics._arrays import centred, matrix, over_norm
from imr.models import Linear


def accuracy(logits: Logits, labels: Labels) -> Scalar:
    r"""Share of rows whose largest logit is the label's: $\frac1n |\{i : argmax_j N_{ij} = y_i\}|$.

    Args:
      logits: shape (n, m). Of tied logits the first counts; a row with a NaN is wrong.
      labels: integers from 0, shape (n,).
    Returns: a scalar in [0, 1].
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])).item()
    0.5
    """
    logits = matrix("logits", logits, "(n, m)")
    own = _members(labels, logits, "logits", logits.shape[1])
    hit = jnp.take_along_axis(own, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]
    # To argmax a NaN is the largest.
    return jnp.mean(jnp.where(jnp.isnan(logits).any(axis=1), 0 * own[:, 0], hit))


def margins(logits: Logits, labels: Labels) -> Rows:
    r"""The label's logit minus the largest other: $N_{i y_i} - \max_{j \neq y_i} N_{ij}$.

    Args:
      logits: shape (n, m), m at least 2.
      labels: integers from 0, shape (n,).
    Returns: shape (n,), positive where the row is classified as its label.
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> margins(jnp.array([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]]), jnp.array([0, 2])).tolist()
    [1.0, -3.0]
    """
    logits = matrix("logits", logits, "(n, m)")
    check_at_least("the number of columns of logits", logits.shape[1], 2)
    members = _members(labels, logits, "logits", logits.shape[1])
    label = jnp.where(members == 1, logits, -jnp.inf).max(axis=1)
    other = jnp.where(members == 1, -jnp.inf, logits).max(axis=1)
    return jnp.where(jnp.isnan(members[:, 0]), jnp.nan, label - other)


class ClassScatter(NamedTuple):
    """Covariances within and between classes, each of shape (f, f); their sum is the whole one."""

    within: Float[Array, "f f"]
    between: Float[Array, "f f"]


def class_means(z: Features, labels: Labels, num_classes: int) -> ClassWeights:
    r"""The mean of each class: $\mu_c = \frac{1}{n_c} \sum_{i : y_i = c} z_i$.

    Args:
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.
    Returns: shape (k, f); zero for a class without rows.
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1]), 2).tolist()
    [[2.0], [5.0]]
    """
    z = matrix("z", z, "(n, f)")
    return _means(z, _members(labels, z, "z", num_classes))


def class_scatter(z: Features, labels: Labels, num_classes: int) -> ClassScatter:
    r"""Covariance of rows about their class means, and of class means about the mean of all rows.

    $$\Sigma_W = \frac1n \sum_i (z_i - \mu_{y_i}) (z_i - \mu_{y_i})^T, \quad
      \Sigma_B = \sum_c \frac{n_c}{n} (\mu_c - \mu) (\mu_c - \mu)^T$$

    Population covariances: divided by n, and a class weighs as many rows as it has.

    Args:
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.
    Returns: `ClassScatter(within, between)`, each of shape (f, f).
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> scatter = class_scatter(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1]), 2)
    >>> [covariance.round(2).item() for covariance in scatter]
    [0.67, 3.56]
    """
    z = matrix("z", z, "(n, f)")
    _, means, rest, weights = _split(z, _members(labels, z, "z", num_classes))
    return ClassScatter(matmul(rest.T, rest) / len(z), matmul((weights * means).T, means))


class NeuralCollapse(NamedTuple):
    """Four scalars, zero at collapse: variability, simplex frame, self-duality, nearest mean."""

    nc1: Scalar
    nc2: Scalar
    nc3: Scalar
    nc4: Scalar


def neural_collapse(
    z: Features, theta: ClassWeights, labels: Labels, bias: Bias | None = None
) -> NeuralCollapse:
    r"""How far features and classifier are from neural collapse.

    $$nc_1 = \frac1k tr(\Sigma_W \Sigma_B^+), \quad nc_2 = \Big\| \frac{M M^T}{\|M M^T\|_F} -
      \frac{I - 1 1^T / k}{\sqrt{k - 1}} \Big\|_F, \quad nc_3 = \Big\|
      \frac{\theta_\circ}{\|\theta_\circ\|_F} - \frac{M}{\|M\|_F} \Big\|_F$$

    and nc4 is the share of rows that the classifier and the nearest class mean put into different
    classes. The covariances are those of `class_scatter`; M and $\theta_\circ$ are the class means
    and theta less their mean over classes, all classes weighing the same: collapsed classes of
    unequal sizes give zeros too.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f), k at least 2.
      labels: integers from 0, shape (n,), with a row for each class.
      bias: of the logits, shape (k,).
    Returns: `NeuralCollapse(nc1, nc2, nc3, nc4)`. Where the class means are all equal nc1 is 0, as
      the pseudo-inverse is, but nc2 is 1. NaN where z is not finite, or a class is empty under a
      trace.
    Raises: ImrError where shapes or dtypes do not fit, a label is out of range or a class is empty.
    Reference: Papyan, Han, Donoho, arXiv 2008.08186; nc2 as Zhu et al., arXiv 2105.02375.

    >>> [abs(round(x.item(), 3)) for x in neural_collapse(jnp.eye(3), jnp.eye(3), jnp.arange(3))]
    [0.0, 0.0, 0.0, 0.0]
    """
    z, theta = matrix("z", z, "(n, f)"), matrix("theta", theta, "(k, f)")
    k = theta.shape[0]
    check_at_least("the number of rows of theta", k, 2)
    chosen = jnp.argmax(Linear(theta, bias)(z), axis=1)
    members = _members(labels, z, "z", k)
    counts = members.sum(axis=0)
    if is_concrete(counts) and not bool(jnp.all(counts > 0)):
        raise ImrError(
            f"labels must hold every class, 0 to {k - 1}; found no row of class "
            f"{int(jnp.argmin(counts))}. Leave that class out of theta, or add rows."
        )
    return _collapse(z, theta, members, chosen)


@jax.jit
def _collapse(z, theta, members, chosen) -> NeuralCollapse:
    n, k = members.shape
    counts = members.sum(axis=0)
    defined = jnp.all(counts > 0) & jnp.isfinite(z).all()
    z, means, rest, weights = _split(z, members)

    # The square root of Sigma_B by its singular vectors: no (f, f) matrix, no squared condition
    # number. Its rank is at most k - 1; a k-th singular value is nothing but rounding.
    root = jnp.sqrt(weights) * means
    _, scale, axes = jnp.linalg.svd(root, full_matrices=False)
    kept = scale > max(root.shape) * jnp.finfo(z.dtype).eps * scale[0]
    kept = kept & (jnp.arange(scale.size) < k - 1)
    inverse = jnp.where(kept, 1 / jnp.where(kept, scale, 1), 0)
    nc1 = jnp.sum((matmul(rest, axes.T) * inverse[None, :]) ** 2) / (n * k)

    frame = (jnp.eye(k, dtype=z.dtype) - 1 / k) / (k - 1) ** 0.5
    frame_of_means = centred(means)
    nc2 = jnp.linalg.norm(over_norm(matmul(frame_of_means, frame_of_means.T)) - frame)
    nc3 = jnp.linalg.norm(centred(theta) - frame_of_means)
    distances = jnp.sum(means**2, axis=1)[None, :] - 2 * matmul(z, means.T)
    nc4 = jnp.mean(chosen != jnp.argmin(distances, axis=1), dtype=z.dtype)
    return NeuralCollapse(*(jnp.where(defined, x, jnp.nan) for x in (nc1, nc2, nc3, nc4)))


def _members(labels, rows, other, num_classes):
    """One-hot labels (n, k) in the dtype of `rows`; NaN where a label is out of range."""
    check_count("num_classes", num_classes)
    check_rank("labels", labels, 1, "(n,)")
    check_axis("labels", labels.shape[0], other, rows.shape[0], "rows")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ImrError(f"labels must be integers; found dtype {labels.dtype}. Use .astype(int).")
    bad = (labels < 0) | (labels >= num_classes)
    if is_concrete(bad) and bad.any():
        row = int(jnp.argmax(bad))
        raise ImrError(
            f"labels must lie in 0 to {num_classes - 1}; found labels[{row}] = {labels[row]}."
        )
    return jnp.where(bad[:, None], jnp.nan, jax.nn.one_hot(labels, num_classes, dtype=rows.dtype))


def _means(z, members):
    return matmul(members.T, z) / jnp.maximum(members.sum(axis=0), 1)[:, None]


def _split(z, members):
    """Rows and class means about the mean of all rows, what is left of rows, shares (k, 1)."""
    # Far from the origin, products of what is not centred lose the digits of the differences.
    z = z - z.mean(axis=0, keepdims=True)
    means = _means(z, members)
    return z, means, z - matmul(members, means), members.mean(axis=0)[:, None]
