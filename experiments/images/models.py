"""The models of the blocks: trained by gradient descent, all runs of one in one program."""

from collections.abc import Callable
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.images.config import MODELS, Config
from experiments.images.scoring import noisy_test, score, std
from imr import cross_entropy, parallel
from imr.lab import train
from imr.lab.checkpoint import Checkpoints
from imr.lab.console import Progress
from imr.lab.data import ImageData, add_noise
from imr.lab.folder import RunFolder, config_dict
from imr.nn import Classifier, FlowBlock, PatchBlock


def build(config: Config, name: str, depth: int, data: ImageData) -> Callable[..., Classifier]:
    """A function from random streams to a classifier of that name and depth."""
    block, options = MODELS[name]
    options = {"tau": config.tau, "mlp_width": config.mlp_width, **options}
    if block is FlowBlock:
        options["steps"] = config.flow_steps
    else:
        options["signed_step"] = config.signed_step
    if block is PatchBlock:
        pixels = data.train_images.shape[1] // config.grid**2
        options |= {
            "image_shape": data.image_shape, "grid": config.grid, "heads": config.heads,
            "rank": min(config.rank, pixels), "mlp_width": max(1, config.mlp_width // 8),
        }  # fmt: skip
    return partial(
        Classifier,
        data.train_images.shape[1],
        len(data.class_names),
        iterations=depth,
        prototypes=config.prototypes if name == "latent_attention" else 1,
        block=block,
        **options,
    )


def graph_of(model: Callable[..., Classifier]):
    """The static part of a classifier."""
    return nnx.split(nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))), nnx.Param)[0]


def train_model(config: Config, run: RunFolder, name: str, depth: int, model, arrays, keys):
    """Trains a model for every seed, train noise and penalty in one vmapped program."""
    runs = list(product(config.train_noise, config.l2, range(config.seeds)))
    hyper = {
        "noise": jnp.array([noise for noise, _, _ in runs], jnp.float32),
        "l2": jnp.array([l2 for _, l2, _ in runs], jnp.float32),
    }
    run_keys = keys[jnp.array([seed for _, _, seed in runs])]
    graph = graph_of(model)

    n = arrays[1].shape[0]
    batch_size = min(config.batch_size, n)
    steps_per_epoch = n // batch_size
    at_least, at_most = -(-1000 // steps_per_epoch), 5000 // steps_per_epoch
    epochs = config.epochs or max(at_least, min(40, at_most), 1)
    # Small data: several epochs in one dispatch, as many as divide the whole and give 50 steps.
    wanted = -(-50 // steps_per_epoch)
    per_chunk = max(d for d in range(1, min(wanted, epochs) + 1) if epochs % d == 0)
    num_steps = epochs * steps_per_epoch

    def schedule(data, key, step):
        del step
        order = lambda key: train.epoch_of_batches(key, n, batch_size)  # noqa: E731
        batches = jax.vmap(order)(jax.random.split(key, per_chunk))
        return batches.reshape(per_chunk * steps_per_epoch, batch_size)

    def loss(params, hyper, data, rows, key):
        images, labels = data
        x = add_noise(key, images[rows], hyper["noise"])
        logits = nnx.merge(graph, params)(x)
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim == 2)
        return jnp.mean(cross_entropy(logits, labels[rows])) + hyper["l2"] * squares

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps))
    init = lambda key: nnx.state(model(rngs=nnx.Rngs(key)), nnx.Param)  # noqa: E731
    mesh = parallel.mesh_of_all()
    states = train.init_states(init, optimizer, run_keys, mesh=mesh)
    chunk = train.make_chunk(loss, optimizer, schedule, mesh=mesh)
    hyper, arrays = parallel.replicate((hyper, arrays), mesh)

    label = f"{name}, {depth} iterations"
    identity = {"model": name, "depth": depth, **config_dict(config)}
    every = max(1, config.checkpoint_every // per_chunk) * per_chunk * steps_per_epoch
    metrics = run.metrics(model=name, trained_iterations=depth)
    with Checkpoints(run.checkpoints / f"{name}-{depth}", identity, every=every) as checkpoints:
        restored = checkpoints.restore(states)
        states = states if restored is None else restored
        start = int(states.step[0])
        metrics.rewind(start)
        with Progress(num_steps, label, initial=start) as progress:

            def on_chunk(step, states, losses):
                means = np.asarray(jnp.mean(losses, axis=1)).reshape(-1, config.seeds)
                for (noise, l2), row in zip(
                    product(config.train_noise, config.l2), means, strict=True
                ):
                    metrics.append(
                        step, train_noise=noise, l2=l2, loss=row.mean(), loss_std=std(row)
                    )
                checkpoints.save(step, states, force=step == num_steps)
                progress.update(step, loss=float(means.mean()))

            states = train.fit(chunk, states, hyper, arrays, num_steps=num_steps, on_chunk=on_chunk)
    return parallel.local(states), runs


def test_model(config: Config, name: str, depth: int, model, states, runs, test, keys):
    """A result for each train noise and penalty: accuracies (seeds, levels, iterations + 1)."""
    graph = graph_of(model)
    count = depth + config.extra_iterations

    def one_run(test, params_and_key):
        params, key = params_and_key
        classifier = nnx.merge(graph, params)
        x, y = test
        accuracy, loss = [], []
        for index, level in enumerate(config.test_noise):

            def iterate(z, _):
                return classifier.blocks[0](z), score(classifier.read_out(z), y)

            z = noisy_test(key, index, x, level)
            _, (a, c) = jax.lax.scan(iterate, z, length=count + 1)
            accuracy.append(a)
            loss.append(c)
        return jnp.stack(accuracy), jnp.stack(loss)

    @jax.jit
    def evaluate(test, args):  # the images as an argument: closed over, they would be constants
        return jax.lax.map(partial(one_run, test), args)

    run_keys = keys[jnp.array([seed for _, _, seed in runs])]
    accuracy, loss = evaluate(test, (states.params, run_keys))
    tau = jax.vmap(lambda params: nnx.merge(graph, params).blocks[0].tau)(states.params)
    tau = np.asarray(tau).reshape(-1, config.seeds)
    groups = len(runs) // config.seeds
    accuracy, loss = (
        np.asarray(a).reshape(groups, config.seeds, *a.shape[1:]) for a in (accuracy, loss)
    )
    return [
        {"model": name, "train_noise": noise, "l2": l2, "trained_iterations": depth,
         "tau": t, "accuracy": a, "cross_entropy": c}
        for (noise, l2), t, a, c in zip(
            product(config.train_noise, config.l2), tau, accuracy, loss, strict=True
        )
    ]  # fmt: skip


def strip(config: Config, model, states, runs, data: ImageData):
    """Image, noisy Z(0) and the features at each iteration, of the first seed and most noise."""
    noise = max(config.train_noise)
    index = next(i for i, (level, _, seed) in enumerate(runs) if level == noise and seed == 0)
    classifier = nnx.merge(graph_of(model), jax.tree.map(lambda p: p[index], states.params))
    image = jnp.asarray(data.test_images[:1])
    z = add_noise(jax.random.key(config.seed), image, noise or 0.5)
    count = classifier.iterations + min(config.extra_iterations, 2)
    shape = data.image_shape
    trajectory = classifier.trajectory(z, count)[:, 0].reshape(count + 1, *shape)
    return np.asarray(image.reshape(shape)), np.asarray(trajectory)
