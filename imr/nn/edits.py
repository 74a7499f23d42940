"""Interventions on a net: edits of activations along given directions, over any leading axes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from imr._checks import (
    as_floats,
    as_numbers,
    check_at_least,
    check_axis,
    check_rank,
)
from imr._numerics import matmul, pseudo_inverse, widen
from imr._typing import AnyArray, Array
from imr.errors import ImrError

Residual = Float[AnyArray, "*b d"]
Directions = Float[AnyArray, "p d"]
Values = Float[AnyArray, "*b p"]
Edited = Float[Array, "*b d"]


def coordinates(residual: Residual, directions: Directions) -> Float[Array, "*b p"]:
    """Coefficients of activations along directions: the c of the best approximation c D.

    Args:
      residual: activations, shape (..., d).
      directions: D, shape (p, d).
    Raises: ImrError if shapes or dtypes do not fit.

    >>> coordinates(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]])).round(3).tolist()
    [1.5]
    """
    residual, directions = _of_vectors(residual), _checked(directions)
    check_axis("directions", directions.shape[1], "residual", residual.shape[-1], "columns")
    return matmul(residual, pseudo_inverse(directions).astype(residual.dtype))


def ablate_along(residual: Residual, directions: Directions, origin: Any = 0.0) -> Edited:
    r"""Removes the part of activations that lies along directions: $x - (x - x_0) D^+ D$.

    Args:
      residual, directions: x and D, as in `coordinates`.
      origin: $x_0$, a number or shape (d,), whose part along D remains. The mean of the activations
        makes this mean ablation.
    Raises: ImrError if shapes or dtypes do not fit.

    >>> ablate_along(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]])).round(3).tolist()
    [0.0, 4.0]
    """
    residual, directions = _of_vectors(residual), _checked(directions)
    origin = as_numbers("origin", origin)
    if jnp.shape(origin) not in ((), residual.shape[-1:]):
        raise ImrError(
            f"origin must be a number or have shape {residual.shape[-1:]}; found {jnp.shape(origin)}."
        )
    shifted = residual - jnp.broadcast_to(jnp.asarray(origin, residual.dtype), residual.shape)
    return residual - matmul(coordinates(shifted, directions), directions.astype(residual.dtype))


def replace_along(residual: Residual, directions: Directions, values: Values) -> Edited:
    """Sets the coefficients of activations along directions, and leaves the rest.

    Args:
      residual, directions: as in `coordinates`.
      values: the new coefficients, shape (..., p), or (p,) for all activations.
    Raises: ImrError if shapes or dtypes do not fit.

    >>> replace_along(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]]), jnp.array([5.0])).tolist()
    [10.0, 4.0]
    """
    return add_along(ablate_along(residual, directions), directions, values)


def add_along(residual: Residual, directions: Directions, values: Values) -> Edited:
    """Adds a multiple of each direction to activations: $x + c D$.

    Args:
      residual, directions: x and D, as in `coordinates`.
      values: c, shape (..., p), or (p,) for all activations.
    Raises: ImrError if shapes or dtypes do not fit.

    >>> add_along(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]]), jnp.array([1.0])).tolist()
    [5.0, 4.0]
    """
    residual, directions = _of_vectors(residual), _checked(directions)
    values = as_numbers("values", values)
    shape = (*residual.shape[:-1], len(directions))
    if values.ndim == 0 or values.shape not in (shape, shape[-1:]):
        raise ImrError(
            f"values must have shape {shape}, one coefficient for each direction, or {shape[-1:]} "
            f"for all activations; found {values.shape}."
        )
    moved = matmul(jnp.broadcast_to(values, shape).astype(directions.dtype), directions)
    return residual + moved.astype(residual.dtype)


def _of_vectors(residual):
    residual = as_floats("residual", residual)
    if not residual.ndim:
        raise ImrError("residual must have shape (..., d); found a number.")
    return residual


def _checked(directions):
    directions = as_floats("directions", directions)
    check_rank("directions", directions, 2, "(p, d)")
    check_at_least("the number of rows of directions", len(directions), 1)
    return widen(directions)
