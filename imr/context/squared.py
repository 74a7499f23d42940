"""The flow of the squared loss in function space: a filter of the kernel's spectrum."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_at_least, check_axis, check_rank
from imr._numerics import matmul
from imr._typing import ScalarLike
from imr.context.fields import Labelled, as_mask
from imr.context.kernels import as_kernel


def squared_flow(
    kernel: Any,
    values: Float[Array, "n d"],
    labelled: Labelled,
    t: ScalarLike,
    ridge: ScalarLike = 0.0,
) -> Float[Array, "n d"]:
    r"""Predictions of the squared loss' gradient flow from zero at time t, in closed form.

    $$f(t) = K_{\cdot S} \, g_t(K_{SS}) \, y_S, \quad g_t(s) = \frac{1 - e^{-t (s + \lambda)}}{s + \lambda}$$

    For t to infinity this is kernel ridge regression with ridge $\lambda$, or interpolation.

    Args:
      kernel: as `as_kernel` takes it; it is held as a matrix.
      values: y, shape (n, d); those of unlabelled tokens are never read.
      labelled: boolean, shape (n,): S, the examples.
      t: time, at least 0; infinity for the limit, of a positive ridge.
      ridge: lambda, at least 0.
    Returns: Shape (n, d), for all tokens.
    Raises: ImrError if shapes do not fit, no token is labelled, or t or ridge is negative.

    >>> import jax.numpy as jnp
    >>> known = jnp.array([True, False])
    >>> squared_flow(jnp.ones((2, 2)), jnp.array([[1.0], [9.0]]), known, 50.0).round(3).tolist()
    [[1.0], [1.0]]
    """
    labelled = as_mask(labelled)
    check_rank("values", values, 2, "(n, d)")
    check_axis("values", values.shape[0], "labelled", labelled.shape[0], "tokens")
    k = as_kernel(kernel, labelled.shape[0]).matrix().astype(values.dtype)
    check_at_least("t", t, 0)
    check_at_least("ridge", ridge, 0)
    y = jnp.where(labelled[:, None], values, 0)
    among = jnp.where(labelled[:, None] & labelled[None, :], k, 0)
    s, vectors = jnp.linalg.eigh(among)
    rate = jnp.maximum(s, 0) + ridge
    # (1 - e^-ta) / a is t at a = 0, where the quotient is none.
    safe = jnp.where(rate == 0, 1, rate)
    gain = jnp.where(rate == 0, t, -jnp.expm1(-t * safe) / safe)
    coefficients = matmul(vectors, gain[:, None] * matmul(vectors.T, y))
    return matmul(k, jnp.where(labelled[:, None], coefficients, 0))
