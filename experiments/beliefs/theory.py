"""The theory's side of every measurement, and the rows of the table that need no training."""

from collections.abc import Iterator
from functools import cache, reduce
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.beliefs.config import LENGTH, ONE, TWO, Net
from imr import bayes_filter, conditional_entropies, constrained_beliefs, processes, sample
from imr.beliefs import all_words, belief_level, count_mixed_states, unique_prefixes
from imr.constrained import (
    additive_filter,
    apply_heads,
    one_head_attention,
    token_vectors,
    two_head_attention,
)
from imr.lab.bounds import above, at_most
from imr.lab.claims import Role

# h_1, h_2, h_10, their mean over 1 to 10, distinct mixed states up to length 10.
KNOWN: dict[str, tuple[Any, ...]] = {
    "Mess3(.15, .6)": (lambda: ONE.process, 1.09107, 1.08939, 1.08888821, 1.0891714990, 88573),
    "Mess3(.5, .6)": (lambda: TWO.process, 1.09202, 1.09066, 1.09028621, 1.0905069054, 88573),
    "Z1R(.5)": (lambda: processes.z1r(0.5), 0.63651, 0.46210, np.log(2) / 3, 0.2947004770, 7),
    "RRXOR(.5, .5)": (lambda: processes.rrxor(0.5, 0.5), 0.69315, 0.63651, 0.50334, 0.5781850790, 36),
    "golden mean(.5)": (lambda: processes.golden_mean(0.5), 0.46210, 0.46210, 0.46210, 0.4620981204, 3),
}  # fmt: skip


class Truth(NamedTuple):
    """What the theory says of all words of a process and of their prefixes."""

    words: np.ndarray  # all words of `LENGTH` tokens (w, l)
    weights: np.ndarray  # their probabilities (w,)
    word: np.ndarray  # where each distinct prefix first stands (p,)
    position: np.ndarray  # (p,)
    bayes: np.ndarray  # beliefs after each prefix (p, s)
    constrained: np.ndarray  # (p, s)
    probability: np.ndarray  # of each prefix (p,)
    vectors: np.ndarray  # what each token adds to the constrained belief (k, s)


@cache
def truth(net: Net) -> Truth:
    """The theory of the process that a net learns."""
    process = net.process
    words = all_words(3, LENGTH)
    word, position = unique_prefixes(3, LENGTH)
    filtered = bayes_filter(process, words)
    bayes, constrained = np.asarray(filtered.beliefs), constrained_beliefs(process, words)
    p = np.exp(np.asarray(filtered.log_probability))
    at = word, position
    return Truth(
        np.asarray(words), p[:, -1], word, position, bayes[at], np.asarray(constrained)[at],
        p[at], np.asarray(token_vectors(process)),
    )  # fmt: skip


def last_token_kl(net: Net) -> np.ndarray:
    """KL, in nats, of the best prediction from the last token alone."""
    process = net.process
    after = np.asarray(belief_level(process, 1).beliefs)
    readout = np.asarray(process.transitions).sum(-1).T  # (s, k)
    known = truth(net)
    p = known.bayes @ readout
    q = (after @ readout)[known.words[known.word, known.position]]
    terms = known.probability * np.sum(p * (np.log(p) - np.log(q)), axis=1)
    return np.array([terms[known.position == d].sum() for d in range(LENGTH)])


def rows() -> list[dict[str, Any]]:
    """Checks every equation, in float64 under `jax.enable_x64`."""
    return [*_filters(), *_stationary(), *_entropies(), *_attention()]


def _row(id: str, check: str, value: Any, limit: float, role: Role = "claim") -> dict[str, Any]:
    """A claim's value is at most the limit; a control's is above it."""
    bound = above(limit) if role == "control" else at_most(limit)
    passed = bound.holds(value)
    return {"id": id, "check": check, "role": role, "value": float(value), "must be": str(bound),
            "passed": passed}  # fmt: skip


def _equal(id: str, check: str, a: Any, b: Any, role: Role = "claim") -> dict[str, Any]:
    """The largest difference over the largest entry of b."""
    a, b = np.asarray(a), np.asarray(b)
    return _row(id, check, np.max(np.abs(a - b)) / np.max(np.abs(b)), 1e-12, role)


def _filters() -> Iterator[dict[str, Any]]:
    scan = bayes_filter(ONE.process, all_words(3, LENGTH)).beliefs[:, -1]
    tree = belief_level(ONE.process, LENGTH).beliefs
    yield _equal("T1", "scan - tree, all words of 10", scan, tree)
    tokens = sample(ONE.process, jax.random.key(0), 5000).tokens
    one, other = (bayes_filter(ONE.process, tokens, method=m) for m in ("scan", "associative"))
    yield _equal("T1", "scan - associative scan, 5,000 tokens", other.beliefs, one.beliefs)
    difference = np.max(np.abs(one.log_probability - other.log_probability))
    yield _row("T1", "the same, log-probability", difference, 1e-9)
    plain = np.asarray(ONE.process.transitions, np.float32)[np.asarray(tokens)]
    underflown = reduce(np.matmul, plain).max()
    yield _row("T1", "unscaled float32 product underflows to", underflown, 0.0)


def _stationary() -> Iterator[dict[str, Any]]:
    process = processes.z1r(0.5)
    chain, pi = np.asarray(process.transitions).sum(0), np.asarray(process.stationary)
    yield _row("T2", "pi A - pi of Z1R, period 3", np.abs(pi @ chain - pi).max(), 1e-12)
    power = np.eye(3)[0] @ np.linalg.matrix_power(chain, 10_000)
    moved = np.abs(power @ chain - power).max()
    yield _row("T2", "the same by power iteration", moved, 1e-12, "control")


def _entropies() -> Iterator[dict[str, Any]]:
    for name, (make, *known, mean, states) in KNOWN.items():
        process = make()  # in float64 by now
        h = np.asarray(conditional_entropies(process, 10))
        error = np.max(np.abs(h[[1, 2, 10]] - known))
        yield _row("T3", f"h_1, h_2, h_10 of {name}", error, 1e-5)
        yield _row("T3", f"mean of h_1 to h_10 of {name}", abs(h[1:].mean() - mean), 1e-9)
        count = count_mixed_states(process, 10)
        check = f"mixed states of {name}, {count} found less {states}"
        yield _row("T3", check, abs(count - states), 0)
    # Read the wrong way round, T[x] is no process: its rows do not sum to one.
    turned = np.swapaxes(np.asarray(processes.rrxor(0.5, 0.5).transitions), 1, 2)
    error = abs(_plain_mean_entropy(turned) - KNOWN["RRXOR(.5, .5)"][4])
    yield _row("T3", "mean of RRXOR with T[x] transposed", error, 1e-9, "control")


def _plain_mean_entropy(t: np.ndarray) -> float:
    """Mean of h_1 to h_10 from products of matrices, without a look at what they are."""
    chain = t.sum(0)
    chain = chain / chain.sum(1, keepdims=True)
    words = np.linalg.matrix_power((np.eye(len(chain)) + chain) / 2, 200)[:1]
    blocks = []
    for _ in range(11):
        words = np.einsum("ni,kij->nkj", words, t).reshape(-1, len(chain))
        p = words.sum(1)
        p = p[p > 0] / p.sum()
        blocks.append(-np.sum(p * np.log(p)))
    return float(np.mean(np.diff(blocks)))


def _attention() -> Iterator[dict[str, Any]]:
    words = all_words(3, 7)
    recursive = np.asarray(constrained_beliefs(ONE.process, words))
    for method in ("kernel", "spectral"):
        beliefs = constrained_beliefs(ONE.process, words, method=method)
        yield _equal("T5", f"recursive - {method}", beliefs, recursive)
    yield _equal("T5", "without + pi", recursive - 1 / 3, recursive, "control")
    head = apply_heads(ONE.process, words, one_head_attention(ONE.decay, 7))
    yield _equal("T7", "one head - constrained beliefs", head, recursive - 1 / 3)
    # A pattern lambda^(d-s) / Z_d with one value for all positions is not the constrained belief.
    naive = np.tri(LENGTH) * ONE.decay ** np.arange(LENGTH)
    naive /= naive.sum(axis=1, keepdims=True)
    yield _row("T7", "R2 of the naive pattern", _pooled(ONE, naive), 0.96)
    recursive = np.asarray(constrained_beliefs(TWO.process, words))[:, 1:] - 1 / 3
    heads = apply_heads(TWO.process, words, two_head_attention(TWO.decay, 7))[:, 1:]
    yield _equal("T8", "two heads - constrained beliefs, d >= 2", heads, recursive)
    odd = np.arange(LENGTH) % 2 == 1
    odd[0] = True
    best = _pooled(TWO, np.tri(LENGTH) * odd, free=True)
    yield _row("T8", "R2 of the best single head - 0.9625", abs(best - 0.9625), 1e-3)
    for net, known in ((ONE, 0.4666), (TWO, -0.4233)):
        pole = additive_filter(net.decay, 0.4).pole
        check = f"pole of the best additive filter {pole:.4f} - {known}"
        yield _row("T9", check, abs(pole - known), 5e-4)
        distance = abs(pole - net.decay)
        yield _row("T9", f"the decay {net.decay:.2f} - pole", distance, 0.015, "control")


def _pooled(net, lags: np.ndarray, free: bool = False) -> float:
    """R2 of constrained beliefs from weights (l, lags) at each position, all with one linear map.

    free: each lag that has a weight has one of its own, fitted.
    """
    known = truth(net)
    steps = known.position[:, None] - np.arange(LENGTH)[None, :]
    tokens = known.words[known.word[:, None], np.maximum(steps, 0)]
    v = np.where((steps >= 0)[..., None], np.asarray(token_vectors(net.process))[tokens], 0.0)
    v = v * lags[known.position][..., None]
    y, w = known.constrained - 1 / 3, known.probability
    x = v.sum(axis=1)
    if free:
        used = np.flatnonzero(lags.any(axis=0))
        x, y = np.swapaxes(v[:, used], 1, 2).reshape(-1, len(used)), y.reshape(-1, 1)
        w = np.repeat(w, 3)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    root = np.sqrt(w)[:, None]
    rest = y - x @ np.linalg.lstsq(root * x, root * y, rcond=None)[0]
    centred = y - np.average(y, axis=0, weights=w)
    return float(1 - np.sum(w[:, None] * rest**2) / np.sum(w[:, None] * centred**2))
