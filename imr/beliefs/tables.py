r"""Stochastic tables: the parameters of a process that is fitted, row by row.

Of a process whose moves emit they are the start (1, s) and T (s, k s), what leaves a state in one
row; of one whose states emit, $T_x = \mathrm{diag}(B_x) A$, the start, A (s, s) and B (s, k).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from imr.errors import ImrError

Tables = tuple[Array, ...]


class Fixed(NamedTuple):
    """Entries that stay as they are in the start: True, or a boolean of the shape of the entries.

    Attributes:
      initial: of the start distribution, shape (s,).
      transitions: of T, shape (k, s, s); with `emission="state"` of A, shape (s, s).
      emissions: of B, shape (s, k), with `emission="state"`.
    """

    initial: Any = False
    transitions: Any = False
    emissions: Any = False


def start_tables(start, num_states, num_tokens, emission, fixed):
    """Tables of the start, uniform ones without it, and which of their entries are free."""
    s, k = num_states, num_tokens
    shapes = [(1, s), (s, k * s)] if emission == "general" else [(1, s), (s, s), (s, k)]
    if start is None:
        if fixed is not None:
            raise ImrError("fixed needs start, whose entries stay; found start=None.")
        tables = tuple(jnp.full(shape, 1 / shape[1]) for shape in shapes)
        return tables, tuple(jnp.full(shape, True) for shape in shapes)
    masks = _masks(Fixed() if fixed is None else fixed, shapes, num_tokens)
    matrices = np.asarray(start.transitions, np.float64)
    if emission == "general":
        tables = [start.initial[None], _rows(matrices)]
    else:
        chain, emissions = matrices.sum(0), matrices.sum(2).T
        error = np.abs(matrices - emissions.T[:, :, None] * chain).max()
        if error > 1e-5:
            raise ImrError(
                'start must have transitions T_x = diag(B_x) A for emission="state", with A and B '
                f"the sums over tokens and over next states; found T off by {error:.3g}. If the "
                "state reached emits, T_x = A diag(B_x), start from diag(B_x) A."
            )
        tables = [start.initial[None], chain, emissions]
    tables = [np.asarray(table, np.float64) for table in tables]
    free = tuple(jnp.asarray((t > 0) & ~m) for t, m in zip(tables, masks, strict=True))
    tables = (table / table.sum(1, keepdims=True) for table in tables)
    return tuple(jnp.asarray(table, start.transitions.dtype) for table in tables), free


def _rows(matrices):
    """(k, s, s) to (s, k s): what leaves a state in one row."""
    return np.swapaxes(matrices, 0, 1).reshape(matrices.shape[1], -1)


def _masks(fixed, shapes, num_tokens):
    """The three masks of `fixed` in the shapes of the tables."""
    s = shapes[0][1]
    wanted = [(s,), (num_tokens, s, s)] if len(shapes) == 2 else [(s,), *shapes[1:]]
    if not isinstance(fixed, Fixed):
        raise ImrError(f"fixed must be a Fixed; found a {type(fixed).__name__}.")
    if len(shapes) == 2 and fixed.emissions is not False:
        raise ImrError('fixed.emissions needs emission="state"; here emissions are transitions.')
    masks = []
    for name, mask, shape in zip(Fixed._fields, fixed, wanted, strict=False):
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape not in ((), shape):
            raise ImrError(
                f"fixed.{name} must be a boolean, or booleans of shape {shape}; found "
                f"{mask.dtype} of shape {mask.shape}."
            )
        mask = np.broadcast_to(mask, shape)
        masks.append(_rows(mask) if mask.ndim == 3 else np.atleast_2d(mask))
    return masks


@partial(jax.jit, static_argnames=("restarts", "keep"))
def random_tables(key, tables, free, restarts, keep):
    """Tables of each restart: the free part of each row uniform in its simplex."""

    def draw(key, table, free):
        weights = jax.random.exponential(key, (restarts, *table.shape), table.dtype)
        drawn = jax.vmap(share, in_axes=(None, 0, None))(table, weights, free)
        return drawn.at[0].set(table) if keep else drawn

    keys = jax.random.split(key, len(tables))
    return tuple(map(draw, keys, tables, free))


def share(table, counts, free):
    """Rows whose free entries have the same sum as before and are in proportion to the counts."""
    counts = jnp.where(free, counts, 0)
    total = jnp.sum(counts, axis=1, keepdims=True)
    rest = jnp.sum(jnp.where(free, table, 0), axis=1, keepdims=True)
    return jnp.where(free & (total > 0), rest * counts / jnp.where(total > 0, total, 1), table)


@jax.jit
def matrices_of(tables):
    """Start and matrices, of each token and, if states emit, of each last token, after which none moves."""
    initial, *others = tables
    s = initial.shape[1]
    if len(others) == 1:
        return initial[0], jnp.swapaxes(others[0].reshape(s, -1, s), 0, 1)
    chain, emissions = others[0], others[1].T[:, :, None]
    ends = emissions * jnp.eye(s, dtype=chain.dtype)[None]
    return initial[0], jnp.concatenate([emissions * chain[None], ends])
