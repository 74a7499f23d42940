"""What heads do on text: their updates beside the gradient of their own energy, with nulls."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from imr._checks import check_count, check_key
from imr._numerics import matmul
from imr.lens._parts import (
    centred,
    checked_text,
    normalise,
    orders_of,
    project,
    unit,
    visible,
)
from imr.lens.activations import run
from imr.lens.energy import energy_gradient
from imr.lens.labels import LabelCosines, label_cosines, label_terms
from imr.lens.model import HeadWeights, TransformerWeights, input_norms

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
      energy_change: change of E for each token if the head's own update, not centred, is added to
        what it reads (to the stream before the norm if norms come first), shape (l, h).
      energies: E along each layer, by its own heads and through the norm that they read through.
      layers: cosines of the sum of a layer's updates with the sum of its terms, shape (l,).
      permuted, energy_permuted, layers_permuted: the same with the features of the terms, or of the
        update, in random order, with a leading axis of draws.
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


@partial(jax.jit, static_argnames="draws")
def _measure_text(model, tokens, length, key, draws):
    present = jnp.arange(tokens.shape[0]) < length
    orders = orders_of(key, draws, model.tokens.shape[1])
    activations = run(model, tokens, present)
    numbers = jnp.arange(model.heads.query.shape[0])
    layers = numbers, model.heads, input_norms(model), activations._replace(final=None)
    measures = jax.lax.map(partial(_measure_layer, model, present, orders), layers)
    nulls = ("mismatched", "permuted", "energy_permuted", "layers_permuted")
    first = {
        name: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), getattr(measures, name))
        for name in nulls
    }
    terms = label_terms(model, activations.after)
    labels = jax.vmap(lambda mlp, term: label_cosines(mlp, term, terms[-1], present))
    return measures._replace(**first, labels=labels(activations.mlp, terms))


def _measure_layer(model, present, orders, layer) -> TextMeasures:
    """The measures of one layer but for labels, without the axis l."""
    _, heads, norm, at = layer
    length, seen = jnp.sum(present), visible(model, present) & present[:, None]
    gradient = energy_gradient(heads, at.inputs, seen)
    terms = _descents(gradient.rows, gradient.columns, present)
    term, summed = unit(terms), unit(jnp.sum(terms, axis=1))
    updates = unit(centred(at.updates, present))
    every = unit(centred(jnp.sum(at.updates, axis=0), present))

    def through_norm(x):
        return normalise(x, norm, model.epsilon)

    def energy(heads, x):
        return energy_gradient(heads, x, seen).energy

    def change(updates):
        def one(head, update):
            moved = at.before + update
            moved = through_norm(moved) if model.norm_first else moved
            return energy(jax.tree.map(lambda w: w[None], head), moved)[0]

        shared: Any = HeadWeights._make([*7 * [0], None])  # output_bias belongs to all heads
        return (jax.vmap(one, (shared, 0))(heads, updates) - gradient.energy) / length

    def permuted(order):
        cosines = _cosines(updates, term[..., order]), _cosines(every, summed[..., order])
        return *cosines, change(at.updates[..., order])

    of_heads, of_layer, of_energy = jax.lax.map(permuted, orders)
    attended = at.before + jnp.sum(at.updates, axis=0) + heads.output_bias[None, :]
    streams = (through_norm(x) for x in (attended, at.middle + at.mlp))
    energies = gradient.energy, *(energy(heads, x) for x in streams)
    return TextMeasures(
        cosines=_cosines(updates, term),
        mismatched=_mismatch(model, present, layer, updates),
        permuted=of_heads,
        energy_change=change(at.updates),
        energy_permuted=of_energy,
        energies=Energies(*(jnp.mean(x) / length for x in energies)),
        layers=_cosines(every, summed),
        layers_permuted=of_layer,
        labels=None,
    )


def _mismatch(model, present, layer, updates) -> TermCosines:
    """Cosines with the terms by other heads' theta but the head's own attention, (others, h)."""
    number, _, _, at = layer
    l, h = model.heads.query.shape[:2]
    weights = (model.heads.query, model.heads.key, model.heads.query_bias, model.heads.key_bias)
    query, key, query_bias, key_bias = (w.reshape(l * h, *w.shape[2:]) for w in weights)
    queries = project(at.inputs[None], query, query_bias)
    keys = project(at.inputs[None], key, key_bias)
    attention = jnp.where(present[None, :, None], at.attention, 0)  # no rows of padding

    def one(shift):
        other = (h * number + jnp.arange(h) + shift) % (l * h)
        rows = matmul(matmul(attention, keys[other]), query[other].mT)
        columns = matmul(matmul(attention.mT, queries[other]), key[other].mT)
        return _cosines(updates, unit(_descents(rows, columns, present)))

    shifts = np.linspace(1, l * h - 1, min(OTHERS, l * h - 1)).round().astype(int)
    return jax.lax.map(one, jnp.asarray(shifts))


def _descents(rows, columns, present):
    """Minus the terms (h, n, d) of a gradient, and minus their sum, centred, (3, h, n, d)."""
    return centred(-jnp.stack([rows, columns, rows + columns]), present)


def _cosines(update, terms) -> TermCosines:
    """Cosines of (..., n, d) with three terms (3, ..., n, d), all of length 1."""
    return TermCosines(*jnp.sum(update[None] * terms, axis=(-2, -1)))
