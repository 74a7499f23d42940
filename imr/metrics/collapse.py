"""Neural collapse of features and classifier; labels are checked as in `imr.metrics.classes`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from imr._checks import check_at_least, is_concrete
from imr._numerics import matmul
from imr._typing import Bias, ClassWeights, Features, Labels, Scalar
from imr.errors import ImrError
from imr.metrics._arrays import centred, class_members, matrix, over_norm, split_by_class
from imr.models import Linear


class NeuralCollapse(NamedTuple):
    """Four scalars that are zero at collapse.

    Attributes:
      nc1: variability of features within classes.
      nc2: distance of the class means from a simplex frame.
      nc3: distance of the classifier from the class means (self-duality).
      nc4: share of rows that classifier and nearest class mean classify differently.
    """

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
    and theta less their mean over classes, each class counted once, so that collapsed classes of
    unequal sizes give zeros too.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f), k at least 2.
      labels: integers from 0, shape (n,), with a row for each class.
      bias: of the logits, shape (k,).
    Returns: `NeuralCollapse`. If the class means are all equal, nc1 is 0, as the pseudo-inverse is,
      but nc2 is 1. All are NaN if z is not finite, or if a class is empty under a trace.
    Raises: ImrError if shapes or dtypes do not fit, a label is out of range or a class is empty.

    >>> [abs(round(x.item(), 3)) for x in neural_collapse(jnp.eye(3), jnp.eye(3), jnp.arange(3))]
    [0.0, 0.0, 0.0, 0.0]

    Reference: Papyan, Han, Donoho, arXiv 2008.08186; nc2 as Zhu et al., arXiv 2105.02375.
    """
    z, theta = matrix("z", z, "(n, f)"), matrix("theta", theta, "(k, f)")
    k = theta.shape[0]
    check_at_least("the number of rows of theta", k, 2)
    chosen = jnp.argmax(Linear(theta, bias)(z), axis=1)
    members = class_members(labels, z, "z", k)
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
    split = split_by_class(z, members)
    means = split.means

    # The square root of Sigma_B by its singular vectors: no (f, f) matrix, no squared condition
    # number. Its rank is at most k - 1; a k-th singular value is nothing but rounding.
    root = jnp.sqrt(split.shares) * means
    _, scale, axes = jnp.linalg.svd(root, full_matrices=False)
    kept = scale > max(root.shape) * jnp.finfo(z.dtype).eps * scale[0]
    kept = kept & (jnp.arange(scale.size) < k - 1)
    inverse = jnp.where(kept, 1 / jnp.where(kept, scale, 1), 0)
    nc1 = jnp.sum((matmul(split.rest, axes.T) * inverse[None, :]) ** 2) / (n * k)

    frame = (jnp.eye(k, dtype=z.dtype) - 1 / k) / (k - 1) ** 0.5
    frame_of_means = centred(means)
    nc2 = jnp.linalg.norm(over_norm(matmul(frame_of_means, frame_of_means.T)) - frame)
    nc3 = jnp.linalg.norm(centred(theta) - frame_of_means)
    distances = jnp.sum(means**2, axis=1)[None, :] - 2 * matmul(split.centred, means.T)
    nc4 = jnp.mean(chosen != jnp.argmin(distances, axis=1), dtype=z.dtype)
    return NeuralCollapse(*(jnp.where(defined, x, jnp.nan) for x in (nc1, nc2, nc3, nc4)))
