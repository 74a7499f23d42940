"""Products of d x r matrices for each head, never d x d, in numpy and float64."""

from collections.abc import Iterator

import numpy as np

from imr._checks import check_kind
from imr.lens.heads import HeadWeights


def float64(heads: HeadWeights) -> Iterator[np.ndarray]:
    """W_Q, W_K, W_V and W_O^T, all (..., h, d, r), in float64."""
    check_kind("heads", heads, HeadWeights)
    yield from (np.asarray(w, np.float64) for w in heads[:3])
    yield np.asarray(heads.output, np.float64).mT


def gram(a, b):
    """a^T b for each head."""
    return a.mT @ b


def over(x, size):
    """x / size, and 0 if the size is 0: a head without weights has cosine 0 with everything."""
    return np.where(size > 0, x / np.where(size > 0, size, 1), 0)


def power(gram, exponent):
    """Powers of positive semidefinite matrices; eigenvalues that are 0 stay 0."""
    values, vectors = np.linalg.eigh(gram)
    positive = values > np.maximum(1e-13 * np.max(values, axis=-1, keepdims=True), 0)
    powers = np.where(positive, np.where(positive, values, 1) ** exponent, 0)
    return (vectors * powers[..., None, :]) @ vectors.mT


def core(a, b):
    """A small matrix with the singular values of a b^T."""
    return power(gram(a, a), 0.5) @ power(gram(b, b), 0.5)


def norm(a, b):
    """The norm of a b^T for each head."""
    return np.sqrt(np.sum(gram(a, a) * gram(b, b), axis=(-1, -2)))
