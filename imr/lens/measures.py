"""What heads do on text: their updates beside the gradient of their own energy, with nulls."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from imr._checks import check_count, check_key
from imr._numerics import matmul
from imr.lens._arrays import centred, orders_of, over, permuted, unit
from imr.lens._parts import checked_text, input_norms, normalise, project, visible
from imr.lens.activations import Activations, run
from imr.lens.energy import EnergyGradient, energy_gradient
from imr.lens.labels import LabelCosines, label_cosines, label_terms
from imr.lens.model import HeadWeights, Norm, TransformerWeights

OTHERS = 24  # heads, evenly over the model, whose theta makes a null


class TermCosines(NamedTuple):
    """A cosine with minus each part of an energy's gradient.

    Attributes:
      row: with minus the row term.
      column: with minus the column term.
      sum: with minus their sum, the whole gradient.
    """

    row: Float[Array, "..."]
    column: Float[Array, "..."]
    sum: Float[Array, "..."]


class Energies(NamedTuple):
    """E for each head and token along a layer, shape (l,), by the heads of that layer.

    Attributes:
      before: of the stream at the beginning of the layer.
      middle: of the stream between attention and MLP.
      after: of the stream at the end, before its norm if norms come after sums.
    """

    before: Float[Array, "l"]
    middle: Float[Array, "l"]
    after: Float[Array, "l"]


class TextMeasures(NamedTuple):
    """The measures of one text; cosines are of (n, d) arrays less their mean over tokens.

    Attributes:
      cosines: of each head's update, terms of shape (l, h).
      mismatched: the same with terms by the theta of other heads, up to 24 of them, but the head's
        own attention and features, terms of shape (others, l, h).
      permuted: the same with the features of the term in random order, terms of shape (draws, l, h).
      energy_change: change of E for each token if the head's own update, not centred, is added to
        what it reads (to the stream before the norm if norms come first), shape (l, h).
      energy_permuted: the same with the features of the update in random order, (draws, l, h).
      energies: E along each layer, read through the norm that the heads read through.
      layers: cosines of the sum of a layer's updates with the sum of its terms, terms of shape (l,).
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
    labels: LabelCosines


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

    Returns:
      `TextMeasures`.

    Raises:
      ImrError: if tokens are no integers, out of range, or more than the model has positions, if
        the length is out of range, or if key or draws are none.

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


class _Thetas(NamedTuple):
    """What makes theta, of all heads of the model along one axis."""

    query: Float[Array, "heads d r"]
    key: Float[Array, "heads d r"]
    query_bias: Float[Array, "heads r"]
    key_bias: Float[Array, "heads r"]


class _Layer(NamedTuple):
    """One layer: the number of its first head, weights, the norm that heads read through."""

    first: Int[Array, ""]
    heads: HeadWeights
    norm: Norm
    activations: Activations


class _Aligned(NamedTuple):
    cosines: TermCosines
    permuted: TermCosines
    layers: TermCosines
    layers_permuted: TermCosines


class _Energetic(NamedTuple):
    energy_change: Float[Array, "h"]
    energy_permuted: Float[Array, "draws h"]
    energies: Energies


@partial(jax.jit, static_argnames="draws")
def _measure_text(model, tokens, length, key, draws):
    l, h = model.heads.query.shape[:2]
    present = jnp.arange(tokens.shape[0]) < length
    seen = visible(model, present) & present[:, None]
    text = _Text(present, seen, length, orders_of(key, draws, model.tokens.shape[1]))
    activations = run(model, tokens, present)
    thetas = _Thetas(*(getattr(model.heads, name) for name in _Thetas._fields))
    thetas = jax.tree.map(lambda w: w.reshape(l * h, *w.shape[2:]), thetas)

    def one(layer):
        gradient = energy_gradient(layer.heads, layer.activations.inputs, seen)
        aligned = _align(layer, text, gradient)
        return aligned, _mismatch(layer, text, thetas), _energies(layer, text, gradient, model)

    layers = _Layer(
        h * jnp.arange(l), model.heads, input_norms(model), activations._replace(final=None)
    )
    aligned, mismatched, energetic = jax.lax.map(one, layers)
    terms = label_terms(model, activations.after)
    labels = jax.vmap(lambda mlp, term: label_cosines(mlp, term, terms[-1], present))
    return TextMeasures(
        cosines=aligned.cosines,
        mismatched=_draws_first(mismatched),
        permuted=_draws_first(aligned.permuted),
        energy_change=energetic.energy_change,
        energy_permuted=_draws_first(energetic.energy_permuted),
        energies=energetic.energies,
        layers=aligned.layers,
        layers_permuted=_draws_first(aligned.layers_permuted),
        labels=labels(activations.mlp, terms),
    )


def _draws_first(tree):
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _align(layer: _Layer, text: _Text, gradient: EnergyGradient) -> _Aligned:
    """Cosines of updates with minus the terms, of each head and of all heads of the layer."""
    rows, columns = gradient.rows, gradient.columns
    terms = centred(-jnp.stack([rows, columns, rows + columns]), text.present)
    updates = layer.activations.updates
    head, term = unit(centred(updates, text.present))[None], unit(terms)
    every = unit(centred(jnp.sum(updates, axis=0), text.present))[None]
    summed = unit(jnp.sum(terms, axis=1))
    return _Aligned(
        cosines=TermCosines(*jnp.sum(head * term, axis=(-2, -1))),
        permuted=TermCosines(*jnp.moveaxis(permuted(head, term, text.orders), 1, 0)),
        layers=TermCosines(*jnp.sum(every * summed, axis=(-2, -1))),
        layers_permuted=TermCosines(*jnp.moveaxis(permuted(every, summed, text.orders), 1, 0)),
    )


class _Others(NamedTuple):
    """What the null of a head needs of other heads: theta, its queries and keys, Gram matrices."""

    query: Float[Array, "others d r"]
    key: Float[Array, "others d r"]
    queries: Float[Array, "others n r"]
    keys: Float[Array, "others n r"]
    query_gram: Float[Array, "others r r"]
    key_gram: Float[Array, "others r r"]
    cross_gram: Float[Array, "others r r"]


def _mismatch(layer: _Layer, text: _Text, thetas: _Thetas) -> TermCosines:
    """Cosines with the terms by other heads' theta but the head's own attention, (others, h).

    The terms are never built: their lengths come from the r x r Gram matrices of the weights.
    """
    inputs, query, key = layer.activations.inputs, thetas.query, thetas.key
    count, h = len(query), len(layer.heads.query)
    shifts = np.linspace(1, count - 1, min(OTHERS, count - 1)).round().astype(int)
    queries = project(inputs, query, thetas.query_bias)
    keys = project(inputs, key, thetas.key_bias)
    every = _Others(
        query, key, queries, keys, _gram(query, query), _gram(key, key), _gram(query, key)
    )

    def one(part):
        number, p, update = part
        others = jax.tree.map(lambda w: w[(number + shifts) % count], every)
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

    updates = unit(centred(layer.activations.updates, text.present))
    attention = jnp.where(text.seen[None], layer.activations.attention, 0)  # no rows of padding
    parts = layer.first + jnp.arange(h), attention, updates
    return _draws_first(jax.lax.map(one, parts))


def _gram(a, b):
    return matmul(jnp.swapaxes(a, 1, 2), b)


def _cosine(inner, square):
    """With minus a term, from its inner product with a unit vector and its squared length."""
    return -over(inner, jnp.sqrt(jnp.maximum(square, 0)))


def _energies(
    layer: _Layer, text: _Text, gradient: EnergyGradient, model: TransformerWeights
) -> _Energetic:
    """E along the layer, and how each head's own update alone changes its own E."""
    heads, at = layer.heads, layer.activations

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
    places = (
        gradient.energy,
        energy(heads, through_norm(attended)),
        energy(heads, through_norm(at.middle + at.mlp)),
    )
    return _Energetic(
        energy_change=change(at.updates),
        energy_permuted=jax.lax.map(lambda order: change(at.updates[:, :, order]), text.orders),
        energies=Energies(*(jnp.mean(place) / text.length for place in places)),
    )
