"""The quadratic model: tokens that attend to tokens, whose flow is self-attention."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    check_axis,
    check_finite,
    check_rank,
)
from imr._numerics import matmul
from imr._shapes import check_features, check_projection_pair
from imr._typing import AnyArray, Features, Mask, Scalar, ScalarLike
from imr.attention import (
    Normalise,
    attention_log_sums,
    projected_terms,
    residual_products,
)
from imr.errors import ImrError
from imr.models.model import SpanModel, Terms, as_beta, scaled, total
from imr.targets import LabelTargets


class Quadratic(SpanModel):
    r"""Quadratic model: $N = \beta Z Q K^T Z^T$, the logits of self-attention.

    With $A = C - softmax(N)$ its flow is $dZ/dt = \beta (A Z K Q^T + A^T Z Q K^T)$: the row term is
    self-attention, the column term what a token is to those that attend to it. No method but
    `__call__` holds an n x n matrix.

    Args:
      q: Q, shape (f, r), or (h, f, r) for heads, whose losses add; r at most f.
      k: K, of the same shape; None is symmetric, K = Q.
      beta: inverse temperature, positive; 1/sqrt(r) is the usual scale of attention.
    Raises: ImrError if shapes do not fit, the rank is larger than f, or a value is not finite.

    >>> import jax.numpy as jnp
    >>> Quadratic(jnp.array([[1.0], [2.0]]))(jnp.eye(2)).tolist()
    [[1.0, 2.0], [2.0, 4.0]]

    Reference: arXiv 2509.04653, Theorem 2 and its Corollary.
    """

    q: Float[Array, "*h f r"]
    k: Float[Array, "*h f r"] | None
    beta: Scalar
    whole: ClassVar[bool] = False  # whether q is a whole theta, and the keys are Z itself

    def __init__(self, q: Any, k: Any = None, beta: ScalarLike = 1.0):
        q, k = as_floats("q", q), None if k is None else as_floats("k", k)
        check_projection_pair(q, k)
        check_finite("q", q)
        check_finite("k", k)
        self.q, self.k, self.beta = q, k, as_beta(beta, q)

    @classmethod
    def full(cls, theta: Float[AnyArray, "f f"], beta: ScalarLike = 1.0) -> "Quadratic":
        r"""The model of any theta: $N = \beta Z \theta Z^T$; no product with an identity is taken.

        Args:
          theta: shape (f, f), symmetric or not.
          beta: inverse temperature, positive.
        Returns: A `Quadratic` whose queries are $Z \theta$ and whose keys are Z. It spans all of
          the feature space, so that `imr.solve_reduced` has nothing to reduce.
        Raises: ImrError if theta is not square or not finite.

        >>> import jax.numpy as jnp
        >>> Quadratic.full(jnp.array([[1.0, 2.0], [3.0, 4.0]]))(jnp.eye(2)).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
        """
        theta = as_floats("theta", theta)
        check_rank("theta", theta, 2, "(f, f)")
        check_finite("theta", theta)
        if theta.shape[0] != theta.shape[1]:
            raise ImrError(f"theta must have shape (f, f); found shape {theta.shape}.")
        return _Full(theta, beta)

    @property
    def square(self) -> bool:
        """True: the logits have a column for each row."""
        return True

    def __call__(self, z: Features) -> Float[Array, "*h n n"]:
        queries, keys = self._projected(z)
        keys = queries if keys is None else keys
        return scaled(self.beta, matmul(queries, jnp.swapaxes(keys, -1, -2)))

    def attention(
        self,
        z: Features,
        *,
        where: Mask | None = None,
        normalise: Normalise = "row",
        block: int | None = None,
        mesh: Any = None,
        columns: bool = True,
    ) -> Terms:
        r"""$\beta (SA, SA_{rev})$, the row and the column term of the log-sum-exp's gradient.

        Args:
          z: features, shape (n, f).
          where: as in `imr.self_attention`.
          normalise, block, mesh: as in `imr.self_attention`.
          columns: whether the column term is computed.
        Returns: `Terms`, summed over heads.
        """

        def one(queries, keys):
            return projected_terms(
                queries, keys, beta=self.beta, where=where, normalise=normalise, block=block,
                mesh=mesh, columns=columns,
            )  # fmt: skip

        return self._lifted(*self._over_heads(one, *self._projected(z)))

    def label_term(self, z: Features, targets: Any) -> Terms:
        r"""$\beta (C Z K Q^T, \; C^T Z Q K^T)$, summed over heads."""

        def one(queries, keys):
            keys = queries if keys is None else keys
            return targets.mv(keys), targets.rmv(queries, queries.shape[0])

        return self._lifted(*self._over_heads(one, *self._projected(z)))

    def span(self) -> Float[Array, "m f"] | None:
        """The columns of Q, head by head, then those of K unless they are the same."""
        if self.whole:
            return None
        columns = [jnp.swapaxes(x, -1, -2).reshape(-1, x.shape[-2]) for x in self._sides()]
        return jnp.concatenate(columns)

    def descent(self, z, targets, *, normalise: Normalise = "row", **choices):
        if normalise != "row":
            return super().descent(z, targets, normalise=normalise, **choices)
        one = self._residual(targets, **choices)
        return total(self._lifted(*self._over_heads(one, *self._projected(z))))

    def descent_at(self, y, targets, *, where=None, block=None, mesh=None):
        one = self._residual(targets, where=where, block=block, mesh=mesh)
        row, column = jax.vmap(one)(*self._split(y))
        parts = row + column if self.k is None else jnp.concatenate([row, column])
        return scaled(self.beta, jnp.swapaxes(parts, 1, 2).reshape(y.shape))

    def loss_at(self, y, targets, *, where=None, block=None, mesh=None):
        def one(queries, keys):
            keys = queries if keys is None else keys
            lse = attention_log_sums(
                queries, keys, beta=self.beta, where=where, block=block, mesh=mesh
            )
            if targets is None:
                return jnp.sum(lse)
            return jnp.sum(lse) - scaled(self.beta, jnp.sum(queries * targets.mv(keys)))

        return jnp.sum(jax.vmap(one)(*self._split(y)))

    def _residual(self, targets, **choices):
        """$(C - P) K$ and $(C - P)^T Q$ of the queries and keys of a head, C = 0 for None."""

        def one(queries: Any, keys: Any) -> tuple[Any, Any]:
            if isinstance(targets, LabelTargets):
                return residual_products(queries, keys, targets, beta=self.beta, **choices)
            terms = projected_terms(queries, keys, beta=self.beta, **choices)
            row, column = jax.tree.map(jnp.negative, terms)
            if targets is not None:
                row = row + targets.mv(queries if keys is None else keys)
                if column is not None:
                    column = column + targets.rmv(queries, queries.shape[0])
            return row, column

        return one

    def _sides(self):
        return [self.q] if self.k is None else [self.q, self.k]

    def _projected(self, z):
        """Queries and keys, shape (n, r) or (h, n, r); None for keys that are the queries."""
        z = as_floats("z", z)
        check_features(z)
        name = "theta" if self.whole else "q"
        check_axis("z", z.shape[1], name, self.q.shape[-2], "features")
        queries = matmul(z, self.q)
        if self.whole:
            return queries, z
        return queries, None if self.k is None else matmul(z, self.k)

    def _over_heads(self, one, queries, keys):
        return one(queries, keys) if self.q.ndim == 2 else jax.vmap(one)(queries, keys)

    def _lifted(self, row, column):
        """beta times the terms of queries and keys, as terms of the features."""
        key_side = self.q if self.k is None else self.k
        row = matmul(row, jnp.swapaxes(self.q, -1, -2))
        if column is not None and not self.whole:
            column = matmul(column, jnp.swapaxes(key_side, -1, -2))
        if self.q.ndim == 3:
            row, column = jax.tree.map(lambda x: jnp.sum(x, axis=0), (row, column))
        return jax.tree.map(lambda x: scaled(self.beta, x), Terms(row, column))

    def _split(self, y):
        """Queries and keys of each head, shape (h, n, r), from the products with the span."""
        rank = self.q.shape[-1]
        blocks = jnp.swapaxes(y.reshape(y.shape[0] // rank, rank, y.shape[1]), 1, 2)
        if self.k is None:
            return blocks, None
        return tuple(jnp.split(blocks, 2))


class _Full(Quadratic):
    """What `Quadratic.full` returns."""

    whole = True

    def __init__(self, theta: Any, beta: ScalarLike):
        super().__init__(theta, beta=beta)
