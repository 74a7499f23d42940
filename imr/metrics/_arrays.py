"""What the diagnostics share: checks and scaling of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    as_labels,
    as_numbers,
    check_at_least,
    check_axis,
    check_count,
    check_rank,
    is_concrete,
)
from imr._numerics import matmul, widen
from imr.errors import ImrError


def matrix(name, array, shape, rows=1):
    """A floating array of two axes and so many rows, in float32 or wider."""
    array = as_floats(name, array)
    if array.ndim > 2:
        raise ImrError(
            f"{name} must have shape {shape}; found shape {jnp.shape(array)}. Make one axis of the "
            "leading ones, or use jax.vmap for a result of each."
        )
    check_rank(name, array, 2, shape)
    check_at_least(f"the number of rows of {name}", array.shape[0], rows)
    return widen(array)


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


def class_members(labels, rows, other, num_classes):
    """One-hot labels (n, k) in the dtype of `rows`; NaN where a label is out of range."""
    check_count("num_classes", num_classes)
    labels = as_labels("labels", labels)
    check_axis("labels", labels.shape[0], other, rows.shape[0], "rows")
    bad = (labels < 0) | (labels >= num_classes)
    if is_concrete(bad) and bad.any():
        row = int(jnp.argmax(bad))
        raise ImrError(
            f"labels must lie in 0 to {num_classes - 1}; found labels[{row}] = {labels[row]}."
        )
    return jnp.where(bad[:, None], jnp.nan, jax.nn.one_hot(labels, num_classes, dtype=rows.dtype))


def mean_of_members(z, members):
    """Class means (k, f); 0 for a class without rows."""
    return matmul(members.T, z) / jnp.maximum(members.sum(axis=0), 1)[:, None]


class ClassSplit(NamedTuple):
    """Features as class means and what they leave."""

    centred: Float[Array, "n f"]  # rows less the mean of all rows
    means: Float[Array, "k f"]  # of classes, less the mean of all rows
    rest: Float[Array, "n f"]  # rows less their class means
    shares: Float[Array, "k 1"]  # of the rows in each class


def split_by_class(z, members):
    """Splits features by their one-hot labels (n, k)."""
    # Far from the origin, products of rows that are not centred lose the digits of differences.
    z = z - z.mean(axis=0, keepdims=True)
    means = mean_of_members(z, members)
    return ClassSplit(z, means, z - matmul(members, means), members.mean(axis=0)[:, None])


def check_weights(weights, other, rows):
    """Weights (n,) of the rows of another array, not negative, some positive."""
    weights = as_numbers("weights", weights)
    check_rank("weights", weights, 1, "(n,)")
    check_axis("weights", weights.shape[0], other, rows.shape[0], "entries")
    check_at_least("weights", weights, 0)
    if is_concrete(weights) and not np.any(np.asarray(weights) > 0):
        raise ImrError("weights must have a positive entry; found none.")
    return weights
