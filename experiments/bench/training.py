"""A training step of a block of attention and MLP, with one seed and with five in one program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import imr
from experiments.bench.rounds import race
from imr.lab import train
from imr.lab.nets import graph_of, initialiser
from imr.nn import Classifier

STEPS, BATCH = 50, 128
ONE, FIVE = "1 seed", "5 seeds"
FORMATS = {f"times {ONE}": ".2f", "ms a step": ".2f", "ms a step and seed": ".2f"}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Times chunks of steps: what was done, and a row for each number of seeds."""
    build = partial(Classifier, config.features, config.classes, iterations=3)
    graph = graph_of(build)
    keys = jax.random.split(jax.random.key(config.seed), 2)
    x = jax.random.normal(keys[0], (config.n, config.features))
    data = x, jax.random.randint(keys[1], (config.n,), 0, config.classes)

    def loss(params, hyper, data, rows, key):
        del hyper, key
        x, y = data
        return jnp.mean(imr.cross_entropy(nnx.merge(graph, params)(x[rows]), y[rows]))

    def schedule(data, key, step):
        del step
        return jax.random.randint(key, (STEPS, min(BATCH, config.n)), 0, len(data[1]))

    optimizer = optax.adam(1e-3)
    chunk = train.make_chunk(loss, optimizer, schedule)

    def way(seeds):
        starts = jax.random.split(keys[0], seeds)
        box = [train.init_states(initialiser(build), optimizer, starts)]  # a chunk consumes it

        def run():
            box[0], losses = chunk(box[0], jnp.zeros(seeds), data)
            return losses

        return run

    _, times = race({ONE: way(1), FIVE: way(5)}, config.repetitions, ONE)
    rows = []
    for name, seeds in ((ONE, 1), (FIVE, 5)):
        step = 1e3 * times[name]["median s"] / STEPS
        rows.append({**times[name], "ms a step": step, "ms a step and seed": step / seeds})
    return (
        f"Training of a classifier of three iterations of attention and MLP, f={config.features}, minibatches "
        f"of {BATCH}, {STEPS} steps in one dispatch, float32."
    ), rows
