"""Entropies of tokens, in nats, by exact enumeration of words."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._numerics import matmul
from imr.beliefs.words import check_depth, grow
from imr.processes.process import Process, bare, check_process, is_unifilar


def conditional_entropies(process: Process, depth: int) -> Float[Array, "depths"]:
    r"""Myopic entropies $h_d = H[X_{d+1} | X_1 \dots X_d]$ in nats, by enumeration of all words.

    $h_d$ is the loss of the best predictor at position d.

    Args:
      process: the process.
      depth: the largest d, from 0; there are at most 2^24 words.

    >>> from imr.processes import z1r
    >>> conditional_entropies(z1r(0.5), 2).round(3).tolist()
    [0.693, 0.637, 0.462]
    """
    check_depth(process, depth)
    return _entropies(bare(process), process.initial, depth)


def block_entropies(process: Process, depth: int) -> Float[Array, "depths"]:
    r"""Block entropies $H[X_1 \dots X_d] = \sum_{c < d} h_c$ in nats.

    Args:
      process, depth: as in `conditional_entropies`; d = 0 to depth.

    >>> from imr.processes import coin
    >>> block_entropies(coin(0.5), 2).round(3).tolist()
    [0.0, 0.693, 1.386]
    """
    check_depth(process, depth, enumerates=False)
    if depth == 0:
        return jnp.zeros(1, process.transitions.dtype)
    return jnp.pad(jnp.cumsum(conditional_entropies(process, depth - 1)), (1, 0))


class EntropyRate(NamedTuple):
    """Bounds of the entropy rate in nats; they are equal if it is known exactly."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]


def entropy_rate(process: Process, depth: int = 8) -> EntropyRate:
    r"""The entropy rate $h = \lim h_d$ of the stationary process, between two bounds.

    A unifilar process has $h = \sum_i \pi_i H[X | i]$ exactly. Otherwise
    $H[X_{d+1} | X_1 \dots X_d, S_0] \le h \le H[X_{d+1} | X_1 \dots X_d]$, both from $\pi$.

    Args:
      process: the process, not traced; it starts from its stationary distribution here.
      depth: d of the bounds.
    Returns: An `EntropyRate`; the lower bound is 0 for a generalised process.

    >>> from imr.processes import z1r
    >>> [round(bound.item(), 4) for bound in entropy_rate(z1r(0.5))]
    [0.231, 0.231]

    Reference: Cover and Thomas, Elements of Information Theory, Theorem 4.5.1.
    """
    check_process(process)
    unifilar = not process.generalised and is_unifilar(process)
    check_depth(process, depth, enumerates=not unifilar)
    process = bare(process)
    if unifilar:
        return EntropyRate(*[_known_start(process, 0)] * 2)
    upper = _entropies(process, process.stationary, depth)[-1]
    known = jnp.zeros_like(upper) if process.generalised else _known_start(process, depth)
    return EntropyRate(known, upper)


def excess_entropy(process: Process, depth: int = 8) -> Float[Array, ""]:
    r"""Information between past and future, $E_d = \sum_{c<d} (h_c - h)$, up to words of length d.

    If the process is unifilar, h is exact; otherwise it is the upper bound at depth d, and $E_d$ is
    a lower bound of E.

    Args:
      process, depth: as in `entropy_rate`.

    >>> from imr.processes import coin
    >>> round(excess_entropy(coin(0.3)).item(), 4)
    0.0
    """
    rate = entropy_rate(process, depth).upper
    if depth == 0:
        return jnp.zeros_like(rate)
    return jnp.sum(_entropies(bare(process), process.stationary, depth - 1) - rate)


@partial(jax.jit, static_argnames="depth")
def _entropies(process, start, depth):
    readout = matmul(process.transitions, process.right).T
    words, entropies = start[None, :], []
    for d in range(depth + 1):
        words = grow(process, words, min(d, 1))
        joint = matmul(words, readout)
        total = jnp.sum(joint, axis=1, keepdims=True)
        positive = (joint > 0) & (total > 0)
        log_p = jnp.log(jnp.where(positive, joint, 1)) - jnp.log(jnp.where(total > 0, total, 1))
        entropies.append(-jnp.sum(jnp.where(positive, joint * log_p, 0)))
    return jnp.stack(entropies)


@partial(jax.jit, static_argnames="depth")
def _known_start(process, depth):
    """Entropy of token depth + 1, given the tokens before it and the state before the first."""
    starts = jnp.eye(process.num_states, dtype=process.transitions.dtype)
    each = jax.lax.map(lambda start: _entropies(process, start, depth)[-1], starts)
    return matmul(process.stationary, each)
