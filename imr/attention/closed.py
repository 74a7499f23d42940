"""Attention in closed form: what the gradient of a log-sum-exp of logits is."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    as_mask,
    check_axis,
    check_choice,
    check_flags,
    check_rank,
    check_scalar,
)
from imr._numerics import log_sum_exp, matmul, softmax, widen
from imr._shapes import check_linear, check_projections
from imr._typing import (
    AnyArray,
    BiasLike,
    Features,
    FeaturesLike,
    Logits,
    LogitsLike,
    Mask,
    ScalarLike,
    WeightsLike,
)
from imr.attention.products import attention_products, checked_sides
from imr.errors import ImrError

Normalise = Literal["row", "column", "double"]
Projection = Float[AnyArray, "f r"] | Float[AnyArray, "h f r"]


def cross_attention(
    z: FeaturesLike, theta: WeightsLike, bias: BiasLike | None = None, *, beta: ScalarLike = 1.0
) -> Features:
    r"""Cross-attention, the gradient of the log-sum-exp of the linear model.

    $$CA(Z, \theta) = softmax(\beta (Z \theta^T + b)) \theta$$

    The queries are Z; theta is keys and values. With C the targets, the gradient flow of
    `feature_loss(Linear(theta, bias, beta), C)` is $dZ/dt = \beta (C \theta - CA(Z, \theta))$.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f).
      bias: of the logits, shape (k,).
      beta: inverse temperature, multiplies the logits.
    Returns: Shape (n, f).
    Raises: ImrError if shapes do not fit; both are named.

    >>> import jax.numpy as jnp
    >>> cross_attention(jnp.zeros((1, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[1.0, 2.0]]

    Reference: arXiv 2509.04653, Theorem 1.
    """
    z, theta = as_floats("z", z), as_floats("theta", theta)
    bias = None if bias is None else as_floats("bias", bias)
    check_linear(z, theta, bias)
    check_scalar("beta", beta)
    logits = matmul(z, theta.T)
    logits = beta * (logits if bias is None else logits + bias[None, :])
    return matmul(softmax(logits), theta)


def attention_weights(
    logits: LogitsLike, normalise: Normalise = "row", where: Mask | None = None
) -> Logits:
    r"""Attention weights of logits: over keys, over queries, or over both in turn.

    Args:
      logits: shape (n, m), a row for each query.
      normalise: `row` is the usual softmax over keys. `column` is the softmax over queries:
        each key hands out a total weight of 1, so that none is explained away. `double` normalises columns, then
        rows, $W_{ij} = P_{ij} / \sum_l P_{il}$ with P the column softmax.
      where: boolean, or integers 0 and 1, shape (n, m); True says that the entry takes part.
    Returns: Weights, shape (n, m). Those of a query that may see no key, and of a key that no query
      may see, are zero, and so are their gradients.
    Raises: ImrError if `normalise` is none of the three, or the mask is no mask.

    >>> import jax.numpy as jnp
    >>> attention_weights(jnp.zeros((2, 4)), "column").tolist()[0]
    [0.5, 0.5, 0.5, 0.5]

    Reference: Ding et al., "Attention that does not Explain Away", arXiv 2009.14308.
    """
    logits = as_floats("logits", logits)
    check_rank("logits", logits, 2, "(n, m)")
    check_choice("normalise", normalise, ("row", "column", "double"))
    where = as_mask(where, logits.shape)
    if normalise != "double":
        return softmax(logits, where, axis=1 if normalise == "row" else 0)
    # A row of P may underflow as a whole; the ratio is the softmax over j of the logarithms of P_ij.
    wide = widen(logits)
    log_weights = wide - log_sum_exp(wide, where, axis=0)[None, :]
    return softmax(log_weights, where).astype(logits.dtype)


def self_attention(
    z: FeaturesLike,
    q: Projection,
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

    Standard attention: queries Z Q, keys Z K, values Z K Q^T. It is the whole gradient if the keys
    are held fixed. If they move with Z, `reverse_attention` is the other part, and the flow of
    `feature_loss(Quadratic(q, k, beta), C)` is
    $dZ/dt = \beta (C Z K Q^T + C^T Z Q K^T - SA - SA_{rev})$.

    Args:
      z: features, shape (n, f).
      q: Q, shape (f, r), or (h, f, r) for heads, whose terms add.
      k: K, of the same shape; None is symmetric, K = Q.
      beta: inverse temperature, multiplies the logits; 1/sqrt(r) is the usual scale.
      where: boolean, or integers 0 and 1, shape (n, n); True says that the query (row) may see the
        key (column). A query that may see none gets zeros, as its gradients are.
      normalise: as in `attention_weights`.
      block, mesh: how the n x n weights are made without being held, see
        `imr.attention.attention_products`; by default as suits their size.
    Returns: Shape (n, f).
    Raises: ImrError if shapes do not fit, the rank is larger than f, or the mask is no mask.

    >>> import jax.numpy as jnp
    >>> self_attention(jnp.eye(2), jnp.zeros((2, 1))).tolist()
    [[0.0, 0.0], [0.0, 0.0]]

    Reference: arXiv 2509.04653, Theorem 2 and its Corollary.
    """
    return attention_terms(
        z, q, k, beta=beta, where=where, normalise=normalise, block=block, mesh=mesh, columns=False
    )[0]


def reverse_attention(
    z: FeaturesLike,
    q: Projection,
    k: Projection | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
) -> Features:
    r"""Reverse attention, the column term of the gradient of the quadratic model's log-sum-exp.

    $$SA_{rev} = softmax(\beta Z Q K^T Z^T)^T \, Z Q K^T$$

    It is what a token is to those that attend to it.

    Args:
      z, q, k, beta, where, normalise, block, mesh: as in `self_attention`.
    Returns: Shape (n, f).
    Raises: ImrError: as `self_attention`.

    >>> import jax.numpy as jnp
    >>> reverse_attention(jnp.eye(2), jnp.zeros((2, 1))).shape
    (2, 2)

    Reference: arXiv 2509.04653, Theorem 2.
    """
    return attention_terms(
        z, q, k, beta=beta, where=where, normalise=normalise, block=block, mesh=mesh
    )[1]


def attention_terms(
    z: FeaturesLike,
    q: Projection,
    k: Projection | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
    columns: bool = True,
) -> tuple[Features, Any]:
    """`self_attention` and `reverse_attention` of the same arguments at the cost of one.

    Args:
      z, q, k, beta, where, normalise, block, mesh: as in `self_attention`.
      columns: whether the second term is computed; None stands in its place otherwise.
    Returns: SA and SA_rev, each (n, f).
    Raises: ImrError: as `self_attention`.

    >>> import jax.numpy as jnp
    >>> [term.shape for term in attention_terms(jnp.eye(2), jnp.eye(2))]
    [(2, 2), (2, 2)]
    """
    z, q = as_floats("z", z), as_floats("q", q)
    k = None if k is None else as_floats("k", k)
    check_projections(z, q, k)
    check_scalar("beta", beta)
    check_flags(columns=columns)
    where = as_mask(where, (z.shape[0], z.shape[0]))

    def one(q, k):
        row, column = projected_terms(
            matmul(z, q), None if k is None else matmul(z, k), beta=beta, where=where,
            normalise=normalise, block=block, mesh=mesh, columns=columns,
        )  # fmt: skip
        key_side = q if k is None else k
        return matmul(row, q.T), None if column is None else matmul(column, key_side.T)

    if q.ndim == 2:
        return one(q, k)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(q, k))


def projected_terms(
    queries: Float[AnyArray, "n r"],
    keys: Float[AnyArray, "n r"] | None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
    columns: bool = True,
) -> tuple[Float[Array, "n r"], Any]:
    r"""$P K$ and $P^T Q$, shape (n, r), for weights P normalised as in `attention_weights`.

    Args:
      queries, keys, beta, where, block, mesh, columns: as in `attention_products`.
      normalise: `row`, `column` or `double`; the last needs all of P at once.
    Returns: Both products, or None in place of the second.
    Raises: ImrError if weights that need all of P are asked for in blocks or on a mesh.

    >>> import jax.numpy as jnp
    >>> projected_terms(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]]))[0].tolist()
    [[2.0], [2.0]]
    """
    check_choice("normalise", normalise, ("row", "column", "double"))
    if normalise == "row":
        return attention_products(
            queries, keys, beta=beta, where=where, block=block, mesh=mesh, columns=columns
        )
    # Masks with empty columns, and weights normalised twice, need all of P at once.
    if normalise == "double" or where is not None:
        if block is not None or mesh is not None:
            raise ImrError(
                f"block and mesh are for normalise='row', or 'column' without where; found {normalise!r}."
            )
        queries, keys, where = checked_sides(queries, keys, beta, where, block, mesh, columns)
        keys = queries if keys is None else keys
        check_axis("keys", keys.shape[0], "queries", queries.shape[0], "rows")
        # beta on the n x r side: cheaper, and compiled it cannot be fused into the softmax's
        # difference, where large logits would be rounded otherwise than their maximum.
        scaled = jnp.asarray(beta, queries.dtype) * queries
        weights = attention_weights(matmul(scaled, keys.T), normalise, where)
        return matmul(weights, keys), matmul(weights.T, queries) if columns else None
    # The softmax over queries is the transpose of that of the roles exchanged.
    pair = (queries, None) if keys is None else (keys, queries)
    column, row = attention_products(*pair, beta=beta, block=block, mesh=mesh)
    return row, column if columns else None
