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

from imr._checks import as_mask
from imr._numerics import widen
from imr.beliefs.ties import Tied, averaged, make_ties
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


class Entries(NamedTuple):
    """What may be done to the entries of the tables: each a tuple with an item for each table.

    Attributes:
      free: booleans, whether an entry may change.
      ties: `Ties`, or None for a table without.
    """

    free: Any
    ties: Any


def start_tables(start, num_states, num_tokens, emission, fixed, tied):
    """Tables of the start, uniform ones without it, and what may be done to their `Entries`."""
    s, k = num_states, num_tokens
    shapes = [(1, s), (s, k * s)] if emission == "general" else [(1, s), (s, s), (s, k)]
    if start is None:
        if fixed is not None:
            raise ImrError("fixed needs start, whose entries stay; found start=None.")
        dtype, tables = jnp.zeros(()).dtype, [np.full(shape, 1 / shape[1]) for shape in shapes]
    else:
        # As the filter does, half precision is left.
        dtype, tables = widen(start.transitions).dtype, _tables_of(start, emission)
    masks = _by_table("fixed", fixed, Fixed, shapes, num_tokens)
    free = [(t > 0) & ~m for t, m in zip(tables, masks, strict=True)]
    labels = _by_table("tied", tied, Tied, shapes, num_tokens)
    ties = tuple(
        None if each is None else make_ties(f"tied.{name}", each, table, f)
        for name, each, table, f in zip(Tied._fields, labels, tables, free, strict=False)
    )
    entries = Entries(tuple(map(jnp.asarray, free)), ties)
    tables = (jnp.asarray(table / table.sum(1, keepdims=True), dtype) for table in tables)
    # Ties hold in the start but for a rounding; from here on exactly.
    return tuple(
        t if tie is None else share(t, t, f, tie)
        for t, f, tie in zip(tables, *entries, strict=True)
    ), entries


def _tables_of(start, emission):
    """Tables of a process in float64."""
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
    return [np.asarray(table, np.float64) for table in tables]


def _rows(matrices):
    """(k, s, s) to (s, k s): what leaves a state in one row."""
    return np.swapaxes(matrices, 0, 1).reshape(matrices.shape[1], -1)


def _by_table(argument, value, kind, shapes, num_tokens):
    """The fields of a `Fixed` or a `Tied` in the shapes of the tables; defaults for None."""
    value = kind() if value is None else value
    s, general = shapes[0][1], len(shapes) == 2
    wanted = [(s,), (num_tokens, s, s)] if general else [(s,), *shapes[1:]]
    if not isinstance(value, kind):
        raise ImrError(f"{argument} must be a {kind.__name__}; found a {type(value).__name__}.")
    if general and value.emissions is not kind().emissions:
        raise ImrError(
            f'{argument}.emissions needs emission="state"; here emissions are transitions.'
        )
    tables = []
    for name, entry, shape in zip(kind._fields, value, wanted, strict=False):
        if entry is None and kind is Tied:
            tables.append(None)
            continue
        entry = np.asarray(entry if kind is Tied else as_mask(entry, None, f"fixed.{name}"))
        if kind is Fixed and (entry.dtype != bool or entry.shape not in ((), shape)):
            raise ImrError(
                f"fixed.{name} must be a boolean, or booleans of shape {shape}; found "
                f"{entry.dtype} of shape {entry.shape}."
            )
        if kind is Tied and (entry.dtype.kind not in "iu" or entry.shape != shape):
            raise ImrError(
                f"tied.{name} must be integers of shape {shape}, the group of each entry, or None; "
                f"found {entry.dtype} of shape {entry.shape}."
            )
        entry = np.broadcast_to(entry, shape)
        tables.append(_rows(entry) if entry.ndim == 3 else np.atleast_2d(entry))
    return tables


@partial(jax.jit, static_argnames=("restarts", "keep"))
def random_tables(key, tables, entries, restarts, keep):
    """Tables of each restart: the free part of each row uniform in its simplex, but for ties."""

    def draw(key, table, free, ties):
        weights = jax.random.exponential(key, (restarts, *table.shape), table.dtype)
        drawn = jax.vmap(share, in_axes=(None, 0, None, None))(table, weights, free, ties)
        return drawn.at[0].set(table) if keep else drawn

    keys = jax.random.split(key, len(tables))
    return tuple(map(draw, keys, tables, *entries))


def share(table, counts, free, ties):
    """Rows whose free entries are in proportion to the counts, and whose sum is one.

    Of tied entries, in proportion to the mean of their counts. What they share follows from the fixed
    entries, which no step changes: rounding would add up in a sum carried from step to step.
    """
    counts = averaged(jnp.where(free, counts, 0), jnp.where(free, table, 0), ties)
    total = jnp.sum(counts, axis=1, keepdims=True)
    rest = jnp.maximum(0, 1 - jnp.sum(jnp.where(free, 0, table), axis=1, keepdims=True))
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
