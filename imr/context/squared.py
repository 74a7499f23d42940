"""The flow of the squared loss in function space: a filter of the kernel's spectrum."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import as_choice_of, as_floats, check_axis, check_rank, check_scalar
from imr._numerics import matmul
from imr._typing import ScalarLike
from imr.context.fields import Labelled
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

    For t to infinity this is kernel ridge regression with ridge $\lambda$, or without one the least
    interpolation, by the pseudo-inverse. First derivatives are exact where eigenvalues coincide too.

    Args:
      kernel: as `as_kernel` takes it; it is held as a matrix.
      values: y, shape (n, d); those of unlabelled tokens are never read.
      labelled: boolean, or integers 0 and 1, shape (n,): S, the examples.
      t: time, at least 0; infinity for the limit.
      ridge: lambda, at least 0.
    Returns: Shape (n, d), for all tokens.
    Raises: ImrError if shapes do not fit, no token is labelled, or t or ridge is negative.

    >>> import jax.numpy as jnp
    >>> known = jnp.array([True, False])
    >>> squared_flow(jnp.ones((2, 2)), jnp.array([[1.0], [9.0]]), known, 50.0).round(3).tolist()
    [[1.0], [1.0]]
    """
    labelled = as_choice_of("token", "labelled", labelled)
    values = as_floats("values", values)
    check_rank("values", values, 2, "(n, d)")
    check_axis("values", values.shape[0], "labelled", labelled.shape[0], "tokens")
    k = as_kernel(kernel, labelled.shape[0]).matrix().astype(values.dtype)
    check_scalar("t", t, 0)
    check_scalar("ridge", ridge, 0)
    y = jnp.where(labelled[:, None], values, 0)
    among = jnp.where(labelled[:, None] & labelled[None, :], k, 0)
    t, ridge = jnp.asarray(t, y.dtype), jnp.asarray(ridge, y.dtype)
    return matmul(k, _filtered(among, y, t, ridge))


@jax.custom_jvp
def _filtered(k, y, t, ridge):
    """$g_t(K) Y$ for a symmetric K."""
    return _eigen(k, y, t, ridge)[0]


def _eigen(k, y, t, ridge):
    s, vectors = jnp.linalg.eigh(k)
    # At infinity what is 0 but for rounding counts as 0, whose modes no prediction sees.
    least = jnp.where(jnp.isinf(t), len(s) * jnp.finfo(s.dtype).eps * jnp.max(jnp.abs(s)), 0)
    rate = jnp.where(s > least, s, 0) + ridge
    modes = matmul(vectors.T, y)
    return matmul(vectors, _gain(rate, t)[:, None] * modes), rate, vectors, modes


def _gain(rate, t):
    """$g_t$ at each rate; at a rate of 0 it is t, or at infinity 0, as of a pseudo-inverse."""
    safe = jnp.where(rate == 0, 1, rate)
    at_zero = jnp.where(jnp.isinf(t), 0, t)
    return jnp.where(rate == 0, at_zero, -jnp.expm1(-t * safe) / safe)


def _decay(rate, t):
    """$e^{-t s}$; at infinity 0, or 1 at a rate of 0."""
    return jnp.where(rate == 0, 1, jnp.exp(-t * jnp.where(rate == 0, 1, rate)))


def _differences(a, b, t):
    r"""Divided differences of $g_t$, $(g(a) - g(b)) / (a - b)$, with no difference in a divisor.

    $-(g(b) - e^{-tb} g(a - b)) / a$ for a at least b; at small ta the power series of
    $-t^2 [0, -ta, -tb] \exp$.
    """
    a, b = jnp.maximum(a, b), jnp.minimum(a, b)
    limit = jnp.isinf(t)
    small = ~limit & (t * a < 1)
    safe = jnp.where(small | (a == 0), 1, a)
    direct = -(_gain(b, t) - _decay(b, t) * _gain(a - b, t)) / safe
    x, y = (jnp.where(small, -jnp.where(limit, 0, t) * each, 0) for each in (a, b))
    series, power, whole, factor = 0.0, jnp.ones_like(y), jnp.ones_like(x), 0.5
    for n in range(18):
        series = series + factor * whole
        power, factor = power * y, factor / (n + 3)
        whole = x * whole + power
    return jnp.where(small, -(jnp.where(limit, 0, t) ** 2) * series, jnp.where(a == 0, 0, direct))


@_filtered.defjvp
def _derivative(primals, tangents):
    """By the formula of Daleckii and Krein: the derivative of `eigh` divides by gaps, which may be 0."""
    k, y, t, ridge = primals
    dk, dy, dt, dridge = tangents
    value, rate, vectors, modes = _eigen(k, y, t, ridge)
    inner = matmul(vectors.T, matmul(0.5 * (dk + dk.T), vectors))
    change = matmul(_differences(rate[:, None], rate[None, :], t) * inner, modes)
    change += _gain(rate, t)[:, None] * matmul(vectors.T, dy)
    moved = jnp.where(jnp.isinf(t), 0, dt)
    slope = moved * _decay(rate, t) + dridge * _differences(rate, rate, t)
    return value, matmul(vectors, change + slope[:, None] * modes)
