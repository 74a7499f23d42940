r"""What the weights of heads say: is the value circuit that of a gradient step?

$\theta = W_Q W_K^T / \sqrt r$. A head that descends the log-sum-exp has $W_V W_O \propto
-\theta^T$; one that climbs it, $+\theta^T$. Everything is computed from r x r products, never d x d,
in numpy and float64: factorisations of many small matrices, done once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex128, Float64

from imr.lens.model import HeadWeights


class WeightCosines(NamedTuple):
    r"""Cosines with $+\theta^T$ in the inner product of matrices.

    Attributes:
      whole: of $W_V W_O$ with $\theta^T$, shape (l, h).
      within: of $W_V W_O$ with the part of $\theta^T$ in the circuit's own subspace, which $W_V$
        reads and $W_O$ writes, shape (l, h).
    """

    whole: Float64[np.ndarray, "l h"]
    within: Float64[np.ndarray, "l h"]


class Fits(NamedTuple):
    r"""What the best single matrix leaves of each head: from 0, nothing, to 1, all of it.

    $\min_M \tfrac12 \|\theta/|\theta| - M\|^2 + \tfrac12 \|\pm (W_V W_O)^T/|W_V W_O| - M\|^2$ over
    M of rank r: one matrix that has to be the attention and the value circuit both.

    Attributes:
      descent, climb: if the circuit is to be $-M^T$, or $+M^T$, shape (l, h).
    """

    descent: Float64[np.ndarray, "l h"]
    climb: Float64[np.ndarray, "l h"]


class Spectra(NamedTuple):
    r"""Spectra of $\theta$.

    Attributes:
      singular_values, eigenvalues: those that its rank allows, shape (l, h, r).
      symmetric_share: $|S|^2 / |\theta|^2$ of its symmetric part S, shape (l, h); about 1/2 for a
        random matrix.
    """

    singular_values: Float64[np.ndarray, "l h r"]
    eigenvalues: Complex128[np.ndarray, "l h r"]
    symmetric_share: Float64[np.ndarray, "l h"]


def weight_cosines(heads: HeadWeights) -> WeightCosines:
    r"""Cosine of each head's value circuit with its own $\theta^T$.

    $\langle W_V W_O, W_K W_Q^T \rangle = \sum_{ab} (W_V^T W_K)_{ab} (W_O W_Q)_{ab}$.

    For a null, measure the heads that `mismatched` or `rotated` return, and see `score`. If theta is
    rotated at both sides at random, the cosine's standard deviation is exactly 1/d.

    Args:
      heads: of all layers.

    Reference: arXiv 2509.04653; the measure is imr's own.
    """
    query, key, value, output = float64_weights(heads)
    inner = np.sum(_gram(value, key) * _gram(output, query), axis=(-1, -2))
    circuit = _norm(value, output)
    # Orthonormal columns of W_V are W_V (W_V^T W_V)^(-1/2), and of W_O^T likewise.
    read = _power(_gram(value, value), -0.5) @ _gram(value, key)
    write = _power(_gram(output, output), -0.5) @ _gram(output, query)
    part = read @ np.swapaxes(write, -1, -2)
    return WeightCosines(
        _over(inner, circuit * _norm(key, query)),
        _over(inner, circuit * np.linalg.norm(part, axis=(-1, -2))),
    )


def imr_fits(heads: HeadWeights) -> Fits:
    """The share of each head, attention and circuit, that the best matrix does not account for.

    Args:
      heads: of all layers.

    Reference: imr's own; the best M is the truncated singular value decomposition of the mean.
    """
    query, key, value, output = float64_weights(heads)
    theta = _over(0.5 * query, _norm(query, key)[..., None, None])
    circuit = _over(0.5 * output, _norm(output, value)[..., None, None])
    right = np.concatenate([key, value], axis=-1)

    def residual(sign):
        core = _core(np.concatenate([theta, sign * circuit], axis=-1), right)
        kept = np.linalg.svd(core, compute_uv=False)[..., : query.shape[-1]]
        return np.maximum(1 - np.sum(kept**2, axis=-1), 0)

    return Fits(residual(-1.0), residual(1.0))


def theta_spectra(heads: HeadWeights) -> Spectra:
    r"""Singular values, eigenvalues and symmetric share of $\theta = W_Q W_K^T / \sqrt r$.

    Args:
      heads: of all layers.
    """
    query, key, _, _ = float64_weights(heads)
    scale = query.shape[-1] ** -0.5
    inner = _gram(key, query)  # theta's eigenvalues are those of K^T Q
    trace = np.sum(inner * np.swapaxes(inner, -1, -2), axis=(-1, -2))  # of theta theta
    return Spectra(
        scale * np.linalg.svd(_core(query, key), compute_uv=False),
        scale * np.linalg.eigvals(inner).astype(complex),
        0.5 * (1 + _over(trace, _norm(query, key) ** 2)),
    )


def float64_weights(heads: HeadWeights) -> Iterator[np.ndarray]:
    """W_Q, W_K, W_V and W_O^T, all (l, h, d, r), in float64."""
    yield from (np.asarray(w, np.float64) for w in heads[:3])
    yield np.swapaxes(np.asarray(heads.output, np.float64), -1, -2)


def _gram(a, b):
    """a^T b for each head."""
    return np.swapaxes(a, -1, -2) @ b


def _over(x, size):
    """x / size, and 0 if the size is 0: a head without weights has cosine 0 with everything."""
    return np.where(size > 0, x / np.where(size > 0, size, 1), 0)


def _power(gram, exponent):
    """Powers of positive semidefinite matrices; eigenvalues that are 0 stay 0."""
    values, vectors = np.linalg.eigh(gram)
    positive = values > np.maximum(1e-13 * np.max(values, axis=-1, keepdims=True), 0)
    powers = np.where(positive, np.where(positive, values, 1) ** exponent, 0)
    return (vectors * powers[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _core(a, b):
    """A small matrix with the singular values of a b^T."""
    return _power(_gram(a, a), 0.5) @ _power(_gram(b, b), 0.5)


def _norm(a, b):
    """The norm of a b^T for each head."""
    return np.sqrt(np.sum(_gram(a, a) * _gram(b, b), axis=(-1, -2)))
