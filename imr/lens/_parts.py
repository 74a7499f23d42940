"""Parts of the forward pass of one layer, the checks of texts, and cosines over their tokens."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import as_numbers, check_kind, is_concrete
from imr._sequences import as_tokens
from imr.errors import ImrError
from imr.lens.heads import Heads, Norm, head_mask
from imr.lens.model import TransformerWeights


def checked_tokens(model: TransformerWeights, tokens: Any) -> Int[Array, "*b n"]:
    """Tokens of a text, or of several of one length, that the model can read."""
    check_kind("model", model, TransformerWeights)
    tokens = as_tokens(tokens, model.tokens.shape[0])
    most = tokens.shape[-1] if model.positions is None else model.positions.shape[0]
    if tokens.ndim > 2 or not tokens.size or tokens.shape[-1] > most:
        limit = "" if model.positions is None else f" to the {most} positions of the model"
        raise ImrError(
            f"tokens must have shape (n,), or (b, n) for several texts, n from 1{limit}; found shape "
            f"{tokens.shape}. Split longer texts."
        )
    return tokens


def checked_text(
    model: TransformerWeights, tokens: Any, length: Any, least: int = 3
) -> tuple[Int[Array, "*b n"], Int[Array, "*b"]]:
    """Tokens that the model can read, the first `length` of which are the text, at least 3."""
    tokens = checked_tokens(model, tokens)
    shape, n = tokens.shape[:-1], tokens.shape[-1]
    length = as_numbers("length", length)
    if jnp.shape(length) != shape:
        raise ImrError(f"length must have shape {shape}, one for each text; found {length}.")
    if not is_concrete(length):
        return tokens, length
    lengths = np.asarray(length)
    if not jnp.issubdtype(lengths.dtype, jnp.integer) or ((lengths < least) | (lengths > n)).any():
        raise ImrError(f"length must be from {least} to the {n} tokens given; found {length}.")
    return tokens, jnp.asarray(lengths, jnp.int32)


def one_text(tokens: Any) -> Any:
    """Demands one text, not several."""
    tokens = as_numbers("tokens", tokens)
    if np.ndim(tokens) > 1:
        raise ImrError(f"tokens must have shape (n,), one text; found shape {np.shape(tokens)}.")
    return tokens


def visible(model: TransformerWeights, present: Bool[Array, "n"], reach: Any) -> Bool[Array, "n n"]:
    """Which tokens (columns) each token attends to, from which tokens belong to the text.

    Rows of padding attend to the text too, if it is within reach, so that no softmax is over nothing.
    """
    n = present.shape[0]
    seen = head_mask(replace(model.attention, reach=None), n) & present[None, :]
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    return seen if reach is None else seen & (distance <= reach)


def normalise(x: Float[Array, "*n d"], norm: Norm, heads: Heads) -> Float[Array, "*n d"]:
    """A norm over the last axis, of the kind that the heads read through."""
    if not heads.rms:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    square = jnp.mean(x**2, axis=-1, keepdims=True)
    ends = (1,) * (x.ndim - 1) + (-1,)
    scale, bias = norm.scale.reshape(ends), norm.bias.reshape(ends)
    return x / jnp.sqrt(square + heads.epsilon) * scale + bias


def over(x, size):
    """x / size, and 0 if the size is 0: a head that adds nothing has cosine 0 with everything."""
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)


def unit(x):
    """Each (n, d) scaled to length 1."""
    return over(x, jnp.sqrt(jnp.sum(x**2, axis=(-2, -1), keepdims=True)))


def centred(x, present):
    """Each (n, d) less its mean over the tokens of the text; rows of padding are 0."""
    present = present.reshape((1,) * (x.ndim - 2) + (-1, 1))
    x = jnp.where(present, x, 0)
    return jnp.where(present, x - jnp.sum(x, axis=-2, keepdims=True) / jnp.sum(present), 0)


def orders_of(key, draws, size):
    """Random permutations, shape (draws, size)."""
    return jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, draws))
