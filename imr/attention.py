"""Attention in closed form: what the gradient of a log-sum-exp of logits is."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_choice
from imr._numerics import matmul, softmax
from imr._typing import Bias, ClassWeights, Features, Logits, Mask, ScalarLike
from imr.logits import check_projections, linear_logits

Normalise = Literal["row", "column", "double"]
Projection = Float[Array, "f r"] | Float[Array, "h f r"]


def cross_attention(
    z: Features, theta: ClassWeights, bias: Bias | None = None, *, beta: ScalarLike = 1.0
) -> Features:
    r"""Cross-attention, the gradient of the log-sum-exp of the linear model.

    $$CA(Z, \theta) = softmax(\beta (Z \theta^T + b)) \theta$$

    The queries are Z; theta is keys and values. With C the targets, the gradient flow of
    `feature_loss(linear_logits, theta, C, beta=beta)` is
    $dZ/dt = \beta (C \theta - CA(Z, \theta))$.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f).
      bias: of the logits, shape (k,).
      beta: inverse temperature, multiplies the logits.

    Returns:
      Shape (n, f).

    Raises:
      ImrError: where shapes do not fit; both are named.

    >>> import jax.numpy as jnp
    >>> cross_attention(jnp.zeros((1, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[1.0, 2.0]]

    Reference: arXiv 2509.04653, Theorem 1.
    """
    return matmul(softmax(beta * linear_logits(z, theta, bias)), theta)


def attention_weights(
    logits: Logits, normalise: Normalise = "row", where: Mask | None = None
) -> Logits:
    r"""Attention weights of logits: over keys, over queries, or over both in turn.

    Args:
      logits: shape (n, m), a row for each query.
      normalise: `row` is the usual softmax over keys. `column` is the softmax over queries: each
        key gives out a total weight of 1, none is explained away. `double` normalises columns, then
        rows, $W_{ij} = P_{ij} / \sum_l P_{il}$ with P the column softmax.
      where: boolean, shape (n, m); True says that the entry takes part.

    Returns:
      Weights, shape (n, m).

    Raises:
      ImrError: where `normalise` is none of the three.

    >>> import jax.numpy as jnp
    >>> attention_weights(jnp.zeros((2, 4)), "column").tolist()[0]
    [0.5, 0.5, 0.5, 0.5]

    Reference: Ding et al., "Attention that does not Explain Away", arXiv 2009.14308.
    """
    check_choice("normalise", normalise, ("row", "column", "double"))
    if normalise == "row":
        return softmax(logits, where)
    columns = softmax(logits.T, None if where is None else where.T).T
    if where is not None:
        # A key that no query may see has an empty column.
        columns = jnp.where(where, columns, 0)
    return columns if normalise == "column" else columns / columns.sum(axis=1, keepdims=True)


def self_attention(
    z: Features,
    phi: Projection,
    k: Projection | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
) -> Features:
    r"""Self-attention, the row term of the gradient of the quadratic model's log-sum-exp.

    $$SA = softmax(\beta Z Q K^T Z^T) \, Z K Q^T, \qquad
      SA(Z, \phi) = softmax(\beta Z \phi \phi^T Z^T) \, Z \phi \phi^T$$

    Standard attention: queries Z Q, keys Z K, values Z K Q^T. It is the whole gradient where the
    keys are held fixed; with tied Z `reverse_attention` belongs to it, and the gradient flow of
    `feature_loss(low_rank_logits, ...)` is
    $dZ/dt = \beta (C Z K Q^T + C^T Z Q K^T - SA - SA_{rev})$.

    Args:
      z: features, shape (n, f).
      phi: Q, shape (f, r), or (h, f, r) for heads, whose terms add.
      k: K, of the same shape; None is symmetric, K = Q = phi.
      beta: inverse temperature, multiplies the logits; 1/sqrt(r) is the usual scale.
      where: boolean, shape (n, n); True says that the query (row) may see the key (column).
      normalise: as in `attention_weights`.

    Returns:
      Shape (n, f).

    Raises:
      ImrError: where shapes do not fit, or the rank is larger than f.

    >>> import jax.numpy as jnp
    >>> self_attention(jnp.eye(2), jnp.zeros((2, 1))).tolist()
    [[0.0, 0.0], [0.0, 0.0]]

    Reference: arXiv 2509.04653, Theorem 2 and its Corollary.
    """
    return _over_heads(z, phi, k, beta, where, normalise, reverse=False)


def reverse_attention(
    z: Features,
    phi: Projection,
    k: Projection | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
) -> Features:
    r"""The column term of that gradient: what a token is to those that attend to it.

    $$SA_{rev} = softmax(\beta Z Q K^T Z^T)^T \, Z Q K^T$$

    Args:
      z: features, shape (n, f).
      phi: Q, shape (f, r), or (h, f, r) for heads, whose terms add.
      k: K, of the same shape; None is symmetric, K = Q = phi.
      beta: inverse temperature, multiplies the logits.
      where: boolean, shape (n, n); True says that the query (row) may see the key (column).
      normalise: as in `attention_weights`.

    Returns:
      Shape (n, f).

    Raises:
      ImrError: where shapes do not fit, or the rank is larger than f.

    >>> import jax.numpy as jnp
    >>> reverse_attention(jnp.eye(2), jnp.zeros((2, 1))).shape
    (2, 2)

    Reference: arXiv 2509.04653, Theorem 2.
    """
    return _over_heads(z, phi, k, beta, where, normalise, reverse=True)


def _over_heads(z, phi, k, beta, where, normalise, reverse):
    check_projections(z, phi, k)

    def one(q, k):
        queries, keys = matmul(z, q), matmul(z, k)
        # beta on the n x r side: cheaper, and compiled it cannot be fused into the softmax's
        # difference, where large logits would be rounded otherwise than their maximum.
        weights = attention_weights(matmul(beta * queries, keys.T), normalise, where)
        if reverse:
            return matmul(matmul(weights.T, queries), k.T)
        return matmul(matmul(weights, keys), q.T)

    k = phi if k is None else k
    return one(phi, k) if phi.ndim == 2 else jnp.sum(jax.vmap(one)(phi, k), axis=0)


def attention_products(
    queries: Float[Array, "n r"],
    keys: Float[Array, "m r"],
    *,
    beta: ScalarLike = 1.0,
    where: Float[Array, "n m"] | Mask | None = None,
    block: int | None = None,
) -> tuple[Float[Array, "n r"], Float[Array, "m r"]]:
    r"""$P K$ and $P^T Q$ for $P = softmax(\beta Q K^T)$, without ever building P.

    Rows of P are made a block at a time and used for both products; the gradient makes them anew.

    Args:
      queries: Q, shape (n, r).
      keys: K, shape (m, r).
      beta: inverse temperature.
      where: boolean, shape (n, m).
      block: rows at a time; by default as many as make about 4 million entries.

    Returns:
      P K, shape (n, r), and P^T Q, shape (m, r). Memory is O((n + m) r + block m).
    """
    n, m = queries.shape[0], keys.shape[0]
    size = min(n, max(1, 2**22 // m) if block is None else block)

    def rows(q, mask):
        return softmax(matmul(beta * q, keys.T), mask)

    if size == n:
        p = rows(queries, where)
        return matmul(p, keys), matmul(p.T, queries)

    # The last block is filled up with rows of queries 0; those add 0 to the second product.
    count = -(-n // size)
    padding = count * size - n
    q_blocks = jnp.pad(queries, ((0, padding), (0, 0))).reshape(count, size, -1)
    masks = None
    if where is not None:
        masks = jnp.pad(where, ((0, padding), (0, 0)), constant_values=True)
        masks = masks.reshape(count, size, m)

    @jax.checkpoint
    def step(columns, block):
        q, mask = block
        p = rows(q, mask)
        return columns + matmul(p.T, q), matmul(p, keys)

    columns, forward = jax.lax.scan(step, jnp.zeros_like(keys), (q_blocks, masks))
    return forward.reshape(count * size, -1)[:n], columns
