r"""Numbers with a scale each, so that no product of probabilities leaves the range of its dtype.

The scale is a power of two, of which the exponent is kept: dividing by it rounds nothing, so that
results are those of plain numbers to the bit wherever these would not underflow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Scaled(NamedTuple):
    """Numbers values * 2^exponents; exponents are whole, and constants to derivatives.

    That of a zero is the scale of its derivative.
    """

    values: Array
    exponents: Array


def scaled(x: Array, exponents: Array | float = 0.0) -> Scaled:
    """x * 2^exponents, with values that lie near one, or are zero."""
    size = jax.lax.stop_gradient(jnp.abs(x))
    size = jax.lax.reduce_precision(size, jnp.finfo(x.dtype).nexp, 0)
    size = jnp.where(size > 0, size, 1)
    return Scaled(x / size, exponents + jnp.round(jnp.log2(size)))


def plain(x: Scaled) -> Array:
    """The numbers themselves; what is below the range of the dtype is zero."""
    return x.values * power(_held(x.exponents))


def power(exponents: Array) -> Array:
    """2^exponents, to the bit."""
    return jax.lax.reduce_precision(jnp.exp2(exponents), jnp.finfo(exponents.dtype).nexp, 0)


def product(a: Scaled, b: Scaled, axis: int) -> Scaled:
    """The sum over an axis of a times b, which are broadcast."""
    values, exponents = a.values * b.values, a.exponents + b.exponents
    # A term with one zero has a derivative: its scale is taken where all terms are zero.
    some = (a.values != 0) | (b.values != 0)
    top = _largest(exponents, axis, values != 0, some)
    total = jnp.sum(values * power(_held(exponents - top)), axis=axis)
    return scaled(total, jnp.squeeze(top, axis))


def relative(x: Scaled, axis: int = -1) -> tuple[Scaled, Array]:
    """x over the scale of its largest entry along an axis, and the exponent of that, the axis kept."""
    top = _largest(x.exponents, axis, x.values != 0)
    return Scaled(x.values, x.exponents - top), top


def _held(exponents):
    """Exponents of which 2^exponents is finite: a zero may have a greater scale than all that counts.

    So the derivative at a zero is bounded by the square root of what the dtype holds.
    """
    return jnp.minimum(exponents, 0.5 * jnp.finfo(exponents.dtype).maxexp)


def _largest(exponents, axis, *counted):
    """The largest exponent of what counts first, or then; of all if nothing does."""
    top = jnp.full((), -jnp.inf, exponents.dtype)
    for mask in (*counted, True):
        largest = jnp.max(jnp.where(mask, exponents, -jnp.inf), axis=axis, keepdims=True)
        top = jnp.where(jnp.isneginf(top), largest, top)
    return top
