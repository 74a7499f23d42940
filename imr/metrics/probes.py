"""Probes of activations: what they hold of beliefs and of earlier tokens, and in what directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imr._checks import as_floats, as_numbers, check_at_least, check_axis, check_rank, is_concrete
from imr._numerics import matmul, pseudo_inverse, widen
from imr._typing import AnyArray
from imr.errors import ImrError
from imr.metrics._arrays import check_weights, matrix


class Probe(NamedTuple):
    r"""An affine map from features to targets, $\hat y = x W + c$.

    Attributes:
      weight: W, shape (d, s).
      bias: c, shape (s,).
      r_squared: share of the weighted variance of all targets together that it explains.
    """

    weight: Float[Array, "d s"]
    bias: Float[Array, "s"]
    r_squared: Float[Array, ""]

    def __call__(self, features: Float[AnyArray, "*b d"]) -> Float[Array, "*b s"]:
        """Decodes targets from features; raises ImrError if their columns do not fit the probe."""
        check_axis("features", features.shape[-1], "the probe", self.weight.shape[0], "columns")
        linear = matmul(features.astype(self.weight.dtype), self.weight)
        return linear + jnp.broadcast_to(self.bias, linear.shape)


def fit_probe(
    features: Float[AnyArray, "n d"],
    targets: Float[AnyArray, "n s"],
    weights: Float[AnyArray, "n"],
    *,
    ridge: float = 1e-3,
) -> Probe:
    r"""Weighted ridge regression of targets on features, both centred.

    $W = (C + \rho \lambda_{max}(C) 1)^{-1} \sum_i w_i \tilde x_i \tilde y_i^T$ with
    $C = \sum_i w_i \tilde x_i \tilde x_i^T$;
    $R^2 = 1 - \sum_i w_i |y_i - \hat y_i|^2 / \sum_i w_i |\tilde y_i|^2$. The penalty keeps the
    probe off directions that float32 activations fill with rounding only.

    Args:
      features: shape (n, d): activations, one row for each unique prefix.
      targets: shape (n, s), such as beliefs.
      weights: shape (n,), not negative: the probabilities of the prefixes. Rows of weight zero
        are ignored, NaN included.
      ridge: $\rho$, in units of the largest eigenvalue of C.
    Returns: A `Probe`, computed in the wider dtype of features and targets. For constant targets
      its R^2 is NaN.
    Raises: ImrError if shapes do not fit, or weights or ridge are negative.

    >>> x = jnp.array([[0.0], [1.0], [2.0]])
    >>> probe = fit_probe(x, 2 * x + 1, jnp.ones(3), ridge=0.0)
    >>> probe(jnp.array([[5.0]])).round(3).tolist(), round(probe.r_squared.item(), 3)
    ([[11.0]], 1.0)

    Reference: arXiv 2502.01954, section 3.
    """
    check_at_least("ridge", ridge, 0)
    return _fit(*_checked(features, targets, weights), ridge)


def _checked(features, targets, weights):
    features, targets = matrix("features", features, "(n, d)"), matrix("targets", targets, "(n, s)")
    check_axis("targets", targets.shape[0], "features", features.shape[0], "rows")
    return features, targets, check_weights(weights, "features", features)


def _centred(features, targets, weights):
    """Weights of sum 1, and features and targets, each less its mean, and these means."""
    dtype = jnp.result_type(features, targets)
    part = (weights > 0)[:, None]
    x, y = (jnp.where(part, a, 0).astype(dtype) for a in (features, targets))
    w = (weights / jnp.sum(weights)).astype(dtype)
    mean_x, mean_y = matmul(w, x), matmul(w, y)
    return w[:, None], x - mean_x[None, :], y - mean_y[None, :], mean_x, mean_y


@jax.jit
def _fit(features, targets, weights, ridge):
    w, x, y, mean_x, mean_y = _centred(features, targets, weights)
    weighed = w * x
    covariance = matmul(x.T, weighed)
    largest = jnp.linalg.eigvalsh(covariance)[-1]
    penalty = ridge * largest * jnp.eye(x.shape[1], dtype=x.dtype)
    weight = jnp.linalg.solve(covariance + penalty, matmul(weighed.T, y))
    rest, total = jnp.sum(w * (y - matmul(x, weight)) ** 2), jnp.sum(w * y**2)
    # Constant targets differ from their mean by its rounding, and have no variance to explain.
    rounding = jnp.sum((16 * jnp.finfo(y.dtype).eps * mean_y) ** 2)
    r_squared = 1 - rest / jnp.where(total > rounding, total, jnp.nan)
    return Probe(weight, mean_y - matmul(mean_x, weight), r_squared)


def residual_ratio(r_squared: Any, other: Any) -> Float[Array, "*b"]:
    """Variance that one probe leaves unexplained over that of another: $(1 - R^2) / (1 - R'^2)$.

    Args:
      r_squared, other: $R^2$ and $R'^2$, of one shape.

    >>> round(residual_ratio(0.9, 0.98).item(), 6)
    5.0
    """
    return (1 - as_numbers("r_squared", r_squared)) / (1 - as_numbers("other", other))


def encoding(
    features: Float[AnyArray, "n d"], targets: Float[AnyArray, "n s"], weights: Float[AnyArray, "n"]
) -> Float[Array, "s d"]:
    """Directions in which features encode targets: the least squares fit of features by targets.

    Targets whose entries sum to one span one dimension less; the solution of least norm is taken.

    Args:
      features, targets, weights: as in `fit_probe`.
    Returns: A direction for each entry of the targets, shape (s, d).

    >>> y = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> encoding(y @ jnp.array([[3.0, 0.0], [0.0, 0.0]]), y, jnp.ones(2)).round(3).tolist()
    [[1.5, 0.0], [-1.5, 0.0]]
    """
    return _encoding(*_checked(features, targets, weights))


@jax.jit
def _encoding(features, targets, weights):
    w, x, y, _, _ = _centred(features, targets, weights)
    inverse = jnp.linalg.pinv(matmul(y.T, w * y), rtol=1e-6, hermitian=True)
    return matmul(inverse, matmul(y.T, w * x))


def energy_share(vectors: Float[AnyArray, "*b d"], directions: Float[AnyArray, "p d"]) -> Array:
    r"""Share of the squared lengths of vectors that lies in the span of directions.

    $\|V P\|^2 / \|V\|^2$, P the projection on the span. For OV vectors, centred over tokens, and the
    directions of `encoding` it says how much of what heads write is about the belief. Random vectors
    have rank / d.

    Args:
      vectors: V, shape (..., d).
      directions: shape (p, d).
    Returns: A scalar in [0, 1].
    Raises: ImrError if shapes do not fit.

    >>> energy_share(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0]])).round(2).item()
    0.36
    """
    vectors = widen(as_floats("vectors", vectors))
    directions = matrix("directions", directions, "(p, d)")
    if not vectors.ndim:
        raise ImrError("vectors must have shape (..., d); found a number.")
    check_axis("directions", directions.shape[1], "vectors", vectors.shape[-1], "columns")
    inside = matmul(matmul(vectors, pseudo_inverse(directions)), directions)
    return jnp.sum(inside**2) / jnp.sum(vectors**2)


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
    Returns: Gains g by lag, shape (l,).
    Raises: ImrError if shapes do not fit, a word is out of range, or weights are negative or all 0.

    >>> words = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> v = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> decoded = v[words[:, 1]] + 0.5 * v[words[:, 0]]
    >>> lag_gains(decoded, v, words, jnp.ones(4)).round(3).tolist()
    [1.0, 0.5]
    """
    decoded, vectors = matrix("decoded", decoded, "(n, s)"), matrix("vectors", vectors, "(k, s)")
    words = as_numbers("words", words)
    check_rank("words", words, 2, "(n, l)")
    if not jnp.issubdtype(words.dtype, jnp.integer):
        raise ImrError(f"words must be integers; found dtype {words.dtype}.")
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
    Returns: Shape (..., 2), even lags first; they sum to one.
    Raises: ImrError if there is no earlier position.

    >>> parity_share(jnp.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.1, 0.3, 0.6]])).round(2).tolist()
    [0.25, 0.75]
    """
    attention = as_floats("attention", attention)
    if attention.ndim < 2:
        raise ImrError(f"attention must have shape (..., l, l); found {attention.shape}.")
    if (length := attention.shape[-1]) < 2:
        raise ImrError(f"attention must have at least 2 positions; found {length}.")
    row = attention[..., -1, :]
    lags = np.broadcast_to(np.arange(length)[::-1], row.shape)
    shares = [jnp.sum(row, axis=-1, where=(lags > 0) & (lags % 2 == p)) for p in (0, 1)]
    both = jnp.stack(shares, axis=-1)
    return both / jnp.sum(both, axis=-1, keepdims=True)
