"""Bayesian filter and predictions; for the alignment of positions see `imr.beliefs`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imr._checks import as_numbers, check_choice, check_kind, is_concrete
from imr._numerics import matmul, repeat_last
from imr._sequences import as_sequences
from imr.beliefs.scaled import Scaled, plain, product, relative, scaled
from imr.beliefs.tree import prefix_rows
from imr.errors import ImrError
from imr.processes.process import (
    Process,
    bare,
    check_process,
    check_start,
    least_probability,
    rounding,
)

# Up to so many states a matrix for each sequence costs little; up to so many tokens a product with
# the matrices of all of them is faster than one sequence after the other.
FEW_STATES, _FEW_TOKENS = 32, 16


class Filtered(NamedTuple):
    """Beliefs (..., l, s) after each token, log-probabilities (..., l) of the words that end there."""

    beliefs: Float[Array, "*b l s"]
    log_probability: Float[Array, "*b l"]


def bayes_filter(
    process: Process, tokens: Any, lengths: Any = None, *,
    method: Literal["scan", "associative"] = "scan", initial: Any = None,
) -> Filtered:  # fmt: skip
    r"""Bayesian filter: $\eta_d = \eta_{d-1} T_{x_d} / (\eta_{d-1} T_{x_d} w)$, $\eta_0 = \mu$.

    $\log P(x_1 \dots x_d) = \sum_{c \le d} \log (\eta_{c-1} T_{x_c} w)$. After a word of
    probability zero the belief is NaN and the log-probability -inf, see `is_forbidden`. Under a
    trace a token out of range has probability zero. Products of probabilities do not underflow: where
    they would, each state has a scale of its own, and derivatives at transitions that are zero are
    bounded by the square root of what the dtype holds. Only of more than 32 states, or within the
    matrices of "associative" of more than 8, a state that is less likely than the likeliest by the
    smallest number of the dtype, 1e-38 in float32, counts as impossible.

    Args:
      process: the process.
      tokens: integers, shape (..., l).
      lengths: of sequences that end before position l, shape (...). What stands beyond a length is
        never read; beliefs and log-probabilities there repeat the last, or the start if there is
        none.
      method: "scan" processes one token after the other, in memory O(batch x states) besides the
        result; "associative" multiplies matrices in a tree, in O(log l) steps and s times the work.
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
    tokens, lengths = as_sequences(tokens, lengths, process.num_tokens)
    if initial is not None:
        as_numbers("initial", initial)
    right = process.right if is_concrete(initial, process) else None
    tolerance = rounding(process.right, initial)
    check_start(initial, process.num_states, right, process.generalised, tolerance)
    return Filtered(*_filter(bare(process), tokens, lengths, initial, method == "associative"))


def is_forbidden(filtered: Filtered) -> Bool[Array, "*b l"]:
    """Whether the words that end at each position have probability zero.

    Args:
      filtered: as returned by `bayes_filter`.
    Raises: ImrError if it is none.

    >>> from imr.processes import golden_mean
    >>> is_forbidden(bayes_filter(golden_mean(0.5), jnp.array([1, 1, 0]))).tolist()
    [False, True, True]
    """
    check_kind("filtered", filtered, Filtered)
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
    beliefs = as_numbers("beliefs", beliefs)
    if not jnp.ndim(beliefs) or jnp.shape(beliefs)[-1] != process.num_states:
        raise ImrError(
            f"beliefs must have shape (..., {process.num_states}); found {jnp.shape(beliefs)}."
        )
    return _predict(bare(process), beliefs)


def advance(vectors: Array, transitions: Array, tokens: Array) -> Array:
    """Rows (b, s) times the matrices (k, s, s) of their tokens (b,); zero for tokens out of range."""
    k, size = transitions.shape[:2]
    if size <= FEW_STATES:
        return _advance_each(vectors, transitions, tokens)
    # A matrix for each row would fill the memory, in derivatives one for each position too.
    if k <= _FEW_TOKENS:
        return jax.checkpoint(_advance_all)(vectors, transitions, tokens)

    @jax.checkpoint
    def one(row):
        vector, token = row
        return _advance_each(vector[None], transitions, token[None])[0]

    return jax.lax.map(one, (vectors, tokens))


def _advance_each(vectors, transitions, tokens):
    return matmul(vectors[:, None, :], _matrices(transitions, tokens))[:, 0, :]


def _advance_all(vectors, transitions, tokens):
    """By one product with all matrices, where a row is zero at the tokens that it has not."""
    k, size = transitions.shape[:2]
    own = tokens[:, None] == jnp.arange(k)[None, :]
    spread = jnp.where(own[..., None], vectors[:, None, :], 0)
    return matmul(spread.reshape(-1, k * size), transitions.reshape(k * size, size))


def _matrices(transitions, tokens):
    """T of each token; zero for tokens out of range, unchecked under a trace."""
    return transitions.at[tokens].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@jax.checkpoint
def advance_scaled(rows: Scaled, transitions: Scaled, tokens: Array) -> Scaled:
    """`advance` without underflow, of few states."""
    matrices = jax.tree.map(lambda x: _matrices(x, tokens), transitions)
    return product(Scaled(*(x[:, :, None] for x in rows)), matrices, 1)


def without_underflow(run: Callable[[bool], Any], process: Process, start: Array) -> Any:
    """The first of what run(False) returns, plain products, unless entries of the others, of the start
    or of the process are small.

    Then it is that of run(True), products of `Scaled` numbers, which cost several times as much.
    """
    result, *others = run(False)
    if process.generalised or process.num_states > FEW_STATES:
        return result
    least = least_factor(process.transitions.dtype)
    small = [jnp.any((x > 0) & (x < least)) for x in (process.transitions, start, *others)]
    return jax.lax.cond(jnp.any(jnp.stack(small)), lambda: run(True)[0], lambda: result)


def least_factor(dtype: Any) -> float:
    """The product of two numbers that are not smaller is in the range of the dtype."""
    return float(jnp.finfo(dtype).tiny) ** 0.5


def log(p: Array) -> Array:
    """Logarithm of probabilities; zero has -inf, and no derivative."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)


def forward(
    process: Process, tokens: Array, lengths: Array | None, initial: Any, exact: bool
) -> tuple[Any, Array]:
    """The filter of tokens (b, l), where beliefs after impossible words are zero.

    Exact beliefs are `Scaled`.
    """
    transitions: Any = process.transitions
    start: Any = _start(process, tokens, initial)
    least = least_probability(process, transitions.dtype)
    if exact:
        start, transitions = scaled(start), scaled(transitions)

    def step(carry, x):
        belief, log_probability = carry
        if exact:
            belief, log_p = normalised(advance_scaled(belief, transitions, x), process)
        else:
            belief = advance(belief, transitions, x)
            p = matmul(belief, process.right)
            p = jnp.where(p > least, p, 0)
            belief, log_p = _over(belief, p), log(p)
        log_probability = log_probability + log_p
        return (belief, log_probability), (belief, log_probability)

    first = start, jnp.zeros(len(tokens), process.transitions.dtype)
    reached = jax.lax.scan(step, first, tokens.T)[1]
    return _by_sequence(reached, first, lengths)


def _start(process, tokens, initial):
    start = process.initial if initial is None else jnp.asarray(initial, process.initial.dtype)
    return jnp.tile(start[None, :], (len(tokens), 1))


def _by_sequence(reached, first, lengths):
    """What was reached, (l, b, *), as (b, l, *); beyond each length the last."""
    reached = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), reached)
    if lengths is None:
        return reached
    return jax.tree.map(lambda x, start: repeat_last(x, start, lengths), reached, first)


def _over(rows, p):
    """Rows over their probabilities: an impossible one is zero, so that derivatives stay finite."""
    return jnp.where((p > 0)[..., None], rows / jnp.where(p > 0, p, 1)[..., None], 0)


def normalised(rows: Scaled, process: Process) -> tuple[Scaled, Array]:
    """Beliefs of rows (..., s), and the logarithms of what they were divided by."""
    rows, top = relative(rows)
    p = matmul(plain(rows), process.right)
    if process.generalised:
        p = jnp.where(plain(Scaled(p, top[..., 0])) > least_probability(process, p.dtype), p, 0)
    values = _over(rows.values, p)
    return scaled(values, rows.exponents), log(p) + math.log(2) * top[..., 0]


@partial(jax.jit, static_argnames="associative")
def _filter(process, tokens, lengths, initial, associative):
    flat, lengths = flatten(tokens, lengths)

    def run(exact):
        beliefs, log_probability = forward(process, flat, lengths, initial, exact)
        beliefs = plain(beliefs) if exact else beliefs
        return (beliefs, log_probability), beliefs

    if associative and flat.shape[1]:
        beliefs, log_probability = _by_tree(process, flat, lengths, initial)
    else:
        beliefs, log_probability = without_underflow(run, process, _start(process, flat, initial))
    beliefs = jnp.where(jnp.isneginf(log_probability)[..., None], jnp.nan, beliefs)
    return beliefs.reshape(*tokens.shape, beliefs.shape[-1]), log_probability.reshape(tokens.shape)


def flatten(tokens: Array, lengths: Array | None) -> tuple[Array, Array | None]:
    """Tokens (b, l) and lengths (b,) or None, of any number of leading axes."""
    flat = tokens.reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])
    return flat, None if lengths is None else jnp.reshape(lengths, -1)


def _by_tree(process, tokens, lengths, initial):
    """The filter by products of matrices in a tree."""
    start = _start(process, tokens, initial)
    rows, log_p = normalised(prefix_rows(start, process.transitions, tokens), process)
    # All continuations of an impossible word are impossible, even if cancellation says otherwise.
    position = jnp.arange(len(log_p), dtype=jnp.int32)[:, None]
    end = jnp.where(jnp.isneginf(log_p), position, len(log_p))
    possible = position < jnp.min(end, axis=0, keepdims=True)
    reached = jnp.where(possible[..., None], plain(rows), 0), jnp.where(possible, log_p, -jnp.inf)
    return _by_sequence(reached, (start, jnp.zeros(len(tokens), start.dtype)), lengths)


@jax.jit
def _predict(process, beliefs):
    return matmul(beliefs, matmul(process.transitions, process.right).T)
