"""Training: many steps in one compiled scan, many runs in one vmapped program."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PRNGKeyArray

from imr._checks import check_counts, check_key
from imr._typing import PyTree
from imr.errors import ImrError
from imr.lab.console import Progress, say
from imr.lab.folder import RunFolder
from imr.lab.phases import phase
from imr.parallel import local, mesh_of_all, replicate
from imr.parallel.mesh import split_over

Optimizer = optax.GradientTransformation
Init = Callable[[PRNGKeyArray], PyTree]
Loss = Callable[[PyTree, PyTree, PyTree, Any, PRNGKeyArray], Array]
Schedule = Callable[[PyTree, PRNGKeyArray, Array], PyTree]


class TrainState(NamedTuple):
    """All that a stopped run needs to go on: parameters, optimizer state, step and random key.

    The key never changes: step number t draws from `fold_in(key, t)`, so that a run that was stopped
    and resumed is bit-identical to an unbroken one. In a batch of runs each leaf has a leading axis.
    """

    params: PyTree
    opt_state: PyTree
    step: Int[Array, "..."]
    key: Key[Array, "..."]


Chunk = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Array]]


def init_states(
    init: Init, optimizer: Optimizer, keys: Key[Array, "runs"], *, mesh: Mesh | None = None
) -> TrainState:
    """States of several runs at step 0.

    Args:
      init: from a key to parameters.
      optimizer: of optax.
      keys: a key for each run, shape (runs,), the leading axis of all leaves of the states.
      mesh: devices, of all processes, that each get a copy; see `make_chunk`.
    """

    def one(key):
        init_key, key = jax.random.split(key)
        # A weakly typed leaf, made of a Python number, would come back strong from the first steps
        # and have them compiled again.
        params = jax.tree.map(lambda x: x.astype(x.dtype), init(init_key))
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)

    return replicate(jax.jit(jax.vmap(one))(keys), mesh)


def make_chunk(
    loss: Loss, optimizer: Optimizer, schedule: Schedule, *, mesh: Mesh | None = None
) -> Chunk:
    """One compiled function that trains every run for a chunk of steps.

    Args:
      loss: `loss(params, hyper, data, batch, key)`, a scalar; `batch` is one entry of the schedule.
      optimizer: of optax; one that takes extra arguments is given the loss as `value` and the run's
        `hyper`, so that runs may differ in their learning rates.
      schedule: `schedule(data, key, step)` gives the chunk that begins at `step`: a pytree whose
        leading axis is the steps, such as the indices of shuffled minibatches.
      mesh: of one axis, see `imr.parallel.make_mesh`: its devices share the rows of a minibatch, the
        second axis of what the schedule gives; if they do not divide it, each does the whole.
    Returns: `chunk(states, hyper, data)`: states, which are consumed, and `hyper` have a leading axis
      of runs, `data` is shared. It returns the states after it and the losses, shape (runs, steps).
    """

    update = optax.with_extra_args_support(optimizer).update

    def one_run(state: TrainState, hyper: PyTree, data: PyTree) -> tuple[TrainState, Array]:
        chunk_key, step_key = jax.random.split(state.key)
        entries = schedule(data, jax.random.fold_in(chunk_key, state.step), state.step)
        entries = jax.tree.map(spread, entries)

        def one_step(carry, batch):
            params, opt_state, step = carry
            key = jax.random.fold_in(step_key, step)
            value, grads = jax.value_and_grad(loss)(params, hyper, data, batch, key)
            updates, opt_state = update(grads, opt_state, params, value=value, hyper=hyper)
            return (optax.apply_updates(params, updates), opt_state, step + 1), value

        carry, losses = jax.lax.scan(one_step, (state.params, state.opt_state, state.step), entries)
        return TrainState(*carry, state.key), losses

    def spread(x):
        if mesh is None or x.ndim < 2 or x.shape[1] % mesh.size:
            return x
        return split_over(mesh, x, axis=1)

    runs = jax.vmap(one_run, in_axes=(0, 0, None))
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(runs, donate_argnums=0, out_shardings=everywhere)


def epoch_of_batches(key: PRNGKeyArray, num_rows: int, batch_size: int) -> Int[Array, "steps b"]:
    """Row indices of one epoch: a random permutation cut into full minibatches.

    The remainder, other rows each time, sits the epoch out; fewer rows than batch_size are one batch.

    >>> import jax
    >>> epoch_of_batches(jax.random.key(0), 10, 3).shape
    (3, 3)
    """
    check_key(key)
    check_counts(num_rows=num_rows, batch_size=batch_size)
    batch_size = min(batch_size, num_rows)
    steps = num_rows // batch_size
    return jax.random.permutation(key, num_rows)[: steps * batch_size].reshape(steps, batch_size)


def fit(
    chunk: Chunk, states: TrainState, hyper: PyTree, data: PyTree, *, num_steps: int,
    on_chunk: Callable[[int, TrainState, Array], None] | None = None,
) -> TrainState:  # fmt: skip
    """Trains from wherever the states stand to `num_steps`, chunk by chunk.

    Args:
      chunk, states, hyper, data: as `make_chunk` returns and takes them.
      num_steps: the step to stop at, a whole number of chunks.
      on_chunk: called after each chunk with the step reached, the states and the losses (runs, steps).
    Raises: ImrError if the chunks step over `num_steps`.
    """
    step = int(states.step[0])
    while step < num_steps:
        states, losses = chunk(states, hyper, data)
        step += losses.shape[1]
        if step > num_steps:
            raise ImrError(
                f"num_steps must be a whole number of chunks; {num_steps} lies inside the chunk "
                f"that ends at step {step}."
            )
        if on_chunk is not None:
            on_chunk(step, states, losses)
    return states


class Training(NamedTuple):
    """Several runs of one net in one program: the arguments of `init_states`, `make_chunk`, `fit`."""

    init: Init
    loss: Loss
    schedule: Schedule
    optimizer: Optimizer
    keys: Key[Array, "runs"]
    hyper: PyTree
    data: PyTree
    num_steps: int


def mean_loss(losses: Array) -> list[dict[str, Any]]:
    """The mean of the losses of a chunk, shape (runs, steps), as its line of metrics."""
    return [{"loss": losses.mean()}]


def fit_run(
    run: RunFolder, name: str, training: Training, *, holds: Mapping[str, Any], every: int,
    label: str, tags: Mapping[str, Any],
    metrics: Callable[[Array], Iterable[Mapping[str, Any]]] = mean_loss,
) -> TrainState:  # fmt: skip
    """Trains in a run folder, on the devices of all processes, from its newest checkpoint on.

    A run that was stopped at any moment ends as an unbroken one.

    Args:
      run: whose folders the checkpoints and metrics go to.
      name, label: of the folder of checkpoints; of the progress.
      training: what is trained.
      holds: what the checkpoint says of itself: `architecture` and `runs`, as `imr.lab.nets.read_nets`
        reads them, and all that tells this training from others.
      every: steps between checkpoints.
      tags: on every line of metrics; they tell this training's lines from others.
      metrics: from the losses of a chunk, shape (runs, steps), to lines of metrics.
    Returns: The states at the end, on this process's devices.
    Raises:
      RunError: if the checkpoint is of another training, or cannot be read or written.
      Preempted: after SIGTERM or SIGINT, with the state saved.
    """
    from imr.lab.checkpoint import Checkpoints  # orbax takes a second to import

    mesh, steps = mesh_of_all(), training.num_steps
    states = init_states(training.init, training.optimizer, training.keys, mesh=mesh)
    chunk = make_chunk(training.loss, training.optimizer, training.schedule, mesh=mesh)
    hyper, data = replicate((training.hyper, training.data), mesh)
    lines = run.metrics(**tags)
    folder = run.checkpoints / name
    with (
        phase("train"),
        Checkpoints(folder, holds, every=every, lines=lines) as checkpoints,
    ):
        restored = checkpoints.restore(states)
        states = states if restored is None else restored
        start = int(states.step[0])
        if start:
            say(f"{label}: resumed at step {start}")
        with Progress(steps, label, initial=start) as progress:

            def on_chunk(step, states, losses):
                for line in metrics(losses):
                    lines.append(step, **line)
                checkpoints.save(step, states, force=step == steps)
                progress.update(step, loss=float(losses.mean()))

            states = fit(chunk, states, hyper, data, num_steps=steps, on_chunk=on_chunk)
    return local(states)
