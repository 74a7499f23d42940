"""Samples of a process: tokens, and the hidden states that they lead to."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from imr._checks import as_keys, check_count
from imr._numerics import matmul
from imr._sequences import as_lengths, within
from imr.processes.process import Process, bare, check_process


class Sample(NamedTuple):
    """Sampled tokens, and the hidden states AFTER them; None for a generalised process.

    Both are -1 beyond the length of a sequence.
    """

    tokens: Int[Array, "*keys length"]
    states: Int[Array, "*keys length"] | None


def sample(process: Process, key: Any, length: int, lengths: Any = None) -> Sample:
    r"""Draws tokens and the hidden states they lead to: $x_d, j_d \sim T_{\cdot, j_{d-1}, \cdot}$.

    The state before the first token is drawn from `process.initial`. A generalised process has no
    hidden states: its tokens are drawn from the prediction $\eta T_x w$ of its belief $\eta$.

    Args:
      process: the process.
      key: a random key, or an array of keys of any shape, one for each sequence.
      length: number of tokens.
      lengths: numbers of tokens of sequences that end before, of the shape of the keys. Beyond them
        tokens and states are -1: `imr.bayes_filter` and others take the same `lengths`.

    >>> from imr.processes import coin
    >>> sample(coin(1.0), jax.random.key(0), 3).tokens.tolist()
    [0, 0, 0]
    """
    check_process(process)
    check_count("length", length)
    key = as_keys(key)
    if lengths is not None:
        lengths = as_lengths(lengths, key.shape, length)
    process = jax.lax.stop_gradient(bare(process))  # what is drawn has no derivative
    uniforms = _uniforms(key, length + 1, process.transitions.dtype)
    return _sample(process, uniforms, lengths)


# Separate from `_sample`, so that it is compiled once for all processes.
@partial(jax.jit, static_argnames=("count", "dtype"))
def _uniforms(key, count, dtype):
    draw = jax.vmap(lambda key: jax.random.uniform(key, (count,), dtype))
    return draw(key.reshape(-1)).reshape(*key.shape, count)


@jax.jit
def _sample(process, uniforms, lengths):
    draw = partial(_sample_one, process)
    for _ in uniforms.shape[1:]:
        draw = jax.vmap(draw)
    drawn = draw(uniforms)
    if lengths is None:
        return drawn
    inside = within(lengths, uniforms.shape[-1] - 1)
    return jax.tree.map(lambda x: jnp.where(inside, x, -1), drawn)


def _sample_one(process, uniforms):
    def pick(weights, u):
        """Inverts the cumulative sum; an entry of weight zero is never picked."""
        edges = jnp.cumsum(weights)
        # u times the total may round up to the total.
        u = jnp.minimum(u * edges[-1], jnp.nextafter(edges[-1], jnp.zeros_like(u)))
        return jnp.sum(edges <= u)

    if process.generalised:
        readout = matmul(process.transitions, process.right)

        def observe(belief, u):
            # Cancellation can leave tiny negative probabilities.
            token = pick(jnp.maximum(matmul(readout, belief), 0), u)
            belief = matmul(belief, process.transitions[token])
            return belief / matmul(belief, process.right), token

        return Sample(jax.lax.scan(observe, process.initial, uniforms[1:])[1], None)

    weights = jnp.swapaxes(process.transitions, 0, 1).reshape(process.num_states, -1)

    def step(state, u):
        both = pick(weights[state], u)
        state = both % process.num_states
        return state, (both // process.num_states, state)

    start = pick(process.initial, uniforms[0])
    return Sample(*jax.lax.scan(step, start, uniforms[1:])[1])
