"""The most likely path of hidden states, by the algorithm of Viterbi."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._sequences import as_sequences, within
from imr.beliefs.filter import FEW_STATES, flatten, log
from imr.processes.process import Process, bare, check_hidden


class ViterbiPath(NamedTuple):
    """States (..., l) after each token, and the log-probability (...) of them and the tokens."""

    states: Int[Array, "*b l"]
    log_probability: Float[Array, "*b"]


def viterbi(process: Process, tokens: Any, lengths: Any = None) -> ViterbiPath:
    r"""The most likely hidden path: states $j_1 \dots j_l$ after each token, given all tokens.

    It maximises $P(x_1, j_1, \dots, x_l, j_l) = (\mu T_{x_1})_{j_1} \prod_{d > 1} T_{x_d, j_{d-1}, j_d}$;
    the state before the first token is summed over. Of equally likely paths that of the lowest
    states from the end on is taken.

    Args:
      process: hidden Markov.
      tokens: integers, shape (..., l).
      lengths: of sequences that end before position l, shape (...); their tokens beyond it are not
        read, and states there are -1.
    Returns: A `ViterbiPath`; of a word of probability zero all states are -1 and the
      log-probability is -inf.
    Raises: ImrError if the process is generalised: it has no hidden states.

    >>> from imr.processes import sns
    >>> path = viterbi(sns(0.2, 0.7), jnp.array([0, 0, 1]))
    >>> path.states.tolist(), round(path.log_probability.item(), 4)
    ([0, 1, 0], -2.4406)

    Reference: Viterbi, IEEE Transactions on Information Theory 13 (1967), 260.
    """
    check_hidden(process)
    return _viterbi(bare(process), *as_sequences(tokens, lengths, process.num_tokens))


@jax.jit
def _viterbi(process, tokens, lengths):
    flat, lengths = flatten(tokens, lengths)
    batch, most = flat.shape
    if not flat.size:
        shape = tokens.shape[:-1]
        return ViterbiPath(tokens, jnp.zeros(shape, process.transitions.dtype))
    inside = jnp.ones(flat.shape, bool) if lengths is None else within(lengths, most)
    log_matrices = log(process.transitions)
    # As logarithms, of which a product of small probabilities remains one.
    first_moves = log(process.initial)[None, :, None] + log_matrices
    top = jax.lax.stop_gradient(jnp.max(first_moves, axis=1))
    top = jnp.where(jnp.isneginf(top), 0, top)
    starts = top + log(jnp.sum(jnp.exp(first_moves - top[:, None, :]), axis=1))
    itself = jnp.tile(jnp.arange(process.num_states, dtype=jnp.int32)[None, :], (batch, 1))

    def forward(scores, token):
        x, inside = token
        best, source = _best(scores, log_matrices, x)
        best = jnp.where(inside[:, None], best, scores)
        return best, jnp.where(inside[:, None], source, itself)

    def backward(state, sources):
        before = jnp.take_along_axis(sources, state[:, None], 1)[:, 0]
        return before, before

    first = _rows(starts, flat[:, 0])
    scores, sources = jax.lax.scan(forward, first, (flat[:, 1:].T, inside[:, 1:].T))
    last = jax.lax.argmax(scores, 1, jnp.int32)
    earlier = jax.lax.scan(backward, last, sources, reverse=True)[1]
    states = jnp.concatenate([earlier, last[None]]).T
    # A sequence without tokens is certain.
    log_probability = jnp.where(inside[:, 0], jnp.max(scores, axis=1), 0)
    states = jnp.where(inside & ~jnp.isneginf(log_probability)[:, None], states, -1)
    return ViterbiPath(states.reshape(tokens.shape), log_probability.reshape(tokens.shape[:-1]))


def _best(scores, log_matrices, tokens):
    """The best score (b, s) of a move to each state, and the state that it comes from."""
    if scores.shape[1] <= FEW_STATES:
        moves = scores[:, :, None] + _rows(log_matrices, tokens)
        return jnp.max(moves, axis=1), jax.lax.argmax(moves, 1, jnp.int32)

    # A matrix for each sequence would fill the memory: one state after the other.
    def compare(best, i):
        score, source = best
        move = scores[:, i, None] + _rows(log_matrices[:, i], tokens)
        return (jnp.maximum(move, score), jnp.where(move > score, i, source)), None

    none = jnp.full_like(scores, -jnp.inf), jnp.zeros(scores.shape, jnp.int32)
    return jax.lax.scan(compare, none, jnp.arange(scores.shape[1], dtype=jnp.int32))[0]


def _rows(logs, tokens):
    """The row of each token; -inf for tokens out of range, unchecked under a trace."""
    return logs.at[tokens].get(mode="fill", fill_value=-jnp.inf, wrap_negative_indices=False)
