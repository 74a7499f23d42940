"""Numerically safe primitives, each with its reason."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imr._typing import AnyArray, Array


def chosen_precision() -> str | None:
    """The user's `jax.default_matmul_precision`."""
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def matmul(a: AnyArray, b: AnyArray) -> Array:
    """Matrix product in the full precision of its dtype.

    On TPU and on recent GPUs a float32 product runs in fewer bits by default, and the equalities of
    the theory then hold to 1e-2 or 1e-3 only. `jax.default_matmul_precision` overrides this.
    """
    return jnp.matmul(a, b, precision=_precision())


def einsum(subscripts: str, *arrays: AnyArray) -> Array:
    """`jnp.einsum` in the precision of `matmul`."""
    return jnp.einsum(subscripts, *arrays, precision=_precision())


def dot_general(a: AnyArray, b: AnyArray, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` in the precision of `matmul`, for the layers of flax."""
    options["precision"] = _precision()
    return jax.lax.dot_general(a, b, dimension_numbers, **options)


def _precision():
    return jax.lax.Precision.HIGHEST if chosen_precision() is None else None


def widen(x: Array) -> Array:
    """float16 and bfloat16 to float32, anything else as it is.

    Sums of exponentials lose all their digits in 8 bits of mantissa, so softmax and log-sum-exp
    accumulate in float32.
    """
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def mask_logits(logits: Array, where: Array | None, axis: int = -1) -> Array:
    """Entries that take no part become -inf, which has probability zero.

    A row in which none takes part becomes zeros: its softmax then has derivatives, for the caller to
    drop. Infinities alone have none.
    """
    if where is None:
        return logits
    hidden = jnp.where(jnp.any(where, axis=axis, keepdims=True), -jnp.inf, 0).astype(logits.dtype)
    return jnp.where(where, logits, hidden)


@jax.custom_jvp
def below(logits: Array, top: Array) -> Array:
    """logits - top, for their largest entries `top`, which give zero exactly.

    A compiler may compute the logits again here, and fuse their last product into the difference:
    the largest entry then differs from `top` by a rounding, and the rounding of 4e9 in float32 is 128,
    whose exponential is infinite, or zero in every entry of the row.
    """
    return jnp.where(logits >= top, 0, logits - top)


@below.defjvp
def _below_jvp(primals, tangents):
    return below(*primals), tangents[0] - tangents[1]


def largest(logits: Array, axis: int = -1) -> Array:
    """The largest logit, that axis kept; 0 if there is no entry or none above -inf, NaN if infinite."""
    top = jnp.max(logits, axis=axis, keepdims=True, initial=-jnp.inf)
    return jax.lax.stop_gradient(jnp.where(jnp.isinf(top), jnp.where(top > 0, jnp.nan, 0), top))


def log_sum_exp(logits: Array, where: Array | None = None, axis: int = -1) -> Array:
    """log sum_j exp logits_j along an axis, accumulated in float32 or wider.

    It is 0, and so is its gradient, if `where` leaves no entry.
    """
    logits = mask_logits(widen(logits), where, axis)
    top = largest(logits, axis)
    sums = jnp.sum(jnp.exp(below(logits, top)), axis=axis)
    value = jnp.log(sums) + jnp.squeeze(top, axis)
    return value if where is None else jnp.where(jnp.any(where, axis=axis), value, 0)


def softmax(logits: Array, where: Array | None = None, axis: int = -1) -> Array:
    """Softmax along an axis, accumulated in float32 or wider, in the dtype of the logits.

    It is 0, and so is its gradient, if `where` leaves no entry.
    """
    wide = mask_logits(widen(logits), where, axis)
    e = jnp.exp(below(wide, largest(wide, axis)))
    p = e / jnp.sum(e, axis=axis, keepdims=True)
    return (p if where is None else jnp.where(where, p, 0)).astype(logits.dtype)


def pseudo_inverse(directions: Array) -> Array:
    """(d, p) of directions (p, d): a vector times it has the coefficients of its part in the span.

    Beliefs sum to one, so that their directions span one dimension fewer than there are: the
    singular value that rounding makes of the last one must not be inverted.
    """
    return jnp.linalg.pinv(directions, rtol=1e-5)


def repeat_last(values: Array, start: Array, lengths: Array) -> Array:
    """Values (..., l, *) of sequences; beyond each length (...) the last, or the start (..., *)."""
    axis = lengths.ndim
    count = np.arange(1, values.shape[axis] + 1).reshape(*(1,) * axis, -1)
    last = jnp.minimum(count, lengths[..., None])
    last = last.reshape(*last.shape, *(1,) * (values.ndim - axis - 1))
    # Position 0 is the start, so that sequences without a token have a last value too.
    values = jnp.concatenate([jnp.expand_dims(start, axis), values], axis)
    return jnp.take_along_axis(values, last, axis)
