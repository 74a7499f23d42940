r"""Heads with rotary positions: $\theta_D = s W_Q R_D W_K^T$ depends on the distance D = i - j.

$W_V W_O$ knows no distance. This is what one circuit can have of them all.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from imr._checks import as_numbers, check_axis, check_choice, check_finite, check_kind, check_rank
from imr._typing import AnyArray
from imr.errors import ImrError
from imr.lens._factors import float64, gram, norm, over
from imr.lens.heads import Heads, HeadWeights, head_weights


class RotarySpectra(NamedTuple):
    r"""$\langle W_V W_O, \theta_D^T \rangle = c + \sum_m a_m \cos(w_m D) + b_m \sin(w_m D)$.

    Attributes:
      frequencies: w, shape (f,), fast to slow as a rule.
      cosine, sine: a and b, over the norms of $W_V W_O$ and $\theta_0$, so that c and all a add up to
        the cosine at distance 0, shape (h, f).
      constant: c, of features that do not turn, shape (h,).
      pairs: the cosines of $W_V W_O$ with $\theta_0^T$ by each pair of features alone, shape (h, f).
    """

    frequencies: Float64[np.ndarray, "f"]
    cosine: Float64[np.ndarray, "h f"]
    sine: Float64[np.ndarray, "h f"]
    constant: Float64[np.ndarray, "h"]
    pairs: Float64[np.ndarray, "h f"]


class Distances(NamedTuple):
    """How far away heads attend: distances (k,), and their probabilities, shape (h, k) or (k,)."""

    distances: np.ndarray
    probabilities: np.ndarray


def rotary_spectra(heads: Heads) -> RotarySpectra:
    r"""How the agreement of each head's circuits depends on distance, by frequency.

    Args:
      heads: of one layer, with `frequencies`.
    Returns: `RotarySpectra`.
    Raises: ImrError if the heads have no rotary positions.

    >>> w = np.eye(4)[None, :, :2]
    >>> heads = Heads(query=w, key=w, value=w, output=-w.mT, scale=1.0, frequencies=np.ones(1))
    >>> spectra = rotary_spectra(heads)
    >>> spectra.cosine.tolist(), spectra.sine.tolist()
    ([[-1.0]], [[0.0]])

    Reference: imr's own.
    """
    f = _turning(heads)
    query, key, value, output = (x[0] for x in float64(head_weights(heads)))
    # <W_V W_O, W_K R^T W_Q^T> = sum_ab B_ab R_ab, and R_D has [cos, sin; -sin, cos] for each pair.
    inner = gram(query, output) @ gram(value, key)
    straight, across = np.arange(f), np.arange(f, 2 * f)
    size = norm(value, output) * norm(query, key)

    cosine = inner[:, straight, straight] + inner[:, across, across]
    sine = inner[:, straight, across] - inner[:, across, straight]
    constant = np.trace(inner[:, 2 * f :, 2 * f :], axis1=1, axis2=2)
    # Features m and m + f, as heads of rank 2: axes (h, f, d, 2).
    parts = [np.stack([x[..., straight], x[..., across]], axis=-1) for x in (query, key)]
    sizes = norm(*(np.moveaxis(x, 2, 1) for x in parts)) * norm(value, output)[:, None]
    return RotarySpectra(
        np.asarray(heads.frequencies, np.float64),
        over(cosine, size[:, None]),
        over(sine, size[:, None]),
        over(constant, size),
        over(cosine, sizes),
    )


def damped_heads(
    heads: Heads, distances: Any, probabilities: Float[AnyArray, "*h k"] | None = None
) -> HeadWeights:
    r"""Heads with the mean $E_D \theta_D = s W_Q (E_D R_D) W_K^T$ in place of $\theta$.

    Each pair of features is damped, and turned, by the characteristic function $E_D e^{i w D}$ of its
    frequency, so that fast pairs vanish. All measures of weights take the result: `weight_cosines`
    of it says whether the value circuit is that mean. A single distance gives $\theta_D$ itself.

    Args:
      heads: of one layer, with `frequencies`.
      distances: i - j, shape (k,), of one head or all; see `attended_distances`.
      probabilities: of the distances, shape (k,) or (h, k); None means all alike.
    Returns: `HeadWeights` of one layer, the mean rotation in the keys.
    Raises: ImrError if the heads have no rotary positions, or probabilities do not fit.

    >>> w = np.eye(4)[None, :, :2]
    >>> heads = Heads(query=w, key=w, value=w, output=-w.mT, scale=1.0, frequencies=np.ones(1))
    >>> damped_heads(heads, [0, 1]).key[0, 0, :2].round(3).tolist()
    [[0.77, -0.421], [0.421, 0.77]]

    Reference: imr's own.
    """
    f, h = _turning(heads), heads.query.shape[0]
    as_numbers("distances", distances)
    distances = np.atleast_1d(np.asarray(distances, np.float64))
    check_rank("distances", distances, 1, "(k,)")
    check_finite("distances", distances)
    if probabilities is None:
        probabilities = np.full(distances.shape, 1 / max(distances.size, 1))
    as_numbers("probabilities", probabilities)
    weights = np.asarray(probabilities, np.float64)
    shapes = distances.shape, (h, *distances.shape)
    sums = weights.sum(axis=-1)
    if weights.shape not in shapes or (weights < 0).any() or not np.allclose(sums, 1, atol=1e-4):
        raise ImrError(
            f"probabilities must have shape {shapes[0]} or {shapes[1]}, as there are "
            f"{distances.size} distances, and sum to 1; found shape {weights.shape}, sum {sums}."
        )
    angles = distances[:, None] * np.asarray(heads.frequencies, np.float64)
    cos, sin = ((weights @ x)[..., None, :] for x in (np.cos(angles), np.sin(angles)))
    made = head_weights(heads)

    def turned(keys):
        """Keys times the transpose of the mean rotation."""
        a, b, rest = keys[..., :f], keys[..., f : 2 * f], keys[..., 2 * f :]
        parts = [a * cos + b * sin, b * cos - a * sin, rest]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    bias = turned(np.asarray(made.key_bias)[0, :, None, :])[None, :, 0, :]
    return made._replace(key=turned(np.asarray(made.key)[0])[None], key_bias=bias)


def attended_distances(attention: Float[AnyArray, "h n n"], power: int = 1) -> Distances:
    r"""The distribution of the distance i - j at which heads attend.

    With power 1 each token i counts alike: $p(D) \propto \sum_{i-j=D} P_{ij}$. For white inputs that
    do not depend on P, the one circuit M that is nearest to the row terms $\sum_j P_{ij} x_j
    \theta_{i-j}^T$ by least squares is the mean of $\theta_D^T$ by power 2, $p(D) \propto \sum_{i-j=D}
    P_{ij}^2$; both agree if each token attends to one.

    Args:
      attention: attention weights, such as those of `head_updates`, shape (h, n, n).
      power: 1 or 2.
    Returns: `Distances`, of all distances from 1 - n to n - 1.
    Raises: ImrError if `power` is neither 1 nor 2, or attention is no (h, n, n) of positive sums.

    >>> attended_distances(np.array([[[1.0, 0.0], [0.5, 0.5]]])).probabilities.tolist()
    [[0.0, 0.75, 0.25]]
    """
    check_choice("power", power, (1, 2))
    as_numbers("attention", attention)
    weights = np.asarray(attention, np.float64) ** power
    check_rank("attention", weights, 3, "(h, n, n)")
    n = weights.shape[-1]
    check_axis("attention", weights.shape[1], "attention", n, "rows, as it has columns")
    distances = np.arange(1 - n, n)
    sums = np.stack([np.trace(weights, -d, axis1=-2, axis2=-1) for d in distances], axis=-1)
    if not (sums.sum(axis=-1) > 0).all():
        raise ImrError("attention must have a positive sum in each head; found 0 or less, or NaN.")
    return Distances(distances, sums / sums.sum(axis=-1, keepdims=True))


def _turning(heads: Heads) -> int:
    """The number of frequencies."""
    check_kind("heads", heads, Heads)
    if heads.frequencies is None:
        raise ImrError("heads must have frequencies: these have no rotary positions.")
    return heads.frequencies.shape[0]
