"""Linear self-attention nets for regression in context, and the weights that make them exact."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imr._checks import (
    as_choice_of,
    check_axis,
    check_counts,
    check_finite,
    check_flags,
    check_positive,
    check_rank,
    check_rngs,
    check_scalar,
)
from imr._numerics import matmul
from imr._shapes import check_features
from imr._typing import ScalarLike
from imr.context.fields import Labelled
from imr.context.linear import LinearAttention, gradient_step_weights, linear_self_attention
from imr.errors import ImrError


class LinearSelfAttention(nnx.Module):
    r"""L layers of linear self-attention that predict y of each token from examples (x, y).

    $$e_i^+ = e_i + \frac1N \sum_{j \, labelled} \sum_h (e_i^T A_h \, e_j) \, V_h e_j, \quad
      e_i = (x_i, y_i)$$

    y is 0 where it is not known, and the prediction is what its place has lost after the last layer:
    with the weights of `gradient_steps`, that of L gradient steps from zero. A causal net predicts at
    every token from the examples before it, from tokens $(x_i, x_i, y_i, 0)$ and in the last place.
    For a sequence s, $x_i = s_i$ and $y_i = s_{i+1}$ make it an autoregressive model.

    Args:
      num_features, num_outputs: lengths p and o of x and y.
      layers: L.
      heads: h.
      rank: r of separate keys and queries, $A = Q K^T$ with Q and K (e, r); by default they are
        merged in one A (e, e).
      tied: whether all layers share their weights.
      causal: as above.
      scale: of weights to start from, N(0, scale^2 / e).
      rngs: random streams of flax nnx; `params` draws the weights.
    Raises: ImrError if a size is no positive integer, or scale is not positive.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> net = LinearSelfAttention(1, 1, layers=2, rngs=nnx.Rngs(0))
    >>> net.gradient_steps(0.5)
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [jnp.nan]])
    >>> net(x, y, jnp.array([True, False])).tolist()     # w = 0.5, then 0.75
    [[0.75], [1.5]]

    Reference: von Oswald et al., arXiv 2212.07677 and, for causal nets, arXiv 2309.05858.
    """

    def __init__(
        self, num_features: int, num_outputs: int = 1, *, layers: int = 1, heads: int = 1,
        rank: int | None = None, tied: bool = False, causal: bool = False, scale: float = 0.1,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        check_counts(num_features=num_features, num_outputs=num_outputs, layers=layers, heads=heads)
        check_flags(tied=tied, causal=causal)
        check_scalar("scale", scale)
        check_positive("scale", scale)
        check_rngs(rngs)
        self.sizes, self.layers, self.tied, self.causal = (
            (num_features, num_outputs),
            layers,
            tied,
            causal,
        )
        width = (1 + causal) * (num_features + num_outputs)
        leading = (1 if tied else layers, heads, width)

        def draw(columns):
            shape = (*leading, columns)
            return nnx.Param(scale * width**-0.5 * jax.random.normal(rngs.params(), shape))

        if rank is None:
            self.key_query = draw(width)
        else:
            check_counts(rank=rank)
            self.query, self.key = draw(rank), draw(rank)
        self.rank, self.value = rank, draw(width)

    @property
    def weights(self) -> LinearAttention:
        """Merged weights of every layer and head, each (L, h, e, e); L is 1 if layers are tied."""
        if self.rank is None:
            return LinearAttention(self.key_query[...], self.value[...])
        key_query = matmul(self.query[...], jnp.swapaxes(self.key[...], -1, -2))
        return LinearAttention(key_query, self.value[...])

    def gradient_steps(
        self,
        step: ScalarLike | Float[Array, "layers"],
        curvature: ScalarLike | Float[Array, "layers"] = 0.0,
    ) -> None:
        """Sets the weights of the construction: L gradient steps, or those of GD++.

        Args:
          step: eta, of all layers or each, shape (L,).
          curvature: gamma, likewise; see `imr.context.gradient_step_weights`.
        Raises: ImrError if keys and queries have fewer than p columns, or shapes do not fit.
        """
        p, layers = self.sizes[0], 1 if self.tied else self.layers
        if self.rank is not None and self.rank < p:
            raise ImrError(
                f"rank must be at least {p}, the length of x, to hold a step; found {self.rank}."
            )
        for name, sizes in (("step", step), ("curvature", curvature)):
            if jnp.ndim(sizes):
                check_axis(name, jnp.shape(sizes)[0], "the net", layers, "layers")
        etas, gammas = (jnp.broadcast_to(x, (layers,)) for x in (step, curvature))

        def layer(eta, gamma):
            gamma = curvature if self.causal else gamma  # refused there, unless it is 0
            return gradient_step_weights(*self.sizes, eta, gamma, causal=self.causal)

        exact = jax.vmap(layer)(etas, gammas)
        _put_in_first_head(self.value, exact.value)
        if self.rank is None:
            _put_in_first_head(self.key_query, exact.key_query)
        else:
            # A is the identity between p rows, those of queries, and the first p columns.
            identity = jnp.eye(p, self.rank)
            _put_in_first_head(self.query, matmul(exact.key_query[:, :, :p], identity))
            _put_in_first_head(self.key, jnp.pad(identity, ((0, self.key.shape[2] - p), (0, 0))))

    def tokens(
        self, x: Float[Array, "n p"], y: Float[Array, "n o"], labelled: Labelled
    ) -> Float[Array, "n e"]:
        """Tokens of the first layer, shape (n, e); as `__call__`."""
        check_features(x)
        check_rank("y", y, 2, "(n, o)")
        check_axis("x", x.shape[1], "the net", self.sizes[0], "features")
        check_axis("y", y.shape[0], "x", x.shape[0], "tokens")
        check_axis("y", y.shape[1], "the net", self.sizes[1], "outputs")
        y = jnp.where(as_choice_of("token", "labelled", labelled, len(y))[:, None], y, 0)
        # A query among the keys, whose y nobody knows, would change them from the second layer on.
        check_finite("y of labelled tokens", y)
        parts = [x, x, y, jnp.zeros_like(y)] if self.causal else [x, y]
        return jnp.concatenate(parts, axis=1)

    def __call__(
        self, x: Float[Array, "n p"], y: Float[Array, "n o"], labelled: Labelled
    ) -> Float[Array, "n o"]:
        """Predictions of y, of every token.

        Args:
          x: covariates, shape (n, p).
          y: values, shape (n, o); those of unlabelled tokens are never read.
          labelled: boolean, or integers 0 and 1, shape (n,): the examples, which alone are keys. A query that stands
            among them has seen its y, unless the net is causal.
        Returns: Shape (n, o).
        Raises: ImrError if shapes do not fit, no token is labelled, or y of one that is labelled is not
          finite.
        """

        def layer(tokens, weights):
            return linear_self_attention(tokens, weights, labelled, causal=self.causal), None

        weights = self.weights
        if self.tied:
            weights = jax.tree.map(
                lambda w: jnp.broadcast_to(w, (self.layers, *w.shape[1:])), weights
            )
        first = self.tokens(x, y, labelled)
        change = (jax.lax.scan(layer, first, weights)[0] - first)[:, -self.sizes[1] :]
        return change if self.causal else -change


def _put_in_first_head(param: nnx.Param, of_layers: Array) -> None:
    """Weights of each layer in its first head, and zero in the others."""
    param[...] = jnp.zeros_like(param[...]).at[:, 0].set(of_layers)
