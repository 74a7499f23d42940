"""Checks of tokens in sequences of several lengths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imr._checks import is_concrete, numpy_of
from imr.errors import ImrError


def as_tokens(tokens: Any, num_tokens: int) -> jax.Array:
    """Tokens as int32 (..., l), of 0 to num_tokens - 1 where they are concrete."""
    return as_sequences(tokens, None, num_tokens)[0]


def as_sequences(tokens: Any, lengths: Any, num_tokens: int) -> tuple[jax.Array, Any]:
    """Tokens (..., l), and lengths (...) or None, as int32; both in range where they are concrete.

    Tokens beyond a length are never read: they become 0.
    """
    tokens = _as_integers("tokens", tokens, "(..., l)")
    if jnp.ndim(tokens) < 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ImrError(
            f"tokens must be integers of shape (..., l), 0 to {num_tokens - 1}; found {tokens.dtype} "
            f"of shape {np.shape(tokens)}. Names of tokens are found in process.tokens.index(name)."
        )
    if lengths is not None:
        lengths = as_lengths(lengths, tokens.shape[:-1], tokens.shape[-1])
        tokens = numpy_of(tokens, lengths).where(within(lengths, tokens.shape[-1]), tokens, 0)
    if is_concrete(tokens) and np.size(tokens):
        low, high = np.min(np.asarray(tokens)), np.max(np.asarray(tokens))
        if low < 0 or high >= num_tokens:
            raise ImrError(f"tokens must lie in 0 to {num_tokens - 1}; found {low} to {high}.")
    elif jnp.iinfo(tokens.dtype).max > jnp.iinfo(jnp.int32).max:
        # In the cast, a number out of range must not become a token.
        tokens = jnp.clip(tokens, max(-1, int(jnp.iinfo(tokens.dtype).min)), num_tokens)
    # Not before: narrow integers cannot hold the bounds that they are compared with.
    return jnp.asarray(tokens, jnp.int32), lengths


def as_lengths(lengths: Any, shape: tuple[int, ...], most: int) -> Any:
    """Lengths of sequences as int32 of that shape, 0 to `most` where they are concrete."""
    lengths = _as_integers("lengths", lengths, shape)
    if lengths.shape != shape or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ImrError(
            f"lengths must be integers of shape {shape}, one for each sequence; found "
            f"{lengths.dtype} of shape {lengths.shape}."
        )
    if not is_concrete(lengths):
        return jnp.clip(lengths.astype(jnp.int32), 0, most)
    lengths = np.asarray(lengths)
    if lengths.size and (lengths.min() < 0 or lengths.max() > most):
        found = f"{lengths.min()} to {lengths.max()}"
        raise ImrError(f"lengths must lie in 0 to {most}; found {found}.")
    return lengths.astype(np.int32)


def _as_integers(name, integers, shape):
    """A list of integers as an array; arrays stay as they are."""
    if isinstance(integers, jax.Array):
        return integers
    try:
        integers = np.asarray(integers)
    except ValueError as error:
        raise ImrError(f"{name} must be integers of shape {shape}: {error}.") from None
    # An empty list.
    return integers.astype(np.int32) if not integers.size and integers.dtype == float else integers


def within(lengths: Any, most: int) -> Any:
    """Whether each of the positions (..., most) is one of the first `lengths` (...) ones."""
    positions = np.arange(most, dtype=np.int32).reshape(*np.ones(lengths.ndim, int), most)
    return positions < lengths[..., None]
