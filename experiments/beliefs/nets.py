"""Training of the transformers, all seeds of a net in one program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.beliefs.config import LENGTH, Config, Net
from imr.lab import train
from imr.lab.architecture import describe
from imr.lab.folder import RunFolder, config_dict
from imr.lab.nets import Call, graph_of, initialiser
from imr.nn import Transformer, next_token_loss

CHUNK = 200  # steps of one dispatch
BATCH = 128


def transformer(net: Net) -> Call:
    """The call that makes the net's transformer."""
    return partial(Transformer, 3, LENGTH, layers=net.layers, heads=net.heads)


def optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW without decay, with warm-up and cosine, and clipped gradients."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, min(200, steps // 2), steps, 1e-5)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.0))


def training(config: Config, net: Net, targets: str, steps: int) -> train.Training:
    """The training of one net for every seed, by fresh sequences at every step."""
    graph = graph_of(transformer(net))

    def loss(params, hyper, process, batch, key):
        del hyper, batch
        model, sizes = nnx.merge(graph, params), {"batch_size": BATCH, "length": LENGTH}
        return next_token_loss(model, process, key, soft=targets == "soft", **sizes)

    def schedule(data, key, step):
        del data, key, step
        return jnp.zeros(CHUNK)

    keys = jnp.stack([jax.random.key(config.seed + s) for s in range(config.seeds)])
    # Nets are float32, and so is what they learn from.
    data = jax.tree.map(lambda x: x.astype(jnp.float32), net.process)
    return train.Training(
        initialiser(transformer(net)), loss, schedule, optimizer(steps), keys,
        hyper=jnp.zeros(config.seeds), data=data, num_steps=steps,
    )  # fmt: skip


def untrained(config: Config, net: Net) -> Any:
    """Parameters before training."""
    what = training(config, net, "soft", net.soft_steps)
    return train.init_states(what.init, what.optimizer, what.keys).params


def train_net(config: Config, run: RunFolder, net: Net, targets: str, steps: int) -> Any:
    """Parameters after training, from the newest checkpoint on."""
    name = f"{net.name.replace(', ', '-').replace(' ', '-')}-{targets}"
    holds = {
        "architecture": describe(transformer(net)), "process": describe(net.learns),
        "runs": [{"seed": config.seed + s} for s in range(config.seeds)],
        "net": net.name, "targets": targets, "steps": steps, **config_dict(config),
    }  # fmt: skip
    every = max(1, config.checkpoint_every // CHUNK) * CHUNK
    tags, label = {"net": net.name, "targets": targets}, f"{net.name}, {targets} targets"
    what = training(config, net, targets, steps)
    return train.fit_run(run, name, what, holds=holds, every=every, label=label, tags=tags).params
