r"""What heads do on text: is a head's update a step down the log-sum-exp of its own attention?

$E(X) = \sum_i \log \sum_j \exp(q_i k_j / \sqrt r)$ with $q = X W_Q + b_Q$, $k = X W_K + b_K$. Its
gradient has a row term and a column term; a head that descends adds minus their sum.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from imr._numerics import mask_logits, matmul
from imr.lens.model import Heads, Model, attend, input_norms, normalise, run


class EnergyGradient(NamedTuple):
    r"""The log-sum-exp of each head of a layer, and its gradient in the features.

    Attributes:
      energy: E, (h,). rows: $P K W_Q^T / \sqrt r$; columns: $P^T Q W_K^T / \sqrt r$; the gradient
        is their sum, (h, n, d).
    """

    energy: Float[Array, "h"]
    rows: Float[Array, "h n d"]
    columns: Float[Array, "h n d"]


class TextMeasures(NamedTuple):
    """What one text shows; cosines are of (n, d) arrays whose mean over tokens is taken away.

    Attributes:
      cosines: of each head's update with minus its row term, minus its column term, minus their
        sum, (3, l, h).
      mismatched: the same with the terms of all other heads, (3, l h, l h); the diagonal is `cosines`.
      permuted: the same with the features of the term in random order, (draws, 3, l, h).
      energy_change: of E for each token where the head's own update is added to what it reads, in
        models with norms first to the stream before the norm, (l, h);
        energy_permuted: where its features are in random order, (draws, l, h).
      energies: E for each head and token at the beginning of a layer, between attention and MLP, and
        at the end, (3, l), by the same heads.
      layers: cosines of the sum of all heads' updates with minus the sum of their terms, (3, l);
        layers_permuted: (draws, 3, l).
      labels: cosine of what the MLP adds with C theta, theta the unembedding and C what the lens
        predicts at the end of the layer, then at the end of the model, (2, l); labels_permuted:
        with the tokens of the update in random order, (draws, 2, l).
    """

    cosines: Float[Array, "3 l h"]
    mismatched: Float[Array, "3 lh lh"]
    permuted: Float[Array, "draws 3 l h"]
    energy_change: Float[Array, "l h"]
    energy_permuted: Float[Array, "draws l h"]
    energies: Float[Array, "3 l"]
    layers: Float[Array, "3 l"]
    layers_permuted: Float[Array, "draws 3 l"]
    labels: Float[Array, "2 l"]
    labels_permuted: Float[Array, "draws 2 l"]


def energy_gradient(
    heads: Heads, inputs: Float[Array, "n d"], seen: Bool[Array, "n n"]
) -> EnergyGradient:
    """Energy and its gradient for the heads of one layer.

    Args:
      heads: of one layer, without the axis l.
      inputs: what they read.
      seen: which tokens (columns) a token looks at; a row that sees none counts for nothing.
    """
    project = lambda w, b: matmul(inputs[None], w) + b[:, None, :]  # noqa: E731
    queries = project(heads.query, heads.query_bias)
    keys = project(heads.key, heads.key_bias)
    scale = queries.shape[-1] ** -0.5
    there = jnp.any(seen, axis=1)
    logits = mask_logits(scale * matmul(queries, jnp.swapaxes(keys, 1, 2)), seen[None])
    logits = jnp.where(there[None, :, None], logits, 0)
    p = jnp.where(there[None, :, None], jax.nn.softmax(logits, axis=-1), 0)
    energy = jnp.sum(jnp.where(there[None], jax.nn.logsumexp(logits, axis=-1), 0), axis=1)
    rows = matmul(matmul(p, keys), jnp.swapaxes(heads.query, 1, 2))
    columns = matmul(matmul(jnp.swapaxes(p, 1, 2), queries), jnp.swapaxes(heads.key, 1, 2))
    return EnergyGradient(energy, scale * rows, scale * columns)


@partial(jax.jit, static_argnames="draws")
def measure_text(
    model: Model,
    tokens: Int[Array, "n"],
    length: Int[Array, ""],
    key: Key[Array, ""],
    draws: int = 16,
) -> TextMeasures:
    """All activation measures of one text.

    Args:
      model: whose MLPs, embeddings and norms are used too.
      tokens: of which the first `length` are the text; what fills up is neither seen nor counted.
      length: at least 3.
      key: for the nulls; the same permutations of features for every text with the same key.
      draws: of each null.
    """
    n, d = tokens.shape[0], model.tokens.shape[1]
    l, h = model.heads.query.shape[:2]
    there = jnp.arange(n) < length
    record = run(model, tokens, there)
    seen = there[:, None] & there[None, :]
    if model.causal:
        seen = seen & np.tri(n, dtype=bool)
    on_features, on_tokens = jax.random.split(key)
    orders = jax.vmap(lambda k: jax.random.permutation(k, d))(jax.random.split(on_features, draws))
    centre = partial(_centred, there=there)

    def layer(weights):
        heads, norm, inputs, updates, before, middle, added = weights
        found = energy_gradient(heads, inputs, seen)
        terms = -jnp.stack([found.rows, found.columns, found.rows + found.columns])
        through = lambda x: normalise(x, norm, model.epsilon)  # noqa: E731
        read = through if model.norm_first else lambda x: x
        energy = lambda x: energy_gradient(heads, through(x), seen).energy  # noqa: E731
        attended = before + jnp.sum(updates, axis=0) + heads.output_bias[None, :]
        places = found.energy, energy(attended), energy(middle + added)

        def moved(updates):
            """Each head's own energy after its own update alone."""
            one = lambda head, update: energy_gradient(  # noqa: E731
                jax.tree.map(lambda w: w[None], head), read(before + update), seen
            ).energy[0]
            alone = heads._replace(output_bias=jnp.zeros((h, d)))
            return (jax.vmap(one)(alone, updates) - found.energy) / length

        shuffled = jax.lax.map(lambda order: moved(updates[:, :, order]), orders)
        energies = jnp.stack(list(map(jnp.mean, places)))
        return centre(terms), centre(updates), moved(updates), shuffled, energies / length

    heads = model.heads
    columns = (heads, input_norms(model), record.inputs, record.updates, record.before,
               record.middle, record.mlp)  # fmt: skip
    terms, updates, change, shuffled, energies = jax.lax.map(layer, columns)
    flat = lambda x: x.reshape(l * h, n * d)  # noqa: E731
    unit = lambda x, axes: x / jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))  # noqa: E731
    terms, updates = jnp.moveaxis(terms, 1, 0), updates
    sums = jnp.sum(terms, axis=2), jnp.sum(updates, axis=1)
    u, t = unit(updates, (-2, -1)), unit(terms, (-2, -1))
    every = jnp.stack([matmul(flat(u), flat(x).T) for x in t])
    layer_u, layer_t = (unit(x, (-2, -1)) for x in (sums[1], sums[0]))
    labels, label_null = _labels(model, record, there, jax.random.split(on_tokens, draws))
    return TextMeasures(
        cosines=jnp.diagonal(every, axis1=1, axis2=2).reshape(3, l, h),
        mismatched=every,
        permuted=_permuted(u[None], t, orders),
        energy_change=change,
        energy_permuted=jnp.moveaxis(shuffled, 1, 0),
        energies=energies.T,
        layers=jnp.sum(layer_u[None] * layer_t, axis=(-2, -1)),
        layers_permuted=_permuted(layer_u[None], layer_t, orders),
        labels=labels,
        labels_permuted=label_null,
    )


def _centred(x, there):
    """Without the mean over the tokens of the text; those that fill up are 0."""
    there = there.reshape((1,) * (x.ndim - 2) + (-1, 1))
    x = jnp.where(there, x, 0)
    return jnp.where(there, x - jnp.sum(x, axis=-2, keepdims=True) / jnp.sum(there), 0)


def _permuted(u, t, orders):
    """Inner products of u (..., n, d) with t whose features are in other orders, (draws, ...)."""
    gram = matmul(jnp.swapaxes(jnp.broadcast_to(u, t.shape), -1, -2), t)
    places = jnp.arange(orders.shape[1])
    return jax.lax.map(lambda order: jnp.sum(gram[..., places, order], axis=-1), orders)


def _labels(model, record, there, keys):
    unembedding = model.tokens.T if model.unembedding is None else model.unembedding
    read = lambda x: normalise(x, model.outer_norm, model.epsilon) if model.norm_first else x  # noqa: E731

    def label_term(row):
        """C theta for C as the lens reads it off the stream."""
        c = jax.nn.softmax(matmul(read(row[None]), unembedding), axis=-1)
        return matmul(c, unembedding.T)[0]

    # Many rows at once, as the unembedding is large, but not all, as C is larger.
    rows = record.after.reshape(-1, record.after.shape[-1])
    terms = jax.lax.map(label_term, rows, batch_size=min(len(rows), 256))
    terms = _centred(terms.reshape(record.after.shape), there)
    # The orders in which the text's own tokens come first, shuffled.
    rank = lambda k: jnp.where(there, jax.random.uniform(k, there.shape), 2.0)  # noqa: E731
    orders = jnp.argsort(jax.vmap(rank)(keys), axis=1)
    unit = lambda x: x / jnp.sqrt(jnp.sum(x**2))  # noqa: E731

    def layer(pair):
        mlp, term = pair
        update = unit(_centred(mlp, there))
        both = jnp.stack([unit(term), unit(terms[-1])])
        inner = lambda u: jnp.sum(u[None] * both, axis=(1, 2))  # noqa: E731
        return inner(update), jax.lax.map(lambda order: inner(update[order]), orders)

    found, null = jax.lax.map(layer, (record.mlp, terms))
    return found.T, jnp.moveaxis(null, 0, -1)


@partial(jax.jit, static_argnames="probes")
def gradient_shares(
    model: Model,
    tokens: Int[Array, "n"],
    length: Int[Array, ""],
    key: Key[Array, ""],
    probes: int = 4,
) -> Float[Array, "l h"]:
    r"""How far each head's map from features to update is a gradient field, (l, h).

    $|S|^2 / (|S|^2 + |A|^2)$ of the symmetric and antisymmetric parts of its Jacobian, by random
    probes v: 1 for a gradient, 1/2 for a map at random. S v and A v are half of $J v \pm J^T v$.

    Arguments are those of `measure_text`.
    """
    there = jnp.arange(tokens.shape[0]) < length
    record = run(model, tokens, there)
    seen = there[None, :] & (np.tri(len(tokens), dtype=bool) if model.causal else True)
    seen = jnp.broadcast_to(seen, (len(tokens), len(tokens)))

    def layer(pair):
        heads, inputs = pair

        def probe(key):
            v = jnp.where(there[:, None], jax.random.normal(key, inputs.shape, inputs.dtype), 0)
            keep = lambda x: jnp.where(there[None, :, None], x, 0)  # noqa: E731
            function = lambda x: keep(attend(heads, x, seen)[1])  # noqa: E731
            _, forward = jax.jvp(function, (inputs,), (v,))
            _, pull = jax.vjp(function, inputs)
            heads_own = jnp.eye(heads.query.shape[0], dtype=inputs.dtype)
            backward = jax.lax.map(lambda e: pull(e[:, None, None] * v[None])[0], heads_own)
            square = lambda x: jnp.sum(keep(x) ** 2, axis=(1, 2))  # noqa: E731
            return square(forward + backward), square(forward - backward)

        even, odd = jax.lax.map(probe, jax.random.split(key, probes))
        even, odd = even.sum(0), odd.sum(0)
        return even / (even + odd)

    return jax.lax.map(layer, (model.heads, record.inputs))
