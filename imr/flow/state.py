"""The state of a solve: floating arrays of one dtype, and slopes and norms of their kind."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from imr._checks import as_floats
from imr._typing import Array, PyTree, ScalarLike
from imr.errors import ImrError


def as_arrays(name: str, tree: PyTree) -> PyTree:
    """Each leaf as a floating array; a list that holds numbers alone is one array."""

    def is_array_like(x):
        leaves = jax.tree.leaves(x)
        return isinstance(x, list) and bool(leaves) and all(map(_is_number, leaves))

    if not jax.tree.leaves(tree):
        raise ImrError(f"{name} must hold one or more arrays; found {tree!r}.")
    return jax.tree.map(partial(as_floats, name), tree, is_leaf=is_array_like)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float)


def state_dtype(z0: PyTree) -> Any:
    """The dtype of state, times and error control: that of z0, float32 at least."""
    return jnp.result_type(*jax.tree.leaves(z0), jnp.float32)


def as_state(z0: PyTree) -> PyTree:
    """Arrays in the one dtype of their state, strongly typed."""
    dtype = state_dtype(z0)
    return jax.tree.map(lambda x: x.astype(dtype), z0)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """A tree in the dtypes of another, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(y.dtype), tree, like)


class StateField(eqx.Module):
    """A field, or the sum of several, whose slopes have the dtype of the state.

    Parameters in another precision than z0 would otherwise change the state's on the way.
    """

    field: Any

    def __call__(self, t: Any, y: PyTree, args: Any) -> PyTree:
        return cast_like(self.field(t, y, args), y)


def norm(tree: PyTree) -> Array:
    """Frobenius norm over all leaves, which no square overflows; its gradient at zero is zero."""
    leaves = [x for x in jax.tree.leaves(tree) if x.size]
    if not leaves:
        return jnp.zeros(())
    top = jax.lax.stop_gradient(jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves])))
    scale = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    square = sum(jnp.sum((x / scale) ** 2) for x in leaves)
    zero = square == 0
    return jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, square)))


@jax.jit
def atol_of_coordinates(z0: Array, length: Array, rtol: ScalarLike, atol: ScalarLike) -> Array:
    """What coordinates may be off by, in the root mean square, so that features are off by no more than
    `solve` allows: those are off by at most `length` times as much.
    """
    z0, length = jax.lax.stop_gradient((z0, length))
    rtol, atol = (jnp.asarray(x, z0.dtype) for x in (rtol, atol))

    def lower():
        # Squares that overflow or underflow leave atol, or allow less than they might.
        mean_square = jnp.sum(z0**2) / max(z0.size, 1)
        return jnp.minimum(atol, (atol + rtol * jnp.sqrt(mean_square)) / length)

    # z0 is read only where it matters.
    return jax.lax.cond(length > 1, lower, lambda: atol)


def all_finite(tree: PyTree) -> Array:
    """Whether no entry of any leaf is infinite or NaN."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
