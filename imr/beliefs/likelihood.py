"""Log-likelihood of many tokens: a function to differentiate, within memory and vectorised.

Long sequences are cut into chunks, whose matrix products are taken side by side; tokens are taken in
words, several at a step. Between blocks of steps the products are computed anew for the gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from imr._numerics import matmul

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


def mean_log_likelihood(initial: Array, matrices: Array, packed: Packed) -> Array:
    r"""The mean of $\log \mu M_{x_1} \cdots M_{x_l} 1$ over sequences, per token, and its gradient.

    Products are divided by their size as they grow. The sizes count as constants: the value has their
    logarithms, the gradient is that of the remaining product, which is the scaled backward message.

    Args:
      initial: start distribution, shape (s,).
      matrices: of each symbol but the filler, shape (symbols, s, s).
      packed: as `pack` returns it.
    Returns: a scalar; -inf if a sequence has probability zero.
    """
    dtype, size = matrices.dtype, initial.shape[0]
    matrices = jnp.concatenate([matrices, jnp.eye(size, dtype=dtype)[None]])
    products = matrices[packed.words[:, 0]]
    for column in packed.words.T[1:]:
        products = matmul(products, matrices[column])

    def group(both):
        index, occupied = both
        each = _log_likelihoods(initial, products, index, occupied.shape[0])
        return jnp.sum(jnp.where(occupied, each, 0))

    total = jnp.sum(jax.lax.map(group, (packed.index, packed.occupied)))
    return total / packed.count.astype(dtype)


def _log_likelihoods(initial, products, index, batch):
    """Of each sequence, shape (b,), from words (blocks, steps, b * chunks)."""
    size, lanes = initial.shape[0], index.shape[-1]
    chunks = lanes // batch

    def step(carry, words):
        rows, scales = carry
        # Lanes come last: sums over few states are then sums of long vectors.
        chosen = jnp.moveaxis(products[words], 0, -1)
        rows = jnp.sum(rows[:, :, None, :] * chosen[None], axis=1)
        rows, log_size = _rescaled(rows)
        return (rows, scales + log_size), None

    @jax.checkpoint
    def block(carry, words):
        return jax.lax.scan(step, carry, words)

    rows = initial[None, :] if chunks == 1 else jnp.eye(size, dtype=products.dtype)
    rows = jnp.tile(rows[:, :, None], (1, 1, lanes))
    scales = jnp.zeros((len(rows), lanes), rows.dtype)
    (rows, scales), _ = jax.lax.scan(block, (rows, scales), index)
    if chunks == 1:
        return _log(jnp.sum(rows[0], axis=0)) + scales[0]

    def join(carry, chunk):
        belief, log_scale = carry
        rows, scales = chunk
        # Rows have scales of their own; those of states that were not reached do not count.
        top = jnp.max(jnp.where(belief > 0, scales, -jnp.inf), axis=0)
        top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
        weights = belief * jnp.exp(jnp.minimum(scales - top[None, :], 0))
        belief, log_size = _rescaled(jnp.sum(weights[:, None, :] * rows, axis=0)[None])
        return (belief[0], log_scale + log_size[0] + top), None

    rows = jnp.moveaxis(rows.reshape(size, size, batch, chunks), -1, 0)
    scales = jnp.moveaxis(scales.reshape(size, batch, chunks), -1, 0)
    start = (jnp.tile(initial[:, None], (1, batch)), jnp.zeros(batch, rows.dtype))
    (belief, log_scale), _ = jax.lax.scan(join, start, (rows, scales))
    return _log(jnp.sum(belief, axis=0)) + log_scale


def _rescaled(rows):
    """Rows (r, s, lanes) that sum to one, and the logarithms of the sums, which are constants."""
    sums = jax.lax.stop_gradient(jnp.sum(rows, axis=1))
    sums = jnp.where(sums > 0, sums, 1)
    return rows / sums[:, None, :], jnp.log(sums)


def _log(p):
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)
