r"""What the weights of heads say: is the value circuit that of a gradient step?

$\theta = W_Q W_K^T / \sqrt r$. A head that descends the log-sum-exp has $W_V W_O \propto
-\theta^T$; one that climbs it, $+\theta^T$. Everything goes by r x r products, never d x d, in numpy
and float64: factorisations of many small matrices, done once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex128, Float64, Key

from imr._checks import check_key
from imr._numerics import matmul
from imr.errors import ImrError
from imr.lens.model import Heads, Model, input_norms


class WeightCosines(NamedTuple):
    r"""Cosines with $+\theta^T$ in the inner product of matrices, shape (l, h).

    Attributes:
      whole: of $W_V W_O$ with $\theta^T$, as they are.
      within: with the part of $\theta^T$ that lies in the circuit's own subspace: read by $W_V$,
        written by $W_O$.
    """

    whole: Float64[np.ndarray, "l h"]
    within: Float64[np.ndarray, "l h"]


class Fits(NamedTuple):
    r"""What the best head of the flow leaves of each head: 0 all the same, 1 nothing, (l, h).

    $\min_M \tfrac12 \|\theta/|\theta| - M\|^2 + \tfrac12 \|\pm (W_V W_O)^T/|W_V W_O| - M\|^2$ over
    M of rank r: one matrix that has to be the attention and the value circuit both.

    Attributes:
      descent: where the circuit is to be $-M^T$. climb: where it is to be $+M^T$.
    """

    descent: Float64[np.ndarray, "l h"]
    climb: Float64[np.ndarray, "l h"]


class Spectra(NamedTuple):
    r"""Of $\theta$.

    Attributes:
      singular_values, eigenvalues: those that are not 0 by rank, (l, h, r).
      symmetric_share: $|S|^2 / |\theta|^2$ of its symmetric part S, (l, h); 1/2 where it is random.
    """

    singular_values: Float64[np.ndarray, "l h r"]
    eigenvalues: Complex128[np.ndarray, "l h r"]
    symmetric_share: Float64[np.ndarray, "l h"]


class Score(NamedTuple):
    """A measure beside its null: z = (value - mean) / std, of the null."""

    value: Any
    null_mean: Any
    null_std: Any
    z: Any


def weight_cosines(heads: Heads) -> WeightCosines:
    r"""How each head's value circuit lies to its own attention.

    $\langle W_V W_O, W_K W_Q^T \rangle = \sum_{ab} (W_V^T W_K)_{ab} (W_O W_Q)_{ab}$.

    For a null hand in heads that `mismatched` or `rotated` gives, and see `score`. Where theta is
    rotated at both sides at random the cosine's standard deviation is exactly 1/d.

    Reference: arXiv 2509.04653; the measure is imr's own.
    """
    query, key, value, output = _wide(heads)
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


def imr_fits(heads: Heads) -> Fits:
    """The share of each head, attention and circuit alike, that no head of the flow accounts for.

    Reference: imr's own; the best M is the truncated singular value decomposition of the mean.
    """
    query, key, value, output = _wide(heads)
    scale = lambda x, by: _over(0.5 * x, by[..., None, None])  # noqa: E731
    left = scale(query, _norm(query, key)), scale(output, _norm(output, value))
    rank = query.shape[-1]

    def left_over(sign):
        core = _core(
            np.concatenate([left[0], sign * left[1]], -1), np.concatenate([key, value], -1)
        )
        kept = np.linalg.svd(core, compute_uv=False)[..., :rank]
        return np.maximum(1 - np.sum(kept**2, axis=-1), 0)

    return Fits(left_over(-1.0), left_over(1.0))


def theta_spectra(heads: Heads) -> Spectra:
    r"""Singular values, eigenvalues and symmetric share of $\theta = W_Q W_K^T / \sqrt r$."""
    query, key, _, _ = _wide(heads)
    scale = query.shape[-1] ** -0.5
    inner = _gram(key, query)  # theta's eigenvalues are those of K^T Q
    own = np.sum(inner * np.swapaxes(inner, -1, -2), axis=(-1, -2))
    return Spectra(
        scale * np.linalg.svd(_core(query, key), compute_uv=False),
        scale * np.linalg.eigvals(inner).astype(complex),
        0.5 * (1 + _over(own, _norm(query, key) ** 2)),
    )


def fold_norms(model: Model) -> Heads:
    r"""Heads in the coordinates of the normalised stream, scale and centring of norms in the weights.

    $W \to (I - 1 1^T / d) \, diag(\gamma) W$ for $W_Q$, $W_K$, $W_V$, with the norm that the head
    reads through, and $W_O \to W_O (I - 1 1^T / d)$, as the next norm takes the mean away. Where norms
    come after, the stream itself is $\gamma \hat x + \beta$, and $W_O \to W_O \, diag(1 / \gamma) (I - 1
    1^T / d)$ writes into $\hat x$. Biases take up the norm's.
    """
    norm = input_norms(model)
    centred = lambda x, axis: x - jnp.mean(x, axis=axis, keepdims=True)  # noqa: E731
    heads = model.heads
    scale, shift = norm.scale[:, None, :, None], norm.bias[:, None, None, :]
    fold = lambda w: centred(scale * w, 2)  # noqa: E731
    bias = lambda w, b: b + matmul(shift, w)[:, :, 0, :]  # noqa: E731
    inverse = jnp.where(norm.scale == 0, 0, 1 / jnp.where(norm.scale == 0, 1, norm.scale))
    written = jnp.ones_like(norm.scale) if model.norm_first else inverse
    return Heads(
        fold(heads.query),
        fold(heads.key),
        fold(heads.value),
        centred(heads.output * written[:, None, None, :], 3),
        bias(heads.query, heads.query_bias),
        bias(heads.key, heads.key_bias),
        bias(heads.value, heads.value_bias),
        centred(heads.output_bias * written, 1),
    )


def mismatched(heads: Heads, shift: int, parts: tuple[str, ...] = ("query", "key")) -> Heads:
    """The heads with some parts of the head `shift` further on, over all layers and round.

    Shifts of 1 to l h - 1 are all there are. With `("key",)` queries meet strange keys.

    Raises:
      ImrError: where the shift is 0 round the heads, or a part is no field of `Heads`.
    """
    l, h = heads.query.shape[:2]
    if shift % (l * h) == 0:
        raise ImrError(f"shift must not be a multiple of the {l * h} heads; found {shift}.")
    if unknown := set(parts) - set(Heads._fields):
        raise ImrError(f"parts must be fields of Heads; found {sorted(unknown)}.")

    def roll(x):
        x = np.asarray(x)
        return np.roll(x.reshape(l * h, *x.shape[2:]), shift, axis=0).reshape(x.shape)

    return heads._replace(**{part: roll(getattr(heads, part)) for part in parts})


def rotated(heads: Heads, key: Key[Array, ""]) -> Heads:
    r"""The heads with $\theta \to U \theta U^T$, U orthogonal and random: all spectra stay.

    Args:
      heads: of d features; U (d, d) is drawn uniformly, once for all of them.
      key: a PRNG key.
    """
    check_key(key)
    query, key_weights, _, _ = _wide(heads)
    d, r = query.shape[-2:]
    # Only where U takes the 2r columns matters: to an orthonormal frame that is random.
    upper: Any = np.linalg.qr(np.concatenate([query, key_weights], axis=-1), mode="r")
    gauss = np.asarray(jax.random.normal(key, (d, upper.shape[-2])), np.float64)
    frame, sides = np.linalg.qr(gauss)
    turned = (frame * np.sign(np.diagonal(sides))) @ upper
    return heads._replace(query=turned[..., :r], key=turned[..., r:])


def score(value: Any, null: Any) -> Score:
    """A measure beside draws of its null, which lie along a leading axis.

    Raises:
      ImrError: with fewer than two draws.

    >>> float(score(3.0, [0.0, 2.0]).z.round(3))
    1.414
    """
    null = np.asarray(null)
    if len(null) < 2:
        raise ImrError(f"null must hold at least two draws; found {len(null)}.")
    mean, std = null.mean(axis=0), null.std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Score(value, mean, std, np.asarray((value - mean) / std))


def _wide(heads):
    """W_Q, W_K, W_V and W_O^T, all (l, h, d, r), in float64."""
    output = np.swapaxes(np.asarray(heads.output, np.float64), -1, -2)
    return *(np.asarray(w, np.float64) for w in heads[:3]), output


def _gram(a, b):
    """a^T b for each head."""
    return np.swapaxes(a, -1, -2) @ b


def _over(x, size):
    """x / size, and 0 where that is 0: a head without weights lies along nothing."""
    return np.where(size > 0, x / np.where(size > 0, size, 1), 0)


def _power(gram, exponent):
    """Of symmetric matrices that are nowhere negative; what is 0 stays 0."""
    values, vectors = np.linalg.eigh(gram)
    some = values > np.maximum(1e-13 * np.max(values, axis=-1, keepdims=True), 0)
    powers = np.where(some, np.where(some, values, 1) ** exponent, 0)
    return (vectors * powers[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _core(a, b):
    """A small matrix with the singular values of a b^T."""
    return _power(_gram(a, a), 0.5) @ _power(_gram(b, b), 0.5)


def _norm(a, b):
    """Of a b^T for each head."""
    return np.sqrt(np.sum(_gram(a, a) * _gram(b, b), axis=(-1, -2)))
