"""What decoded beliefs hold of earlier tokens, and what heads attend to, by lag."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imr._checks import check_axis, check_rank, is_concrete
from imr._numerics import matmul
from imr._typing import AnyArray
from imr.errors import ImrError
from imr.metrics._arrays import check_weights, matrix


def lag_gains(
    decoded: Float[AnyArray, "n s"],
    vectors: Float[AnyArray, "k s"],
    words: Int[AnyArray, "n l"],
    weights: Float[AnyArray, "n"],
) -> Float[Array, "l"]:
    r"""How much of each earlier token's vector a decoded belief holds.

    The weighted least squares fit $\hat\eta = c + \sum_{j<l} g_j v_{x_{l-j}}$. Constrained beliefs
    of `mess3` have $g_j = \lambda^j$.

    Args:
      decoded: beliefs read out at the last position of each word, shape (n, s).
      vectors: v of each token, shape (k, s); see `imr.constrained.token_vectors`.
      words: tokens, shape (n, l).
      weights: shape (n,), such as the probabilities of the words.

    Returns:
      Gains g by lag, shape (l,).

    Raises:
      ImrError: if shapes do not fit, a word is out of range, or weights are negative or all 0.

    >>> words = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> v = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> decoded = v[words[:, 1]] + 0.5 * v[words[:, 0]]
    >>> lag_gains(decoded, v, words, jnp.ones(4)).round(3).tolist()
    [1.0, 0.5]
    """
    decoded, vectors = matrix("decoded", decoded, "(n, s)"), matrix("vectors", vectors, "(k, s)")
    check_rank("words", words, 2, "(n, l)")
    check_axis("words", words.shape[0], "decoded", decoded.shape[0], "rows")
    weights = check_weights(weights, "decoded", decoded)
    if is_concrete(words) and words.size:
        low, high = np.min(np.asarray(words)), np.max(np.asarray(words))
        if low < 0 or high >= len(vectors):
            raise ImrError(
                f"words must lie in 0 to {len(vectors) - 1}, rows of vectors; found {low} to {high}."
            )
    check_axis("vectors", vectors.shape[1], "decoded", decoded.shape[1], "columns")
    return _gains(decoded, vectors, words, weights)


@jax.jit
def _gains(decoded, vectors, words, weights):
    dtype = jnp.result_type(decoded, vectors)
    w = (weights / jnp.sum(weights)).astype(dtype)
    by_lag = jnp.swapaxes(vectors.astype(dtype)[words[:, ::-1]], 1, 2)  # (n, s, lag)
    by_lag = by_lag - jnp.einsum("n,nsl->sl", w, by_lag, precision="highest")[None]
    y = decoded - matmul(w, decoded)[None, :]
    gram = jnp.einsum("n,nsl,nsm->lm", w, by_lag, by_lag, precision="highest")
    return jnp.linalg.solve(gram, jnp.einsum("n,nsl,ns->l", w, by_lag, y, precision="highest"))


def parity_share(attention: Float[AnyArray, "*b l l"]) -> Float[Array, "*b 2"]:
    """Shares of even and odd lags in the attention of the last position to the tokens before it.

    The position itself, lag 0, is left out.

    Args:
      attention: weights, shape (..., l, l), l at least 2.

    Returns:
      Shape (..., 2), even lags first; they sum to one.

    Raises:
      ImrError: if there is no earlier position.

    >>> parity_share(jnp.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.1, 0.3, 0.6]])).round(2).tolist()
    [0.25, 0.75]
    """
    if (length := attention.shape[-1]) < 2:
        raise ImrError(f"attention must have at least 2 positions; found {length}.")
    row = attention[..., -1, :]
    lags = np.broadcast_to(np.arange(length)[::-1], row.shape)
    shares = [jnp.sum(row, axis=-1, where=(lags > 0) & (lags % 2 == p)) for p in (0, 1)]
    both = jnp.stack(shares, axis=-1)
    return both / jnp.sum(both, axis=-1, keepdims=True)
