r"""Constrained beliefs $\eta_d = \pi + \sum_{s \le d} v_{x_s} A^{d-s}$, by three methods."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import check_choice, check_count
from imr._numerics import matmul, repeat_last
from imr._sequences import as_sequences
from imr.constrained.spectrum import spectrum
from imr.constrained.vectors import lag_table, pick, token_vectors
from imr.errors import ImrError
from imr.processes.process import Process, bare, check_process


def constrained_beliefs(
    process: Process, tokens: Any, lengths: Any = None, *,
    method: Literal["recursive", "kernel", "spectral"] = "recursive",
) -> Float[Array, "*b l s"]:  # fmt: skip
    r"""Constrained beliefs after each token, $\eta_d = \pi + \sum_{s \le d} v_{x_s} A^{d-s}$.

    Args:
      process: the process.
      tokens: integers, shape (..., l).
      lengths: of sequences that end before position l, shape (...); beyond a length the last belief
        is repeated, or $\pi$ if there is none, as in `imr.bayes_filter`.
      method: "recursive", $z_d = z_{d-1} A + v_{x_d}$; "kernel", the sum over all pairs of
        positions, as in attention, of size l^2 k s; "spectral", the same with
        $v_x A^n = \sum_k \lambda_k^n (v_x R_k) L_k$, for a process that is not traced.
    Raises: ImrError if method is unknown, tokens are out of range, a token has probability zero, or
      the method is "spectral" and the chain has no basis of eigenvectors.

    >>> from imr.processes import mess3
    >>> constrained_beliefs(mess3(0.15, 0.6), jnp.array([0, 0]))[:, 0].round(4).tolist()
    [0.6, 0.7467]

    Reference: arXiv 2502.01954, section 4.
    """
    check_process(process)
    check_choice("method", method, ("recursive", "kernel", "spectral"))
    tokens, lengths = as_sequences(tokens, lengths, process.num_tokens)
    vectors, process, length = token_vectors(process), bare(process), tokens.shape[-1]
    if method == "recursive":
        return _recursive(process, vectors, tokens, lengths)
    if method == "kernel":
        return _by_kernel(process, _kernel(process, vectors, length), tokens, lengths)
    return _by_kernel(process, _spectral_kernel(spectrum(process), length), tokens, lengths)


def constrained_level(process: Process, depth: int) -> Float[Array, "words s"]:
    """Constrained beliefs after all k^d words of length d, in the order of `imr.beliefs.all_words`.

    Args:
      process: the process.
      depth: d, at least 0; there are at most 2^24 words.
    Raises: ImrError if depth is out of range.
    """
    check_process(process)
    check_count("depth", depth, 0)
    if process.num_tokens**depth > 2**24:
        raise ImrError(f"depth must keep {process.num_tokens}^depth below 2^24; found {depth}.")
    return _level(bare(process), token_vectors(process), depth)


@jax.jit
def _recursive(process, vectors, tokens, lengths):
    chain = jnp.sum(process.transitions, axis=0)

    def step(z, v):
        z = matmul(z, chain) + v
        return z, z

    inputs = jnp.moveaxis(pick(vectors, tokens), -2, 0)
    z = jax.lax.scan(step, jnp.zeros(inputs.shape[1:], vectors.dtype), inputs)[1]
    return _around(process, jnp.moveaxis(z, 0, -2), lengths)


@partial(jax.jit, static_argnames="length")
def _kernel(process, vectors, length):
    chain = jnp.sum(process.transitions, axis=0)
    return jax.lax.scan(lambda v, _: (matmul(v, chain), v), vectors, length=length)[1]


@partial(jax.jit, static_argnames="length")
def _spectral_kernel(modes, length):
    # Powers by multiplication: 0^0 is one, and no complex logarithm has to choose its branch.
    def step(power, _):
        return power * modes.eigenvalues, power

    powers = jax.lax.scan(step, jnp.ones_like(modes.eigenvalues), length=length)[1]
    terms = powers[:, None, :] * modes.weights[None]
    return jnp.einsum("nxk,kj->nxj", terms, modes.left, precision="highest").real


@jax.jit
def _by_kernel(process, kernel, tokens, lengths):
    """The sum over pairs of positions of the kernel (l, k, s) at their lag and token."""
    lags = lag_table(tokens.shape[-1])
    pairs = jnp.where((lags >= 0)[..., None, None], kernel[np.maximum(lags, 0)], 0)
    one_hot = pick(jnp.eye(kernel.shape[1], dtype=kernel.dtype), tokens)
    z = jnp.einsum("...tx,dtxj->...dj", one_hot, pairs, precision="highest")
    return _around(process, z, lengths)


def _around(process, z, lengths):
    """The beliefs of what tokens contribute, (..., l, s); beyond a length the last."""
    eta = z + jnp.broadcast_to(process.stationary, z.shape)
    if lengths is None:
        return eta
    start = jnp.broadcast_to(process.stationary, (*lengths.shape, eta.shape[-1]))
    return repeat_last(eta, start, lengths)


@partial(jax.jit, static_argnames="depth")
def _level(process, vectors, depth):
    chain, z = (
        jnp.sum(process.transitions, axis=0),
        jnp.zeros((1, process.num_states), vectors.dtype),
    )
    for _ in range(depth):
        z = (matmul(z, chain)[:, None] + vectors[None]).reshape(-1, process.num_states)
    return z + process.stationary[None, :]
