"""Numerically safe primitives, each with its reason."""

import jax
import jax.numpy as jnp

from imr._typing import AnyArray, Array


def matmul(a: AnyArray, b: AnyArray) -> Array:
    """Matrix product in the full precision of its dtype.

    On TPU and on recent GPUs a float32 product runs in fewer bits by default, and the equalities of
    the theory then hold to 1e-2 or 1e-3 only. `jax.default_matmul_precision` overrides this.
    """
    chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return jnp.matmul(a, b, precision=None if chosen else jax.lax.Precision.HIGHEST)


def widen(x: Array) -> Array:
    """float16 and bfloat16 to float32, anything else as it is.

    Sums of exponentials lose all their digits in 8 bits of mantissa, so softmax and log-sum-exp
    accumulate in float32.
    """
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def mask_logits(logits: Array, where: Array | None) -> Array:
    """Entries that take no part become -inf, which has probability zero."""
    return logits if where is None else jnp.where(where, logits, -jnp.inf)


def log_sum_exp(logits: Array, where: Array | None = None, axis: int = -1) -> Array:
    """log sum_j exp logits_j along an axis, accumulated in float32 or wider."""
    return jax.nn.logsumexp(mask_logits(widen(logits), where), axis=axis)


def softmax(logits: Array, where: Array | None = None, axis: int = -1) -> Array:
    """Softmax along an axis, accumulated in float32 or wider, in the dtype of the logits."""
    wide = jax.nn.softmax(mask_logits(widen(logits), where), axis=axis)
    return wide.astype(logits.dtype)


def pseudo_inverse(directions: Array) -> Array:
    """(d, p) of directions (p, d): a vector times it has the coefficients of its part in the span.

    Beliefs sum to one, so that their directions span one dimension fewer than there are: the
    singular value that rounding makes of the last one must not be inverted.
    """
    return jnp.linalg.pinv(directions, rtol=1e-5)
