"""Interventions: edits of activations along given directions, over any leading axes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from imr._checks import check_axis, check_floating
from imr._numerics import matmul
from imr._typing import AnyArray, Array
from imr.errors import ImrError
from imr.metrics._arrays import matrix, pseudo_inverse


def coordinates(
    residual: Float[AnyArray, "*b d"], directions: Float[AnyArray, "p d"]
) -> Float[Array, "*b p"]:
    """Coefficients c of the best c D within the span of directions D (p, d), shape (..., p)."""
    residual, directions = jnp.asarray(residual), _matrix(directions)
    check_floating("residual", residual)
    check_axis("directions", directions.shape[1], "residual", residual.shape[-1], "columns")
    return matmul(residual, pseudo_inverse(directions).astype(residual.dtype))


def ablate_along(
    residual: Float[AnyArray, "*b d"], directions: Float[AnyArray, "p d"], origin: Any = 0.0
) -> Float[Array, "*b d"]:
    r"""Takes out of activations what lies along directions: $x - (x - x_0) D^+ D$.

    Args:
      residual: shape (..., d), any leading axes.
      directions: D, shape (p, d).
      origin: $x_0$ (d,), which is left in place; with the mean it is mean ablation.

    >>> ablate_along(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]])).round(3).tolist()
    [0.0, 4.0]
    """
    residual, directions = jnp.asarray(residual), _matrix(directions)
    check_floating("residual", residual)
    if jnp.shape(origin) not in ((), residual.shape[-1:]):
        raise ImrError(
            f"origin must be a number or have shape {residual.shape[-1:]}; found {jnp.shape(origin)}."
        )
    shifted = residual - jnp.broadcast_to(jnp.asarray(origin, residual.dtype), residual.shape)
    return residual - matmul(coordinates(shifted, directions), directions.astype(residual.dtype))


def replace_along(
    residual: Float[AnyArray, "*b d"],
    directions: Float[AnyArray, "p d"],
    values: Float[AnyArray, "*b p"],
) -> Float[Array, "*b d"]:
    """Sets the coefficients along directions to values, (..., p), and leaves the rest.

    >>> replace_along(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]]), jnp.array([5.0])).tolist()
    [10.0, 4.0]
    """
    return add_along(ablate_along(residual, directions), directions, values)


def add_along(
    residual: Float[AnyArray, "*b d"],
    directions: Float[AnyArray, "p d"],
    values: Float[AnyArray, "*b p"],
) -> Float[Array, "*b d"]:
    """Adds values (..., p) times directions (p, d): $x + c D$.

    >>> add_along(jnp.array([3.0, 4.0]), jnp.array([[2.0, 0.0]]), jnp.array([1.0])).tolist()
    [5.0, 4.0]
    """
    residual, directions = jnp.asarray(residual), _matrix(directions)
    values = jnp.asarray(values)
    check_floating("residual", residual)
    wanted = (*residual.shape[:-1], len(directions))
    if values.ndim == 0 or values.shape not in (wanted, wanted[-1:]):
        raise ImrError(
            f"values must have shape {wanted}, a coefficient for each of the directions, or "
            f"{wanted[-1:]} for all the same; found {values.shape}."
        )
    moved = matmul(jnp.broadcast_to(values, wanted).astype(directions.dtype), directions)
    return residual + moved.astype(residual.dtype)


def _matrix(directions):
    return matrix("directions", jnp.asarray(directions), "(p, d)")
