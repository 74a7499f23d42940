"""The value circuit of every head beside the theta of every head of a model."""

from typing import Any

import numpy as np

from imr.lens._factors import float64, gram, norm, over, power
from imr.lens.heads import HeadWeights
from imr.lens.nulls import key_groups
from imr.lens.weights import WeightCosines


def pair_cosines(heads: HeadWeights, *, groups: int | None = None) -> WeightCosines:
    r"""Cosines of each value circuit (rows) with the $\theta^T$ of each head (columns).

    The measures of `weight_cosines` are on the diagonal, and all nulls of other heads beside it: their
    own key group is a block of $h / g$ rows and columns. The products of all pairs, n^2 of them for n = l h
    heads, are computed in float32, those of a key group together.

    Args:
      heads: of all layers.
      groups: how many key groups the heads of a layer have; None means one for each head.
    Returns: `WeightCosines`, each of shape (l h, l h).
    Raises: ImrError if groups do not divide the heads.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> np.diagonal(pair_cosines(heads).whole).round(3).tolist()
    [-1.0, -1.0, -1.0, -1.0]

    Reference: imr's own.
    """
    groups = key_groups(heads, groups)
    l, h, d, r = heads.query.shape
    size = h // groups
    query, key, value, output = (x.reshape(l * h, d, r) for x in float64(heads))
    circuit, theta = norm(value, output), norm(key, query)
    # W_V = (orthonormal columns) (root), and W_O^T likewise.
    queries, keys = (np.float32(np.moveaxis(x, 1, 0).reshape(d, -1)) for x in (query, key[::size]))

    def met(weight: Any, columns: Any) -> tuple[Any, Any]:
        """Products of a weight with all columns, (.., r, r): of its directions, and of itself."""
        square = gram(weight, weight)
        frame = np.float32(weight @ power(square, -0.5))
        inner = np.moveaxis((frame.T @ columns).reshape(r, -1, r), 1, 0)
        return inner, np.float32(power(square, 0.5)) @ inner

    whole, within = np.empty((l * h, l * h)), np.empty((l * h, l * h))
    for first in range(0, l * h, size):
        read, reads = met(value[first], keys)
        for i in range(first, first + size):
            write, writes = (x.reshape(-1, size, r, r) for x in met(output[i], queries))
            inner = np.sum(reads[:, None] * writes, axis=(-1, -2), dtype=np.float64).ravel()
            part = np.linalg.norm(read[:, None] @ write.mT, axis=(-1, -2)).ravel()
            whole[i] = over(inner, circuit[i] * theta)
            within[i] = over(inner, circuit[i] * part)
    return WeightCosines(whole, within)
