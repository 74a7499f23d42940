"""Nulls of the weight measures: heads that are paired wrongly or rotated, and z-scores."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from imr._checks import check_key
from imr.errors import ImrError
from imr.lens.model import HeadWeights
from imr.lens.weights import float64_weights


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
      null: draws of it, with a leading axis of draws.

    Raises:
      ImrError: if there are fewer than two draws.

    >>> float(score(3.0, [0.0, 2.0]).z.round(3))
    1.414
    """
    null = np.asarray(null)
    if len(null) < 2:
        raise ImrError(f"null must hold at least two draws; found {len(null)}.")
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

    Raises:
      ImrError: if the shift is a multiple of the number of heads, or a part is no field of
        `HeadWeights`.
    """
    l, h = heads.query.shape[:2]
    if shift % (l * h) == 0:
        raise ImrError(f"shift must not be a multiple of the {l * h} heads; found {shift}.")
    if unknown := set(parts) - set(HeadWeights._fields):
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

    Raises:
      ImrError: if key is no PRNG key.
    """
    check_key(key)
    query, keys, _, _ = float64_weights(heads)
    d, r = query.shape[-2:]
    # Only where U takes the 2r columns matters: to an orthonormal frame that is random.
    upper: Any = np.linalg.qr(np.concatenate([query, keys], axis=-1), mode="r")
    gauss = np.asarray(jax.random.normal(key, (d, upper.shape[-2])), np.float64)
    frame, sides = np.linalg.qr(gauss)
    turned = (frame * np.sign(np.diagonal(sides))) @ upper
    return heads._replace(query=turned[..., :r], key=turned[..., r:])
