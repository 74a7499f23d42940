"""Linear probes of targets, such as belief states, in activations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_at_least, check_axis
from imr._numerics import matmul
from imr._typing import AnyArray
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
        """Decodes targets from features.

        Args:
          features: shape (..., d).

        Raises:
          ImrError: if features have another number of columns than the probe.
        """
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

    Returns:
      A `Probe`, computed in the wider dtype of features and targets. For constant targets its R^2
      is NaN.

    Raises:
      ImrError: if shapes do not fit, or weights or ridge are negative.

    >>> x = jnp.array([[0.0], [1.0], [2.0]])
    >>> probe = fit_probe(x, 2 * x + 1, jnp.ones(3), ridge=0.0)
    >>> probe(jnp.array([[5.0]])).round(3).tolist(), round(probe.r_squared.item(), 3)
    ([[11.0]], 1.0)

    Reference: arXiv 2502.01954, section 3.
    """
    features, targets = matrix("features", features, "(n, d)"), matrix("targets", targets, "(n, s)")
    check_axis("targets", targets.shape[0], "features", features.shape[0], "rows")
    check_at_least("ridge", ridge, 0)
    weights = check_weights(weights, "features", features)
    return _fit(features, targets, weights, ridge)


@jax.jit
def _fit(features, targets, weights, ridge):
    dtype = jnp.result_type(features, targets)
    part = (weights > 0)[:, None]
    x, y = (jnp.where(part, a, 0).astype(dtype) for a in (features, targets))
    w = (weights / jnp.sum(weights)).astype(dtype)
    mean_x, mean_y = matmul(w, x), matmul(w, y)
    x, y = x - mean_x[None, :], y - mean_y[None, :]
    weighed = w[:, None] * x
    covariance = matmul(x.T, weighed)
    largest = jnp.linalg.eigvalsh(covariance)[-1]
    penalty = ridge * largest * jnp.eye(x.shape[1], dtype=dtype)
    weight = jnp.linalg.solve(covariance + penalty, matmul(weighed.T, y))
    rest = jnp.sum(w[:, None] * (y - matmul(x, weight)) ** 2)
    total = jnp.sum(w[:, None] * y**2)
    r_squared = 1 - rest / jnp.where(total > 0, total, jnp.nan)
    return Probe(weight, mean_y - matmul(mean_x, weight), r_squared)


def residual_ratio(r_squared: Any, other: Any) -> Float[Array, "*b"]:
    """Variance that one probe leaves unexplained over that of another: $(1 - R^2) / (1 - R'^2)$.

    Args:
      r_squared: $R^2$ of the one, any shape.
      other: $R'^2$ of the other, of the same shape.

    >>> round(residual_ratio(0.9, 0.98).item(), 6)
    5.0
    """
    return (1 - jnp.asarray(r_squared)) / (1 - jnp.asarray(other))
