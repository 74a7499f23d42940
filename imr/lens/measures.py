"""What heads do on text: their updates beside the gradient of their own energy, with nulls."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from imr._checks import check_count, check_key
from imr._numerics import matmul
from imr.lens._parts import (
    centred,
    checked_text,
    normalise,
    orders_of,
    over,
    permuted,
    project,
    unit,
    visible,
)
from imr.lens.activations import Activations, run
from imr.lens.energy import energy_gradient
from imr.lens.labels import LabelCosines, label_cosines, label_terms
from imr.lens.model import HeadWeights, Norm, TransformerWeights, input_norms

OTHERS = 24  # heads, evenly over the model, whose theta makes a null


class TermCosines(NamedTuple):
    """Cosines with minus the row term of an energy's gradient, its column term, and their sum."""

    row: Float[Array, "..."]
    column: Float[Array, "..."]
    sum: Float[Array, "..."]


class Energies(NamedTuple):
    """E for each head and token, (l,), at the beginning of a layer, before its MLP, and at its end."""

    before: Float[Array, "l"]
    middle: Float[Array, "l"]
    after: Float[Array, "l"]


class TextMeasures(NamedTuple):
    """The measures of one text; cosines are of (n, d) arrays less their mean over tokens.

    Attributes:
      cosines: of each head's update, shape (l, h).
      mismatched: the same with terms by the theta of other heads, up to 24 of them, but the head's
        own attention and features, shape (others, l, h).
      permuted: the same with the features of the term in random order, shape (draws, l, h).
      energy_change: change of E for each token if the head's own update, not centred, is added to
        what it reads (to the stream before the norm if norms come first), shape (l, h).
      energy_permuted: the same with the features of the update in random order, (draws, l, h).
      energies: E along each layer, by its own heads and through the norm that they read through.
      layers: cosines of the sum of a layer's updates with the sum of its terms, shape (l,).
      layers_permuted: the same with the features of the term in random order, (draws, l).
      labels: cosines of what the MLP adds with its label terms; see `label_null`.
    """

    cosines: TermCosines
    mismatched: TermCosines
    permuted: TermCosines
    energy_change: Float[Array, "l h"]
    energy_permuted: Float[Array, "draws l h"]
    energies: Energies
    layers: TermCosines
    layers_permuted: TermCosines
    labels: LabelCosines | None


def measure_text(
    model: TransformerWeights, tokens: Any, length: Any, key: Key[Array, ""], draws: int = 16
) -> TextMeasures:
    """All activation measures of one text.

    Args:
      model: the transformer.
      tokens: integers, shape (n,), of which the first `length` are the text; the rest is padding,
        which is neither seen nor counted.
      length: from 3 to n.
      key: for the nulls; the same key gives all texts the same permutations of features.
      draws: of each null that is random.
    Raises: ImrError if tokens are no integers, out of range, or more than the model has positions,
      if the length is out of range, or if key or draws are none.

    Reference: THEORY A8; the measures are imr's own.
    """
    check_key(key)
    check_count("draws", draws)
    return _measure_text(model, *checked_text(model, tokens, length), key, draws)


class _Text(NamedTuple):
    present: Bool[Array, "n"]
    seen: Bool[Array, "n n"]
    length: Int[Array, ""]
    orders: Int[Array, "draws d"]


class _Layer(NamedTuple):
    number: Int[Array, ""]
    heads: HeadWeights
    norm: Norm  # that the heads read through
    at: Activations


@partial(jax.jit, static_argnames="draws")
def _measure_text(model, tokens, length, key, draws):
    present = jnp.arange(tokens.shape[0]) < length
    orders = orders_of(key, draws, model.tokens.shape[1])
    text = _Text(present, visible(model, present) & present[:, None], length, orders)
    activations = run(model, tokens, present)
    numbers = jnp.arange(model.heads.query.shape[0])
    layers = _Layer(numbers, model.heads, input_norms(model), activations._replace(final=None))
    found = jax.lax.map(partial(_measure_layer, model, text), layers)
    terms = label_terms(model, activations.after)
    labels = jax.vmap(lambda mlp, term: label_cosines(mlp, term, terms[-1], present))
    return found._replace(
        mismatched=_draws_first(found.mismatched),
        permuted=_draws_first(found.permuted),
        energy_permuted=_draws_first(found.energy_permuted),
        layers_permuted=_draws_first(found.layers_permuted),
        labels=labels(activations.mlp, terms),
    )


def _draws_first(tree):
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _measure_layer(model: TransformerWeights, text: _Text, layer: _Layer) -> TextMeasures:
    """The measures of one layer but for labels, without the axis l."""
    heads, at = layer.heads, layer.at
    gradient = energy_gradient(heads, at.inputs, text.seen)
    terms = jnp.stack([gradient.rows, gradient.columns, gradient.rows + gradient.columns])
    terms = centred(-terms, text.present)
    updates, term = unit(centred(at.updates, text.present)), unit(terms)
    every = unit(centred(jnp.sum(at.updates, axis=0), text.present))
    summed = unit(jnp.sum(terms, axis=1))

    def through_norm(x):
        return normalise(x, layer.norm, model.epsilon)

    def energy(heads, x):
        return energy_gradient(heads, x, text.seen).energy

    def change(updates):
        def one(head, update):
            moved = at.before + update
            moved = through_norm(moved) if model.norm_first else moved
            return energy(jax.tree.map(lambda w: w[None], head), moved)[0]

        shared: Any = HeadWeights._make([*7 * [0], None])  # output_bias belongs to all heads
        return (jax.vmap(one, (shared, 0))(heads, updates) - gradient.energy) / text.length

    attended = at.before + jnp.sum(at.updates, axis=0) + heads.output_bias[None, :]
    streams = (through_norm(x) for x in (attended, at.middle + at.mlp))
    energies = gradient.energy, *(energy(heads, x) for x in streams)
    return TextMeasures(
        cosines=TermCosines(*jnp.sum(updates[None] * term, axis=(-2, -1))),
        mismatched=_mismatch(model, text, layer, updates),
        permuted=TermCosines(*_draws_first(permuted(updates[None], term, text.orders))),
        energy_change=change(at.updates),
        energy_permuted=jax.lax.map(lambda order: change(at.updates[:, :, order]), text.orders),
        energies=Energies(*(jnp.mean(x) / text.length for x in energies)),
        layers=TermCosines(*jnp.sum(every[None] * summed, axis=(-2, -1))),
        layers_permuted=TermCosines(*_draws_first(permuted(every[None], summed, text.orders))),
        labels=None,
    )


class _Others(NamedTuple):
    """Other heads: theta, the queries and keys that it makes, and its Gram matrices."""

    query: Float[Array, "others d r"]
    key: Float[Array, "others d r"]
    queries: Float[Array, "others n r"]
    keys: Float[Array, "others n r"]
    query_gram: Float[Array, "others r r"]
    key_gram: Float[Array, "others r r"]
    cross_gram: Float[Array, "others r r"]


def _mismatch(model: TransformerWeights, text: _Text, layer: _Layer, updates: Array) -> TermCosines:
    """Cosines with the terms by other heads' theta but the head's own attention, (others, h).

    The terms are never built: their lengths come from the r x r Gram matrices of the weights.
    """
    l, h = model.heads.query.shape[:2]
    weights = (model.heads.query, model.heads.key, model.heads.query_bias, model.heads.key_bias)
    query, key, query_bias, key_bias = (w.reshape(l * h, *w.shape[2:]) for w in weights)
    shifts = np.linspace(1, l * h - 1, min(OTHERS, l * h - 1)).round().astype(int)
    queries, keys = (project(layer.at.inputs, *w) for w in ((query, query_bias), (key, key_bias)))
    every = _Others(
        query, key, queries, keys, _gram(query, query), _gram(key, key), _gram(query, key)
    )

    def one(part):
        number, p, update = part
        others = jax.tree.map(lambda w: w[(number + shifts) % (l * h)], every)
        mixed = centred(matmul(p[None], others.keys), text.present)
        received = centred(matmul(p.T[None], others.queries), text.present)
        row = jnp.sum(mixed * matmul(update[None], others.query), axis=(1, 2))
        column = jnp.sum(received * matmul(update[None], others.key), axis=(1, 2))
        row_square = jnp.sum(_gram(mixed, mixed) * others.query_gram, axis=(1, 2))
        column_square = jnp.sum(_gram(received, received) * others.key_gram, axis=(1, 2))
        both = 2 * jnp.sum(_gram(mixed, received) * others.cross_gram, axis=(1, 2))
        return TermCosines(
            _cosine(row, row_square),
            _cosine(column, column_square),
            _cosine(row + column, row_square + column_square + both),
        )

    attention = jnp.where(text.seen[None], layer.at.attention, 0)  # no rows of padding
    return _draws_first(jax.lax.map(one, (h * layer.number + jnp.arange(h), attention, updates)))


def _gram(a, b):
    return matmul(jnp.swapaxes(a, 1, 2), b)


def _cosine(inner, square):
    """With minus a term, from its inner product with a unit vector and its squared length."""
    return -over(inner, jnp.sqrt(jnp.maximum(square, 0)))
