"""Frames of directions: simplex frames and superposition."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_count
from imr._numerics import matmul
from imr._typing import ClassWeights, Scalar
from imr.metrics._arrays import centred, matrix, over_norm, unit_rows


def simplex_alignment(vectors: ClassWeights) -> Scalar:
    r"""Cosine between the Gram matrix G of centred vectors and that of a simplex frame, P.

    $$\frac{\langle G, P \rangle}{\|G\|_F \|P\|_F} = \frac{tr \, G}{\|G\|_F \sqrt{k - 1}}, \quad
      P = I - 1 1^T / k, \quad G = P V V^T P$$

    Args:
      vectors: V, shape (k, f), k at least 2.

    Returns:
      A scalar from $1 / \sqrt{k - 1}$ to $\min(1, \sqrt{f / (k - 1)})$, 1 for a simplex frame; 0
      if all vectors are equal. With V the class means, $nc_2^2$ is twice 1 less this.

    >>> simplex_alignment(jnp.eye(4)).round(4).item()
    1.0

    Reference: Papyan, Han, Donoho, arXiv 2008.08186.
    """
    unit = centred(matrix("vectors", vectors, "(k, f)", rows=2))
    return jnp.trace(over_norm(matmul(unit, unit.T))) / (len(vectors) - 1) ** 0.5


def interference(vectors: ClassWeights) -> Float[Array, "k"]:
    r"""Superposition of directions: $\sum_{j \neq i} \cos^2(v_i, v_j)$ for each i.

    Args:
      vectors: of any length, shape (k, f). A zero vector has cosine 0 with all others.

    Returns:
      Shape (k,), 0 for a direction of its own; the mean is at least `welch_bound(k, f)`.

    >>> interference(jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])).tolist()
    [0.0, 1.0, 1.0]

    Reference: Elhage et al., "Toy Models of Superposition", arXiv 2209.10652.
    """
    unit = unit_rows(matrix("vectors", vectors, "(k, f)"))
    squares = matmul(unit, unit.T) ** 2
    return jnp.where(jnp.eye(len(squares), dtype=bool), 0, squares).sum(axis=1)


def welch_bound(k: int, f: int) -> float:
    r"""The least mean of `interference` of k non-zero vectors in f dimensions: $\max(k/f - 1, 0)$.

    For unit vectors U (k, f), $\sum_{ij} \langle u_i, u_j \rangle^2 = \|U^T U\|_F^2 \geq
    (tr \, U^T U)^2 / f = k^2 / f$ by Cauchy-Schwarz on the f eigenvalues, equal where $U^T U$ is a
    multiple of the identity (a tight frame). The k terms i = j are 1; divide the rest by k.

    Args:
      k: number of vectors, at least 1.
      f: dimensions, at least 1.

    >>> welch_bound(6, 4)
    0.5

    Reference: Welch, "Lower bounds on the maximum cross correlation of signals", 1974.
    """
    check_count("k", k)
    check_count("f", f)
    return max(k / f - 1, 0.0)
