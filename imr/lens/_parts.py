"""Parts of the forward pass of one layer, the checks of texts, and cosines over their tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import as_tokens, is_concrete
from imr._numerics import matmul, softmax
from imr.errors import ImrError
from imr.lens.model import HeadWeights, Norm, TransformerWeights


def checked_tokens(model: TransformerWeights, tokens: Any) -> Int[Array, "n"]:
    """Tokens of one text that the model can read."""
    tokens = as_tokens(tokens, model.tokens.shape[0])
    if tokens.ndim != 1 or not 1 <= tokens.shape[0] <= model.positions.shape[0]:
        raise ImrError(
            f"tokens must have shape (n,), n from 1 to the {model.positions.shape[0]} positions of "
            f"the model; found shape {tokens.shape}. Split longer texts."
        )
    return tokens


def checked_text(
    model: TransformerWeights, tokens: Any, length: Any
) -> tuple[Int[Array, "n"], Int[Array, ""]]:
    """Tokens that the model can read, the first `length` of which are the text, at least 3."""
    tokens = checked_tokens(model, tokens)
    if not is_concrete(length):
        return tokens, length
    if jnp.ndim(length) or not 3 <= int(length) <= tokens.shape[0]:
        raise ImrError(
            f"length must be from 3 to the {tokens.shape[0]} tokens given; found {length}."
        )
    return tokens, jnp.asarray(length, jnp.int32)


def visible(model: TransformerWeights, present: Bool[Array, "n"]) -> Bool[Array, "n n"]:
    """Which tokens (columns) each token attends to, from which tokens belong to the text.

    Rows of padding attend to the text too, so that no softmax is over nothing.
    """
    n = present.shape[0]
    seen = jnp.broadcast_to(present[None, :], (n, n))
    return seen & np.tri(n, dtype=bool) if model.causal else seen


def project(inputs, weight, bias):
    """Queries, keys or values (h, n, r) of heads that read the same (1, n, d), or each its own."""
    return matmul(inputs, weight) + bias[:, None, :]


def attend(heads: HeadWeights, inputs, seen):
    """Attention weights (h, n, n) and updates (h, n, d) of one layer, of inputs as in `project`."""
    queries = project(inputs, heads.query, heads.query_bias)
    keys = project(inputs, heads.key, heads.key_bias)
    values = matmul(project(inputs, heads.value, heads.value_bias), heads.output)
    logits = matmul(queries, keys.mT) * queries.shape[-1] ** -0.5
    attention = softmax(logits, seen[None])
    return attention, matmul(attention, values)


def normalise(x: Float[Array, "n d"], norm: Norm, epsilon: float) -> Float[Array, "n d"]:
    """Layer norm over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + epsilon) * norm.scale[None, :] + norm.bias[None, :]


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
