"""What heads do on text: their updates beside the gradient of their own energy, with nulls."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from imr._checks import check_count, check_key
from imr.lens._inputs import Context, checked_inputs, stacked_thetas, theta_of
from imr.lens._parts import centred, checked_text, normalise, orders_of, unit, visible
from imr.lens.activations import forward
from imr.lens.heads import Heads
from imr.lens.labels import LabelCosines, label_cosines, label_terms
from imr.lens.logits import each_head, energy_and_weights, energy_terms, head_updates, written
from imr.lens.model import TransformerWeights, layers_of

OTHERS = 24  # key groups, evenly over the model, whose theta makes a null


class TermCosines(NamedTuple):
    """Cosines with minus the row term of an energy's gradient, its column term, and their sum."""

    row: Float[Array, "..."]
    column: Float[Array, "..."]
    sum: Float[Array, "..."]


class Energies(NamedTuple):
    """E for each head and token, (l,), at the beginning of a layer, before its MLP, and at its end."""

    before: Float[Array, "*l"]
    middle: Float[Array, "*l"]
    after: Float[Array, "*l"] | None = None


class TextMeasures(NamedTuple):
    """The measures of one text; cosines are of (n, d) arrays less their mean over tokens.

    Attributes:
      cosines: of each head's update as it arrives in the stream, shape (l, h).
      mismatched: the same with terms by the theta of other heads, those of up to 24 other key groups,
        but the head's own attention and features, shape (others, l, h).
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
    energy_change: Float[Array, "*l h"]
    energy_permuted: Float[Array, "*draws h"]
    energies: Energies
    layers: TermCosines
    layers_permuted: TermCosines
    labels: LabelCosines | None


def measure_text(
    model: TransformerWeights, tokens: Any, length: Any, key: Key[Array, ""], draws: int = 16
) -> TextMeasures:
    """All activation measures of one text, or of each of several.

    Args:
      model: the transformer.
      tokens: integers, shape (n,), of which the first `length` are the text; the rest is padding,
        which is neither seen nor counted. Shape (b, n) for several texts.
      length: from 3 to n; shape (b,) for several texts.
      key: for the nulls; the same key gives all texts the same permutations of features.
      draws: of each null that is random.
    Returns: `TextMeasures`, with a leading axis b for several texts.
    Raises: ImrError if tokens are no integers, out of range, or more than the model has positions,
      if the length is out of range, or if key or draws are none.

    Reference: THEORY A8; the measures are imr's own.
    """
    check_key(key)
    check_count("draws", draws)
    return _measure_text(model, *checked_text(model, tokens, length), key, draws)


@partial(jax.jit, static_argnames="draws")
def _measure_text(model, tokens, length, key, draws):
    orders = orders_of(key, draws, model.tokens.shape[1])

    def one(tokens, length):
        return _measure_one(model, tokens, length, orders)

    return one(tokens, length) if tokens.ndim == 1 else jax.vmap(one)(tokens, length)


def _measure_one(model, tokens, length, orders) -> TextMeasures:
    present = jnp.arange(tokens.shape[0]) < length
    activations = forward(model, tokens, present)
    heads, pool = layers_of(model), theta_of(model.attention)

    def layer(part):
        number, heads, reach, stream, after = part
        context = Context(visible(model, present, reach) & present[:, None])
        others = _Others(pool, number)
        return _measure_layer(heads, others, context, stream, after, orders)

    numbers = jnp.arange(len(model.attention.query))
    after = activations.middle + activations.mlp
    parts = numbers, heads, model.reach, activations.before, after
    measures = jax.lax.map(layer, parts)
    nulls = ("mismatched", "permuted", "energy_permuted", "layers_permuted")
    first = {
        name: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), getattr(measures, name))
        for name in nulls
    }
    terms = label_terms(model, activations.after)
    labels = jax.vmap(lambda mlp, term: label_cosines(mlp, term, terms[-1], present))
    return measures._replace(**first, labels=labels(activations.mlp, terms))


def measure_inputs(
    heads: Heads,
    inputs: Any,
    seen: Any,
    source: Any = None,
    *,
    positions: Any = None,
    bias: Any = None,
    after: Any = None,
    others: Sequence[Heads] = (),
    key: Key[Array, ""] | None = None,
    draws: int = 16,
) -> TextMeasures:
    r"""The measures of `measure_text` for one layer of any model, on a stream that someone has caught.

    Args:
      heads: of the layer, as `read_heads(folder)[layer]` has them, with their norms.
      inputs: the residual stream of one text at the beginning of the layer, shape (n, d), of numpy,
        JAX or torch; if `norm_first`, as it is before the norm. Heads without a norm read it as it
        is: for what was caught behind the norm, give `dataclasses.replace(heads, norm=None)`.
      seen: which tokens (columns) a token attends to, such as `head_mask` gives, shape (n, m). A token
        that sees none is padding, and no other may see it.
      source: what keys and values of cross-attention read, after their norm, shape (m, e).
      positions, bias: as in `head_logits`.
      after: the stream at the end of the layer, before a norm that ends it; without it there is no
        `energies.after`.
      others: more layers of equal shapes, the $\theta$ of whose heads make the null `mismatched`
        together with that of other key groups of this layer.
      key: for the nulls; None means `jax.random.key(0)`.
      draws: of each null that is random.
    Returns: `TextMeasures` without the axis l and without labels.
    Raises:
      DataError: if inputs, source, bias or after are no floats.
      ImrError: if shapes do not fit the heads, a value is not finite, source and `cross` contradict
        one another, fewer than 3 tokens see any, or key or draws are none.

    >>> w = np.random.default_rng(0).normal(size=(4, 12, 3)).astype(np.float32)
    >>> heads = Heads(query=w, key=w, value=w, output=-w.mT, scale=3**-0.5, causal=True)
    >>> stream = np.random.default_rng(1).normal(size=(6, 12)).astype(np.float32)
    >>> measure_inputs(heads, stream, np.tri(6, dtype=bool)).cosines.row.round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]

    Reference: arXiv 2509.04653, Theorem 2; the measures are imr's own.
    """
    key = jax.random.key(0) if key is None else key
    check_key(key)
    check_count("draws", draws)
    checked = checked_inputs(heads, inputs, seen, source, positions, bias, after)
    return _measure_inputs(heads, stacked_thetas(heads, others), *checked, key, draws)


@partial(jax.jit, static_argnames="draws")
def _measure_inputs(heads, pool, inputs, after, context, key, draws):
    orders = orders_of(key, draws, inputs.shape[1])
    return _measure_layer(heads, _Others(pool, 0), Context(*context), inputs, after, orders)


class _Others(NamedTuple):
    """The theta of the heads of several layers, and the number of the layer that meets them."""

    pool: dict[str, Any]  # by field of `Heads`, with a leading axis of layers
    number: Any

    def shifts(self):
        """How far away other key groups lie, counted through all layers and round."""
        l, g = self.pool["key"].shape[:2]
        return jnp.asarray(np.linspace(1, l * g - 1, min(OTHERS, l * g - 1)).round().astype(int))

    def shifted(self, heads: Heads, shift) -> Heads:
        """The heads with the theta of those that lie so far away."""
        l, g = self.pool["key"].shape[:2]
        groups = (g * self.number + jnp.arange(g) + shift) % (l * g)

        def taken(x):
            return x.reshape(l * g, -1, *x.shape[2:])[groups].reshape(x.shape[1:])

        return replace(heads, **{name: taken(x) for name, x in self.pool.items()})


def _measure_layer(heads: Heads, others, context: Context, stream, after, orders) -> TextMeasures:
    """The measures of one layer but for labels, without the axis l."""
    seen, source, positions, bias = context
    present = jnp.any(seen, axis=1)
    length = jnp.sum(present)

    def through_norm(x):
        return x if heads.norm is None else normalise(x, heads.norm, heads)

    def energy(heads, x, bias=bias):
        return energy_and_weights(heads, x, seen, source, positions, bias)[0]

    inputs = through_norm(stream) if heads.norm_first else stream
    before, weights = energy_and_weights(heads, inputs, *context)

    def descents(heads):
        """Minus the terms of a gradient, by any theta, and minus their sum, (3, h, n, d)."""
        rows, columns = energy_terms(heads, inputs, weights, source, positions)
        return centred(-jnp.stack([rows, columns, rows + columns]), present)

    terms = descents(heads)
    term, summed = unit(terms), unit(jnp.sum(terms, axis=1))
    made = head_updates(heads, inputs, seen, source, positions=positions, bias=bias)
    updates, total = written(heads, made.updates)
    own, every = unit(centred(updates, present)), unit(centred(jnp.sum(updates, axis=0), present))

    def change(updates):
        moved = stream[None] + updates
        moved = through_norm(moved) if heads.norm_first else moved
        return (each_head(heads, energy, moved, bias) - before) / length

    def permuted(order):
        cosines = _cosines(own, term[..., order]), _cosines(every, summed[..., order])
        return *cosines, change(updates[..., order])

    def mismatched(shift):
        return _cosines(own, unit(descents(others.shifted(heads, shift))))

    of_heads, of_layer, of_energy = jax.lax.map(permuted, orders)
    ends = [stream + total] if after is None else [stream + total, after]
    energies = [
        jnp.mean(x) / length for x in (before, *(energy(heads, through_norm(x)) for x in ends))
    ]
    return TextMeasures(
        cosines=_cosines(own, term),
        mismatched=jax.lax.map(mismatched, others.shifts()),
        permuted=of_heads,
        energy_change=change(updates),
        energy_permuted=of_energy,
        energies=Energies(*energies),
        layers=_cosines(every, summed),
        layers_permuted=of_layer,
        labels=None,
    )


def _cosines(update, terms) -> TermCosines:
    """Cosines of (..., n, d) with three terms (3, ..., n, d), all of length 1."""
    return TermCosines(*jnp.sum(update[None] * terms, axis=(-2, -1)))
