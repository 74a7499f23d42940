"""Training, in every way at once, with what each step does to the cosine of every head."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from experiments.leaning.config import CHUNK, STARTS, WAYS, Config, Way, times
from experiments.leaning.nets import ATTENTION, VALUES, Circuits, circuits, cosines, tie
from experiments.leaning.subjects import Subject
from imr.lab import train
from imr.lab.folder import RunFolder, config_dict
from imr.lab.nets import graph_of, initialiser

PARTS = ("attention", "values", "decay")


class Watched(NamedTuple):
    """The state of the optimizer, and what was seen on the way.

    Attributes:
      adam: of Adam.
      step: how many there were.
      parts: what each of `PARTS` has done to the cosine, to first order, shape (3, l, h).
      kept: the heads at each of `times`, leading axis of times.
      loss: moving average over some hundred steps.
    """

    adam: optax.OptState
    step: Array
    parts: Float[Array, "3 l h"]
    kept: Circuits
    loss: Float[Array, ""]


class Trained(NamedTuple):
    """One way of training a subject: a leading axis of seeds everywhere.

    Attributes:
      kept: heads (seeds, times, l, h, ...).
      parts: (seeds, 3, l, h), as in `Watched`.
      loss: at the end, (seeds,).
    """

    kept: Circuits
    parts: np.ndarray
    loss: np.ndarray


def optimizer(config: Config, graph: nnx.GraphDef) -> optax.GradientTransformationExtraArgs:
    """AdamW with clipped gradients; `hyper` says what is trained and decays, and all heads are watched.

    An update is split into what it gives to queries and keys, to values and outputs, and what decay
    takes; each part's derivative of the cosines is added up.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(200, config.steps // 2), config.steps,
        config.learning_rate / 100,
    )  # fmt: skip
    adam: Any = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))
    steps = jnp.array(times(config))

    def read(params):
        return circuits(nnx.merge(graph, params))

    def init(params):
        found = read(params)
        kept = jax.tree.map(lambda w: jnp.broadcast_to(w, (len(steps), *w.shape)), found)
        parts = jnp.zeros((len(PARTS), *found.query.shape[:2]))
        return Watched(adam.init(params), jnp.zeros((), jnp.int32), parts, kept, jnp.zeros(()))

    def update(updates, state, params=None, *, value, hyper, **extra):
        del extra
        assert params is not None
        moved, inner = adam.update(updates, state.adam, params)
        now, step = jnp.asarray(rate(state.step)), state.step + 1
        trained = jax.tree_util.tree_map_with_path(lambda path, _: _switch(path, hyper), params)
        learned = jax.tree.map(lambda u, on: -now * on * u, moved, trained)
        decayed = jax.tree.map(
            lambda p, on: -now * hyper["decay"] * on * p * (p.ndim > 1), params, trained
        )
        steered = read(learned)
        zero = jax.tree.map(jnp.zeros_like, steered)
        directions = (
            zero._replace(**{name: getattr(steered, name) for name in ATTENTION}),
            zero._replace(**{name: getattr(steered, name) for name in VALUES}),
            read(decayed),
        )
        before = read(params)
        parts = jnp.stack([jax.jvp(cosines, (before,), (way,))[1] for way in directions])
        change = jax.tree.map(jnp.add, learned, decayed)
        after = read(optax.apply_updates(params, change))

        def keep(kept, w):
            reached = (steps >= step).reshape(-1, *(1,) * w.ndim)  # what is later is written again
            return jnp.where(reached, w, kept)

        kept = jax.tree.map(keep, state.kept, after)
        loss = state.loss + (value - state.loss) / jnp.minimum(step, 100)
        return change, Watched(inner, step, state.parts + parts, kept, loss)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _switch(path: Any, hyper: Any) -> Any:
    """Whether a parameter is trained: those of a circuit are named for it."""
    names = {str(getattr(entry, "key", "")) for entry in path}
    for circuit, switch in ((ATTENTION, "attention"), (VALUES, "values")):
        if names & set(circuit):
            return hyper[switch]
    return 1.0


def train_subject(config: Config, run: RunFolder, subject: Subject) -> dict[str, Trained]:
    """Trains a subject in every way, and freely from heads that are tied to begin with."""
    every = _train(config, run, subject, WAYS, None)
    for name, sign in STARTS.items():
        every |= _train(config, run, subject, {name: Way()}, sign)
    return every


def _train(
    config: Config, run: RunFolder, subject: Subject, ways: dict[str, Way], sign: float | None
) -> dict[str, Trained]:
    graph, chosen = graph_of(subject.call), list(ways)
    runs = [
        {"way": way, "seed": config.seed + s}
        for way in range(len(ways))
        for s in range(config.seeds)
    ]
    table = [ways[chosen[each["way"]]] for each in runs]
    hyper = {name: jnp.array([float(getattr(way, name)) for way in table]) for name in Way._fields}
    hyper["decay"] = config.weight_decay * hyper["decay"]

    def start(key):
        if sign is None:
            return initialiser(subject.call)(key)
        net = subject.call(rngs=nnx.Rngs(key))
        tie(net, sign)
        return nnx.state(net, nnx.Param)

    def loss(params, hyper, data, batch, key):
        return subject.loss(nnx.merge(graph, params), data, batch, key, hyper["noise"] > 0)

    training = train.Training(
        start, loss, subject.schedule, optimizer(config, graph),
        keys=jnp.stack([jax.random.key(each["seed"]) for each in runs]), hyper=hyper,
        data=subject.data, num_steps=config.steps,
    )  # fmt: skip
    name = f"{subject.name}-{'free' if sign is None else chosen[0]}"
    state = train.fit_run(
        run, name, training,
        holds={"architecture": {"baseline": subject.title}, "runs": runs, "net": subject.name,
               "ways": chosen, **config_dict(config)},
        every=max(1, config.checkpoint_every // CHUNK) * CHUNK,
        label=f"{subject.title}: {', '.join(chosen)}", tags={"net": name},
    ).opt_state  # fmt: skip

    def of(index):
        rows = slice(index * config.seeds, (index + 1) * config.seeds)
        kept = jax.tree.map(lambda x: np.asarray(x[rows]), state.kept)
        return Trained(kept, np.asarray(state.parts[rows]), np.asarray(state.loss[rows]))

    return {way: of(index) for index, way in enumerate(chosen)}
