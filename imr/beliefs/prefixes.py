"""Unique prefixes of the table of all words."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from imr._checks import check_count
from imr.errors import ImrError


class Prefixes(NamedTuple):
    """Indices of prefixes in an array (words, positions, ...) over all words.

    Attributes:
      word: the row, shape (prefixes,).
      position: the last token of the prefix, shape (prefixes,).
    """

    word: Int[np.ndarray, "prefixes"]
    position: Int[np.ndarray, "prefixes"]


def unique_prefixes(num_tokens: int, length: int, first: int = 1) -> Prefixes:
    """Where each prefix stands once in the table of all words, `imr.beliefs.all_words`.

    For activations x of all words, shape (k^l, l, ...), `x[word, position]` holds those of every
    unique prefix, sorted by length and then as in `all_words`.

    Args:
      num_tokens: k, the number of tokens.
      length: l, the length of the words.
      first: length of the shortest prefixes, from 1 to l.

    Returns:
      `Prefixes`, one index for each of the sum of k^d prefixes, d = first to l.

    Raises:
      ImrError: if first is not within 1 to l, or an argument is no positive integer.

    >>> [index.tolist() for index in unique_prefixes(2, 2)]
    [[0, 2, 0, 1, 2, 3], [0, 0, 1, 1, 1, 1]]
    """
    for name, value in (("num_tokens", num_tokens), ("length", length), ("first", first)):
        check_count(name, value)
    if first > length:
        raise ImrError(f"first must be at most length, {length}; found {first}.")
    depths = range(first, length + 1)
    words = [np.arange(num_tokens**d) * num_tokens ** (length - d) for d in depths]
    positions = [np.full(num_tokens**d, d - 1) for d in depths]
    return Prefixes(np.concatenate(words), np.concatenate(positions))
