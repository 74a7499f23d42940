"""Beliefs and probabilities of all words of a length, and the tree of mixed states."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imr._checks import (
    check_count,
    check_counts,
    check_flags,
    check_positive,
    check_scalar,
    is_concrete,
)
from imr._numerics import matmul
from imr.errors import ImrError
from imr.processes.process import Process, bare, check_process, least_probability, rounding

# The most words that are enumerated.
MOST_WORDS = 2**24


def all_words(num_tokens: int, length: int) -> Int[Array, "words l"]:
    """All k^l words in lexicographic order, the first token most significant.

    Args:
      num_tokens, length: k and l.
    Raises: ImrError if there are more than 2^24 words.

    >>> all_words(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_counts(num_tokens=num_tokens, length=length)
    if num_tokens**length > MOST_WORDS:
        raise ImrError(f"length must keep {num_tokens}^length below {MOST_WORDS}; found {length}.")
    numbers, places = np.arange(num_tokens**length), num_tokens ** np.arange(length)[::-1]
    return jnp.asarray(numbers[:, None] // places[None, :] % num_tokens, jnp.int32)


class Level(NamedTuple):
    """Beliefs (k^d, s) and probabilities (k^d,) of all words; NaN for words of probability zero."""

    beliefs: Float[Array, "words s"]
    probabilities: Float[Array, "words"]


def belief_level(process: Process, depth: int) -> Level:
    r"""Beliefs and probabilities of all $k^d$ words of length d, in lexicographic order.

    Args:
      process: the process.
      depth: d, at least 0; there are at most 2^24 words.

    >>> from imr.processes import golden_mean
    >>> belief_level(golden_mean(0.5), 2).probabilities.round(4).tolist()
    [0.3333, 0.3333, 0.3333, 0.0]
    """
    check_depth(process, depth)
    return Level(*_level(bare(process), depth))


class MixedStates(NamedTuple):
    """Words of positive probability, lexicographic, with their beliefs; a list over their lengths."""

    words: list[Int[Array, "n d"]]
    beliefs: list[Float[Array, "n s"]]
    probabilities: list[Float[Array, "n"]]


def mixed_states(
    process: Process, depth: int, *, merge: bool = False, tolerance: float | None = None
) -> MixedStates:
    """The tree of beliefs over words that can occur, level by level.

    Args:
      process: the process.
      depth: length of the longest words.
      merge: whether words of equal belief are replaced by the first of them, with the sum of their
        probabilities. If the mixed states are finite in number, any depth is then cheap.
      tolerance: within which beliefs are equal; None is 1e-10, 1e-5 for a process in float32, and
        the rounding of its transitions for one in half precision.
    Raises: ImrError if the process is traced, or there are more than 2^24 words.

    >>> from imr.processes import golden_mean
    >>> [words.tolist() for words in mixed_states(golden_mean(0.5), 2).words]
    [[[]], [[0], [1]], [[0, 0], [0, 1], [1, 0]]]
    """
    check_depth(process, depth, enumerates=False)
    check_flags(merge=merge)
    tolerance = _tolerance(process, tolerance)
    if not is_concrete(process):
        raise ImrError("shapes of mixed_states depend on values: call it outside of jax.jit.")
    transitions = np.asarray(process.transitions, np.float64)
    right = np.asarray(process.right, np.float64)
    k, least = process.num_tokens, least_probability(process, np.float64)
    words = [np.zeros((1, 0), np.int32)]
    beliefs = [np.asarray(process.initial, np.float64)[None]]
    probabilities: list[Any] = [np.ones(1)]
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

    def arrays(levels):
        return [jnp.asarray(x, process.transitions.dtype) for x in levels]

    return MixedStates([jnp.asarray(x) for x in words], arrays(beliefs), arrays(probabilities))


def count_mixed_states(process: Process, depth: int, *, tolerance: float | None = None) -> int:
    """The number of distinct beliefs after words of length 0 to depth.

    Args:
      process, depth, tolerance: as in `mixed_states`.

    >>> from imr.processes import golden_mean
    >>> count_mixed_states(golden_mean(0.5), 10)
    3
    """
    tolerance = _tolerance(process, tolerance)
    tree = mixed_states(process, depth, merge=True, tolerance=tolerance)
    return len(_equal(np.concatenate([np.asarray(x) for x in tree.beliefs]), tolerance)[0])


class Prefixes(NamedTuple):
    """Indices of prefixes in an array (words, positions, ...) over all words.

    Attributes:
      word, position: the row, and the last token of the prefix; shape (prefixes,).
    """

    word: Int[np.ndarray, "prefixes"]
    position: Int[np.ndarray, "prefixes"]


def unique_prefixes(num_tokens: int, length: int, first: int = 1) -> Prefixes:
    """Where each prefix stands once in the table of all words, `imr.beliefs.all_words`.

    For activations x of all words, shape (k^l, l, ...), `x[word, position]` holds those of every
    unique prefix, sorted by length and then as in `all_words`.

    Args:
      num_tokens, length: k and l, as in `all_words`.
      first: length of the shortest prefixes, from 1 to l.
    Raises: ImrError if first is not within 1 to l, or an argument is no positive integer.

    >>> [index.tolist() for index in unique_prefixes(2, 2)]
    [[0, 2, 0, 1, 2, 3], [0, 0, 1, 1, 1, 1]]
    """
    check_counts(num_tokens=num_tokens, length=length, first=first)
    if first > length:
        raise ImrError(f"first must be at most length, {length}; found {first}.")
    depths = range(first, length + 1)
    words = [np.arange(num_tokens**d) * num_tokens ** (length - d) for d in depths]
    positions = [np.full(num_tokens**d, d - 1) for d in depths]
    return Prefixes(np.concatenate(words), np.concatenate(positions))


def check_depth(process, depth, enumerates=True):
    """Checks a length of words, and that the words can be enumerated."""
    check_process(process)
    check_count("depth", depth, 0)
    if enumerates and process.num_tokens ** (depth + 1) > MOST_WORDS:
        raise ImrError(
            f"depth {depth} with {process.num_tokens} tokens has more than {MOST_WORDS} words; "
            "take a smaller depth, or mixed_states with merge=True."
        )


def grow(process, words, depth):
    """Unnormalised beliefs of all words extended by `depth` tokens: mu T_x1 ... T_xd."""
    for _ in range(depth):
        both = jnp.einsum("ni,kij->nkj", words, process.transitions, precision="highest")
        words = both.reshape(-1, process.num_states)
    return words


def _tolerance(process, tolerance):
    """The tolerance, by default above the rounding errors of the transition matrices."""
    check_process(process)
    if tolerance is None:
        float64 = process.transitions.dtype == jnp.float64
        return 1e-10 if float64 else rounding(process.transitions)
    check_scalar("tolerance", tolerance)
    check_positive("tolerance", tolerance)
    return tolerance


def _equal(beliefs, tolerance):
    """First index and group of equal rows. The shift keeps simple fractions away from the boundaries."""
    _, first, group = np.unique(
        np.floor(beliefs / tolerance + 0.3719), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    return first[order], np.argsort(order)[group.reshape(-1)]


@partial(jax.jit, static_argnames="depth")
def _level(process, depth):
    words = grow(process, process.initial[None, :], depth)
    p = matmul(words, process.right)
    p = jnp.where(p > least_probability(process, p.dtype) * jnp.max(p), p, 0)
    return words / jnp.where(p > 0, p, jnp.nan)[:, None], p
