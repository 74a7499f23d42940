"""Few-shot classification of images of classes to which nothing was fitted."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.incontext import baselines
from experiments.incontext.classification import net_scores
from experiments.incontext.config import Config, Sizes
from experiments.incontext.models import Learned, train_net
from experiments.incontext.readings import Part, mean_row
from experiments.incontext.tasks import CLASSES, Labels, keys_for
from imr.lab.data import ImageData
from imr.lab.folder import RunFolder
from imr.nn import ContextBlock

QUERIES = 15  # of each class
COMPONENTS = 64
BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # two images have a squared distance of 2 on average
SPREAD_BETAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of labels that are propagated
STEP_BETAS = tuple(np.geomspace(0.25, 64, 30))  # as many as a flow has settings
RIDGES = (0.001, 0.01, 0.03, 0.1, 0.3)
NEIGHBOURS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25)
TIMES = (0.03, 0.1, 0.25, 0.5, 1.0)  # of a flow, as shares of all steps
SHARES = (0.3, 0.6, 0.8, 0.9, 0.98)  # of the diffusion kernel
COARSE = 4  # components of a kernel that knows too little
FEW = 5  # shots up to which labels are propagated, and those of meta-training
META_BATCH, META_LAYERS = 8, 10


def split(data: ImageData, seed: int) -> tuple[jax.Array, ...]:
    """Five random classes, on which things are chosen, and the other five, held out.

    Returns: Images of each class, shape (classes, images, components), in the principal components
      of the first five.
    """
    x = np.concatenate([data.train_images, data.test_images])
    y = np.concatenate([data.train_labels, data.test_labels])
    order = np.random.default_rng(seed).permutation(len(data.class_names))[: 2 * CLASSES]
    count = np.bincount(y).min()

    def images(classes):
        return np.stack([x[y == c][:count] for c in classes])

    known, held_out = images(order[:CLASSES]), images(order[CLASSES:])
    base = known.reshape(-1, x.shape[1])
    mean = base.mean(axis=0)
    centred = np.asarray(base - mean, np.float64)
    vectors = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :COMPONENTS]
    scale = (centred @ vectors).var(axis=0).sum() ** -0.5
    return tuple(
        jnp.asarray((each - mean) @ vectors * scale, jnp.float32) for each in (known, held_out)
    )


def draw(images: jax.Array, shots: int, key: Any) -> Labels:
    """So many examples of each class, then the queries."""
    count = shots + QUERIES
    keys = jax.random.split(key, CLASSES)
    rows = jax.vmap(lambda k: jax.random.permutation(k, images.shape[1])[:count])(keys)
    x = jnp.swapaxes(jax.vmap(lambda own, r: own[r])(images, rows), 0, 1)
    x, labels = x.reshape(-1, images.shape[2]), jnp.tile(jnp.arange(CLASSES), count)
    return Labels(x, labels, np.arange(CLASSES * count) < CLASSES * shots)


class Context(NamedTuple):
    """One context: tokens, examples first, with their targets; and a width of the kernel."""

    x: jax.Array
    targets: jax.Array
    beta: Any


class Method(NamedTuple):
    """Predictors that share their widths: from a context and a number of steps to logits by name,
    (entries, n, k), the entries being other settings."""

    logits: Callable[[Context, int], dict[str, jax.Array]]
    widths: tuple[float, ...] = (1.0,)


def flows(context: Context, steps: int) -> dict[str, jax.Array]:
    """Flows at several times, and one in the kernel of too few components."""
    x, targets, beta = context
    m = len(targets)
    times = np.maximum(np.round(np.array(TIMES) * steps).astype(int), 1)

    def of_flow(kernel, x=x):
        weights = baselines.attention(kernel, x, m, beta)
        # Below 4 over the largest eigenvalue a step is stable.
        size = 2.0 if kernel == "softmax" else 2.0 / jnp.abs(weights[:m]).sum(axis=1).max()
        return baselines.flow(weights, targets, size, times)

    return {
        "rbf flow": of_flow("exponential"),
        "softmax flow": of_flow("softmax"),
        "linear flow": of_flow("linear"),
        f"rbf flow, {COARSE} components": of_flow("exponential", x[:, :COARSE]),
    }


def one_step(context: Context, steps: int) -> dict[str, jax.Array]:
    """Of the softmax flow; its size moves no accuracy."""
    del steps
    x, targets, beta = context
    weights = baselines.attention("softmax", x, len(targets), beta)
    return {"softmax, one step": (weights @ targets)[None]}


def without_width(context: Context, steps: int) -> dict[str, jax.Array]:
    """Nearest neighbours of several numbers, and the class mean."""
    del steps
    x, targets, _ = context
    return {
        "nearest neighbours": jnp.stack([baselines.nearest(x, targets, c) for c in NEIGHBOURS]),
        "class mean": baselines.class_means(x, targets, 1.0)[None],
    }


def regressions(context: Context, steps: int) -> dict[str, jax.Array]:
    """Kernel regression at each ridge."""
    del steps
    x, targets, beta = context
    gram = baselines.attention("exponential", x, len(x), beta)
    fit = partial(baselines.kernel_regression, gram, targets)
    return {"rbf kernel regression": jax.vmap(fit)(jnp.array(RIDGES))}


def propagations(together: bool, context: Context, steps: int) -> dict[str, jax.Array]:
    """Labels spread over all queries, or over one at a time, for each share."""
    del steps
    function = baselines.propagated if together else baselines.propagated_alone
    name = "all queries" if together else "one query at a time"
    spread = partial(function, context.x, context.targets, context.beta)
    return {f"propagated, {name}": jax.vmap(spread)(jnp.array(SHARES))}


METHODS = (
    Method(flows, BETAS),
    Method(one_step, STEP_BETAS),
    Method(without_width),
    Method(regressions, BETAS),
)
TRANSDUCTIVE = tuple(
    Method(partial(propagations, together), SPREAD_BETAS) for together in (True, False)
)


class Tried(NamedTuple):
    """Mean accuracies of a method on the classes it is chosen on and on those held out, of one split,
    each (widths, entries)."""

    known: np.ndarray
    held_out: np.ndarray

    @property
    def chosen(self) -> float:
        """The accuracy on held-out classes of the setting that is best on the others."""
        return float(self.held_out[np.unravel_index(self.known.argmax(), self.known.shape)])

    @property
    def late(self) -> float:
        """Of a flow run to the end, with the width that is best there on the other classes."""
        return float(self.held_out[self.known[:, -1].argmax(), -1])

    @property
    def edges(self) -> tuple[str, ...]:
        """Of which axes, the width's and that of the entries, no setting off the edge is as good."""
        inside = {"width": self.known[1:-1], "other": self.known[:, 1:-1]}
        return tuple(n for n, part in inside.items() if part.size and part.max() < self.known.max())


def measure_shots(config, sizes: Sizes, splits, shots: int) -> list[dict[str, Tried]]:
    """Every method on every split."""

    # A program for each: several factorisations at once can block each other on few cores.
    methods = METHODS + (TRANSDUCTIVE if shots <= FEW else ())

    def evaluate(method, images, keys):
        def one(key):
            task = draw(images, shots, key)
            m = CLASSES * shots
            targets = jax.nn.one_hot(task.y[:m], CLASSES)

            def of_width(beta):
                found = method.logits(Context(task.x, targets, beta), sizes.image_flow)
                return {
                    n: jnp.mean(z[:, m:].argmax(axis=2) == task.y[m:][None], axis=1)
                    for n, z in found.items()
                }

            return jax.lax.map(of_width, jnp.array(method.widths))

        each = jax.lax.map(one, keys, batch_size=10)
        return jax.tree.map(lambda x: x.mean(axis=0), each)

    programs = [jax.jit(partial(evaluate, method)) for method in methods]
    found = []
    for s, pair in enumerate(splits):
        seed, of_split = 1000 * shots + config.seed + s, {}
        keys = [keys_for(seed, use, sizes.image_tasks) for use in ("choose", "test")]
        for program in programs:
            known, held_out = (
                jax.tree.map(np.asarray, program(*each)) for each in zip(pair, keys, strict=True)
            )
            of_split |= {name: Tried(known[name], held_out[name]) for name in known}
        found.append(of_split)
    return found


def meta_trained(
    config: Config, sizes: Sizes, run: RunFolder, splits, widths
) -> list[dict[str, float]]:
    """A block trained on tasks of the known classes: what it gains there and on the others."""
    # The width that was chosen for each split, so that training starts from a block that is tuned.
    data = tuple(
        jnp.stack([images * width**0.5 for images, width in zip(each, widths, strict=True)])
        for each in zip(*splits, strict=True)
    )
    m = CLASSES * FEW

    def loss(net, key, own):
        tasks = jax.vmap(partial(draw, own[0], FEW))(jax.random.split(key, META_BATCH))
        return net_scores(net, tasks, m)[1]

    call = partial(
        ContextBlock, data[0].shape[-1], CLASSES, layers=META_LAYERS, kernel="exponential", tau=0.2, ridge=0.05
    )  # fmt: skip

    trained = train_net(
        config, sizes, run, Learned("images, block", call, loss, sizes.meta_steps, data)
    )

    @jax.jit
    def accuracies(params, images, keys):
        tasks = jax.vmap(partial(draw, images, FEW))(keys)
        return net_scores(nnx.merge(trained.graph, params), tasks, m)[0]

    readings = []
    for s in range(len(splits)):
        keys, reading = keys_for(config.seed + s, "test", sizes.image_tasks), {}
        for name, images in (("known", data[0][s]), ("held-out", data[1][s])):
            after, before = (
                float(accuracies(jax.tree.map(lambda x: x[s], params), images, keys))  # noqa: B023
                for params in (trained.params, trained.untrained)
            )
            reading[f"meta-training on {name} classes"] = after - before
        readings.append(reading)
    return readings


def measure_images(config: Config, sizes: Sizes, run: RunFolder, data: ImageData) -> Part:
    """Every number of shots, every method, and the meta-trained block."""
    splits = [split(data, config.seed + s) for s in range(config.seeds)]
    readings, rows = [{} for _ in splits], []
    arrays = {"dataset": np.array(config.dataset)}
    widths = [1.0] * len(splits)
    for shots in sizes.shots:
        found = measure_shots(config, sizes, splits, shots)
        for name in found[0]:
            accuracy = np.array([each[name].chosen for each in found])
            tunings = int(found[0][name].known.size)
            row = mean_row({"shots": shots, "method": name}, {"accuracy": accuracy}, None, tunings)
            edges = Counter(axis for each in found for axis in each[name].edges)
            told = ", ".join(f"{axis} {count}/{len(found)}" for axis, count in edges.items())
            rows.append(row | {"at the edge": told})
            arrays[f"{name}, {shots}"] = accuracy
        for r, each in zip(readings, found, strict=True):
            best = {name: tried.chosen for name, tried in each.items()}
            r[f"{shots} shots: flow less kernel regression"] = (
                best["rbf flow"] - best["rbf kernel regression"]
            )
            r[f"{shots} shots: flow less one step"] = (
                best["softmax flow"] - best["softmax, one step"]
            )
            for name in ("class mean", f"rbf flow, {COARSE} components"):
                apart = best[name] - best["rbf kernel regression"]
                r[f"{shots} shots: {name} less kernel regression"] = apart
            r[f"{shots} shots: softmax less rbf flow"] = best["softmax flow"] - best["rbf flow"]
            r[f"{shots} shots: best time less late"] = best["rbf flow"] - each["rbf flow"].late
            if shots <= FEW:
                r[f"{shots} shots: all queries less one at a time"] = (
                    best["propagated, all queries"] - best["propagated, one query at a time"]
                )
        if shots == FEW:
            widths = [BETAS[int(each["rbf flow"].known[:, -1].argmax())] for each in found]
    if FEW in sizes.shots:
        gains = []
        for r, more in zip(readings, meta_trained(config, sizes, run, splits, widths), strict=True):
            r |= more
            gains.append(more)
        for name in gains[0]:
            numbers = {"accuracy": [each[name] for each in gains]}
            rows.append(mean_row({"shots": FEW, "method": f"{name}, gain"}, numbers))
    return Part(readings, rows, arrays, {})
