"""What is read off a net: over all prefixes of up to ten tokens, exactly, by their probability."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.beliefs.config import LENGTH, Net
from experiments.beliefs.nets import graph_of
from imr import bayes_filter, constrained_beliefs, metrics
from imr.beliefs import all_words, belief_level, unique_prefixes
from imr.constrained import token_vectors
from imr.nn import exact_kl

POOLED = 4  # the shortest prefixes of pooled probes
SHOWN = 8  # tokens of the beliefs in the simplex pictures


class Truth(NamedTuple):
    """Of a process: all words, beliefs after each unique prefix by length, and what weighs them."""

    words: np.ndarray
    weights: np.ndarray
    word: np.ndarray
    position: np.ndarray
    bayes: np.ndarray
    constrained: np.ndarray
    probability: np.ndarray
    vectors: np.ndarray


@cache
def truth(net: Net) -> Truth:
    """The theory's side of every measurement of a net."""
    process = net.process
    words = all_words(3, LENGTH)
    word, position = unique_prefixes(3, LENGTH)
    filtered = bayes_filter(process, words)
    constrained = constrained_beliefs(process, words)
    log_p = np.asarray(filtered.log_probability)
    return Truth(
        np.asarray(words),
        np.exp(log_p[:, -1]),
        word,
        position,
        np.asarray(filtered.beliefs)[word, position],
        np.asarray(constrained)[word, position],
        np.exp(log_p[word, position]),
        np.asarray(token_vectors(process)),
    )


def sites(layers: int) -> list[str]:
    """Places of the residual stream in order, as figures name them."""
    inner = [name for l in range(layers) for name in (f"mid {l}", f"post {l}")]
    return ["embedding", *inner, "final norm"]


@partial(jax.jit, static_argnames="graph")
def _run(graph, params, words, weights, word, position):
    """Activations at all sites of each unique prefix; mean attention; the standard deviation over
    words of what the last position pays attention to in the first layer."""
    record = nnx.merge(graph, params).record(words)
    layers = len(record.middle)
    inner = [x[l] for l in range(layers) for x in (record.middle, record.after)]
    activations = [x[word, position] for x in (record.before[0], *inner, record.normed)]
    weights = weights / jnp.sum(weights)
    attention = jnp.einsum("b,lbhqk->lhqk", weights, record.attention)
    deviation = record.attention[0, :, :, -1] - attention[0, None, :, -1]
    spread = jnp.sqrt(jnp.einsum("b,bhk->hk", weights, deviation**2))
    return activations, attention, spread


@partial(jax.jit, static_argnames="graph")
def _kl(graph, params, process):
    return exact_kl(nnx.merge(graph, params), process, LENGTH)


@partial(jax.jit, static_argnames="graph")
def _values(graph, params):
    """OV vectors (heads, l, k, d) and embeddings (k, d) of a first layer, by position and token."""
    model = nnx.merge(graph, params)
    same = jnp.tile(jnp.arange(3)[:, None], (1, LENGTH))
    record = model.record(same)
    return jnp.moveaxis(record.values[0], 0, 2), record.before[0][:, 0]


def measure(net: Net, params: Any, known: Truth) -> dict[str, Any]:
    """Everything the table and the figures need of one net of one seed."""
    graph = graph_of(net)
    kl = np.asarray(_kl(graph, params, net.process))
    weights = jnp.asarray(known.weights, jnp.float32)
    activations, attention, spread = _run(
        graph, params, known.words, weights, known.word, known.position
    )
    depth = known.position + 1
    pooled, later = depth >= POOLED, depth >= 2
    targets = {"bayes": known.bayes, "constrained": known.constrained}
    fit = lambda x, y, rows: metrics.fit_probe(x, y, np.where(rows, known.probability, 0.0))  # noqa: E731
    names = sites(net.layers)
    probes = {
        (site, target): fit(x, y, pooled)
        for site, x in zip(names, activations, strict=True)
        for target, y in targets.items()
    }
    by_site = [float(fit(x, known.bayes, later).r_squared) for x in activations]
    shuffled = np.random.default_rng(0).permutation(len(depth))
    middle, normed = activations[1], activations[-1]
    probe = probes["mid 0", "constrained"]
    decoded = np.asarray(probe(middle))
    last = depth == LENGTH
    gains = metrics.lag_gains(decoded[last], known.vectors, known.words, known.probability[last])
    values, embeddings = _values(graph, params)
    plane = metrics.encoding(middle, known.constrained, np.where(pooled, known.probability, 0.0))
    centred = values - values.mean(axis=2, keepdims=True)
    read = np.asarray(centred @ probe.weight)  # (heads, l, k, s)
    along = np.einsum("hlks,ks->hl", read, known.vectors) / np.sum(known.vectors**2)
    shown = depth == SHOWN
    return {
        "kl": kl,
        "r2": {f"{site} -> {t}": float(p.r_squared) for (site, t), p in probes.items()},
        "r2_by_site": by_site,
        "r2_shuffled": float(fit(middle, known.constrained[shuffled], pooled).r_squared),
        "attention": np.asarray(attention),
        "attention_spread": float(spread.max()),
        "gains": np.asarray(gains),
        "parity": np.asarray(metrics.parity_share(attention[0])),
        "ov_along": along,
        "ov_read": read,
        "embedding_read": np.asarray(
            (embeddings - embeddings.mean(0, keepdims=True)) @ probe.weight
        ),
        "ov_energy": float(metrics.energy_share(centred, plane)),
        "shown_middle": decoded[shown],
        "shown_final": np.asarray(probes["final norm", "bayes"](normed[shown])),
    }


def last_token_kl(net: Net) -> np.ndarray:
    """KL of the best prediction from the last token alone, at each position."""
    process = net.process
    after = np.asarray(belief_level(process, 1).beliefs)
    readout = np.asarray(process.transitions).sum(-1).T  # (s, k)
    known = truth(net)
    p = known.bayes @ readout
    q = (after @ readout)[known.words[known.word, known.position]]
    terms = known.probability * np.sum(p * (np.log(p) - np.log(q)), axis=1)
    return np.array([terms[known.position == d].sum() for d in range(LENGTH)])
