"""Training of the transformers, all seeds of a net in one program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.beliefs.config import LENGTH, Config, Net
from imr import parallel
from imr.lab import train
from imr.lab.checkpoint import Checkpoints
from imr.lab.console import Progress
from imr.lab.folder import RunFolder, config_dict
from imr.nn import Transformer, next_token_loss

CHUNK = 200  # steps of one dispatch
BATCH = 128


def build(net: Net):
    """A function from random streams to the net's transformer."""
    return partial(Transformer, 3, LENGTH, layers=net.layers, heads=net.heads)


def graph_of(net: Net):
    """The static part of the transformer."""
    model = nnx.eval_shape(lambda: build(net)(rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)[0]


def keys(config: Config):
    """One for each seed."""
    return jnp.stack([jax.random.key(config.seed + s) for s in range(config.seeds)])


def optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW without decay, warm-up and cosine, gradients clipped."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, min(200, steps // 2), steps, 1e-5)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.0))


def initial(config: Config, net: Net, steps: int, mesh: Any = None) -> train.TrainState:
    """Untrained nets, one for each seed."""
    init = lambda key: nnx.state(build(net)(rngs=nnx.Rngs(key)), nnx.Param)  # noqa: E731
    return train.init_states(init, optimizer(steps), keys(config), mesh=mesh)


def train_net(config: Config, run: RunFolder, net: Net, targets: str, steps: int):
    """Parameters after training, a leading axis of seeds; from the newest checkpoint on."""
    graph = graph_of(net)
    # Nets are float32, and so is what they learn from.
    process = jax.tree.map(lambda x: x.astype(jnp.float32), net.process)

    def loss(params, hyper, process, batch, key):
        del hyper, batch
        model = nnx.merge(graph, params)
        return next_token_loss(
            model, process, key, batch_size=BATCH, length=LENGTH, soft=targets == "soft"
        )

    mesh = parallel.mesh_of_all()
    states = initial(config, net, steps, mesh)
    nothing = lambda data, key, step: jnp.zeros(CHUNK)  # noqa: E731
    chunk = train.make_chunk(loss, optimizer(steps), nothing, mesh=mesh)
    hyper, process = parallel.replicate((jnp.zeros(config.seeds), process), mesh)
    label = f"{net.name}, {targets} targets"
    metrics = run.metrics(net=net.name, targets=targets)
    identity = {"net": net._asdict(), "targets": targets, "steps": steps, **config_dict(config)}
    every = max(1, config.checkpoint_every // CHUNK) * CHUNK
    folder = run.checkpoints / f"{net.name.replace(', ', '-').replace(' ', '-')}-{targets}"
    with Checkpoints(folder, identity, every=every) as checkpoints:
        restored = checkpoints.restore(states)
        states = states if restored is None else restored
        start = int(states.step[0])
        metrics.rewind(start)
        with Progress(steps, label, initial=start) as progress:

            def on_chunk(step, states, losses):
                mean = float(losses.mean())
                metrics.append(step, loss=mean)
                checkpoints.save(step, states, force=step == steps)
                progress.update(step, loss=mean)

            states = train.fit(chunk, states, hyper, process, num_steps=steps, on_chunk=on_chunk)
    return parallel.local(states.params)
