"""What is read off a net: over all prefixes of up to ten tokens, exactly, by their probability."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.beliefs.config import LENGTH, Net
from experiments.beliefs.nets import transformer
from experiments.beliefs.theory import Truth
from imr import metrics
from imr.lab.nets import graph_of
from imr.nn import exact_kl

POOLED = 4  # the shortest prefixes of pooled probes
SHOWN = 8  # tokens of the beliefs in the simplex pictures


class Reading(NamedTuple):
    """All that the claims and the figures need of one net of one seed."""

    kl: np.ndarray  # to the Bayes prediction, nats (l,)
    # Of probes from (site, target); the targets are the beliefs "bayes" and "constrained".
    r2: dict[tuple[str, str], float]
    r2_by_site: list[float]  # of Bayesian beliefs from each site in order
    r2_shuffled: float  # of constrained beliefs in a random order, from the first middle
    attention: np.ndarray  # mean weights (layers, heads, l, l)
    # The largest standard deviation over words of a weight of the last position, first layer.
    attention_spread: float
    gains: np.ndarray  # of the token at each lag in the decoded belief (l,)
    parity: np.ndarray  # share of a head's attention on even and on odd lags (heads, 2)
    ov_along: np.ndarray  # what heads write along the predicted vectors (heads, l)
    ov_read: np.ndarray  # OV vectors in belief space (heads, l, k, s)
    embedding_read: np.ndarray  # embeddings in belief space (k, s)
    ov_energy: float  # share of the energy of OV vectors in the plane of beliefs
    shown_middle: np.ndarray  # decoded beliefs after all words of `SHOWN` tokens (w, s)
    shown_final: np.ndarray  # the same at the end of the stream (w, s)


# By name of the net and kind ("soft", "hard" or "untrained"): one reading for each seed.
Readings = dict[tuple[str, str], list[Reading]]


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


def read_net(net: Net, params: Any, known: Truth) -> Reading:
    """Reads a net."""
    graph = graph_of(transformer(net))
    kl = np.asarray(_kl(graph, params, net.process))
    prefixes = jnp.asarray(known.weights, jnp.float32), known.word, known.position
    activations, attention, spread = _run(graph, params, known.words, *prefixes)
    depth = known.position + 1
    pooled, later = depth >= POOLED, depth >= 2
    targets = {"bayes": known.bayes, "constrained": known.constrained}

    def fit(x, y, rows):
        return metrics.fit_probe(x, y, np.where(rows, known.probability, 0.0))

    named = dict(zip(sites(net.layers), activations, strict=True))
    probes = {(at, to): fit(x, y, pooled) for at, x in named.items() for to, y in targets.items()}
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
    return Reading(
        kl=kl,
        r2={key: float(each.r_squared) for key, each in probes.items()},
        r2_by_site=by_site,
        r2_shuffled=float(fit(middle, known.constrained[shuffled], pooled).r_squared),
        attention=np.asarray(attention),
        attention_spread=float(spread.max()),
        gains=np.asarray(gains),
        parity=np.asarray(metrics.parity_share(attention[0])),
        ov_along=along,
        ov_read=read,
        embedding_read=np.asarray((embeddings - embeddings.mean(0, keepdims=True)) @ probe.weight),
        ov_energy=float(metrics.energy_share(centred, plane)),
        shown_middle=decoded[shown],
        shown_final=np.asarray(probes["final norm", "bayes"](normed[shown])),
    )
