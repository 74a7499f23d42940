"""The activations of a transformer: one forward pass, and what each head adds in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imr._numerics import matmul
from imr.lens._parts import attend, checked_tokens, normalise, visible
from imr.lens.model import ACTIVATIONS, TransformerWeights


class Activations(NamedTuple):
    """All of a forward pass over n tokens, with a leading axis of layers.

    Attributes:
      inputs: what the heads read, after the norm if that comes first, shape (l, n, d).
      attention: attention weights, shape (l, h, n, n).
      updates: what each head adds, without `output_bias`, shape (l, h, n, d).
      before, middle, after: the residual stream at the beginning of a layer, between attention and
        MLP, and at the end, shape (l, n, d).
      mlp: what the MLP adds, shape (l, n, d).
      final: the stream after the last norm, shape (n, d).
    """

    inputs: Float[Array, "l n d"]
    attention: Float[Array, "l h n n"]
    updates: Float[Array, "l h n d"]
    before: Float[Array, "l n d"]
    middle: Float[Array, "l n d"]
    mlp: Float[Array, "l n d"]
    after: Float[Array, "l n d"]
    final: Float[Array, "n d"] | None


def record(model: TransformerWeights, tokens: Any) -> Activations:
    """Runs a transformer on one text; for several texts of one length use `jax.vmap`.

    Args:
      model, tokens: as in `measure_text`.
    """
    tokens = checked_tokens(model, tokens)
    return run(model, tokens, jnp.ones(tokens.shape, bool))


@jax.jit
def run(
    model: TransformerWeights,
    tokens: Int[Array, "n"],
    present: Bool[Array, "n"],
    scramble: tuple[Int[Array, ""], Int[Array, "d"]] | None = None,
) -> Activations:
    """`record` of tokens that are known to fit; no token attends to those that are not present.

    `scramble` is a control: a layer, and the order into which the features that its MLP adds are put.
    """

    def norm_if(first, x, norm):
        return normalise(x, norm, model.epsilon) if model.norm_first == first else x

    embedded = model.tokens[tokens] + model.positions[: tokens.shape[0]]
    seen = visible(model, present)

    def layer(x, weights):
        heads, attention_norm, mlp, mlp_norm, number = weights
        inputs = norm_if(True, x, attention_norm)
        attention, updates = attend(heads, inputs[None], seen)
        attended = x + jnp.sum(updates, axis=0) + heads.output_bias[None, :]
        middle = norm_if(False, attended, attention_norm)
        read = norm_if(True, middle, mlp_norm)
        hidden = ACTIVATIONS[model.activation](matmul(read, mlp.into) + mlp.into_bias[None, :])
        added = matmul(hidden, mlp.out) + mlp.out_bias[None, :]
        if scramble is not None:
            added = jnp.where(number == scramble[0], added[:, scramble[1]], added)
        after = norm_if(False, middle + added, mlp_norm)
        return after, Activations(inputs, attention, updates, x, middle, added, after, None)

    numbers = jnp.arange(model.heads.query.shape[0])
    layers = (model.heads, model.attention_norm, model.mlp, model.mlp_norm, numbers)
    x, activations = jax.lax.scan(layer, norm_if(False, embedded, model.outer_norm), layers)
    return activations._replace(final=norm_if(True, x, model.outer_norm))
