"""What is measured: accuracy at every iteration, and how far it lies beyond regression's frontier."""

from functools import partial
from itertools import chain, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.images import figures
from experiments.images.config import REGRESSION, Config, level_name
from experiments.images.models import build, fit_penalties, groups, schedule, train_model
from imr import cross_entropy
from imr.lab.beside import beside
from imr.lab.console import say
from imr.lab.data import ImageData, add_noise, held_back_split
from imr.lab.folder import RunFolder
from imr.lab.nets import graph_of
from imr.lab.phases import phase
from imr.regression import fit_noisy_regression


class Result(NamedTuple):
    """One model, train noise and penalty: accuracy and cross-entropy on test images, shape (seeds,
    levels of test noise, iterations + 1), and the learned steps, shape (seeds,)."""

    model: str
    train_noise: float
    l2: float
    trained_iterations: int
    accuracy: np.ndarray
    cross_entropy: np.ndarray
    tau: np.ndarray | None = None

    @property
    def head(self) -> dict[str, Any]:
        """What tells its rows from those of others."""
        return {k: getattr(self, k) for k in ("model", "train_noise", "l2", "trained_iterations")}

    @property
    def at_depth(self) -> np.ndarray:
        """Accuracies at the trained depth, shape (seeds, levels)."""
        return self.accuracy[:, :, self.trained_iterations]


class Results(NamedTuple):
    """All that the report shows: `curves` holds accuracies of multinomial regression for each train
    noise, shape (penalties, seeds, levels); `selection` holds rows of held-back scores."""

    data: ImageData
    results: list[Result]
    curves: dict[float, np.ndarray]
    selection: list[dict[str, Any]]


def measure(config: Config, run: RunFolder, data: ImageData) -> Results:
    """Trains and tests every model; says each row and draws each image's way as soon as it is there."""
    say(plan_words(config, data))
    arrays = jax.device_put((data.train_images, data.train_labels))
    test = jax.device_put((data.test_images, data.test_labels))
    keys = [jax.random.key(config.seed + s) for s in range(config.seeds)]

    def regress(noise):
        with phase("regression"), jax.enable_x64(False):  # a setting of each thread
            found = measure_regression(config, noise, arrays, test, keys, data)
        say(row_words(config, found[0]))
        return found

    results = []
    # Regression keeps one core busy and training little more: side by side they take the time of one.
    with beside() as thread:
        regressions = [thread.submit(regress, noise) for noise in config.train_noise]
        for name, depth in product(config.models, config.iterations):
            model = build(config, name, depth, data)
            states = train_model(config, run, name, depth, model, arrays, keys)
            new, states_of_image = measure_model(
                config, name, depth, model, states, data, test, keys
            )
            results += new
            for result in new:
                say(row_words(config, result))
            path = figures.draw_strip(config, run, name, depth, states_of_image, data)
            say(f"figure: {path}")
        of_noise, of_curves, of_rows = zip(*(one.result() for one in regressions), strict=True)
    curves = dict(zip(config.train_noise, of_curves, strict=True))
    return Results(data, [*of_noise, *results], curves, [*chain(*of_rows)])


def plan_words(config: Config, data: ImageData) -> str:
    """What the run will do, and about how long that takes."""
    n, f = data.train_images.shape
    plan, k = schedule(config, n), len(data.class_names)
    # As measured on one core of a server: 6e10 multiplications and additions a second, 0.16 s and
    # 0.7 microseconds a pixel for a noisy fit of multinomial regression, 3 s to compile a model.
    fits = np.count_nonzero(config.train_noise) * (2 * len(config.penalties) + config.seeds)
    seconds = 12 + fits * (0.16 + 7e-7 * n * f)
    for name, depth in product(config.models, config.iterations):
        width = 0 if name in ("attention", "latent_attention") else config.mlp_width
        rows = k * config.prototypes if name == "latent_attention" else k
        twice = 2 * config.flow_steps if name == "flow" else 1
        steps = plan.num_steps * len(groups(config)) * config.seeds
        seconds += 3 + 12 * twice * depth * steps * plan.batch_size * f * (rows + width) / 6e10
    about = f"{max(10, round(seconds, -1)):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    trained = ", ".join(config.models) or "no other model"
    return (
        f"{data.name}: {n:,} training and {len(data.test_labels):,} test images of "
        f"{data.image_shape[0]} x {data.image_shape[1]} pixels\n"
        f"multinomial regression at {len(config.penalties)} penalties, then {trained}, each with "
        f"{len(groups(config))} noises and penalties x {config.seeds} seeds for {plan.num_steps:,} "
        f"steps: about {about} on two CPU cores, less if the programs are compiled already"
    )


def row_words(config: Config, result: Result) -> str:
    """A result in one line, as soon as it is there."""
    means = result.at_depth.mean(axis=0)
    scores = [f"{level_name(t)} {a:.3f}" for t, a in zip(config.test_noise, means, strict=True)]
    return (
        f"{result.model}, trained with noise {result.train_noise:g}, l2 {result.l2:g}, "
        f"{result.trained_iterations} iterations: {', '.join(scores)}"
    )


@partial(jax.jit, static_argnums=0)
def noisy_test(levels: tuple[float, ...], key, x):
    """Test images at each level of noise, shape (levels, n, f): the same for every model."""

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, 1_000_000 + jnp.arange(len(levels)))
    return jax.vmap(add_noise, (0, None, 0))(keys, x, jnp.array(levels, x.dtype))


def score(logits, labels):
    """Accuracy and mean cross-entropy."""
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == labels)
    return accuracy, jnp.mean(cross_entropy(logits, labels))


@jax.jit
def regression_scores(theta, bias, z, y):
    """Accuracy and cross-entropy of each theta (leading axis) at each level (that of z)."""

    def one(params):
        return jax.lax.map(lambda z: score(z @ params[0].T + params[1][None, :], y), z)

    return jax.lax.map(one, (theta, bias))


def measure_regression(config: Config, noise: float, arrays, test, keys, data: ImageData):
    """Multinomial regression trained with that noise: at its validated penalty, and at every one."""
    (x, y), k, penalties = arrays, len(data.class_names), sorted(config.penalties)
    kept, held = held_back_split(data.train_labels, config.held_back, config.seed)
    # Masks instead of slices: the fits to a part and to all rows are then one program.
    part, every = np.isin(np.arange(len(y)), kept), np.full(len(y), True)
    fits = fit_penalties(x, y, k, penalties, noise, keys[0], part)
    z = add_noise(jax.random.key(0), data.train_images[held], noise)[None]
    scores = regression_scores(fits.theta, fits.bias, z, data.train_labels[held])
    accuracies, losses = (np.asarray(score)[:, 0] for score in scores)
    best = int(np.argmin(losses))

    fits = fit_penalties(x, y, k, penalties, noise, keys[0], every)
    chosen = [(fits.theta[best], fits.bias[best])]
    for key in keys[1:]:  # a loop, for a vmapped fit takes longer to compile and to run
        if noise > 0:
            fit = fit_noisy_regression(key, x, y, k, penalties[best], noise)
            chosen.append((fit.theta, fit.bias))
        else:  # the optimum without noise is the same for all seeds
            chosen.append(chosen[0])
    scores = [
        regression_scores(
            np.stack([*fits.theta, theta]), np.stack([*fits.bias, bias]),
            noisy_test(config.test_noise, key, test[0]), test[1],
        )
        for key, (theta, bias) in zip(keys, chosen, strict=True)
    ]  # fmt: skip
    accuracy, loss = (np.stack(each) for each in zip(*jax.device_get(scores), strict=True))
    of_best = (each[:, -1, :, None] for each in (accuracy, loss))
    result = Result(REGRESSION, noise, penalties[best], 0, *of_best)
    rows = [
        {"train_noise": noise, "l2": l2, "chosen": p == best,
         "held_back_cross_entropy": float(losses[p]), "held_back_accuracy": float(accuracies[p]),
         "largest_gradient": float(fits.gradient[p]), "converged": bool(fits.converged[p])}
        for p, l2 in enumerate(penalties)
    ]  # fmt: skip
    return result, accuracy[:, :-1].swapaxes(0, 1), rows


def measure_model(config: Config, name, depth: int, model, states, data: ImageData, test, keys):
    """A result for each train noise and penalty, and the states of the first test image, with the
    most noise, through the first seed's model, shape (iterations + 1, f)."""
    graph, count = graph_of(model), depth + config.extra_iterations
    most = max(config.train_noise)
    shown = [group.train_noise for group in groups(config)].index(most)

    @jax.jit
    def evaluate(params, z, y):  # the images closed over would be constants
        def one_run(params):
            classifier = nnx.merge(graph, params)

            def iterate(z, _):
                return classifier.blocks[0](z), (*score(classifier.read_out(z[:-1]), y), z[-1])

            def scores(z):
                return jax.lax.scan(iterate, z, length=count + 1)[1]

            return *jax.lax.map(scores, z), classifier.blocks[0].tau

        return jax.lax.map(one_run, params)

    # The image that is shown goes along as one more row, for rows do not meet.
    image = add_noise(jax.random.key(config.seed), data.test_images[:1], most or 0.5)
    image = np.broadcast_to(image, (len(config.test_noise), *image.shape))
    params, each = jax.device_get(states.params), []
    for seed, key in enumerate(keys):
        of_seed = jax.tree.map(lambda p: p[seed :: config.seeds], params)  # noqa: B023
        z = np.concatenate([noisy_test(config.test_noise, key, test[0]), image], axis=1)
        each.append(jax.device_get(evaluate(of_seed, z, test[1])))
    accuracy, loss, states, tau = (np.stack(outs, axis=1) for outs in zip(*each, strict=True))
    results = [
        Result(name, *group, depth, accuracy[g], loss[g], tau[g])
        for g, group in enumerate(groups(config))
    ]
    return results, states[shown, 0, 0, : depth + min(config.extra_iterations, 2) + 1]
