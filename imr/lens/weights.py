r"""What the weights of heads say: is the value circuit that of a gradient step?

$\theta = W_Q W_K^T / \sqrt r$. A head that descends the log-sum-exp has $W_V W_O \propto
-\theta^T$; one that climbs it, $+\theta^T$. Everything is computed from r x r products, never d x d,
in numpy and float64: factorisations of many small matrices, done once.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Complex128, Float64, Key

from imr._checks import as_numbers, check_key, check_kind
from imr.errors import ImrError
from imr.lens._factors import core, float64, gram, norm, over, power
from imr.lens.heads import HeadWeights


class WeightCosines(NamedTuple):
    r"""Cosines of $W_V W_O$ with $\theta^T$, and with its part that $W_V$ reads and $W_O$ writes."""

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
    r"""Of $\theta$; the symmetric share is $|S|^2 / |\theta|^2$, S its symmetric part, 1/2 at random."""

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
    query, key, value, output = float64(heads)
    inner = np.sum(gram(value, key) * gram(output, query), axis=(-1, -2))
    circuit = norm(value, output)
    # Orthonormal columns of W_V are W_V (W_V^T W_V)^(-1/2), and of W_O^T likewise.
    read = power(gram(value, value), -0.5) @ gram(value, key)
    write = power(gram(output, output), -0.5) @ gram(output, query)
    part = read @ write.mT
    return WeightCosines(
        over(inner, circuit * norm(key, query)),
        over(inner, circuit * np.linalg.norm(part, axis=(-1, -2))),
    )


def imr_fits(heads: HeadWeights) -> Fits:
    """The share of each head, attention and circuit, that the best matrix does not account for.

    Args:
      heads: of all layers.

    Reference: imr's own; the best M is the truncated singular value decomposition of the mean.
    """
    check_kind("heads", heads, HeadWeights)
    # A layer at a time: what is put side by side takes as much as all weights.
    layers = [_layer_fits(*parts) for parts in zip(*map(np.asarray, heads[:4]), strict=True)]
    return Fits(*map(np.stack, zip(*layers, strict=True)))


def _layer_fits(query, key, value, output) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the heads of one layer."""
    query, key, value, output = (np.asarray(w, np.float64) for w in (query, key, value, output.mT))
    theta = over(0.5 * query, norm(query, key)[..., None, None])
    circuit = over(0.5 * output, norm(output, value)[..., None, None])
    right = np.concatenate([key, value], axis=-1)
    root = power(gram(right, right), 0.5)

    def residual(sign):
        left = np.concatenate([theta, sign * circuit], axis=-1)
        # Of the singular values of the mean.
        squares = np.linalg.eigvalsh(root @ gram(left, left) @ root)
        return np.maximum(1 - np.sum(squares[..., -query.shape[-1] :], axis=-1), 0)

    return residual(-1.0), residual(1.0)


def theta_spectra(heads: HeadWeights) -> Spectra:
    r"""Singular values, eigenvalues and symmetric share of $\theta = W_Q W_K^T / \sqrt r$.

    Args:
      heads: of all layers.
    """
    query, key, _, _ = float64(heads)
    scale = query.shape[-1] ** -0.5
    inner = gram(key, query)  # theta's eigenvalues are those of K^T Q
    trace = np.sum(inner * inner.mT, axis=(-1, -2))  # of theta theta
    return Spectra(
        scale * np.linalg.svd(core(query, key), compute_uv=False),
        scale * np.linalg.eigvals(inner).astype(complex),
        0.5 * (1 + over(trace, norm(query, key) ** 2)),
    )


class Score(NamedTuple):
    """A measure, mean and standard deviation of its null, and z = (value - null_mean) / null_std."""

    value: Any
    null_mean: Any
    null_std: Any
    z: Any


def score(value: Any, null: Any) -> Score:
    """Compares a measure with its null.

    Args:
      value: the measure, of any shape.
      null: draws of it, with a leading axis of draws; one value may be held against the nulls of many.
    Raises: ImrError if there are fewer than two draws, or shapes do not fit.

    >>> float(score(3.0, [0.0, 2.0]).z.round(3))
    1.414
    """
    # In their own precision, which jax's arrays may not have.
    for name, values in (("value", value), ("null", null)):
        as_numbers(name, values)
    null = np.asarray(null)
    if null.ndim < 1 or len(null) < 2:
        raise ImrError(f"null must hold at least two draws; found shape {null.shape}.")
    try:
        np.broadcast_shapes(np.shape(value), null.shape[1:])
    except ValueError:
        raise ImrError(
            f"null must hold draws of value, of shape {np.shape(value)}; found {null.shape[1:]}."
        ) from None
    mean, std = null.mean(axis=0), null.std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Score(value, mean, std, np.asarray((value - mean) / std))


def mismatched(
    heads: HeadWeights, shift: int, parts: tuple[str, ...] = ("query", "key")
) -> HeadWeights:
    """The heads with some weights taken from another head of the model.

    Args:
      heads: of all layers.
      shift: how far the other head lies before it, counted through all layers and round; 1 to
        l h - 1 are all there are.
      parts: fields of `HeadWeights` to take. With `("key",)`, queries meet the keys of another head.
    Raises: ImrError if the shift is a multiple of the number of heads, or a part is no field.
    """
    check_kind("heads", heads, HeadWeights)
    l, h = heads.query.shape[:2]
    if not isinstance(shift, int | np.integer):
        raise ImrError(f"shift must be an integer; found {shift!r}.")
    if shift % (l * h) == 0:
        raise ImrError(f"shift must not be a multiple of the {l * h} heads; found {shift}.")
    if isinstance(parts, str) or not isinstance(parts, Collection):
        raise ImrError(f"parts must be a tuple of fields of HeadWeights; found {parts!r}.")
    if unknown := set(map(str, parts)) - set(HeadWeights._fields):
        raise ImrError(f"parts must be fields of HeadWeights; found {sorted(unknown)}.")

    def roll(x):
        x = np.asarray(x)
        return np.roll(x.reshape(l * h, *x.shape[2:]), shift, axis=0).reshape(x.shape)

    return heads._replace(**{part: roll(getattr(heads, part)) for part in parts})


def rotated(heads: HeadWeights, key: Key[Array, ""]) -> HeadWeights:
    r"""The heads with $\theta \to U \theta U^T$, U orthogonal and random: all spectra stay.

    Args:
      heads: of all layers; U (d, d) is drawn uniformly, once for all of them.
      key: a PRNG key.
    """
    check_key(key)
    query, keys, _, _ = float64(heads)
    d, r = query.shape[-2:]
    # Only where U takes the 2r columns matters: to an orthonormal frame that is random.
    upper: Any = np.linalg.qr(np.concatenate([query, keys], axis=-1), mode="r")
    gauss = np.asarray(jax.random.normal(key, (d, upper.shape[-2])), np.float64)
    frame, sides = np.linalg.qr(gauss)
    turned = (frame * np.sign(np.diagonal(sides))) @ upper
    return heads._replace(query=turned[..., :r], key=turned[..., r:])
