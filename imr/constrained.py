r"""Constrained belief updates: what one layer of attention can compute of the belief, and how.

Attention adds up what single tokens say, $v_x = \pi T_x / (\pi T_x w) - \pi$, carried forward by
the chain: $\eta_d = \pi + \sum_{s \le d} v_{x_s} A^{d-s}$. The eigenvalues of A then say which
attention patterns, values and number of heads a trained layer should have.

Rows of $\eta$ are normalised and may leave the simplex. The ansatz is about the sum over tokens,
and silent elsewhere: where $v_x A = 0$, as for `rrxor`, it knows of the last token only; where the
chain is periodic, as for `zero_one_random`, what tokens say never decays and the sum grows.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from imr._checks import ImrError, as_tokens, check_choice, is_concrete
from imr._numerics import matmul
from imr.processes.process import Process, bare


def token_vectors(process: Process) -> Float[Array, "k s"]:
    r"""What each token says by itself: $v_x = \pi T_x / (\pi T_x w) - \pi$.

    Returns: shape (k, s); $\pi + v_x$ is the posterior after x alone.
    Raises: ImrError where a token has probability zero, and its posterior no meaning; under a
      trace that row is NaN.

    >>> from imr.processes import mess3
    >>> token_vectors(mess3(0.15, 0.6))[0].round(4).tolist()
    [0.2667, -0.1333, -0.1333]

    Reference: arXiv 2502.01954, section 4.
    """
    vectors, p = _token_vectors(bare(process))
    if is_concrete(p) and np.any(bad := ~(np.asarray(p) > 1e-12)):
        names = [name for name, zero in zip(process.tokens, bad, strict=True) if zero]
        raise ImrError(
            f"every token of the process must have positive probability; {names} have none. "
            "Leave their transitions out; of a process with a begin token take the process without."
        )
    return vectors


def row_normalised_token_vectors(process: Process) -> Float[Array, "k s"]:
    r"""A variant, for comparison: $\pi \tilde T_x - \pi$, rows of $T_x$ normalised to sum to one.

    It is the posterior after x only where x is as likely from every state; for `mess3` it is
    parallel to `token_vectors`, and shorter or longer.

    Returns: shape (k, s).
    Raises: ImrError where a token cannot be emitted from some state: that row cannot be normalised.
      Under a trace those vectors are NaN.

    >>> from imr.processes import mess3
    >>> process = mess3(0.15, 0.6)
    >>> v = token_vectors(process) / row_normalised_token_vectors(process)
    >>> round(v[0, 0].item(), 2)
    1.41
    """
    if process.generalised:
        raise ImrError("process must be hidden Markov: rows of a generalised one are no weights.")
    if is_concrete(process):
        rows = np.asarray(process.transitions).sum(-1)
        if np.any(rows == 0):
            x, i = np.argwhere(rows == 0)[0]
            raise ImrError(
                f"rows cannot be normalised: token {process.tokens[x]!r} is never emitted from "
                f"state {process.states[i]!r}. Use token_vectors."
            )
    return _row_normalised(bare(process))


def constrained_beliefs(
    process: Process, tokens: Any, *, method: Literal["recursive", "kernel", "spectral"] = "recursive"
) -> Float[Array, "*b l s"]:  # fmt: skip
    r"""$\eta_d = \pi + \sum_{s \le d} v_{x_s} A^{d-s}$, after each token.

    Args:
      process: the process.
      tokens: integers, shape (..., l).
      method: "recursive", $z_d = z_{d-1} A + v_{x_d}$; "kernel", the sum over all pairs of
        positions, as attention has it, of size l^2 k s; "spectral", the same with
        $v_x A^n = \sum_k \lambda_k^n (v_x R_k) L_k$ (not under a trace of the process).
    Returns: shape (..., l, s). Rows sum to one; entries may be negative.
    Raises: ImrError for an unknown method, tokens out of range, a token of probability zero, and a
      chain without a basis of eigenvectors where the spectrum is asked for.

    >>> from imr.processes import mess3
    >>> constrained_beliefs(mess3(0.15, 0.6), jnp.array([0, 0]))[:, 0].round(4).tolist()
    [0.6, 0.7467]

    Reference: arXiv 2502.01954, section 4.
    """
    check_choice("method", method, ("recursive", "kernel", "spectral"))
    tokens = as_tokens(tokens, process.num_tokens)
    vectors = token_vectors(process)
    if method == "recursive":
        return _recursive(bare(process), vectors, tokens)
    if method == "kernel":
        return _by_kernel(bare(process), _kernel(bare(process), vectors, tokens.shape[-1]), tokens)
    return _by_kernel(bare(process), _spectral_kernel(spectrum(process), tokens.shape[-1]), tokens)


def constrained_level(process: Process, depth: int) -> Float[Array, "words s"]:
    """Constrained beliefs after all k^d words of length d, the first token most significant.

    Returns: shape (k^d, s), in the order of `belief_level`.
    Raises: ImrError where depth is no integer of at least 0 or the words are more than 2^24.

    >>> from imr.processes import mess3
    >>> constrained_level(mess3(0.15, 0.6), 2).shape
    (9, 3)
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ImrError(f"depth must be an integer of at least 0; found {depth!r}.")
    if process.num_tokens**depth > 2**24:
        raise ImrError(f"depth must keep {process.num_tokens}^depth below 2^24; found {depth}.")
    return _level(bare(process), token_vectors(process), depth)


class Spectrum(NamedTuple):
    r"""$A = \sum_k \lambda_k R_k L_k$, by falling $|\lambda|$.

    Attributes:
      eigenvalues: shape (s,), complex.
      right: columns R, shape (s, s); left: rows L, shape (s, s), $L R = 1$.
      weights: $v_x R_k$, shape (k, s).
      active: whether some token has a weight on it, shape (s,); the stationary one is not.
    """

    eigenvalues: Complex[Array, "s"]
    right: Complex[Array, "s s"]
    left: Complex[Array, "s s"]
    weights: Complex[Array, "k s"]
    active: Bool[Array, "s"]


def spectrum(process: Process) -> Spectrum:
    """Eigenvalues and eigenvectors of the chain, and what the tokens put on them.

    Raises: ImrError under a trace, and for a chain without a basis of eigenvectors.

    >>> from imr.processes import mess3
    >>> found = spectrum(mess3(0.15, 0.6))
    >>> found.eigenvalues.real.round(3).tolist(), found.active.tolist()
    ([1.0, 0.55, 0.55], [False, True, True])
    """
    if not is_concrete(process):
        raise ImrError("spectrum needs the values of the process; call it outside of jax.jit.")
    matrix = np.asarray(process.transitions, np.float64).sum(0)
    values, right = np.linalg.eig(matrix)
    order = np.argsort(-np.abs(values).round(12), kind="stable")
    values, right = values[order].astype(complex), right[:, order].astype(complex)
    if (condition := np.linalg.cond(right)) > 1e8:
        raise ImrError(
            "the chain has no basis of eigenvectors (their matrix has condition number "
            f"{condition:.1e}); use the method recursive or kernel."
        )
    weights = np.asarray(token_vectors(process), np.float64) @ right
    precision = 1e-9 if process.transitions.dtype == jnp.float64 else 1e-5
    active = np.abs(weights).max(0) > precision
    dtype = jnp.result_type(process.transitions, jnp.complex64)
    left = np.linalg.inv(right)
    values, right, left, weights = (jnp.asarray(x, dtype) for x in (values, right, left, weights))
    return Spectrum(values, right, left, weights, jnp.asarray(active))


def head_count(process: Process, *, tolerance: float = 1e-5) -> int:
    r"""How many heads of attention over lags of at least one the active spectrum asks for.

    Weights of attention are positive and a head has one value matrix. So an eigenvalue
    $\lambda > 0$ needs one head; $\lambda < 0$ two, of even and of odd lags, with values of
    opposite sign; a pair $|\lambda| e^{\pm i 2 \pi p / q}$ one for each residue of the lag modulo
    q, or four, the positive and negative parts of cosine and sine, where q is larger.
    Eigenvalues that differ have different patterns, and add; zero needs none. An ansatz.

    Raises: ImrError as `spectrum` does.

    >>> from imr.processes import mess3
    >>> head_count(mess3(0.15, 0.6)), head_count(mess3(0.5, 0.6))
    (1, 2)

    Reference: arXiv 2502.01954, section 4.
    """
    found = spectrum(process)
    distinct = []
    for value in np.asarray(found.eigenvalues)[np.asarray(found.active)]:
        # Of a conjugate pair the upper one.
        value = complex(value.real, abs(value.imag))
        if abs(value) > tolerance and all(abs(value - other) > tolerance for other in distinct):
            distinct.append(value)
    orders = ((q for q in (1, 2, 3) if abs((v / abs(v)) ** q - 1) < tolerance) for v in distinct)
    return sum(next(found, 4) for found in orders)


class Heads(NamedTuple):
    r"""A constructed layer: residual after attention $e v_{x_d} + \sum_{h,s} A_{hds} g_{hs} v_{x_s}$.

    Attributes:
      attention: A, rows sum to one, shape (h, l, l).
      gains: g, the value at s is $g_s v_{x_s}$, shape (h, l).
      embedding: e, a scalar.
    """

    attention: Float[Array, "h l l"]
    gains: Float[Array, "h l"]
    embedding: Float[Array, ""]


def one_head_attention(eigenvalue: float, length: int, embedding: float = 0.0) -> Heads:
    r"""The one head that makes $\eta - \pi$ exactly, for an eigenvalue $0 < \lambda < 1$.

    $A_{ds} g_s = \lambda^{d-s}$ for s < d, $e + A_{dd} g_d = 1$, rows of A sum to one. For e = 0
    the only solution is $g_1 = 1$, $g_s = 1 / (1 - \lambda)$, that is $A_{d1} = \lambda^{d-1}$,
    $A_{ds} = (1 - \lambda) \lambda^{d-s}$. For others only the products $A_{ds} g_s$ are
    predicted; late gains are $(1 - e) + \lambda / (1 - \lambda)$.

    Args:
      eigenvalue: in (0, 1).
      length: l.
      embedding: e in [0, 1 - eigenvalue).
    Returns: `Heads` of one head.
    Raises: ImrError for values out of range.

    >>> one_head_attention(0.5, 3).attention[0].tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]

    Reference: arXiv 2502.01954, section 4.
    """
    lam, e = _within("eigenvalue", eigenvalue, 0, 1), float(embedding)
    _check_length(length)
    if not 0 <= e < 1 - lam:
        raise ImrError(f"embedding must lie in [0, 1 - eigenvalue = {1 - lam:g}); found {e:g}.")
    products = np.tril(lam ** np.maximum(_lags(length), 0)) - e * np.eye(length)
    gains = np.zeros(length)
    for d in range(length):
        gains[d] = (1 - e) / (1 - np.sum(products[d, :d] / gains[:d]))
    return _heads([products / gains[None, :]], [gains], e)


def two_head_attention(eigenvalue: float, length: int) -> Heads:
    r"""An even-lag and an odd-lag head that make $\eta - \pi$ exactly for $-1 < \lambda < 0$.

    e = 1; exact from the second position on. Position 1 serves both heads in row 2: gains
    $\lambda^2$ and $\lambda - \lambda^2$. Then each new gain, at lag f = 2 of the even and 1 of the
    odd head, is $\lambda^f / (1 - \sum_{older} \lambda^{d-s} / g_s)$; late ones are
    $\lambda^2 / (1 - \lambda^2)$ and $\lambda / (1 - \lambda^2)$.

    Args:
      eigenvalue: in (-1, 0).
      length: l.
    Returns: `Heads`, the even head first.
    Raises: ImrError for values out of range.

    >>> [round(g, 4) for g in two_head_attention(-0.5, 8).gains[:, 4].tolist()]
    [0.3333, -0.6667]

    Reference: arXiv 2502.01954, section 4.
    """
    lam = _within("eigenvalue", eigenvalue, -1, 0)
    _check_length(length)
    lags = _lags(length)
    attentions, all_gains = [], []
    for first in (2, 1):
        products = np.where(
            (lags >= first) & (lags % 2 == first % 2), lam ** np.maximum(lags, 0), 0.0
        )
        # Until a row that uses them says otherwise.
        gains = np.full(length, lam**first / (1 - lam**2))
        gains[0] = lam**2 if first == 2 else lam - lam**2
        for d in range(max(first, 2), length):
            new = d - first
            if new > 0:
                gains[new] = lam**first / (1 - np.sum(products[d, :new] / gains[:new]))
        attention = products / gains[None, :]
        # What has no token at its lags looks at the first.
        attention[:2] = np.eye(length)[0][None, :]
        attentions.append(attention)
        all_gains.append(gains)
    return _heads(attentions, all_gains, 1.0)


def apply_heads(process: Process, tokens: Any, heads: Heads) -> Float[Array, "*b l s"]:
    r"""Runs a constructed layer: $e v_{x_d} + \sum_{h,s} A_{hds} g_{hs} v_{x_s}$, here $\eta - \pi$.

    Args:
      process: the process.
      tokens: integers, shape (..., l).
      heads: of length l.
    Returns: shape (..., l, s).
    Raises: ImrError where lengths differ, or tokens are out of range.

    >>> from imr.processes import mess3
    >>> tokens = jnp.array([0, 0])
    >>> apply_heads(mess3(0.15, 0.6), tokens, one_head_attention(0.55, 2))[:, 0].round(4).tolist()
    [0.2667, 0.4133]
    """
    tokens = as_tokens(tokens, process.num_tokens)
    if tokens.shape[-1] != heads.gains.shape[-1]:
        raise ImrError(f"tokens have length {tokens.shape[-1]}, heads {heads.gains.shape[-1]}.")
    return _apply(token_vectors(process), tokens, heads)


class Values(NamedTuple):
    """Predicted vectors in belief space: embeddings (k, s) and values (h, l, k, s)."""

    embeddings: Float[Array, "k s"]
    values: Float[Array, "h l k s"]


def predicted_values(process: Process, heads: Heads) -> Values:
    r"""Embeddings $E_x = e v_x$ and OV outputs $g_{hs} v_x$ of each head, position and token.

    >>> from imr.processes import mess3
    >>> predicted_values(mess3(0.15, 0.6), one_head_attention(0.55, 4)).values.shape
    (1, 4, 3, 3)
    """
    vectors = token_vectors(process)
    return Values(
        heads.embedding * vectors, heads.gains[..., None, None] * vectors[None, None]
    )  # fmt: skip


class AdditiveFilter(NamedTuple):
    """Steady-state Kalman filter: z_d = pole z_{d-1} + gain y_d, and its error variance."""

    pole: float
    gain: float
    variance: float


def additive_filter(eigenvalue: float, correlation: float) -> AdditiveFilter:
    r"""The best additive filter of a state of decay $\lambda$ seen with correlation c.

    $z_{d+1} = \lambda z_d + \text{noise}$ of unit variance, $y = c z + \text{noise}$ of variance
    $R = 1 - c^2$. P, the variance of the one-step prediction, solves
    $P = \lambda^2 P R / (c^2 P + R) + 1 - \lambda^2$; pole $\lambda R / (c^2 P + R)$, gain
    $c P / (c^2 P + R)$. For `mess3(x, a)`: $\lambda = 1 - 3x$, $c = (3a - 1)/2$, z and y the
    centred one-hot state and token. It decays faster than $\lambda$, the decay of `constrained_beliefs`.

    Args:
      eigenvalue: in (-1, 1).
      correlation: in [-1, 1].
    Returns: pole, gain, variance P.
    Raises: ImrError for values out of range.

    >>> round(additive_filter(0.55, 0.4).pole, 4)
    0.4666
    """
    lam = _within("eigenvalue", eigenvalue, -1, 1)
    c = float(correlation)
    if not -1 <= c <= 1:
        raise ImrError(f"correlation must lie in [-1, 1]; found {c:g}.")
    noise, drive = 1 - c**2, 1 - lam**2
    # c^2 P^2 + half P - constant = 0; of two forms of the root the one without cancellation.
    half, constant = drive * (noise - c**2), drive * noise
    root = np.sqrt(half**2 + 4 * c**2 * constant)
    variance = (root - half) / (2 * c**2) if half < 0 else 2 * constant / (half + root)
    total = c**2 * variance + noise
    return AdditiveFilter(float(lam * noise / total), float(c * variance / total), float(variance))


def _within(name, value, low, high):
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise ImrError(f"{name} must be a number; found {value!r}.") from None
    if not low < value < high:
        raise ImrError(f"{name} must lie in ({low}, {high}); found {value:g}.")
    return value


def _check_length(length):
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ImrError(f"length must be an integer of at least 1; found {length!r}.")


def _lags(length):
    return np.arange(length)[:, None] - np.arange(length)[None, :]


def _heads(attention, gains, embedding):
    return Heads(*(jnp.asarray(np.asarray(x), float) for x in (attention, gains, embedding)))


@jax.jit
def _token_vectors(process):
    joint = matmul(process.stationary, process.transitions)
    p = matmul(joint, process.right)
    return joint / jnp.where(p > 0, p, jnp.nan)[:, None] - process.stationary[None, :], p


@jax.jit
def _row_normalised(process):
    rows = jnp.sum(process.transitions, -1, keepdims=True)
    normalised = process.transitions / jnp.where(rows > 0, rows, jnp.nan)
    return matmul(process.stationary, normalised) - process.stationary[None, :]


def _picked(vectors, tokens):
    """The vector of each token; NaN of tokens out of range, which only a trace lets pass."""
    valid = (tokens >= 0) & (tokens < len(vectors))
    return jnp.where(valid[..., None], vectors[jnp.where(valid, tokens, 0)], jnp.nan)


def _chain(process):
    return jnp.sum(process.transitions, axis=0)


@jax.jit
def _recursive(process, vectors, tokens):
    chain = _chain(process)

    def step(z, v):
        z = matmul(z, chain) + v
        return z, z

    inputs = jnp.moveaxis(_picked(vectors, tokens), -2, 0)
    z = jax.lax.scan(step, jnp.zeros(inputs.shape[1:], vectors.dtype), inputs)[1]
    z = jnp.moveaxis(z, 0, -2)
    return z + jnp.broadcast_to(process.stationary, z.shape)


@partial(jax.jit, static_argnames="length")
def _kernel(process, vectors, length):
    chain = _chain(process)
    return jax.lax.scan(lambda v, _: (matmul(v, chain), v), vectors, length=length)[1]


@partial(jax.jit, static_argnames="length")
def _spectral_kernel(found, length):
    # Powers by multiplication: 0^0 is one, and no branch of a complex logarithm is taken.
    step = lambda power, _: (power * found.eigenvalues, power)  # noqa: E731
    powers = jax.lax.scan(step, jnp.ones_like(found.eigenvalues), length=length)[1]
    terms = powers[:, None, :] * found.weights[None]
    return jnp.einsum("nxk,kj->nxj", terms, found.left, precision="highest").real


@jax.jit
def _by_kernel(process, kernel, tokens):
    """Sum over pairs of positions of kernel (l, k, s) at lag and token."""
    lags = _lags(tokens.shape[-1])
    pairs = jnp.where((lags >= 0)[..., None, None], kernel[np.maximum(lags, 0)], 0)
    one_hot = _picked(jnp.eye(kernel.shape[1], dtype=kernel.dtype), tokens)
    z = jnp.einsum("...tx,dtxj->...dj", one_hot, pairs, precision="highest")
    return z + jnp.broadcast_to(process.stationary, z.shape)


@partial(jax.jit, static_argnames="depth")
def _level(process, vectors, depth):
    chain, z = _chain(process), jnp.zeros((1, process.num_states), vectors.dtype)
    for _ in range(depth):
        z = (matmul(z, chain)[:, None] + vectors[None]).reshape(-1, process.num_states)
    return z + process.stationary[None, :]


@jax.jit
def _apply(vectors, tokens, heads):
    v = _picked(vectors, tokens)
    mixed = jnp.sum(heads.attention * heads.gains[:, None, :], axis=0)
    return heads.embedding * v + matmul(mixed, v)
