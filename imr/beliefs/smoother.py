"""The distribution of the hidden states given a whole sequence of tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import as_sequences, within
from imr.beliefs.filter import advance, flatten, forward
from imr.processes.process import Process, bare, check_hidden


def smooth(process: Process, tokens: Any, lengths: Any = None) -> Float[Array, "*b l s"]:
    r"""Distribution of the state after each token, given ALL tokens: $\gamma_d \propto \eta_d \circ \beta_d$.

    $\beta_l = 1$, $\beta_d = T_{x_{d+1}} \beta_{d+1}$, scaled to a largest entry of one.

    Args:
      process: hidden Markov.
      tokens: integers, shape (..., l).
      lengths: of sequences that end before position l, shape (...); beyond a length the last
        distribution is repeated, as in `bayes_filter`.
    Returns: Probabilities, shape (..., l, s); NaN at every position of a word of probability zero.
    Raises: ImrError if the process is generalised: its beliefs are no probabilities of states.

    >>> from imr.processes import even
    >>> smooth(even(0.5), jnp.array([1, 1, 0])).round(4).tolist()
    [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    """
    check_hidden(process)
    return _smooth(bare(process), *as_sequences(tokens, lengths, process.num_tokens))


@jax.jit
def _smooth(process, tokens, lengths):
    flat, lengths = flatten(tokens, lengths)
    beliefs = forward(process, flat, lengths).beliefs
    if not flat.size:
        return beliefs.reshape(*tokens.shape, process.num_states)
    backward = jnp.swapaxes(process.transitions, 1, 2)
    most = flat.shape[1]
    inside = jnp.ones(flat.shape, bool) if lengths is None else within(lengths, most)

    def step(message, token):
        x, inside = token
        before = advance(message, backward, x)
        size = jnp.max(before, axis=-1, keepdims=True)
        message = jnp.where(inside[:, None], before / jnp.where(size > 0, size, 1), message)
        return message, message

    last = jnp.ones_like(beliefs[:, -1])
    later = flat[:, 1:].T, inside[:, 1:].T
    messages = jax.lax.scan(step, last, later, reverse=True)[1]
    messages = jnp.swapaxes(jnp.concatenate([messages, last[None]]), 0, 1)
    both = beliefs * messages
    # Zero for an impossible word, whose mark must not spread to the derivatives of the others.
    total = jnp.sum(both, axis=-1, keepdims=True)
    smoothed = jnp.where(total > 0, both / jnp.where(total > 0, total, 1), jnp.nan)
    return smoothed.reshape(*tokens.shape, process.num_states)
