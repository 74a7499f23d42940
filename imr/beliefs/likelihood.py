"""Log-likelihood of many tokens: a function to differentiate, within memory and vectorised.

Long sequences are cut into chunks, whose matrix products are taken side by side; tokens are taken in
words, several at a step. Between blocks of steps the products are computed anew for the gradient.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from imr._numerics import matmul
from imr.beliefs.filter import least_factor, log
from imr.beliefs.scaled import Scaled, plain, product, relative, scaled

# Most words, lanes and entries of the matrices of one step, as measured on CPUs: beyond these the
# arrays of a step leave the cache, and nothing is gained.
_WORDS, _LANES, _ENTRIES = 128, 512, 2**22


class Packed(NamedTuple):
    """Tokens in words of m symbols, laid out for the log-likelihood.

    Attributes:
      words: distinct words, shape (w, m). A symbol is a token x; k + x for the last token of a
        sequence, if ends differ; or the greatest, which fills up sequences and words.
      index: of the word of each step, shape (groups, blocks, steps, sequences * chunks).
      occupied: whether a sequence has tokens, shape (groups, sequences).
      count: number of tokens.
    """

    words: Int[Array, "w m"]
    index: Int[Array, "groups blocks steps lanes"]
    occupied: Bool[Array, "groups b"]
    count: Int[Array, ""]


def pack(sequences: np.ndarray, num_states: int, num_tokens: int, *, ends: bool) -> Packed:
    """Lays tokens out in words, steps, blocks, chunks and groups.

    Args:
      sequences: tokens, shape (b, l), with -1 after the end of each sequence.
      num_states, num_tokens: s and k.
      ends: whether the last token of each sequence has a symbol and a matrix of its own.
    """
    lengths = np.sum(sequences >= 0, axis=1)
    count = int(lengths.sum())
    filler = (1 + ends) * num_tokens
    symbols = np.where(sequences < 0, filler, sequences).astype(np.int64)
    if ends:
        some = np.flatnonzero(lengths)
        symbols[some, lengths[some] - 1] += num_tokens

    few = min(_WORDS, count // (4 * num_states))
    m = max([1, *(m for m in range(2, 9) if num_tokens**m <= few)])
    words = -(-symbols.shape[1] // m)
    # A matrix has s rows to advance where a vector is one: chunks pay if steps are what is slow.
    chunks = min(_LANES // len(symbols), words // 16)
    if chunks <= num_states or len(symbols) * num_states**3 > 2**14:
        chunks = 1
    groups = -(-len(symbols) * num_states**2 // _ENTRIES)
    each = -(-len(symbols) // groups)
    steps = -(-words // chunks)
    inner = int(np.ceil(np.sqrt(steps)))
    blocks = -(-steps // inner)

    shape = (groups * each, chunks * blocks * inner * m)
    padding = [(0, new - old) for new, old in zip(shape, symbols.shape, strict=True)]
    symbols = np.pad(symbols, padding, constant_values=filler)
    scale = (filler + 1) ** np.arange(m)
    codes, index = np.unique(symbols.reshape(-1, m) @ scale, return_inverse=True)
    # To a power of two, so that other tokens of the same shape need no other program.
    codes = np.pad(codes, (0, 2 ** (len(codes) - 1).bit_length() - len(codes)), mode="edge")
    index = index.reshape(groups, each * chunks, blocks, inner).transpose(0, 2, 3, 1)
    occupied = np.pad(lengths > 0, padding[0]).reshape(groups, each)
    return Packed(
        jnp.asarray(codes[:, None] // scale % (filler + 1), jnp.int32),
        jnp.asarray(index, jnp.int32), jnp.asarray(occupied), jnp.asarray(count),
    )  # fmt: skip


def mean_log_likelihood(
    initial: Array, matrices: Array, packed: Packed, *, exact: bool = False
) -> tuple[Array, Array]:
    r"""The mean of $\log \mu M_{x_1} \cdots M_{x_l} 1$ over sequences, per token, and its gradient.

    Products are divided by their size as they grow. The sizes count as constants: the value has their
    logarithms, the gradient is that of the remaining product, which is the scaled backward message.

    Args:
      initial: start distribution, shape (s,).
      matrices: of each symbol but the filler, shape (symbols, s, s).
      packed: as `pack` returns it.
      exact: whether each entry has a scale of its own, at several times the cost.
    Returns: a scalar, -inf if a sequence has probability zero; and whether entries came so near the
      least number of the dtype that what is not exact may have lost some.
    """
    dtype, size = matrices.dtype, initial.shape[0]
    symbols: Any = jnp.concatenate([matrices, jnp.eye(size, dtype=dtype)[None]])
    symbols = scaled(symbols) if exact else symbols
    products: Any = jax.tree.map(lambda x: x[packed.words[:, 0]], symbols)
    small = _any_small(initial) | _any_small(products)
    for column in packed.words.T[1:]:
        each = jax.tree.map(lambda x, column=column: x[column], symbols)
        if exact:
            left, right = (_expanded(x, axis) for x, axis in ((products, -1), (each, 1)))
            products = product(left, right, 2)
        else:
            products = matmul(products, each)
            small |= _any_small(products)

    def group(both):
        index, occupied = both
        of_batch = _exact_log_likelihoods if exact else _log_likelihoods
        each, small = of_batch(initial, products, index, occupied.shape[0])
        return jnp.sum(jnp.where(occupied, each, 0)), small

    totals, smalls = jax.lax.map(group, (packed.index, packed.occupied))
    return jnp.sum(totals) / packed.count.astype(dtype), small | jnp.any(smalls)


def _any_small(x):
    return jnp.any(_low(x) < least_factor(x.dtype)) if isinstance(x, Array) else jnp.zeros((), bool)


def _low(x):
    """Entries, or one for those that are zero."""
    x = jax.lax.stop_gradient(x)
    return jnp.where(x > 0, x, 1)


def _expanded(x: Scaled, axis: int) -> Scaled:
    return Scaled(*(jnp.expand_dims(leaf, axis) for leaf in x))


def _start(initial, lanes, chunks):
    """Rows (r, s, lanes): the start, or one for each state that a chunk may start from."""
    rows = initial[None, :] if chunks == 1 else jnp.eye(len(initial), dtype=initial.dtype)
    return jnp.tile(rows[:, :, None], (1, 1, lanes))


def _log_likelihoods(initial, products, index, batch):
    """Of each sequence, shape (b,), from words (blocks, steps, b * chunks); and what was small."""
    size, lanes = initial.shape[0], index.shape[-1]
    chunks = lanes // batch

    def step(carry, words):
        rows, scales, low = carry
        # Lanes come last: sums over few states are then sums of long vectors.
        chosen = jnp.moveaxis(products[words], 0, -1)
        rows = jnp.sum(rows[:, :, None, :] * chosen[None], axis=1)
        rows, log_size = _rescaled(rows)
        return (rows, scales + log_size, jnp.minimum(low, _low(rows))), None

    @jax.checkpoint
    def block(carry, words):
        return jax.lax.scan(step, carry, words)

    rows = _start(initial, lanes, chunks)
    carry = rows, jnp.zeros((len(rows), lanes), rows.dtype), jnp.ones_like(rows)
    (rows, scales, low), _ = jax.lax.scan(block, carry, index)
    small = _any_small(low)
    if chunks == 1:
        return log(jnp.sum(rows[0], axis=0)) + scales[0], small
    # Rows have scales of their own; those of states that are not reached do not count.
    least = math.log(least_factor(rows.dtype))

    def join(carry, chunk):
        belief, log_scale, small = carry
        rows, scales = chunk
        top = jnp.max(jnp.where(belief > 0, scales, -jnp.inf), axis=0)
        top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
        below = scales - top[None, :]
        weights = belief * jnp.exp(jnp.minimum(below, 0))
        small |= jnp.any((belief > 0) & (below < least)) | _any_small(weights)
        belief, log_size = _rescaled(jnp.sum(weights[:, None, :] * rows, axis=0)[None])
        return (belief[0], log_scale + log_size[0] + top, small), None

    rows = jnp.moveaxis(rows.reshape(size, size, batch, chunks), -1, 0)
    scales = jnp.moveaxis(scales.reshape(size, batch, chunks), -1, 0)
    start = (jnp.tile(initial[:, None], (1, batch)), jnp.zeros(batch, rows.dtype), small)
    (belief, log_scale, small), _ = jax.lax.scan(join, start, (rows, scales))
    return log(jnp.sum(belief, axis=0)) + log_scale, small


def _exact_log_likelihoods(initial, products, index, batch):
    """The same of products whose entries have scales of their own."""
    size, lanes = initial.shape[0], index.shape[-1]
    chunks = lanes // batch

    def times(carry, chosen):
        """Rows (r, s, lanes) times matrices (s, s, lanes), and the exponents of their sizes."""
        rows, exponents = carry
        rows = product(_expanded(rows, 2), _expanded(chosen, 0), 1)
        rows, top = relative(rows, 1)
        return rows, exponents + top[:, 0]

    def step(carry, words):
        chosen = jax.tree.map(lambda x: jnp.moveaxis(x[words], 0, -1), products)
        return times(carry, chosen), None

    @jax.checkpoint
    def block(carry, words):
        return jax.lax.scan(step, carry, words)

    rows = _start(initial, lanes, chunks)
    carry = scaled(rows), jnp.zeros((len(rows), lanes), rows.dtype)
    (rows, exponents), _ = jax.lax.scan(block, carry, index)
    if chunks > 1:
        of_rows = Scaled(rows.values, rows.exponents + exponents[:, None, :])
        of_chunks = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(size, size, batch, chunks), -1, 0), of_rows
        )
        carry = scaled(_start(initial, batch, 1)), jnp.zeros((1, batch), initial.dtype)
        carry, _ = jax.lax.scan(lambda carry, rows: (times(carry, rows), None), carry, of_chunks)
        rows, exponents = carry
    total = jnp.sum(plain(rows)[0], axis=0)
    return log(total) + math.log(2) * exponents[0], jnp.zeros((), bool)


def _rescaled(rows):
    """Rows (r, s, lanes) that sum to one, and the logarithms of the sums, which are constants."""
    sums = jax.lax.stop_gradient(jnp.sum(rows, axis=1))
    sums = jnp.where(sums > 0, sums, 1)
    return rows / sums[:, None, :], jnp.log(sums)
