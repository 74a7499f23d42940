r"""The MLP as label term: does what it adds lie along $C \theta$?

$\theta$ is the unembedding, and C are the probabilities that the logit lens reads off the stream.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from imr._checks import check_count, check_key
from imr._numerics import matmul
from imr.lens._parts import centred, checked_text, normalise, one_text, orders_of, unit
from imr.lens.activations import forward, unembed, unembedding_of
from imr.lens.model import TransformerWeights


class LabelCosines(NamedTuple):
    r"""Cosines of what each MLP adds with $C \theta$, shape (l,) or (draws, l).

    Attributes:
      next, final: C is read off the stream at the end of the layer, or of the model.
    """

    next: Float[Array, "*draws l"]
    final: Float[Array, "*draws l"]


def label_terms(model, streams):
    r"""$C \theta$ for each row of residual streams (..., n, d); with the slope of soft capping in C."""
    unembedding = unembedding_of(model)

    def one(row):
        row = row[None]
        if model.attention.norm_first:
            row = normalise(row, model.outer_norm, model.attention)
        logits = unembed(model, row)
        c = jax.nn.softmax(logits, axis=-1)
        if model.cap is not None:
            c = c * (1 - (logits / model.cap) ** 2)
        return matmul(c, unembedding.T)[0]

    # Many rows at once, as the unembedding is large, but not all, as C is larger.
    rows = streams.reshape(-1, streams.shape[-1])
    return jax.lax.map(one, rows, batch_size=min(len(rows), 256)).reshape(streams.shape)


def label_cosines(mlp, following, final, present) -> LabelCosines:
    r"""Cosines of what one MLP adds with $C \theta$ at the end of the layer and of the model."""
    update, *terms = (unit(centred(x, present)) for x in (mlp, following, final))
    return LabelCosines(*(jnp.sum(update * term) for term in terms))


def label_null(
    model: TransformerWeights, tokens: Any, length: Any, key: Key[Array, ""], draws: int = 8
) -> LabelCosines:
    r"""What `TextMeasures.labels` would be by chance.

    C is read off a stream that contains the update, and any update lies somewhat along its own
    $C \theta$. So the features of a layer's update are put in random order, the same for all tokens,
    and the model continues from there to the C that the update is compared with.

    Args:
      model, tokens, length: as in `measure_text`.
      key, draws: for the orders, and how many; the same key gives all texts the same orders.
    Returns: `LabelCosines` of shape (draws, l).
    """
    check_key(key)
    check_count("draws", draws)
    return _label_null(model, *checked_text(model, one_text(tokens), length), key, draws)


@partial(jax.jit, static_argnames="draws")
def _label_null(model, tokens, length, key, draws):
    present = jnp.arange(tokens.shape[0]) < length
    l, d = model.attention.query.shape[0], model.tokens.shape[1]

    def one(scramble):
        layer, activations = scramble[0], forward(model, tokens, present, scramble)
        streams = jnp.stack([activations.after[layer], activations.after[-1]])
        following, final = label_terms(model, streams)
        return label_cosines(activations.mlp[layer], following, final, present)

    orders = jnp.repeat(orders_of(key, draws, d), l, axis=0)
    cosines = jax.lax.map(one, (jnp.tile(jnp.arange(l), draws), orders))
    return jax.tree.map(lambda x: x.reshape(draws, l), cosines)
