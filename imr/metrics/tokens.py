"""Tokens: cosines and clusters of their directions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._checks import check_positive
from imr._numerics import matmul
from imr._typing import Features, Scalar, ScalarLike
from imr.metrics._arrays import matrix, unit_rows


def token_cosines(z: Features) -> Float[Array, "n n"]:
    r"""Cosine similarities of rows: $\langle z_i, z_j \rangle / (\|z_i\| \|z_j\|)$.

    Args:
      z: features, shape (n, f). A row of zeros has cosine 0 with every row, itself too.

    Returns:
      Shape (n, n).

    >>> token_cosines(jnp.array([[2.0, 0.0], [0.0, 3.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    unit = unit_rows(matrix("z", z, "(n, f)"))
    return matmul(unit, unit.T)


def mean_cosine(z: Features) -> Scalar:
    r"""Mean cosine of distinct rows, in O(n f): $(\|\sum_i u_i\|^2 - \sum_i \|u_i\|^2) / (n^2 - n)$.

    Args:
      z: features, shape (n, f), n at least 2. A row of zeros has cosine 0 with all others.

    Returns:
      A scalar from -1 / (n - 1) to 1.

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

    Returns:
      An integer from 1 to n. Memory is O(n^2).

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
