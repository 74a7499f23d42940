"""Bayesian filter, predictions and smoother; for the alignment of positions see `imr.beliefs`."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imr._checks import as_tokens, check_choice, is_concrete
from imr._numerics import matmul
from imr.errors import ImrError
from imr.processes.process import Process, bare, check_process, check_start, least_probability


class Filtered(NamedTuple):
    """Beliefs (..., l, s) after each token, log-probabilities (..., l) of the words that end there."""

    beliefs: Float[Array, "*b l s"]
    log_probability: Float[Array, "*b l"]


def bayes_filter(
    process: Process, tokens: Any, *, method: Literal["scan", "associative"] = "scan",
    initial: Any = None,
) -> Filtered:  # fmt: skip
    r"""Bayesian filter: $\eta_d = \eta_{d-1} T_{x_d} / (\eta_{d-1} T_{x_d} w)$, $\eta_0 = \mu$.

    $\log P(x_1 \dots x_d) = \sum_{c \le d} \log (\eta_{c-1} T_{x_c} w)$. After a word of
    probability zero the belief is NaN and the log-probability -inf, see `is_forbidden`. Under a
    trace a token out of range has probability zero, as has a state less likely than the smallest
    number of the dtype: 1e-308 in float64, 1e-38 in float32.

    Args:
      process: the process.
      tokens: integers, shape (..., l).
      method: "scan" processes one token after the other; "associative" multiplies matrices in a
        tree, in O(log l) steps and s times the work.
      initial: start distribution, shape (s,); None is `process.initial`.
    Raises: ImrError if an argument does not fit, or tokens are out of range.

    >>> from imr.processes import golden_mean
    >>> beliefs, log_probability = bayes_filter(golden_mean(0.5), jnp.array([1, 0, 1, 1]))
    >>> beliefs.round(4).tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [nan, nan]]
    >>> jnp.exp(log_probability).round(4).tolist()
    [0.3333, 0.3333, 0.1667, 0.0]

    Reference: arXiv 2502.01954, section 2.
    """
    check_process(process)
    check_choice("method", method, ("scan", "associative"))
    tokens = as_tokens(tokens, process.num_tokens)
    right = process.right if is_concrete(initial, process) else None
    check_start(initial, process.num_states, right, process.generalised)
    return Filtered(*_filter(bare(process), tokens, initial, method == "associative"))


def is_forbidden(filtered: Filtered) -> Bool[Array, "*b l"]:
    """Whether the words that end at each position have probability zero.

    Args:
      filtered: as returned by `bayes_filter`.

    >>> from imr.processes import golden_mean
    >>> is_forbidden(bayes_filter(golden_mean(0.5), jnp.array([1, 1, 0]))).tolist()
    [False, True, True]
    """
    return jnp.isneginf(filtered.log_probability)


def next_token_probabilities(process: Process, beliefs: Float[Array, "*b s"]) -> Array:
    r"""Bayes-optimal prediction of the next token from each belief, $P(x) = \eta T_x w$.

    Args:
      process: the process.
      beliefs: shape (..., s); position d of `bayes_filter` predicts token d + 1.
    Raises: ImrError if the last axis of beliefs is not the states.

    >>> from imr.processes import golden_mean
    >>> next_token_probabilities(golden_mean(0.5), jnp.array([1.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    check_process(process)
    if isinstance(beliefs, Filtered):
        raise ImrError("beliefs must be an array; found a Filtered: pass its .beliefs.")
    beliefs = jnp.asarray(beliefs)
    if not jnp.ndim(beliefs) or jnp.shape(beliefs)[-1] != process.num_states:
        raise ImrError(
            f"beliefs must have shape (..., {process.num_states}); found {jnp.shape(beliefs)}."
        )
    return _predict(bare(process), beliefs)


def smooth(process: Process, tokens: Any) -> Float[Array, "*b l s"]:
    r"""Distribution of the state after each token, given ALL tokens: $\gamma_d \propto \eta_d \circ \beta_d$.

    $\beta_l = 1$, $\beta_d = T_{x_{d+1}} \beta_{d+1}$, scaled to a largest entry of one.

    Args:
      process: hidden Markov.
      tokens: integers, shape (..., l).
    Returns: Probabilities, shape (..., l, s); NaN at every position of a word of probability zero.
    Raises: ImrError if the process is generalised: its beliefs are no probabilities of states.

    >>> from imr.processes import even
    >>> smooth(even(0.5), jnp.array([1, 1, 0])).round(4).tolist()
    [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    """
    check_process(process)
    if process.generalised:
        kind = "a generalised one, whose beliefs are no probabilities"
        raise ImrError(f"process must be hidden Markov; found {kind}.")
    return _smooth(bare(process), as_tokens(tokens, process.num_tokens))


def _matrices(process, tokens):
    """T of each token; zero for tokens out of range, unchecked under a trace."""
    return process.transitions.at[tokens].get(
        mode="fill", fill_value=0, wrap_negative_indices=False
    )


def _log(p):
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)


@partial(jax.jit, static_argnames="associative")
def _filter(process, tokens, initial, associative):
    start = process.initial if initial is None else jnp.asarray(initial, process.initial.dtype)
    flat = tokens.reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])
    least = least_probability(process, start.dtype)
    if associative:
        beliefs, log_probability = jax.vmap(partial(_associative, process, start))(flat)
    else:

        def step(carry, x):
            belief, log_probability = carry
            matrix = _matrices(process, x)
            belief = matmul(belief[:, None, :], matrix)[:, 0, :]
            p = matmul(belief, process.right)
            p = jnp.where(p > least, p, 0)
            # An impossible belief stays zero, so that derivatives of the others stay finite.
            belief = jnp.where((p > 0)[:, None], belief / jnp.where(p > 0, p, 1)[:, None], 0)
            log_probability = log_probability + _log(p)
            return (belief, log_probability), (belief, log_probability)

        batch = len(flat)
        carry = (jnp.tile(start[None, :], (batch, 1)), jnp.zeros(batch, start.dtype))
        beliefs, log_probability = jax.lax.scan(step, carry, flat.T)[1]
        beliefs, log_probability = jnp.swapaxes(beliefs, 0, 1), log_probability.T
    beliefs = jnp.where(jnp.isneginf(log_probability)[..., None], jnp.nan, beliefs)
    shape = tokens.shape
    return beliefs.reshape(*shape, start.shape[0]), log_probability.reshape(shape)


def _associative(process, start, tokens):
    """Beliefs of one sequence by prefix products, with a log scale for each row."""
    if tokens.shape[0] == 0:
        return jnp.zeros((0, *start.shape), start.dtype), jnp.zeros(0, start.dtype)
    matrices = _matrices(process, tokens)
    # The start goes into the first matrix, so that unreachable states do not affect the scales.
    first = jnp.tile(matmul(start, matrices[0])[None, :], (start.shape[0], 1))
    matrices = matrices.at[0].set(first)

    def rescale(matrix, log_scale):
        size = jnp.max(jnp.abs(matrix), axis=-1)
        return matrix / jnp.where(size > 0, size, 1)[..., None], log_scale + _log(size)

    def combine(a, b):
        (a, log_a), (b, log_b) = a, b
        reached = jnp.where(a != 0, log_b[..., None, :], -jnp.inf)
        top = jnp.max(reached, axis=-1)
        top = jnp.where(jnp.isneginf(top), 0, top)
        return rescale(matmul(a * jnp.exp(reached - top[..., None]), b), log_a + top)

    elements = rescale(matrices, jnp.zeros(matrices.shape[:-1], matrices.dtype))
    products, scales = jax.lax.associative_scan(combine, elements)
    belief = products[:, 0, :]
    p = matmul(belief, process.right)
    alive = p > least_probability(process, start.dtype)
    # All continuations of an impossible word are impossible, even if cancellation says otherwise.
    alive = jnp.cumprod(alive, dtype=jnp.int32) > 0
    log_probability = jnp.where(alive, _log(jnp.where(alive, p, 1)) + scales[:, 0], -jnp.inf)
    return belief / jnp.where(alive, p, 1)[:, None], log_probability


@jax.jit
def _predict(process, beliefs):
    return matmul(beliefs, matmul(process.transitions, process.right).T)


@jax.jit
def _smooth(process, tokens):
    forward = _filter(process, tokens, None, False)[0]
    if tokens.shape[-1] == 0:
        return forward

    def step(message, x):
        message = matmul(_matrices(process, x), message[..., None])[..., 0]
        size = jnp.max(message, axis=-1, keepdims=True)
        message = message / jnp.where(size > 0, size, 1)
        return message, message

    last = jnp.ones_like(forward[..., -1, :])
    later = jnp.moveaxis(tokens[..., 1:], -1, 0)
    messages = jax.lax.scan(step, last, later, reverse=True)[1]
    messages = jnp.moveaxis(jnp.concatenate([messages, last[None]]), 0, -2)
    both = forward * messages
    # The messages of an impossible word are zero: 0 / 0 marks it as NaN.
    return both / jnp.sum(both, axis=-1, keepdims=True)
