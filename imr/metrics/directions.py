"""Directions: simplex frames and superposition, cosines of tokens, clusters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._checks import check_count, check_positive
from imr._numerics import matmul
from imr._typing import ClassWeights, Features, Scalar, ScalarLike
from imr.metrics._arrays import centred, matrix, over_norm, unit_rows


def simplex_alignment(vectors: ClassWeights) -> Scalar:
    r"""Cosine between the Gram matrix G of centred vectors and that of a simplex frame, P.

    $$\frac{\langle G, P \rangle}{\|G\|_F \|P\|_F} = \frac{tr \, G}{\|G\|_F \sqrt{k - 1}}, \quad
      P = I - 1 1^T / k, \quad G = P V V^T P$$

    Args:
      vectors: V, shape (k, f), k at least 2.
    Returns: A scalar from $1 / \sqrt{k - 1}$ to $\min(1, \sqrt{f / (k - 1)})$, 1 for a simplex
      frame; 0 if all vectors are equal. With V the class means, $nc_2^2$ is twice 1 less this.

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
    Returns: Shape (k,), 0 for a direction of its own; the mean is at least `welch_bound(k, f)`.

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
      k, f: number of vectors and of dimensions, at least 1.

    >>> welch_bound(6, 4)
    0.5

    Reference: Welch, "Lower bounds on the maximum cross correlation of signals", 1974.
    """
    check_count("k", k)
    check_count("f", f)
    return max(k / f - 1, 0.0)


def token_cosines(z: Features) -> Float[Array, "n n"]:
    r"""Cosine similarities of rows: $\langle z_i, z_j \rangle / (\|z_i\| \|z_j\|)$.

    Args:
      z: features, shape (n, f). A row of zeros has cosine 0 with every row, itself too.
    Returns: Shape (n, n).

    >>> token_cosines(jnp.array([[2.0, 0.0], [0.0, 3.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    unit = unit_rows(matrix("z", z, "(n, f)"))
    return matmul(unit, unit.T)


def mean_cosine(z: Features) -> Scalar:
    r"""Mean cosine of distinct rows, in O(n f): $(\|\sum_i u_i\|^2 - \sum_i \|u_i\|^2) / (n^2 - n)$.

    Args:
      z: features, shape (n, f), n at least 2. A row of zeros has cosine 0 with all others.
    Returns: A scalar from -1 / (n - 1) to 1.

    >>> mean_cosine(jnp.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])).round(4).item()
    0.3333

    Reference: Ethayarajh, arXiv 1909.00512 (anisotropy of contextual representations).
    """
    unit = unit_rows(matrix("z", z, "(n, f)", rows=2))
    return (jnp.sum(unit.sum(axis=0) ** 2) - jnp.sum(unit**2)) / (len(z) * (len(z) - 1))


def cluster_count(z: Features, threshold: ScalarLike = 1e-3) -> Int[Array, ""]:
    r"""Number of clusters of directions: components of the graph $\cos(z_i, z_j) > 1 - threshold$.

    Args:
      z: features, shape (n, f). A row of zeros is a cluster of its own.
      threshold: positive; below about 1e-6 it is lost in the rounding of float32.
    Returns: An integer from 1 to n; memory is O(n^2).

    >>> cluster_count(jnp.array([[1.0, 0.0], [3.0, 0.01], [0.0, 1.0]])).item()
    2

    Reference: Geshkovski et al., arXiv 2312.10794 (tokens cluster on the sphere).
    """
    check_positive("threshold", threshold)
    return _components(token_cosines(z) > 1 - threshold)


@jax.jit
def _components(joined):
    """Components of a graph, by the least index that each node has heard of."""
    joined = joined | joined.T  # at the threshold rounding decides, differently on either side
    own = jnp.arange(len(joined))

    def spread(state):
        least = state[1]
        near = jnp.minimum(least, jnp.where(joined, least[None, :], len(joined)).min(axis=1))
        # A label is a row of the same component: its own label is a jump ahead.
        return least, near[near]

    _, least = jax.lax.while_loop(lambda s: jnp.any(s[0] != s[1]), spread, spread((own, own)))
    return jnp.sum(least == own)
