"""Attention in linear time by random features, with a measured error."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    check_axis,
    check_count,
    check_key,
    check_positive,
    check_rank,
    check_scalar,
)
from imr._numerics import matmul, softmax, widen
from imr._typing import AnyArray, ScalarLike
from imr.errors import ImrError


class RandomFeatureProducts(NamedTuple):
    """Approximate products of attention.

    Attributes:
      rows, columns: $P K$, shape (n, r), and $P^T Q$, shape (m, r).
      error: relative error of the rows, a scalar, measured on some of them.
    """

    rows: Float[Array, "n r"]
    columns: Float[Array, "m r"]
    error: Float[Array, ""]


def random_feature_products(
    queries: Float[AnyArray, "n r"],
    keys: Float[AnyArray, "m r"] | None = None,
    *,
    key: Any,
    num_features: int = 256,
    beta: ScalarLike = 1.0,
    checked: int = 64,
) -> RandomFeatureProducts:
    r"""$P K$ and $P^T Q$ for $P = softmax(\beta Q K^T)$ in O((n + m) r M), by FAVOR+.

    $e^{x y} = E_w[e^{w x - |x|^2/2} e^{w y - |y|^2/2}]$ with normal w, estimated by the mean over M
    vectors w, orthogonal in blocks of r; its terms are positive. The variance grows as
    $e^{|x + y|^2}$, so the estimate is accurate for logits of order one: check `error`.

    Args:
      queries: Q, shape (n, r).
      keys: K, shape (m, r); None if they are the queries.
      key: random key of the features.
      num_features: M.
      beta: inverse temperature, positive.
      checked: number of evenly spaced rows on which the error is measured, as the norm of the
        difference over the norm of $P K$.
    Raises: ImrError if shapes do not fit, there are no keys, or key, beta or a number is none.

    >>> q = 0.3 * jax.random.normal(jax.random.key(0), (500, 4))
    >>> products = random_feature_products(q, key=jax.random.key(1), num_features=1024)
    >>> bool(products.error < 0.3)
    True

    Reference: Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794.
    """
    queries = as_floats("queries", queries)
    keys = queries if keys is None else as_floats("keys", keys)
    check_rank("queries", queries, 2, "(n, r)")
    check_rank("keys", keys, 2, "(m, r)")
    check_axis("keys", keys.shape[1], "queries", queries.shape[1], "columns")
    check_count("num_features", num_features)
    check_count("checked", checked)
    check_key(key)
    check_scalar("beta", beta)
    check_positive("beta", beta)
    if not len(keys):
        raise ImrError("keys must have a row at least; found none.")
    rows = np.unique(np.linspace(0, len(queries) - 1, min(checked, len(queries))).astype(int))
    products = _products(widen(queries), widen(keys), key, beta, rows, num_features)
    return RandomFeatureProducts(*(x.astype(queries.dtype) for x in products))


@partial(jax.jit, static_argnames="count")
def _products(queries, keys, key, beta, rows, count):
    directions = _orthogonal(key, count, queries.shape[1], queries.dtype)
    root = jnp.sqrt(jnp.asarray(beta, queries.dtype))

    def exponents(x):
        x = root * x
        return matmul(x, directions.T) - 0.5 * jnp.sum(x * x, axis=1, keepdims=True)

    # A factor common to a feature moves from keys to queries, and one common to a row of queries cancels
    # in P: so that no feature of all keys, and no row's sum over features, underflows.
    of_keys, of_queries = exponents(keys), exponents(queries)
    top = jnp.max(of_keys, axis=0, keepdims=True)
    of_keys, of_queries = jnp.exp(of_keys - top), of_queries + top
    of_queries = jnp.exp(of_queries - jnp.max(of_queries, axis=1, keepdims=True))
    sums = matmul(of_queries, jnp.sum(of_keys, axis=0)[:, None])
    approximate = matmul(of_queries, matmul(of_keys.T, keys)) / sums
    columns = matmul(of_keys, matmul(of_queries.T, queries / sums))
    exact = matmul(softmax(beta * matmul(queries[rows], keys.T)), keys)
    gap, size = jnp.linalg.norm(approximate[rows] - exact), jnp.linalg.norm(exact)
    error = jnp.where(gap == 0, 0, gap / size)  # zero too if all keys are; NaN stays NaN
    return approximate, columns, error


def _orthogonal(key, count, r, dtype):
    """Rows (count, r) distributed as normal ones, orthogonal within blocks of r."""
    blocks = -(-count // r)
    direction_key, length_key = jax.random.split(key)
    square = jax.random.normal(direction_key, (blocks, r, r), dtype)
    q, upper = jnp.linalg.qr(square)
    # The signs of the factorisation are arbitrary; with these q is uniform over the rotations.
    q = q * jnp.sign(jnp.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    directions = q.reshape(-1, r)[:count]
    lengths = jnp.linalg.norm(jax.random.normal(length_key, (count, r), dtype), axis=1)
    return directions * lengths[:, None]
