"""Directions in which features encode targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_axis
from imr._numerics import matmul, pseudo_inverse, widen
from imr._typing import AnyArray
from imr.metrics._arrays import check_weights, matrix


def encoding(
    features: Float[AnyArray, "n d"], targets: Float[AnyArray, "n s"], weights: Float[AnyArray, "n"]
) -> Float[Array, "s d"]:
    """Directions in which features encode targets: the least squares fit of features by targets.

    Targets whose entries sum to one span one dimension less; the solution of least norm is taken.

    Args:
      features: activations, shape (n, d).
      targets: shape (n, s), such as beliefs.
      weights: of the rows, shape (n,), not negative.

    Returns:
      A direction for each entry of the targets, shape (s, d).

    >>> y = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> encoding(y @ jnp.array([[3.0, 0.0], [0.0, 0.0]]), y, jnp.ones(2)).round(3).tolist()
    [[1.5, 0.0], [-1.5, 0.0]]
    """
    features, targets = matrix("features", features, "(n, d)"), matrix("targets", targets, "(n, s)")
    check_axis("targets", targets.shape[0], "features", features.shape[0], "rows")
    weights = check_weights(weights, "features", features)
    return _encoding(features, targets, weights)


@jax.jit
def _encoding(features, targets, weights):
    dtype = jnp.result_type(features, targets)
    w = (weights / jnp.sum(weights)).astype(dtype)
    part = (weights > 0)[:, None]
    x, y = (jnp.where(part, a, 0).astype(dtype) for a in (features, targets))
    x, y = x - matmul(w, x)[None, :], y - matmul(w, y)[None, :]
    covariance = matmul(y.T, w[:, None] * y)
    inverse = jnp.linalg.pinv(covariance, rtol=1e-6, hermitian=True)
    return matmul(inverse, matmul(y.T, w[:, None] * x))


def energy_share(vectors: Float[AnyArray, "*b d"], directions: Float[AnyArray, "p d"]) -> Array:
    r"""Share of the squared lengths of vectors that lies in the span of directions.

    $\|V P\|^2 / \|V\|^2$, P the projection on the span. For OV vectors, centred over tokens, and the
    directions of `encoding` it says how much of what heads write is about the belief. Random vectors
    have rank / d.

    Args:
      vectors: V, shape (..., d).
      directions: shape (p, d).

    Returns:
      A scalar in [0, 1].

    >>> energy_share(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0]])).round(2).item()
    0.36
    """
    vectors, directions = widen(jnp.asarray(vectors)), matrix("directions", directions, "(p, d)")
    check_axis("directions", directions.shape[1], "vectors", vectors.shape[-1], "columns")
    inside = matmul(matmul(vectors, pseudo_inverse(directions)), directions)
    return jnp.sum(inside**2) / jnp.sum(vectors**2)
