"""Beliefs after every prefix of many sequences, by products of matrices in a tree."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._numerics import matmul

# Up to so many states the products are written out, and up to so many tokens the choice of matrices.
_FEW_STATES, _FEW_TOKENS = 8, 16

Scaled = tuple[Array, Array]  # matrices, whose rows are divided by scales, and logarithms of these


class Axes(NamedTuple):
    """The axes of rows, columns and positions of matrices, and that of rows of their log scales."""

    row: int
    column: int
    position: int
    log_row: int


# Of few states the batch comes last, positions before it: (s, s, l, b). Sums over states are then sums
# of long vectors, twice as fast on a CPU as batched products, and where s is 3 a TPU would pad (s, s) to
# (8, 128). Of many they come first, (l, b, s, s), and the products are those of matrix units.
FEW, MANY = Axes(0, 1, -2, 0), Axes(-2, -1, 0, -1)


def prefix_rows(
    start: Float[Array, "s"], transitions: Float[Array, "k s s"], tokens: Int[Array, "b l"]
) -> tuple[Float[Array, "l b s"], Float[Array, "l b"]]:
    r"""$\mu T_{x_1} \cdots T_{x_d}$ for every d, each divided by a scale, and the logarithms of the scales.

    Of neighbouring matrices the products are made, and so on upwards: l products in all. From the
    top down only the row that the start leads to is carried, at the cost of l products of a vector
    and a matrix. Every row has a scale of its own, which is a constant to derivatives. A token out
    of range has a matrix of zeros.
    """
    axes = FEW if len(start) <= _FEW_STATES else MANY
    matrices = _matrices(transitions, tokens.T, axes)
    row = jnp.tile(start[None, None, None, :], (1, len(tokens), 1, 1))
    if axes is FEW:
        row = jnp.moveaxis(row, (2, 3), (0, 1))
    first, elements = (
        _rescaled(x, jnp.zeros_like(jnp.take(x, 0, axes.column)), axes) for x in (row, matrices)
    )
    rows, scales = _prefixes(first, elements, axes)
    rows, scales = jnp.take(rows, 0, axes.row), jnp.take(scales, 0, axes.log_row)
    return (jnp.moveaxis(rows, 0, -1) if axes is FEW else rows), scales


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
    """Of some rows and matrices, each row with a log scale."""
    (a, log_a), (b, log_b) = left, right
    row, column, _, log_row = axes
    # The scale of a row is that of the likeliest row of b that it leads to.
    live = jnp.where(jnp.any(b != 0, axis=column), log_b, -jnp.inf)
    reached = jnp.where(a != 0, jnp.expand_dims(live, row), -jnp.inf)
    top = jnp.max(reached, axis=column)
    for others in (live, log_b):
        top = jnp.where(jnp.isneginf(top), jnp.max(others, axis=log_row, keepdims=True), top)
    # Rows that it does not lead to have a derivative, and may be likelier than all that it does.
    most = 0.5 * math.log(float(jnp.finfo(a.dtype).max))
    above = jnp.expand_dims(log_b, row) - jnp.expand_dims(top, column)
    a = a * jnp.exp(jnp.minimum(above, most))
    if axes is FEW:
        columns, others = jnp.split(a, len(b), 1), jnp.split(b, len(b), 0)
        product = functools.reduce(jnp.add, map(jnp.multiply, columns, others))
    else:
        product = matmul(a, b)
    return _rescaled(product, log_a + top, axes)


def _rescaled(rows: Array, log_scales: Array, axes: Axes) -> Scaled:
    """Rows of largest entry one; a product is the same at any scales."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=axes.column))
    size = jnp.where(size > 0, size, 1)
    return rows / jnp.expand_dims(size, axes.column), log_scales + jnp.log(size)
