"""The nets, and their training: every seed and every learning rate of a net in one program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from experiments.incontext.config import Config, Sizes
from imr.lab import train
from imr.lab.architecture import describe
from imr.lab.console import say
from imr.lab.folder import RunFolder, config_dict
from imr.lab.nets import Call, graph_of, initialiser


class Standard(nnx.Module):
    """A standard transformer: pre-norm, softmax attention with an MLP, of tokens (n, e) under a mask."""

    def __init__(
        self, num_features: int, num_outputs: int, *, layers: int = 2, features: int = 32,
        heads: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.embedding = nnx.Linear(num_features, features, rngs=rngs)
        self.attention = nnx.List(
            nnx.MultiHeadAttention(heads, features, decode=False, rngs=rngs) for _ in range(layers)
        )
        self.norms = nnx.List(nnx.LayerNorm(features, rngs=rngs) for _ in range(2 * layers))
        self.widen = nnx.List(nnx.Linear(features, 2 * features, rngs=rngs) for _ in range(layers))
        self.narrow = nnx.List(nnx.Linear(2 * features, features, rngs=rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.read_out = nnx.Linear(features, num_outputs, rngs=rngs)

    def __call__(self, tokens: Float[Array, "n e"], mask: Bool[Array, "n n"]) -> Array:
        """What is predicted at each token from those that its row of the mask admits."""
        z = self.embedding(tokens)
        for l, attention in enumerate(self.attention):
            z = z + attention(self.norms[2 * l](z), mask=mask[None])
            z = z + self.narrow[l](jax.nn.relu(self.widen[l](self.norms[2 * l + 1](z))))
        return self.read_out(self.norm(z))


def count_parameters(params: Any) -> int:
    """Of one of several runs."""
    return sum(leaf[0].size for leaf in jax.tree.leaves(params))


class Learned(NamedTuple):
    """What is trained: a net, and its losses."""

    name: str
    call: Call
    loss: Callable[[Any, Any, Any], Array]  # of a net on one batch, from a key and the seed's data
    steps: int
    data: Any = None  # leading axis of seeds


class Trained(NamedTuple):
    """The parameters of the chosen rate, leading axis of seeds, and how they were come by."""

    folder: str  # of checkpoints
    graph: nnx.GraphDef
    params: Any
    rate: float
    tunings: int
    steps: int
    untrained: Any
    ended: int  # seeds whose losses are finite
    skipped: np.ndarray  # steps of each seed whose gradient was not finite


class RateState(NamedTuple):
    """How far a run is, and the moving average of its losses' logarithms, each of tasks that are new."""

    step: Array
    loss: Array


def by_rate(steps: int) -> optax.GradientTransformationExtraArgs:
    """Adam with clipped gradients; the rate of each run falls along a cosine to 0.

    A step whose gradient is not finite moves nothing, and is counted: in deep nets of powers a context
    may exceed any float. Of losses the logarithm is averaged, which no such context dominates.
    """
    shape = optax.cosine_decay_schedule(1.0, steps)

    def init(params):
        del params
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros(()))

    def update(updates, state, params=None, *, value, hyper, **extra):
        del params, extra
        factor = -hyper["rate"] * shape(state.step)
        loss = state.loss + 0.01 * (jnp.log(jnp.maximum(value, 1e-30)) - state.loss)
        return jax.tree.map(lambda u: factor * u, updates), RateState(state.step + 1, loss)

    scale = optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), scale)
    return optax.apply_if_finite(chain, steps)  # pyright: ignore[reportReturnType]


def train_net(config: Config, sizes: Sizes, run: RunFolder, what: Learned) -> Trained:
    """Trains a net at every rate, from its newest checkpoint on, and chooses the best rate."""
    graph, seeds = graph_of(what.call), [config.seed + s for s in range(config.seeds)]
    runs = [{"rate": rate, "seed": seed} for rate in config.rates for seed in seeds]

    def loss(params, hyper, data, batch, key):
        del batch
        own = jax.tree.map(lambda x: x[hyper["index"]], data)
        return what.loss(nnx.merge(graph, params), key, own)

    def schedule(data, key, step):
        del data, key, step
        return jnp.zeros(sizes.chunk)

    training = train.Training(
        initialiser(what.call), loss, schedule, by_rate(what.steps),
        keys=jnp.stack([jax.random.key(each["seed"]) for each in runs]),
        hyper={"rate": jnp.array([each["rate"] for each in runs]),
               "index": jnp.tile(jnp.arange(config.seeds), len(config.rates))},
        data=what.data,
        num_steps=what.steps,
    )  # fmt: skip
    own = what.call.func is Standard  # pyright: ignore[reportFunctionMemberAccess]
    architecture = {"baseline": "standard transformer"} if own else describe(what.call)
    folder = what.name.replace(", ", "-").replace(" ", "_")
    states = train.fit_run(
        run, folder, training,
        holds={"architecture": architecture, "runs": runs, "net": what.name, "steps": what.steps,
               **config_dict(config)},
        every=max(1, config.checkpoint_every // sizes.chunk) * sizes.chunk,
        label=what.name, tags={"net": what.name},
    )  # fmt: skip
    groups = jax.tree.map(
        lambda x: x.reshape(len(config.rates), config.seeds, *x.shape[1:]), states.params
    )
    found = states.opt_state
    losses, skipped = (
        np.asarray(each).reshape(len(config.rates), -1)
        for each in (found.inner_state[-1].loss, found.total_notfinite)
    )
    # A run of which every step was skipped has no loss.
    best, ended = best_rate(np.where(skipped < what.steps, losses, np.nan))
    if ended < config.seeds:
        say(f"{what.name}: {ended} of {config.seeds} seeds end at the best rate, {config.rates[best]:g}; "
            "the losses of the others are not finite.")  # fmt: skip
    if skipped[best].any():
        say(f"{what.name}: at the best rate, {config.rates[best]:g}, {skipped[best].tolist()} steps of each "
            f"seed, of {what.steps}, were skipped, as their gradients were not finite.")  # fmt: skip
    chosen = jax.tree.map(lambda x: x[best], groups)
    rate, tunings = config.rates[best], len(config.rates)
    return Trained(
        folder, graph, chosen, rate, tunings, what.steps, untrained(what.call, seeds), ended,
        skipped[best],
    )  # fmt: skip


def best_rate(losses: np.ndarray) -> tuple[int, int]:
    """The rate at which most seeds end in a finite loss, and the least of such; and how many do.

    Args:
      losses: shape (rates, seeds).
    """
    finite = np.isfinite(losses)
    ended = finite.sum(axis=1)
    means = np.where(finite, losses, 0).sum(axis=1) / np.maximum(ended, 1)
    best = int(np.lexsort((means, -ended))[0])
    return best, int(ended[best])


def untrained(call: Call, seeds: Sequence[int]) -> Any:
    """The parameters that `fit_run` starts from, leading axis of seeds."""
    keys = (jax.random.split(jax.random.key(seed))[0] for seed in seeds)
    states = [nnx.state(call(rngs=nnx.Rngs(key)), nnx.Param) for key in keys]
    return jax.tree.map(lambda *x: jnp.stack(x), *states)
