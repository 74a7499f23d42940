"""What the diagnostics share: checks and scaling of arrays."""

import jax.numpy as jnp

from imr._checks import check_at_least, check_floating, check_rank
from imr._numerics import widen
from imr.errors import ImrError


def matrix(name, array, shape, rows=1):
    """A floating array of two axes and so many rows, in float32 or wider."""
    if jnp.ndim(array) > 2:
        raise ImrError(
            f"{name} must have shape {shape}; found shape {jnp.shape(array)}. Make one axis of the "
            "leading ones, or use jax.vmap for a result of each."
        )
    array = jnp.asarray(array)
    check_rank(name, array, 2, shape)
    check_floating(name, array)
    check_at_least(f"the number of rows of {name}", array.shape[0], rows)
    return widen(jnp.asarray(array))


def over_norm(a):
    """Scaled to Frobenius norm 1; zeros stay."""
    norm = jnp.linalg.norm(a)
    return a / jnp.where(norm > 0, norm, 1)


def centred(vectors):
    """Less their mean, and of Frobenius norm 1 (or zero)."""
    return over_norm(vectors - vectors.mean(axis=0, keepdims=True))


def unit_rows(z):
    """Rows of norm 1; a row of zeros stays. Scaled first: squares of tiny entries underflow."""
    largest = jnp.abs(z).max(axis=1, keepdims=True)
    z = z / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(z**2, axis=1, keepdims=True)
    return z / jnp.sqrt(jnp.where(squares > 0, squares, 1))
