"""Random problems: all that the rows of the table need, one of each for every seed."""

from typing import Any, NamedTuple

import numpy as np

from experiments.theorems.config import Config


class Problem(NamedTuple):
    """Arrays of one random problem; stacked, with a leading axis of seeds, for all of them."""

    z: Any  # features (n, f)
    other: Any  # another start (n, f)
    anchor: Any  # X (n, f)
    weights: Any  # of a linear functional of the features (n, f)
    theta: Any  # class weights (k, f)
    bias: Any  # (k,)
    labels: Any  # (n,), integers
    targets: Any  # distributions (n, k)
    full: Any  # theta of the quadratic model (f, f)
    q: Any  # (h, f, r)
    k: Any  # (h, f, r)
    attended: Any  # distributions over tokens (n, n)
    where: Any  # mask (n, n), the diagonal always taking part
    visible: Any  # distributions over what the mask leaves (n, n)
    prototypes: Any  # (k s, f)
    group: Any  # class of each prototype (k s,)
    hidden: Any  # weights of a network as the model (f, w)
    rotation: Any  # an orthogonal matrix (f, f)
    beta: Any  # inverse temperature
    lam: Any  # weight of the anchor


def make_problems(config: Config) -> Problem:
    """One problem for each seed, stacked. By numpy: jax would compile its generators for seconds."""
    problems = (_problem(config, config.seed + s) for s in range(config.seeds))
    return Problem(*map(np.stack, zip(*problems, strict=True)))


def _problem(config: Config, seed: int) -> Problem:
    n, f, k, r = config.rows, config.features, config.classes, config.rank
    m = k * config.prototypes
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape)

    attended = random.dirichlet(np.ones(n), size=n)
    where = (random.uniform(size=(n, n)) < 0.6) | np.eye(n, dtype=bool)
    visible = attended * where
    return Problem(
        z=normal(n, f),
        other=normal(n, f),
        anchor=normal(n, f),
        weights=normal(n, f),
        theta=normal(k, f),
        bias=normal(k),
        labels=random.integers(0, k, n),
        targets=random.dirichlet(np.ones(k), size=n),
        # Logits of order 1, as attention's are at the start of training.
        full=normal(f, f) / f,
        q=normal(config.heads, f, r) / f**0.5,
        k=normal(config.heads, f, r) / f**0.5,
        attended=attended,
        where=where,
        visible=visible / visible.sum(axis=1, keepdims=True),
        prototypes=normal(m, f),
        group=np.repeat(np.arange(k), config.prototypes),
        hidden=normal(f, 2 * f) / f**0.5,
        rotation=np.linalg.qr(normal(f, f))[0],
        beta=random.uniform(0.5, 2.0),
        lam=random.uniform(0.5, 1.5),
    )
