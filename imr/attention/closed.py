"""Attention in closed form: what the gradient of a log-sum-exp of logits is."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_choice
from imr._numerics import matmul, softmax
from imr._typing import Bias, ClassWeights, Features, Logits, Mask, ScalarLike
from imr.attention.products import attention_products
from imr.errors import ImrError
from imr.models.logits import check_projections, linear_logits

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
    block: int | None = None,
    mesh: Any = None,
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
      block, mesh: how the n x n weights are made without being held, see
        `imr.attention.attention_products`; by default as suits their size.

    Returns:
      Shape (n, f).

    Raises:
      ImrError: where shapes do not fit, or the rank is larger than f.

    >>> import jax.numpy as jnp
    >>> self_attention(jnp.eye(2), jnp.zeros((2, 1))).tolist()
    [[0.0, 0.0], [0.0, 0.0]]

    Reference: arXiv 2509.04653, Theorem 2 and its Corollary.
    """
    return attention_terms(
        z,
        phi,
        k,
        beta=beta,
        where=where,
        normalise=normalise,
        block=block,
        mesh=mesh,
        columns=False,
    )[0]


def reverse_attention(
    z: Features,
    phi: Projection,
    k: Projection | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
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
    terms = attention_terms(
        z, phi, k, beta=beta, where=where, normalise=normalise, block=block, mesh=mesh
    )
    return terms[1]


def attention_terms(
    z: Features,
    phi: Projection,
    k: Projection | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
    columns: bool = True,
) -> tuple[Features, Any]:
    r"""`self_attention` and `reverse_attention` of the same arguments at the cost of one.

    Args:
      z: features, shape (n, f).
      phi, k, beta, where, normalise, block, mesh: as in `self_attention`.
      columns: whether the second is wanted.

    Returns:
      SA and SA_rev, each (n, f), or None in place of the second.

    Raises:
      ImrError: where shapes do not fit, the rank is larger than f, or weights that need all of P at
        once are asked for in blocks or on a mesh.

    >>> import jax.numpy as jnp
    >>> rows, columns = attention_terms(jnp.eye(2), jnp.eye(2))
    >>> bool(jnp.allclose(rows, self_attention(jnp.eye(2), jnp.eye(2))))
    True

    Reference: arXiv 2509.04653, Theorem 2.
    """
    check_choice("normalise", normalise, ("row", "column", "double"))
    check_projections(z, phi, k)
    # Empty columns of a mask, and weights normalised twice, are only dealt with at once.
    whole = normalise == "double" or (normalise == "column" and where is not None)
    if whole and (block is not None or mesh is not None):
        raise ImrError(
            f"block and mesh are for normalise='row', or 'column' without where; found {normalise!r}."
        )
    options: dict[str, Any] = {"beta": beta, "block": block, "mesh": mesh, "columns": columns}

    def one(q, k):
        queries = matmul(z, q)
        keys = None if k is None else matmul(z, k)
        if whole:
            keys = queries if keys is None else keys
            # beta on the n x r side: cheaper, and compiled it cannot be fused into the softmax's
            # difference, where large logits would be rounded otherwise than their maximum.
            weights = attention_weights(matmul(beta * queries, keys.T), normalise, where)
            rows, cols = matmul(weights, keys), matmul(weights.T, queries) if columns else None
        elif normalise == "row":
            rows, cols = attention_products(queries, keys, where=where, **options)
        else:
            # The softmax over queries is the transpose of that of the roles exchanged.
            pair = (queries, None) if keys is None else (keys, queries)
            cols, rows = attention_products(*pair, **{**options, "columns": True})
            cols = cols if columns else None
        rows = matmul(rows, q.T)
        return rows, None if cols is None else matmul(cols, (q if k is None else k).T)

    if phi.ndim == 2:
        return one(phi, k)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(phi, k))
