r"""What heads do on text: is a head's update a step down the log-sum-exp of its own attention?

$E(X) = \sum_i \log \sum_j \exp(q_i k_j / \sqrt r)$ with $q = X W_Q + b_Q$, $k = X W_K + b_K$. Its
gradient has a row term and a column term; a head that descends adds minus their sum.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from imr._checks import check_count, check_key
from imr._numerics import mask_logits, matmul
from imr.lens.model import Heads, Model, attend, checked_text, input_norms, normalise, run

STRANGE = 24  # other heads, evenly over the model, whose theta makes a null


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
      mismatched: the same with terms by the theta of other heads of the model, up to 24 of them, but
        the head's own attention and features, (3, l, h, others).
      permuted: the same with the features of the term in random order, (draws, 3, l, h).
      energy_change: of E for each token where the head's own update, not centred, is added to what it
        reads, in models with norms first to the stream before the norm, (l, h); energy_permuted: where
        its features are in random order, (draws, l, h).
      energies: E for each head and token at the beginning of a layer, between attention and MLP, and at
        the end, (3, l), by the same heads through the norm that they read through.
      layers: cosines of the sum of all heads' updates with minus the sum of their terms, (3, l);
        layers_permuted: (draws, 3, l).
      labels: cosine of what the MLP adds with C theta, theta the unembedding and C what the lens
        predicts at the end of the layer, then at the end of the model, (2, l); see `label_null`.
    """

    cosines: Float[Array, "3 l h"]
    mismatched: Float[Array, "3 l h others"]
    permuted: Float[Array, "draws 3 l h"]
    energy_change: Float[Array, "l h"]
    energy_permuted: Float[Array, "draws l h"]
    energies: Float[Array, "3 l"]
    layers: Float[Array, "3 l"]
    layers_permuted: Float[Array, "draws 3 l"]
    labels: Float[Array, "2 l"]


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


def measure_text(
    model: Model, tokens: Any, length: Any, key: Key[Array, ""], draws: int = 16
) -> TextMeasures:
    """All activation measures of one text.

    Args:
      model: whose MLPs, embeddings and norms are used too.
      tokens: (n,), of which the first `length` are the text; what fills up is neither seen nor counted.
      length: from 3 to n.
      key: for the nulls; the same permutations of features for every text with the same key.
      draws: of the nulls that are random.

    Raises:
      ImrError: for tokens that are no integers, out of range or more than there are positions, a length
        out of range, no key, or no draws.
    """
    check_key(key)
    check_count("draws", draws)
    return _measure_text(model, *checked_text(model, tokens, length), key, draws)


@partial(jax.jit, static_argnames="draws")
def _measure_text(model, tokens, length, key, draws):
    n, d = tokens.shape[0], model.tokens.shape[1]
    l, h = model.heads.query.shape[:2]
    there = jnp.arange(n) < length
    record = run(model, tokens, there)
    seen = there[:, None] & there[None, :]
    if model.causal:
        seen = seen & np.tri(n, dtype=bool)
    orders = jax.vmap(lambda k: jax.random.permutation(k, d))(jax.random.split(key, draws))
    centre = partial(_centred, there=there)
    parts = model.heads.query, model.heads.key, model.heads.query_bias, model.heads.key_bias
    every = [w.reshape(l * h, *w.shape[2:]) for w in parts]

    def layer(weights):
        number, heads, norm, inputs, attention, updates, before, middle, added = weights
        found = energy_gradient(heads, inputs, seen)
        terms = centre(-jnp.stack([found.rows, found.columns, found.rows + found.columns]))
        units = _unit(centre(updates))
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
        summed = _unit(centre(jnp.sum(updates, axis=0))), _unit(jnp.sum(terms, axis=1))
        p = jnp.where(seen[None], attention, 0)
        strange = _strange(every, number, inputs, p, units, centre)
        return (
            jnp.sum(units[None] * _unit(terms), axis=(-2, -1)),
            strange,
            _permuted(units[None], _unit(terms), orders),
            moved(updates),
            shuffled,
            jnp.stack(list(map(jnp.mean, places))) / length,
            jnp.sum(summed[0][None] * summed[1], axis=(-2, -1)),
            _permuted(summed[0][None], summed[1], orders),
        )

    columns = (jnp.arange(l), model.heads, input_norms(model), record.inputs, record.attention, record.updates,
               record.before, record.middle, record.mlp)  # fmt: skip
    found = jax.lax.map(layer, columns)
    axes = (1, 1, 2, 0, 1, 1, 1, 2)  # where layers belong
    found: Any = [jnp.moveaxis(x, 0, axis) for x, axis in zip(found, axes, strict=True)]
    terms = _label_terms(model, record.after)
    labels = jax.vmap(lambda mlp, term: _cosines(mlp, (term, terms[-1]), there))(record.mlp, terms)
    return TextMeasures._make([*found, labels.T])


def _strange(every, layer, inputs, attention, units, centre):
    """Cosines of updates with minus the terms by other heads' theta, but their own attention."""
    query, key, query_bias, key_bias = every
    count, h = len(query), len(units)
    shifts = np.linspace(1, count - 1, min(STRANGE, count - 1)).round().astype(int)
    project = lambda w, b: matmul(inputs[None], w) + b[:, None, :]  # noqa: E731
    queries, keys = project(query, query_bias), project(key, key_bias)
    gram = lambda a, b: matmul(jnp.swapaxes(a, 1, 2), b)  # noqa: E731
    grams = gram(query, key), gram(query, query), gram(key, key)

    def head(args):
        own, p, u = args
        take = lambda x: x[(own + shifts) % count]  # noqa: E731
        mixed, back = centre(matmul(p[None], take(keys))), centre(matmul(p.T[None], take(queries)))
        both, from_query, from_key = map(take, grams)
        inner = lambda x, w: jnp.sum(x * matmul(u[None], take(w)), axis=(1, 2))  # noqa: E731
        row, column = inner(mixed, query), inner(back, key)
        row_square = jnp.sum(gram(mixed, mixed) * from_query, axis=(1, 2))
        column_square = jnp.sum(gram(back, back) * from_key, axis=(1, 2))
        total = row_square + column_square + 2 * jnp.sum(gram(mixed, back) * both, axis=(1, 2))
        pairs = (row, row_square), (column, column_square), (row + column, total)
        return jnp.stack([-_over(x, jnp.sqrt(jnp.maximum(square, 0))) for x, square in pairs])

    found = jax.lax.map(head, (layer * h + jnp.arange(h), attention, units))
    return jnp.moveaxis(found, 0, 1)


def _over(x, size):
    """x / size, and 0 where that is 0: a head that does nothing lies along nothing."""
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)


def _unit(x):
    """Each (n, d) at length 1."""
    return _over(x, jnp.sqrt(jnp.sum(x**2, axis=(-2, -1), keepdims=True)))


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


def _label_terms(model, streams):
    """C theta for C as the lens reads it off the stream, of the shape of the streams (..., d)."""
    unembedding = model.tokens.T if model.unembedding is None else model.unembedding

    def one(row):
        row = (
            normalise(row[None], model.outer_norm, model.epsilon) if model.norm_first else row[None]
        )
        return matmul(jax.nn.softmax(matmul(row, unembedding), axis=-1), unembedding.T)[0]

    # Many rows at once, as the unembedding is large, but not all, as C is larger.
    rows = streams.reshape(-1, streams.shape[-1])
    return jax.lax.map(one, rows, batch_size=min(len(rows), 256)).reshape(streams.shape)


def _cosines(mlp, terms, there):
    update = _unit(_centred(mlp, there))
    return jnp.stack([jnp.sum(update * _unit(_centred(term, there))) for term in terms])


def label_null(
    model: Model, tokens: Any, length: Any, key: Key[Array, ""], draws: int = 8
) -> Float[Array, "draws 2 l"]:
    """What `TextMeasures.labels` would be by chance.

    C is read from a stream that the update is part of, and any update lies somewhat along its own C
    theta. So the features of a layer's update are put in random order, the same for all tokens, and
    the model goes on from there to the C that it is compared with.

    Arguments and errors are those of `measure_text`.
    """
    check_key(key)
    check_count("draws", draws)
    return _label_null(model, *checked_text(model, tokens, length), key, draws)


@partial(jax.jit, static_argnames="draws")
def _label_null(model, tokens, length, key, draws):
    there = jnp.arange(tokens.shape[0]) < length
    d, l = model.tokens.shape[1], model.heads.query.shape[0]
    orders = jax.vmap(lambda k: jax.random.permutation(k, d))(jax.random.split(key, draws))

    def one(pair):
        order, layer = pair
        record = run(model, tokens, there, (layer, order))
        terms = _label_terms(model, jnp.stack([record.after[layer], record.after[-1]]))
        return _cosines(record.mlp[layer], terms, there)

    pairs = jnp.repeat(orders, l, axis=0), jnp.tile(jnp.arange(l), draws)
    return jnp.swapaxes(jax.lax.map(one, pairs).reshape(draws, l, 2), 1, 2)


def gradient_shares(
    model: Model, tokens: Any, length: Any, key: Key[Array, ""], probes: int = 4
) -> Float[Array, "l h"]:
    r"""How far each head's map from features to update is a gradient field, (l, h).

    $|S|^2 / (|S|^2 + |A|^2)$ of the symmetric and antisymmetric parts of its Jacobian, by random
    probes v: 1 for a gradient, 1/2 for a map at random. S v and A v are half of $J v \pm J^T v$.

    Arguments and errors are those of `measure_text`.
    """
    check_key(key)
    check_count("probes", probes)
    return _gradient_shares(model, *checked_text(model, tokens, length), key, probes)


@partial(jax.jit, static_argnames="probes")
def _gradient_shares(model, tokens, length, key, probes):
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
        return _over(even, even + odd)

    return jax.lax.map(layer, (model.heads, record.inputs))
