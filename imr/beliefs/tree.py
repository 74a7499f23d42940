"""Beliefs after every prefix of many sequences, by products of matrices in a tree."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._numerics import matmul
from imr.beliefs.scaled import Scaled, power, product, scaled

# Up to so many states the products are written out, and up to so many tokens the choice of matrices.
_FEW_STATES, _FEW_TOKENS = 8, 16


class Axes(NamedTuple):
    """The axes of rows, columns and positions of matrices, and that of (i, m, j) which a product sums."""

    row: int
    column: int
    position: int
    over: int


# Of few states the batch comes last, positions before it: (s, s, l, b). Sums over states are then sums
# of long vectors, twice as fast on a CPU as batched products, and where s is 3 a TPU would pad (s, s) to
# (8, 128). Of many they come first, (l, b, s, s), and the products are those of matrix units.
FEW, MANY = Axes(0, 1, -2, 1), Axes(-2, -1, 0, -2)


def prefix_rows(
    start: Float[Array, "b s"], transitions: Float[Array, "k s s"], tokens: Int[Array, "b l"]
) -> Scaled:
    r"""$\mu T_{x_1} \cdots T_{x_d}$ for every d, (l, b, s), from each start.

    Of neighbouring matrices the products are made, and so on upwards: l products in all. From the
    top down only the row that the start leads to is carried, at the cost of l products of a vector
    and a matrix. Of few states every entry has a scale of its own, of many the entries of such a
    row, and the rows of the products. A token out of range has a matrix of zeros.
    """
    axes = FEW if start.shape[1] <= _FEW_STATES else MANY
    row = start[None, :, None, :]
    if axes is FEW:
        row = jnp.moveaxis(row, (2, 3), (0, 1))
    matrices = _matrices(transitions, tokens.T, axes)
    rows = _prefixes(scaled(row), _rescaled(matrices, 0.0, axes), axes)
    rows = jax.tree.map(lambda x: jnp.take(x, 0, axes.row), rows)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), rows) if axes is FEW else rows


def _matrices(transitions, tokens, axes):
    """T of tokens (l, b)."""
    if axes is FEW and len(transitions) <= _FEW_TOKENS:
        # No gather: a compiler makes these anew wherever they are used, and holds none in memory.
        here = tokens[None, None]
        each = (jnp.where(here == x, t[..., None, None], 0) for x, t in enumerate(transitions))
        return functools.reduce(jnp.add, each)
    chosen = transitions.at[tokens].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return jnp.moveaxis(chosen, (2, 3), (0, 1)) if axes is FEW else chosen


def _prefixes(start: Scaled, elements: Scaled, axes: Axes) -> Scaled:
    """The start times the first, the first two, ... of the elements."""
    count, axis = elements[0].shape[axes.position], axes.position
    if count == 1:
        return _product(start, elements, axes)

    def cut(tree, first, end, stride=1):
        def of(x):
            return jax.lax.slice_in_dim(x, first, end, stride, axis=axis)

        return jax.tree.map(of, tree)

    half, rest = count // 2, count - count // 2
    pairs = _product(cut(elements, 0, 2 * half, 2), cut(elements, 1, 2 * half, 2), axes)
    odd = _prefixes(start, pairs, axes)
    before = jax.tree.map(lambda *x: jnp.concatenate(x, axis), start, cut(odd, 0, rest - 1))
    even = _product(before, cut(elements, 0, count, 2), axes)

    def alternate(even, odd):
        odd = jnp.concatenate([odd, jax.lax.slice_in_dim(even, half, rest, axis=axis)], axis)
        place = axis % even.ndim
        both = jnp.stack([even, odd], axis=place + 1)
        shape = (*even.shape[:place], 2 * rest, *even.shape[place + 1 :])
        return jax.lax.slice_in_dim(both.reshape(shape), 0, count, axis=axis)

    return jax.tree.map(alternate, even, odd)


def _product(left: Scaled, right: Scaled, axes: Axes) -> Scaled:
    """Of some rows and matrices; written out, but for many rows of many states."""
    if axes is MANY and left.values.shape[axes.row] > 1:
        return _product_by_rows(left, right)
    over = axes.over  # (i, m, 1) times (1, m, j), over m
    left = jax.tree.map(lambda x: jnp.expand_dims(x, over + 1), left)
    right = jax.tree.map(lambda x: jnp.expand_dims(x, over - 1), right)
    return product(left, right, over)


def _product_by_rows(left: Scaled, right: Scaled) -> Scaled:
    """Of matrices (l, b, s, s) whose rows have one exponent each, (l, b, s, 1)."""
    (a, exponents), (b, of_rows) = left, right
    # The scale of a row is that of the likeliest row of b that it leads to.
    live = jnp.where(jnp.any(b != 0, axis=-1, keepdims=True), of_rows, -jnp.inf)
    live, of_rows = jnp.swapaxes(live, -1, -2), jnp.swapaxes(of_rows, -1, -2)
    top = jnp.max(jnp.where(a != 0, live, -jnp.inf), axis=-1, keepdims=True)
    for others in (live, of_rows):
        top = jnp.where(jnp.isneginf(top), jnp.max(others, axis=-1, keepdims=True), top)
    # Rows that it does not lead to have a derivative, and may be likelier than all that it does.
    above = jnp.minimum(of_rows - top, 0.5 * jnp.finfo(a.dtype).maxexp)
    return _rescaled(matmul(a * power(above), b), exponents + top, MANY)


def _rescaled(x: Array, exponents: Array | float, axes: Axes) -> Scaled:
    """x * 2^exponents, scaled entry by entry, or row by row."""
    if axes is FEW:
        return scaled(x, exponents)
    row = scaled(jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True)))
    return Scaled(x / power(row.exponents), exponents + row.exponents)
