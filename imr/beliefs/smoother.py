"""The distribution of the hidden states given a whole sequence of tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._sequences import as_sequences, within
from imr.beliefs.filter import advance, advance_scaled, flatten, forward, without_underflow
from imr.beliefs.scaled import Scaled, plain, relative, scaled
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
    if not flat.size:
        return jnp.zeros((*tokens.shape, process.num_states), process.transitions.dtype)
    inside = jnp.ones(flat.shape, bool) if lengths is None else within(lengths, flat.shape[1])
    backward = jnp.swapaxes(process.transitions, 1, 2)

    def run(exact):
        beliefs = forward(process, flat, lengths, None, exact)[0]
        messages = _messages(backward, flat, inside, exact)
        if not exact:
            return beliefs * messages, beliefs, messages
        both = Scaled(beliefs.values * messages.values, beliefs.exponents + messages.exponents)
        return plain(relative(both)[0]), None

    both = without_underflow(run, process, process.initial)
    # Zero for an impossible word, whose mark must not spread to the derivatives of the others.
    total = jnp.sum(both, axis=-1, keepdims=True)
    smoothed = jnp.where(total > 0, both / jnp.where(total > 0, total, 1), jnp.nan)
    return smoothed.reshape(*tokens.shape, process.num_states)


def _messages(backward, tokens, inside, exact):
    """beta (b, l, s) of tokens (b, l), exact ones `Scaled`."""
    matrices: Any = scaled(backward) if exact else backward
    last: Any = jnp.ones((len(tokens), backward.shape[1]), backward.dtype)
    last = scaled(last) if exact else last

    def step(message, token):
        x, inside = token
        if exact:
            before = relative(advance_scaled(message, matrices, x))[0]
        else:
            before = advance(message, matrices, x)
            size = jnp.max(before, axis=-1, keepdims=True)
            before = before / jnp.where(size > 0, size, 1)
        message = jax.tree.map(partial(jnp.where, inside[:, None]), before, message)
        return message, message

    later = tokens[:, 1:].T, inside[:, 1:].T
    messages = jax.lax.scan(step, last, later, reverse=True)[1]
    messages = jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]]), messages, last)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), messages)
