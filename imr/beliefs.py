r"""Bayesian beliefs of an observer of tokens: filter, smoother, predictions, entropies, mixed states.

The one convention of alignment: the belief at position d is AFTER token d, and the prediction made
from it is for token d + 1. States are row vectors; $T_x$, A, $\pi$, w as in `imr.processes`.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import ImrError, as_tokens, check_choice, check_count, check_finite, is_concrete
from imr._numerics import matmul
from imr.processes.process import Process, bare, is_unifilar

# Enumerations beyond this many words do not end.
MOST_WORDS = 2**24


class Filtered(NamedTuple):
    """beliefs (..., l, s) after each token; log_probability (..., l) of the words that end there."""

    beliefs: Float[Array, "*b l s"]
    log_probability: Float[Array, "*b l"]


def bayes_filter(
    process: Process,
    tokens: Any,
    *,
    method: Literal["scan", "associative"] = "scan",
    initial: Any = None,
) -> Filtered:
    r"""Bayes: $\eta_d = \eta_{d-1} T_{x_d} / (\eta_{d-1} T_{x_d} w)$, $\eta_0 = \mu$.

    $\log P(x_1 \dots x_d) = \sum_{c \le d} \log (\eta_{c-1} T_{x_c} w)$. After a word of
    probability zero the belief is NaN and the log-probability -inf, see `is_forbidden`; under a
    trace a token out of range is one. A state less likely than the smallest number of the dtype is
    one of probability zero: 1e-308 in float64, 1e-38 in float32.

    Args:
      process: the process.
      tokens: integers, shape (..., l).
      method: "scan" goes token by token; "associative" multiplies matrices in a tree, in O(log l)
        steps and s times the work. Each row of a product carries its own log scale.
      initial: start other than `process.initial`, shape (s,).
    Returns: beliefs (..., l, s) after each token, cumulative log-probability (..., l).
    Raises: ImrError for tokens that are no integers or out of range, an unknown method, a start of
      another shape.

    >>> from imr.processes import golden_mean
    >>> beliefs, log_probability = bayes_filter(golden_mean(0.5), jnp.array([1, 0, 1, 1]))
    >>> beliefs.round(4).tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [nan, nan]]
    >>> jnp.exp(log_probability).round(4).tolist()
    [0.3333, 0.3333, 0.1667, 0.0]

    Reference: arXiv 2502.01954, section 2.
    """
    check_choice("method", method, ("scan", "associative"))
    tokens = as_tokens(tokens, process.num_tokens)
    if initial is not None and np.shape(initial) != (process.num_states,):
        raise ImrError(
            f"initial must have shape ({process.num_states},), one entry for each state; "
            f"found {np.shape(initial)}."
        )
    if initial is not None and is_concrete(initial, process):
        _check_start(process, np.asarray(initial))
    return Filtered(*_filter(bare(process), tokens, initial, method == "associative"))


def _check_start(process, initial):
    check_finite("initial", initial)
    total = float(initial @ np.asarray(process.right))
    if abs(total - 1) > 1e-5 or (not process.generalised and initial.min() < 0):
        raise ImrError(
            f"initial must hold probabilities that sum to 1; the smallest is {initial.min():g} and "
            f"the sum {total:g}."
        )


def is_forbidden(filtered: Filtered) -> Bool[Array, "*b l"]:
    """Whether the words that end at each position have probability zero, (..., l).

    >>> from imr.processes import golden_mean
    >>> is_forbidden(bayes_filter(golden_mean(0.5), jnp.array([1, 1, 0]))).tolist()
    [False, True, True]
    """
    return jnp.isneginf(filtered.log_probability)


def next_token_probabilities(process: Process, beliefs: Float[Array, "*b s"]) -> Array:
    r"""Bayes-optimal prediction $P(x) = \eta T_x w$ from each belief, for the token after it.

    Args:
      process: the process.
      beliefs: shape (..., s); position d of `bayes_filter` predicts token d + 1.
    Returns: shape (..., k).
    Raises: ImrError where the last axis is not the states.

    >>> from imr.processes import golden_mean
    >>> next_token_probabilities(golden_mean(0.5), jnp.array([1.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    beliefs = jnp.asarray(beliefs)
    if not jnp.ndim(beliefs) or jnp.shape(beliefs)[-1] != process.num_states:
        raise ImrError(
            f"beliefs must have shape (..., {process.num_states}); found {jnp.shape(beliefs)}."
        )
    return _predict(bare(process), beliefs)


def smooth(process: Process, tokens: Any) -> Float[Array, "*b l s"]:
    r"""The hidden state after each token, given ALL tokens: $\gamma_d \propto \eta_d \circ \beta_d$.

    $\beta_l = 1$, $\beta_d = T_{x_{d+1}} \beta_{d+1}$, scaled to a largest entry of one.

    Args:
      process: hidden Markov.
      tokens: integers, shape (..., l).
    Returns: shape (..., l, s); NaN everywhere for a word of probability zero.
    Raises: ImrError for a generalised process, whose beliefs are no probabilities of states, and
      for tokens out of range.

    >>> from imr.processes import even
    >>> smooth(even(0.5), jnp.array([1, 1, 0])).round(4).tolist()
    [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    """
    if process.generalised:
        raise ImrError("process must be hidden Markov to be smoothed; found a generalised one.")
    return _smooth(bare(process), as_tokens(tokens, process.num_tokens))


def all_words(num_tokens: int, length: int) -> Int[Array, "words l"]:
    """All k^l words in lexicographic order, the first token most significant, shape (k^l, l).

    Raises: ImrError where the words are more than 2^24, or an argument is no positive integer.

    >>> all_words(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_count("num_tokens", num_tokens)
    check_count("length", length)
    if num_tokens**length > MOST_WORDS:
        raise ImrError(f"length must keep {num_tokens}^length below {MOST_WORDS}; found {length}.")
    numbers, places = np.arange(num_tokens**length), num_tokens ** np.arange(length)[::-1]
    return jnp.asarray(numbers[:, None] // places[None, :] % num_tokens, jnp.int32)


class Level(NamedTuple):
    """All words of one length, the first token most significant: beliefs (k^d, s), their
    probabilities (k^d,). The belief of a word of probability zero is NaN."""

    beliefs: Float[Array, "words s"]
    probabilities: Float[Array, "words"]


def belief_level(process: Process, depth: int) -> Level:
    r"""Beliefs and probabilities of all $k^d$ words of length d, in lexicographic order.

    Args:
      process: the process.
      depth: d, at least 0.
    Returns: beliefs (k^d, s), probabilities (k^d,).
    Raises: ImrError where depth is no such integer, or the words are more than 2^24.

    >>> from imr.processes import golden_mean
    >>> belief_level(golden_mean(0.5), 2).probabilities.round(4).tolist()
    [0.3333, 0.3333, 0.3333, 0.0]
    """
    _check_depth(process, depth)
    return Level(*_level(bare(process), depth))


def conditional_entropies(process: Process, depth: int) -> Float[Array, "depths"]:
    r"""Myopic entropies $h_d = H[X_{d+1} | X_1 \dots X_d]$ in nats, by enumeration of all words.

    Args:
      process: the process.
      depth: the largest d.
    Returns: shape (depth + 1,), d = 0 to depth. The loss of the best predictor at position d.
    Raises: ImrError where depth is no integer of at least 0, or the words are more than 2^24.

    >>> from imr.processes import z1r
    >>> conditional_entropies(z1r(0.5), 2).round(3).tolist()
    [0.693, 0.637, 0.462]
    """
    _check_depth(process, depth)
    return _entropies(bare(process), process.initial, depth)


def block_entropies(process: Process, depth: int) -> Float[Array, "depths"]:
    r"""$H[X_1 \dots X_d] = \sum_{c < d} h_c$ in nats, d = 0 to depth, shape (depth + 1,).

    Raises: ImrError as `conditional_entropies` does.

    >>> from imr.processes import coin
    >>> block_entropies(coin(0.5), 2).round(3).tolist()
    [0.0, 0.693, 1.386]
    """
    _check_depth(process, depth, enumerates=False)
    if depth == 0:
        return jnp.zeros(1, process.transitions.dtype)
    return jnp.pad(jnp.cumsum(conditional_entropies(process, depth - 1)), (1, 0))


class EntropyRate(NamedTuple):
    """Bounds of the entropy rate in nats, equal where it is known exactly."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]


def entropy_rate(process: Process, depth: int = 8) -> EntropyRate:
    r"""The entropy rate $h = \lim h_d$ of the stationary process, between two bounds.

    Unifilar: exact, $h = \sum_i \pi_i H[X | i]$. Otherwise
    $H[X_{d+1} | X_1 \dots X_d, S_0] \le h \le H[X_{d+1} | X_1 \dots X_d]$, both from $\pi$.

    Args:
      process: the process, started from its stationary distribution whatever its initial one is.
      depth: d of the bounds.
    Returns: lower and upper bound; the lower one is 0 for a generalised process.
    Raises: ImrError as `conditional_entropies` does, and under a trace.

    >>> from imr.processes import z1r
    >>> [round(bound.item(), 4) for bound in entropy_rate(z1r(0.5))]
    [0.231, 0.231]

    Reference: Cover and Thomas, Elements of Information Theory, Theorem 4.5.1.
    """
    unifilar = not process.generalised and is_unifilar(process)
    _check_depth(process, depth, enumerates=not unifilar)
    process = bare(process)
    if process.generalised:
        upper = _entropies(process, process.stationary, depth)[-1]
        return EntropyRate(jnp.zeros_like(upper), upper)
    known = _known_start(process, 0 if unifilar else depth)
    return EntropyRate(
        known, known if unifilar else _entropies(process, process.stationary, depth)[-1]
    )


def excess_entropy(process: Process, depth: int = 8) -> Float[Array, ""]:
    r"""Information between past and future, $E_d = \sum_{c<d} (h_c - h)$, up to words of length d.

    From the stationary distribution. h is exact where the process is unifilar; otherwise it is
    its upper bound at depth d, and $E_d$ a lower bound of E.

    Raises: ImrError as `entropy_rate` does.

    >>> from imr.processes import coin
    >>> round(excess_entropy(coin(0.3)).item(), 4)
    0.0
    """
    rate = entropy_rate(process, depth).upper
    if depth == 0:
        return jnp.zeros_like(rate)
    return _excess(_entropies(bare(process), process.stationary, depth - 1), rate)


class MixedStates(NamedTuple):
    """Lists by length of word 0 to depth: words (n, d) of positive probability in lexicographic
    order, beliefs (n, s) after them, probabilities (n,)."""

    words: list[Int[Array, "n d"]]
    beliefs: list[Float[Array, "n s"]]
    probabilities: list[Float[Array, "n"]]


def mixed_states(
    process: Process, depth: int, *, merge: bool = False, tolerance: float = 1e-10
) -> MixedStates:
    """The tree of beliefs over words that can occur, level by level.

    Args:
      process: the process.
      depth: the longest words.
      merge: whether words of equal belief become one, the first of them, with the sum of their
        probabilities; where mixed states are finite any depth is then cheap.
      tolerance: beliefs that agree to it are equal; a level of float32 needs about 1e-5.
    Returns: lists of depth + 1 levels.
    Raises: ImrError under a trace, for a depth that is no integer of at least 0, and for more than
      2^24 words.

    >>> from imr.processes import golden_mean
    >>> [words.tolist() for words in mixed_states(golden_mean(0.5), 2).words]
    [[[]], [[0], [1]], [[0, 0], [0, 1], [1, 0]]]
    """
    _check_depth(process, depth, enumerates=False)
    if not is_concrete(process):
        raise ImrError("mixed_states has results of data-dependent shapes: call it without jit.")
    transitions = np.asarray(process.transitions, np.float64)
    right = np.asarray(process.right, np.float64)
    k = process.num_tokens
    words = [np.zeros((1, 0), np.int32)]
    beliefs = [np.asarray(process.initial, np.float64)[None]]
    probabilities: list[Any] = [np.ones(1)]
    least = _least(process, np.float64)
    for _ in range(depth):
        if len(words[-1]) * k > MOST_WORDS:
            raise ImrError(f"depth must keep words below {MOST_WORDS}; found {depth}. Try merge.")
        following = np.einsum("ni,kij->nkj", beliefs[-1], transitions).reshape(-1, len(right))
        chance = following @ right
        longer = np.repeat(words[-1], k, 0)
        longer = np.concatenate([longer, np.tile(np.arange(k), len(words[-1]))[:, None]], 1)
        keep = chance > least
        belief = following[keep] / chance[keep, None]
        weight, word = (np.repeat(probabilities[-1], k) * chance)[keep], longer[keep]
        if merge:
            first, group = _equal(belief, tolerance)
            weight, word, belief = np.bincount(group, weights=weight), word[first], belief[first]
        words.append(word.astype(np.int32))
        beliefs.append(belief)
        probabilities.append(weight)
    dtype = process.transitions.dtype
    return MixedStates(
        [jnp.asarray(x) for x in words],
        [jnp.asarray(x, dtype) for x in beliefs],
        [jnp.asarray(x, dtype) for x in probabilities],
    )


def count_mixed_states(process: Process, depth: int, *, tolerance: float = 1e-10) -> int:
    """The number of distinct beliefs after words of length 0 to depth.

    Raises: ImrError as `mixed_states` does.

    >>> from imr.processes import golden_mean
    >>> count_mixed_states(golden_mean(0.5), 10, tolerance=1e-5)
    3
    """
    tree = mixed_states(process, depth, merge=True, tolerance=tolerance)
    return len(_equal(np.concatenate([np.asarray(x) for x in tree.beliefs]), tolerance)[0])


def _check_depth(process, depth, enumerates=True):
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ImrError(f"depth must be an integer of at least 0; found {depth!r}.")
    if enumerates and process.num_tokens ** (depth + 1) > MOST_WORDS:
        raise ImrError(
            f"depth {depth} with {process.num_tokens} tokens has more than {MOST_WORDS} words; "
            "take a smaller depth, or mixed_states with merge=True."
        )


def _least(process, dtype):
    """Probabilities up to this are zero: in a generalised process zeros come from cancellation."""
    return 64 * float(jnp.finfo(dtype).eps) if process.generalised else 0.0


def _equal(beliefs, tolerance):
    """First index and group of equal rows. The shift keeps plain fractions off the boundaries."""
    _, first, group = np.unique(
        np.floor(beliefs / tolerance + 0.3719), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[group.reshape(-1)]


def _matrices(process, tokens):
    """T of each token; tokens out of range, which only a trace lets pass, are impossible."""
    valid = (tokens >= 0) & (tokens < process.num_tokens)
    picked = process.transitions[jnp.where(valid, tokens, 0)]
    return jnp.where(valid[..., None, None], picked, 0)


def _log(p):
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)


@partial(jax.jit, static_argnames="associative")
def _filter(process, tokens, initial, associative):
    start = process.initial if initial is None else jnp.asarray(initial, process.initial.dtype)
    flat = tokens.reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])
    least = _least(process, start.dtype)
    if associative:
        beliefs, log_probability = jax.vmap(partial(_associative, process, start))(flat)
    else:

        def step(carry, x):
            belief, log_probability = carry
            matrix = _matrices(process, x)
            belief = matmul(belief[:, None, :], matrix)[:, 0, :]
            p = matmul(belief, process.right)
            p = jnp.where(p > least, p, 0)
            # A dead belief stays zero, so that derivatives of the live ones stay finite.
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
    """Prefix products with a log scale for each row, of one sequence."""
    if tokens.shape[0] == 0:
        return jnp.zeros((0, *start.shape), start.dtype), jnp.zeros(0, start.dtype)
    matrices = _matrices(process, tokens)
    # The start goes into the first matrix: what cannot be reached then has no say in the scales.
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
    alive = p > _least(process, start.dtype)
    # One dead word makes all longer ones dead, also where cancellation revives their numbers.
    alive = jnp.cumprod(alive, dtype=jnp.int32) > 0
    log_probability = jnp.where(alive, _log(jnp.where(alive, p, 1)) + scales[:, 0], -jnp.inf)
    return belief / jnp.where(alive, p, 1)[:, None], log_probability


@jax.jit
def _predict(process, beliefs):
    return matmul(beliefs, matmul(process.transitions, process.right).T)


@jax.jit
def _smooth(process, tokens):
    forward = _filter(process, tokens, None, False)[0]

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
    # An impossible word has a message of zeros before it: 0 / 0 marks it.
    return both / jnp.sum(both, axis=-1, keepdims=True)


def _grow(process, words, depth):
    """Unnormalised beliefs of all words so much longer: mu T_x1 ... T_xd."""
    for _ in range(depth):
        both = jnp.einsum("ni,kij->nkj", words, process.transitions, precision="highest")
        words = both.reshape(-1, process.num_states)
    return words


@partial(jax.jit, static_argnames="depth")
def _level(process, depth):
    words = _grow(process, process.initial[None, :], depth)
    p = matmul(words, process.right)
    p = jnp.where(p > _least(process, p.dtype) * jnp.max(p), p, 0)
    return words / jnp.where(p > 0, p, jnp.nan)[:, None], p


@partial(jax.jit, static_argnames="depth")
def _entropies(process, start, depth):
    readout = matmul(process.transitions, process.right).T
    words, found = start[None, :], []
    for d in range(depth + 1):
        words = _grow(process, words, min(d, 1))
        joint = matmul(words, readout)
        total = jnp.sum(joint, axis=1, keepdims=True)
        positive = (joint > 0) & (total > 0)
        terms = joint * (
            jnp.log(jnp.where(positive, joint, 1)) - jnp.log(jnp.where(total > 0, total, 1))
        )
        found.append(-jnp.sum(jnp.where(positive, terms, 0)))
    return jnp.stack(found)


@partial(jax.jit, static_argnames="depth")
def _known_start(process, depth):
    """H of token depth + 1 given those before and the state before the first."""
    starts = jnp.eye(process.num_states, dtype=process.transitions.dtype)
    each = jax.lax.map(lambda start: _entropies(process, start, depth)[-1], starts)
    return matmul(process.stationary, each)


@jax.jit
def _excess(entropies, rate):
    return jnp.sum(entropies - rate)
