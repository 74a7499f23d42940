"""Beliefs: constrained ones against a loop in Python, the Bayes filter by both of its scans."""

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
    process = mess3(0.15, 0.6)
    words = all_words(3, config.depth)
    many = imr.sample(process, jax.random.split(jax.random.key(config.seed), 10_000), 100).tokens
    long = many.reshape(1, -1)[:, :100_000]
    rows = []
    with Progress(3, "beliefs", "problem") as progress:
        ways = {
            CONSTRAINED: lambda: imr.constrained_beliefs(process, words),
            "a loop in Python": lambda: loop(process, words),
        }
        rows += compare(f"all 3^{config.depth} words", ways, CONSTRAINED, config.repetitions)
        progress.update(1)
        for done, (name, tokens) in enumerate(
            {"10,000 sequences of 100": many, "one of 100,000": long}.items(), start=2
        ):
            ways = {
                SCAN: lambda tokens=tokens: imr.bayes_filter(process, tokens).beliefs,
                TREE: lambda tokens=tokens: (
                    imr.bayes_filter(process, tokens, method="associative").beliefs
                ),
            }
            rows += compare(name, ways, SCAN, config.repetitions)
            progress.update(done)
    return (
        "Beliefs of Mess3(0.15, 0.6), float32. `difference`: from the first way, largest over the "
        "largest entry. The associative scan does s times the work in O(log l) steps: it is for "
        "accelerators and long sequences."
    ), rows


def compare(problem: str, ways: Any, base: str, repetitions: int) -> list[dict[str, Any]]:
    """A row for each way on one problem."""
    results, times = race(ways, repetitions, base)
    return [
        {"problem": problem, **times[name], "difference": difference(found, results[base])}
        for name, found in results.items()
    ]


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
