r"""What the agreement of circuits would be by chance, and what it is made of.

The circuits of a head meet the $\theta$ of others, of the whole model or of their layer, themselves
in other gauges, or parts of their own $\theta$. Heads of one model are not independent: a count of
heads beyond a null is no test, `permuted_layers` is one, for a whole model.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float64, Key

from imr._checks import check_count, check_key, check_kind
from imr.errors import ImrError
from imr.lens._factors import float64, gram, norm, over
from imr.lens.heads import HeadWeights
from imr.lens.weights import Score, weight_cosines


class PartCosines(NamedTuple):
    r"""Cosines of $W_V W_O$ with $\theta$ and with the two parts of $\theta^T$, shape (l, h).

    The antisymmetric part of $\theta^T$ is minus that of $\theta$.
    """

    untransposed: Float64[np.ndarray, "l h"]
    symmetric: Float64[np.ndarray, "l h"]
    antisymmetric: Float64[np.ndarray, "l h"]


class Gauge(NamedTuple):
    r"""How a head's value circuit is paired with its $\theta$, against other pairings.

    With balanced $W_V$ and $W_O$, which share their singular values, let $A = (W_V^T W_K) (W_Q^T
    W_O^T)$; tr A is the inner product of the circuits.

    Attributes:
      z: $\sqrt r \, tr A / |A|$, from -r to r, the score of tr A among those of $W_V G W_O$, G a random
        rotation; the norms of the products, which vary, are not in it. Shape (l, h).
      opposition: $tr A / |A|_*$, from -1, as opposed as the subspaces allow, to 1, shape (l, h).
    """

    z: Float64[np.ndarray, "l h"]
    opposition: Float64[np.ndarray, "l h"]


class FamilyWise(NamedTuple):
    """One figure for a model: its heads against heads whose labels are permuted within layers.

    Attributes:
      mean, negative: of the cosines of circuits with theta^T, mean and share below 0.
      mean_null, negative_null: the same for each permutation, shape (draws,).
      mean_p, negative_p: the share of permutations, and the model itself, that lean as much towards
        descent.
    """

    mean: float
    negative: float
    mean_null: Float64[np.ndarray, "draws"]
    negative_null: Float64[np.ndarray, "draws"]
    mean_p: float
    negative_p: float


def shifted_cosines(
    heads: HeadWeights, key: Key[Array, ""], *, groups: int | None = None, draws: int | None = 64
) -> Float64[np.ndarray, "draws l h"]:
    r"""Cosines of each value circuit with the $\theta^T$ of heads outside of its own key group.

    Args:
      heads: of all layers, as `head_weights` gives them.
      key: for the shifts, at which the other heads lie, counted through all layers and round.
      groups: how many key groups the heads of a layer have; None means one for each head.
      draws: how many shifts, or all if there are fewer; None means all.
    Returns: The null, for `score`.
    Raises: ImrError if groups do not divide the heads, or there are fewer than two shifts.

    >>> w = np.random.default_rng(0).normal(size=(3, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((3, 4, 2)), np.zeros((3, 4, 2)), np.zeros((3, 4, 2)), np.zeros((3, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> shifted_cosines(heads, jax.random.key(0), groups=2).shape
    (9, 3, 4)

    Reference: imr's own.
    """
    check_key(key)
    groups = key_groups(heads, groups)
    l, h = heads.query.shape[:2]
    size = h // groups
    shifts = np.arange(size, l * h - size + 1)
    if draws is not None:
        check_count("draws", draws, 2)
    if len(shifts) < 2:
        raise ImrError(
            f"heads must lie in three key groups or more, of all layers; found {l * h} heads, "
            f"{size} in a group. Take random directions as the null: see `rotated`."
        )
    if draws is not None and draws < len(shifts):
        shifts = _generator(key).choice(shifts, draws, replace=False)
    query, keys, value, output = (x.reshape(l * h, *x.shape[2:]) for x in float64(heads))
    circuit, theta = norm(value, output), norm(keys, query)

    def one(shift):
        inner = np.sum(
            gram(value, np.roll(keys, shift, axis=0)) * gram(output, np.roll(query, shift, axis=0)),
            axis=(-1, -2),
        )
        return over(inner, circuit * np.roll(theta, shift))

    return np.stack([one(int(shift)) for shift in shifts]).reshape(-1, l, h)


def layer_cosines(heads: HeadWeights) -> Float64[np.ndarray, "l h h"]:
    r"""Cosines of the value circuit of each head (rows) with the $\theta^T$ of each of its layer.

    Args:
      heads: of all layers.
    Returns: Shape (l, h, h), with `weight_cosines` on the diagonal.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> np.diagonal(layer_cosines(heads)[0]).round(3).tolist()
    [-1.0, -1.0, -1.0, -1.0]

    Reference: imr's own.
    """
    query, key, value, output = float64(heads)

    def layer(query, key, value, output):
        inner = np.stack(
            [np.sum(gram(v, key) * gram(o, query), (-1, -2)) for v, o in zip(value, output, strict=True)]
        )  # fmt: skip
        return over(inner, norm(value, output)[:, None] * norm(key, query)[None])

    return np.stack([layer(*each) for each in zip(query, key, value, output, strict=True)])


def layer_scores(heads: HeadWeights, *, groups: int | None = None) -> Score:
    r"""`weight_cosines` beside those with the $\theta$ of other key groups of the same layer.

    Args:
      heads, groups: as in `shifted_cosines`.
    Returns: `Score`, shape (l, h).
    Raises: ImrError if groups do not divide the heads, or fewer than two heads lie outside of one.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> bool((layer_scores(heads).z < -3).all())
    True

    Reference: imr's own.
    """
    groups = key_groups(heads, groups)
    h = heads.query.shape[1]
    if (others := h - h // groups) < 2:
        raise ImrError(
            f"layers must have two heads or more outside of each key group; found {others}."
        )
    cosines = layer_cosines(heads)
    group = np.arange(h) // (h // groups)
    null = cosines[:, group[:, None] != group[None]].reshape(-1, h, others)
    value = np.diagonal(cosines, axis1=1, axis2=2)
    mean, std = null.mean(axis=-1), null.std(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Score(value, mean, std, np.asarray((value - mean) / std))


def part_cosines(heads: HeadWeights) -> PartCosines:
    r"""Cosines of each value circuit with $\theta$, and with the parts of $\theta^T$.

    Args:
      heads: of all layers.
    Returns: `PartCosines`.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> part_cosines(heads).symmetric.round(3).tolist()
    [[-1.0, -1.0, -1.0, -1.0]]

    Reference: imr's own.
    """
    query, key, value, output = float64(heads)
    size, circuit = norm(query, key), norm(value, output)
    straight = np.sum(gram(value, query) * gram(output, key), axis=(-1, -2))
    across = weight_cosines(heads).whole * circuit * size
    inner = gram(key, query)
    share = 0.5 * (1 + over(np.sum(inner * inner.mT, axis=(-1, -2)), size**2))

    def cosine(part, share):
        return over(part, circuit * size * np.sqrt(np.maximum(share, 0)))

    return PartCosines(
        cosine(straight, 1.0),
        cosine(0.5 * (across + straight), share),
        cosine(0.5 * (across - straight), 1 - share),
    )


def gauge_scores(heads: HeadWeights) -> Gauge:
    """Each head's inner product of circuits against other gauges of its value circuit.

    Args:
      heads: of all layers.
    Returns: `Gauge`.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> gauge_scores(heads).opposition.round(3).tolist()
    [[-1.0, -1.0, -1.0, -1.0]]

    Reference: imr's own.
    """
    query, key, value, output = float64(heads)
    read, upper = np.linalg.qr(value)
    write, lower = np.linalg.qr(output)
    left, singular, right = np.linalg.svd(upper @ lower.mT)
    balance = np.sqrt(singular)[..., None, :]
    value, output = read @ (left * balance), write @ (right.mT * balance)
    paired = gram(value, key) @ gram(query, output)
    trace = np.trace(paired, axis1=-2, axis2=-1)
    nuclear = np.linalg.svd(paired, compute_uv=False).sum(axis=-1)
    root = np.sqrt(query.shape[-1])
    return Gauge(over(root * trace, np.linalg.norm(paired, axis=(-1, -2))), over(trace, nuclear))


def permuted_layers(heads: HeadWeights, key: Key[Array, ""], draws: int = 9999) -> FamilyWise:
    r"""Whether a model leans towards descent, if labels of heads within layers could be exchanged.

    The $\theta$ of a layer are dealt out anew to its value circuits, in all layers at once: what all
    heads of a layer share, or of a model, makes no difference then. One test for a model, whatever
    the dependence among its heads.

    Args:
      heads: of all layers.
      key, draws: for the permutations, and how many.
    Returns: `FamilyWise`.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> figure = permuted_layers(heads, jax.random.key(0), draws=99)
    >>> round(figure.mean, 3), figure.mean_p < 0.1
    (-1.0, True)

    Reference: imr's own.
    """
    check_key(key)
    check_count("draws", draws)
    cosines = layer_cosines(heads)
    l, h = cosines.shape[:2]
    orders = _generator(key).permuted(np.broadcast_to(np.arange(h), (draws, l, h)), axis=-1)
    own = np.diagonal(cosines, axis1=1, axis2=2)
    null = cosines[np.arange(l)[:, None], np.arange(h), orders].reshape(draws, -1)
    means, negatives = null.mean(axis=1), (null < 0).mean(axis=1)
    mean, negative = float(own.mean()), float((own < 0).mean())
    # In units of the last digit: a permutation that changes nothing counts.
    beyond = np.sum(means <= mean + 1e-12), np.sum(negatives >= negative - 1e-12)
    return FamilyWise(
        mean, negative, means, negatives, *(float((1 + x) / (1 + draws)) for x in beyond)
    )


def without_shared(heads: HeadWeights, count: int = 32) -> HeadWeights:
    r"""The heads less the directions that all their weights share most.

    Those are the first eigenvectors of the sum of $W W^T / |W|^2$ over all heads and over $W_Q$,
    $W_K$, $W_V$ and $W_O^T$.

    Args:
      heads: of all layers.
      count: how many directions, fewer than the features.
    Returns: `HeadWeights`; biases stay.
    Raises: ImrError if `count` is out of range.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> heads = HeadWeights(w, w, w, -w.mT, *zeros)
    >>> without_shared(heads, 2).query.shape
    (1, 4, 16, 2)

    Reference: imr's own.
    """
    check_kind("heads", heads, HeadWeights)
    d = heads.query.shape[2]
    check_count("count", count)
    if count >= d:
        raise ImrError(f"count must be below the {d} features; found {count}.")
    total = np.zeros((d, d))
    for weight in float64(heads):
        flat = over(weight, np.linalg.norm(weight, axis=(-1, -2), keepdims=True))
        flat = np.moveaxis(flat, 2, 0).reshape(d, -1)
        total += flat @ flat.T
    shared = np.linalg.eigh(total)[1][:, -count:]
    query, key, value, output = (w - shared @ (shared.T @ w) for w in float64(heads))
    return heads._replace(query=query, key=key, value=value, output=output.mT)


def _generator(key) -> np.random.Generator:
    """Ten thousand permutations are no work for a compiler."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def key_groups(heads: HeadWeights, groups: int | None) -> int:
    """How many key groups the heads of a layer have, checked."""
    check_kind("heads", heads, HeadWeights)
    h = heads.query.shape[1]
    if groups is None:
        return h
    check_count("groups", groups)
    if h % groups:
        raise ImrError(f"groups must divide the {h} heads of a layer; found {groups}.")
    return groups
