"""Constructed attention heads that compute constrained beliefs, and the best additive filter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import check_count, check_kind
from imr._numerics import matmul, repeat_last
from imr._parameters import as_number
from imr._sequences import as_sequences
from imr.constrained.vectors import lag_table, pick, token_vectors
from imr.errors import ImrError
from imr.processes.process import Process, check_process


class Heads(NamedTuple):
    r"""A constructed layer: residual after attention $e v_{x_d} + \sum_{h,s} A_{hds} g_{hs} v_{x_s}$.

    Attributes:
      attention, gains: A (h, l, l), whose rows sum to one, and g (h, l).
      embedding: e, a scalar.
    """

    attention: Float[Array, "h l l"]
    gains: Float[Array, "h l"]
    embedding: Float[Array, ""]


def one_head_attention(eigenvalue: Any, length: int, embedding: float = 0.0) -> Heads:
    r"""The one head that computes $\eta - \pi$ exactly, for an eigenvalue $0 < \lambda < 1$.

    $A_{ds} g_s = \lambda^{d-s}$ for s < d, $e + A_{dd} g_d = 1$, and rows of A sum to one. For e = 0
    the only solution is $g_1 = 1$, $g_s = 1 / (1 - \lambda)$, that is $A_{d1} = \lambda^{d-1}$,
    $A_{ds} = (1 - \lambda) \lambda^{d-s}$. For e > 0 only the products $A_{ds} g_s$ are
    determined; late gains are $(1 - e) + \lambda / (1 - \lambda)$.

    Args:
      eigenvalue: in (0, 1), a number or an entry of `spectrum(process).eigenvalues`.
      length: l.
      embedding: e in [0, 1 - eigenvalue).
    Raises: ImrError if an argument is out of range.

    >>> one_head_attention(0.5, 3).attention[0].tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]

    Reference: arXiv 2502.01954, section 4.
    """
    hint = " For a negative eigenvalue use two_head_attention."
    lam = as_number("eigenvalue", eigenvalue, "(0, 1)", hint)
    e = as_number("embedding", embedding, "[-inf, inf]")
    check_count("length", length)
    if not 0 <= e < 1 - lam:
        raise ImrError(f"embedding must lie in [0, 1 - eigenvalue = {1 - lam:g}); found {e:g}.")
    products = np.tril(lam ** np.maximum(lag_table(length), 0)) - e * np.eye(length)
    gains = np.zeros(length)
    for d in range(length):
        gains[d] = (1 - e) / (1 - np.sum(products[d, :d] / gains[:d]))
    return _heads([products / gains[None, :]], [gains], e)


def two_head_attention(eigenvalue: Any, length: int) -> Heads:
    r"""An even-lag and an odd-lag head that compute $\eta - \pi$ exactly, for $-1 < \lambda < 0$.

    e = 1, and the result is exact from the second position on. In row 2 both heads look at position
    1, with gains $\lambda^2$ and $\lambda - \lambda^2$. Each later gain, at the smallest lag f = 2 of
    the even and f = 1 of the odd head, is $\lambda^f / (1 - \sum_{older} \lambda^{d-s} / g_s)$; the
    limits are $\lambda^2 / (1 - \lambda^2)$ and $\lambda / (1 - \lambda^2)$.

    Args:
      eigenvalue, length: as in `one_head_attention`, with the eigenvalue in (-1, 0).

    >>> [round(g, 4) for g in two_head_attention(-0.5, 8).gains[:, 4].tolist()]
    [0.3333, -0.6667]
    """
    lam = as_number("eigenvalue", eigenvalue, "(-1, 0)")
    check_count("length", length)
    lags = lag_table(length)
    attentions, all_gains = [], []
    for first in (2, 1):
        reached = (lags >= first) & (lags % 2 == first % 2)
        products = np.where(reached, lam ** np.maximum(lags, 0), 0.0)
        # The limits; rows that use them determine the early ones below.
        gains = np.full(length, lam**first / (1 - lam**2))
        gains[0] = lam**2 if first == 2 else lam - lam**2
        for d in range(max(first, 2), length):
            new = d - first
            if new > 0:
                gains[new] = lam**first / (1 - np.sum(products[d, :new] / gains[:new]))
        attentions.append(products / gains[None, :])
        # Rows without a token at their lags look at the first position.
        attentions[-1][:2] = np.eye(length)[0][None, :]
        all_gains.append(gains)
    return _heads(attentions, all_gains, 1.0)


def apply_heads(
    process: Process, tokens: Any, heads: Heads, lengths: Any = None
) -> Float[Array, "*b l s"]:
    r"""Applies a constructed layer: the residual after attention of `Heads`.

    The heads of one eigenvalue give $\eta - \pi$ if the tokens have weights on no other one.

    Args:
      process, heads: the process, and heads of length l.
      tokens: integers, shape (..., l).
      lengths: of sequences that end before position l, shape (...); beyond a length the last residual
        is repeated, or zero if there is none. Heads must be causal, as those made here are.
    Raises: ImrError if heads have another length than tokens, or tokens are out of range.

    >>> from imr.processes import mess3
    >>> tokens = jnp.array([0, 0])
    >>> apply_heads(mess3(0.15, 0.6), tokens, one_head_attention(0.55, 2))[:, 0].round(4).tolist()
    [0.2667, 0.4133]
    """
    check_process(process)
    check_kind("heads", heads, Heads)
    tokens, lengths = as_sequences(tokens, lengths, process.num_tokens)
    if (length := tokens.shape[-1]) != (other := heads.gains.shape[-1]):
        raise ImrError(f"tokens have length {length}, but heads {other}: they must be equal.")
    return _apply(token_vectors(process), tokens, heads, lengths)


class Values(NamedTuple):
    """Predicted vectors in belief space: embeddings (k, s) and OV outputs (h, l, k, s)."""

    embeddings: Float[Array, "k s"]
    values: Float[Array, "h l k s"]


def predicted_values(process: Process, heads: Heads) -> Values:
    r"""Embeddings $E_x = e v_x$ and OV outputs $g_{hs} v_x$ of each head, position and token.

    Args:
      process, heads: as in `apply_heads`.
    Raises: ImrError if an argument is of another type.
    """
    vectors = token_vectors(process)
    check_kind("heads", heads, Heads)
    return Values(heads.embedding * vectors, heads.gains[..., None, None] * vectors[None, None])


class AdditiveFilter(NamedTuple):
    """Steady-state Kalman filter z_d = pole z_{d-1} + gain y_d, with its error variance."""

    pole: float
    gain: float
    variance: float


def additive_filter(eigenvalue: float, correlation: float) -> AdditiveFilter:
    r"""The best additive filter of a state of decay $\lambda$, observed with correlation c.

    $z_{d+1} = \lambda z_d + \text{noise}$ of unit variance, $y = c z + \text{noise}$ of variance
    $R = 1 - c^2$. P, the variance of the one-step prediction, solves
    $P = \lambda^2 P R / (c^2 P + R) + 1 - \lambda^2$; pole $\lambda R / (c^2 P + R)$, gain
    $c P / (c^2 P + R)$. For `mess3(x, a)`: $\lambda = 1 - 3x$, $c = (3a - 1)/2$, z and y the
    centred one-hot state and token. It decays faster than `constrained_beliefs`, by $\lambda$.

    Args:
      eigenvalue: $\lambda$ in (-1, 1).
      correlation: c in [-1, 1].
    Raises: ImrError if an argument is out of range.

    >>> round(additive_filter(0.55, 0.4).pole, 4)
    0.4666
    """
    lam = as_number("eigenvalue", eigenvalue, "(-1, 1)")
    c = as_number("correlation", correlation, "[-1, 1]")
    noise, drive = 1 - c**2, 1 - lam**2
    # c^2 P^2 + half P - constant = 0; the form of the root that does not cancel.
    half, constant = drive * (noise - c**2), drive * noise
    root = np.sqrt(half**2 + 4 * c**2 * constant)
    variance = (root - half) / (2 * c**2) if half < 0 else 2 * constant / (half + root)
    total = c**2 * variance + noise
    return AdditiveFilter(float(lam * noise / total), float(c * variance / total), float(variance))


def _heads(attention, gains, embedding):
    return Heads(*(jnp.asarray(np.asarray(x), float) for x in (attention, gains, embedding)))


@jax.jit
def _apply(vectors, tokens, heads, lengths):
    v = pick(vectors, tokens)
    mixed = jnp.sum(heads.attention * heads.gains[:, None, :], axis=0)
    residual = heads.embedding * v + matmul(mixed, v)
    if lengths is None:
        return residual
    return repeat_last(residual, jnp.zeros_like(residual[..., 0, :]), lengths)
