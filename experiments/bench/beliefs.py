"""Beliefs: constrained ones against a loop in Python, the Bayes filter by both of its scans."""

from functools import partial
from typing import Any

import jax
import numpy as np

import imr
from experiments.bench.rounds import difference, race
from imr.beliefs import all_words
from imr.constrained import token_vectors
from imr.lab.console import Progress
from imr.processes import mess3

CONSTRAINED = "constrained_beliefs"
SCAN, TREE = 'bayes_filter, "scan"', 'bayes_filter, "associative"'
FORMATS = {"difference": ".1e", f"times {CONSTRAINED}": ".1f", f"times {SCAN}": ".2f"}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Times every way on every problem: what was done, and a row for each."""
    process, words = mess3(0.15, 0.6), all_words(3, config.depth)
    many = imr.sample(process, jax.random.split(jax.random.key(config.seed), 10_000), 100).tokens

    def read(tokens, method):
        return imr.bayes_filter(process, tokens, method=method).beliefs

    problems: dict[str, dict[str, Any]] = {
        f"all 3^{config.depth} words": {
            CONSTRAINED: partial(imr.constrained_beliefs, process, words),
            "a loop in Python": partial(loop, process, words),
        }
    }
    long = many.reshape(1, -1)[:, :100_000]
    for name, tokens in (("10,000 sequences of 100", many), ("one of 100,000", long)):
        problems[name] = {
            SCAN: partial(read, tokens, "scan"), TREE: partial(read, tokens, "associative")
        }  # fmt: skip
    rows = []
    with Progress(len(problems), "beliefs", "problem") as progress:
        for done, (problem, ways) in enumerate(problems.items(), start=1):
            first = next(iter(ways))
            results, times = race(ways, config.repetitions, first)
            for name, found in results.items():
                apart = difference(found, results[first])
                rows.append({"problem": problem, **times[name], "difference": apart})
            progress.update(done)
    return (
        "Beliefs of Mess3(0.15, 0.6), float32. `difference`: from the first way, largest over the "
        "largest entry. The associative scan does s times the work in O(log l) steps: it is for "
        "accelerators and long sequences."
    ), rows


def loop(process: Any, words: Any) -> np.ndarray:
    """Constrained beliefs as the formula reads: over words, positions and tokens before each."""
    v, pi = np.asarray(token_vectors(process)), np.asarray(process.stationary)
    chain = np.asarray(process.transitions).sum(0)
    words = np.asarray(words)
    powers = [np.linalg.matrix_power(chain, n) for n in range(words.shape[1])]
    beliefs = np.empty((*words.shape, len(pi)), np.float32)
    for i, word in enumerate(words):
        for d in range(len(word)):
            beliefs[i, d] = pi + sum(v[word[s]] @ powers[d - s] for s in range(d + 1))
    return beliefs
