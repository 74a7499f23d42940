"""Classification in context: prototypes, where depth has nothing to do, and Gaussian-process latents."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.incontext import baselines
from experiments.incontext.config import Config, Sizes
from experiments.incontext.methods import measure_method, methods
from experiments.incontext.models import Learned, Standard, count_parameters, train_net
from experiments.incontext.readings import Part, mean_row, off_identity
from experiments.incontext.tasks import (
    CLASSES,
    PROCESS_EXAMPLES,
    PROTOTYPE_EXAMPLES,
    Labels,
    keys_for,
    process_task,
    prototype_task,
)
from imr.lab.console import say
from imr.lab.folder import RunFolder
from imr.nn import ContextBlock

BATCH = 16  # contexts in a step of training
START_NOISE = 0.3  # of the weights of blocks, so that the construction has to be learned


class Kind(NamedTuple):
    """A kind of task, and the blocks that learn it: kernel, layers, and whether there is a ridge."""

    name: str
    draw: Callable[[Any], Labels]
    examples: int
    blocks: tuple[tuple[str, int, bool], ...]


def kinds(sizes: Sizes) -> tuple[Kind, Kind]:
    """Gaussian-process latents and prototypes."""
    one, some, many = sizes.depths[0], sizes.depths[1], sizes.depths[-1]
    process = [("softmax", depth, ridge) for ridge in (False, True) for depth in sizes.depths]
    process += [("linear", some, True), ("exponential", many, True), ("exponential", some, True)]
    prototypes = [("exponential", some, True), ("exponential", one, False)]
    prototypes += [("softmax", one, False), ("softmax", some, False)]
    return (
        Kind("process", process_task, PROCESS_EXAMPLES, tuple(dict.fromkeys(process))),
        Kind("prototypes", prototype_task, PROTOTYPE_EXAMPLES, tuple(dict.fromkeys(prototypes))),
    )


def block_name(kernel: str, layers: int, ridge: bool) -> str:
    """Of a block in tables, claims and figures."""
    return f"{kernel}{' and ridge' if ridge else ''}, {layers} layers"


def net_logits(net: Any, task: Labels, told: Any = True) -> jax.Array:
    """Of every token, by a block or by a standard transformer, whose queries see themselves too.

    Without being told labels a block has no example, and the transformer only covariates.
    """
    # As a traced mask, since a block refuses a known one without an example.
    known = jnp.asarray(task.labelled) & told
    if isinstance(net, ContextBlock):
        return net(task.x, task.y, task.labelled if told is True else known)
    known = jnp.where(known[:, None], jax.nn.one_hot(task.y, CLASSES), 0)
    tokens = jnp.concatenate([task.x, known], axis=1)
    return net(tokens, task.labelled[None, :] | jnp.eye(len(task.x), dtype=bool))


def net_scores(net: Any, tasks: Labels, examples: int, told: Any = True) -> jax.Array:
    """Mean accuracy and cross-entropy of the queries."""

    def one(*task):
        task = Labels(*task)
        return baselines.scores(net_logits(net, task, told), task.y, examples)

    return baselines.over_tasks(one, tasks)


def learned(sizes: Sizes, kind: Kind, name: str, call: Any) -> Learned:
    """A net and how it is trained."""

    def draw(keys):
        return jax.vmap(kind.draw)(keys)

    def loss(net, key, own):
        del own
        return net_scores(net, draw(jax.random.split(key, BATCH)), kind.examples)[1]

    return Learned(f"{kind.name}, {name}", call, loss, sizes.classification_steps)


def measure_kind(config: Config, sizes: Sizes, run: RunFolder, kind: Kind) -> Part:
    """All nets and methods on one kind of task."""
    seeds = range(config.seed, config.seed + config.seeds)
    draw = jax.jit(jax.vmap(kind.draw))
    tests = [draw(keys_for(seed, "test", sizes.tested)) for seed in seeds]
    chosen = draw(keys_for(config.seed, "choose", sizes.chosen))
    readings, rows, arrays, rates = [{} for _ in seeds], [], {}, {}

    def note(name, found, trained=None, tunings=0, parameters=0, probabilities=True):
        numbers = {"accuracy": found[:, 0]} | ({"CE": found[:, 1]} if probabilities else {})
        row = mean_row({"task": kind.name, "method": name}, numbers, trained, tunings)
        rows.append(row | {"parameters": parameters})
        arrays[f"{kind.name}: {name}"] = found
        for reading, (accuracy, loss) in zip(readings, found, strict=True):
            reading[f"{kind.name}, {name}: accuracy"] = float(accuracy)
            reading[f"{kind.name}, {name}: CE"] = float(loss)

    for method in methods(sizes, kind.name == "prototypes"):
        for name, (found, tunings, edge) in measure_method(
            kind.examples, method, chosen, tests
        ).items():
            note(name, found, tunings=tunings, probabilities=not method.votes)
            rows[-1]["at the edge"] = edge
            if edge:
                say(f"{kind.name}, {name}: the best setting has {edge}, at the edge of the grid.")
    features = tests[0].x.shape[-1]
    calls: dict[str, Any] = {
        block_name(kernel, layers, ridge): partial(
            ContextBlock, features, CLASSES, layers=layers, kernel=kernel,
            tau=1.0 if kernel == "softmax" else 0.1, ridge=0.1 if ridge else None, noise=START_NOISE,
        )
        for kernel, layers, ridge in kind.blocks
    }  # fmt: skip
    calls["standard transformer"] = partial(Standard, features + CLASSES, CLASSES)
    for name, call in calls.items():
        trained = train_net(config, sizes, run, learned(sizes, kind, name, call))

        @jax.jit
        def evaluate(params, tasks, graph=trained.graph):
            return net_scores(nnx.merge(graph, params), tasks, kind.examples)

        @jax.jit
        def untold(params, tasks, told, graph=trained.graph):
            return net_scores(nnx.merge(graph, params), tasks, kind.examples, told)

        def of_seeds(params, tests, evaluate: Any = evaluate):
            nets = [jax.tree.map(lambda x: x[s], params) for s in range(len(tests))]  # noqa: B023
            return np.stack([evaluate(*each) for each in zip(nets, tests, strict=True)])

        found = of_seeds(trained.params, tests)
        note(name, found, trained, parameters=count_parameters(trained.params))
        if name != "standard transformer":
            rates[trained.folder] = trained.rate
            for s, reading in enumerate(readings):
                reading |= geometry(f"{kind.name}, {name}", trained.params, s)
                reading |= geometry(f"{kind.name}, {name}, untrained", trained.untrained, s)
        for ridge in (False, True):
            if name == block_name("softmax", sizes.depths[1], ridge):
                found = iterated(sizes, trained, tests, kind)
                note(f"{name}, iterated to {sizes.depths[-1]}", found, trained)
        if name == block_name("exponential", sizes.depths[1], True):
            arrays |= {} if kind.name == "prototypes" else pictures(trained)
            others = [
                test._replace(y=shuffle(jax.random.key(seed), test.y, kind.examples))
                for seed, test in zip(seeds, tests, strict=True)
            ]
            _note_control(readings, kind, "labels shuffled", of_seeds(trained.params, others))
        if name in (block_name("exponential", sizes.depths[1], True), "standard transformer"):
            silent = of_seeds(trained.params, tests, partial(untold, told=False))
            _note_control(readings, kind, f"{name} without labels", silent)
        if name == block_name("softmax", sizes.depths[1], False):
            flat = {**trained.params, "projection": jax.tree.map(jnp.zeros_like, trained.params["projection"])}  # fmt: skip
            params = nnx.State(flat)
            _note_control(readings, kind, "uniform attention", of_seeds(params, tests))
    for reading, test in zip(readings, tests, strict=True):
        reading[f"{kind.name}, majority class: accuracy"] = majority(
            np.asarray(test.y), kind.examples
        )
    return Part(readings, rows, arrays, rates)


def _note_control(readings, kind: Kind, what: str, found: np.ndarray) -> None:
    for reading, (accuracy, loss) in zip(readings, found, strict=True):
        reading[f"{kind.name}, {what}: accuracy"] = float(accuracy)
        reading[f"{kind.name}, {what}: CE less ln 5"] = float(loss - np.log(CLASSES))


def iterated(sizes: Sizes, trained: Any, tests: list[Labels], kind: Kind) -> np.ndarray:
    """Scores of a block whose layer is repeated more often than in its training, (seeds, 2)."""

    @jax.jit
    def evaluate(params, tasks):
        net: Any = nnx.merge(trained.graph, params)
        net.layers = sizes.depths[-1]
        return net_scores(net, tasks, kind.examples)

    nets = [jax.tree.map(lambda x, s=s: x[s], trained.params) for s in range(len(tests))]
    return np.stack([evaluate(*each) for each in zip(nets, tests, strict=True)])


def grams(params: Any, seed: int) -> dict[str, np.ndarray]:
    """The metric, and the Gram matrix of the class embeddings about their mean."""
    w, theta = (np.asarray(params[n][...][seed], np.float64) for n in ("projection", "theta"))
    # A vector that is added to all rows of theta moves no softmax.
    theta = theta - theta.mean(axis=0, keepdims=True)
    return {"metric": w @ w.T, "classes": theta @ theta.T}


def pictures(trained: Any) -> dict[str, np.ndarray]:
    """Both of the first seed, before and after training."""
    pairs = (("trained", trained.params), ("untrained", trained.untrained))
    return {f"{name}, {kind}": gram for kind, p in pairs for name, gram in grams(p, 0).items()}


def geometry(tag: str, params: Any, seed: int) -> dict[str, float]:
    """How far metric and class embeddings are from multiples of the theory's."""
    found, simplex = grams(params, seed), np.eye(CLASSES) - 1 / CLASSES
    return {
        f"{tag}: metric off identity": off_identity(found["metric"], np.eye(len(found["metric"]))),
        f"{tag}: G off simplex": off_identity(found["classes"], simplex),
    }


def shuffle(key: Any, y: jax.Array, examples: int) -> jax.Array:
    """Labels (tasks, n) with those of the examples of each task in a random order."""
    keys = jax.random.split(key, len(y))
    one = jax.vmap(lambda key, y: y.at[:examples].set(jax.random.permutation(key, y[:examples])))
    return one(keys, y)


def majority(y: np.ndarray, examples: int) -> float:
    """What the most frequent class of the examples alone gets right."""
    counts = (y[:, :examples, None] == np.arange(CLASSES)).sum(axis=1)
    return float(np.mean(y[:, examples:] == counts.argmax(axis=1)[:, None]))


def measure_classification(config: Config, sizes: Sizes, run: RunFolder) -> Part:
    """Both kinds of tasks, and differences between nets on the same tasks."""
    parts = [measure_kind(config, sizes, run, kind) for kind in kinds(sizes)]
    readings = [a | b for a, b in zip(*(part.readings for part in parts), strict=True)]
    one, some, many = sizes.depths[0], sizes.depths[1], sizes.depths[-1]
    for r in readings:
        for task in ("process", "prototypes"):
            deep, flat = (
                r[f"{task}, {block_name('softmax', depth, False)}: accuracy"]
                for depth in (some, one)
            )
            r[f"{task}: accuracy, deep less one layer"] = deep - flat
        # One step from zero knows no ridge.
        deep, flat = (
            r[f"prototypes, {block_name('exponential', depth, depth == some)}: accuracy"]
            for depth in (some, one)
        )
        r["prototypes, exponential: accuracy, deep less one layer"] = deep - flat
        for ridge in (False, True):
            words = "ridge" if ridge else "no ridge"
            net, deep = (
                f"process, {block_name('softmax', depth, ridge)}" for depth in (some, many)
            )
            r[f"process: CE rise when iterated, {words}"] = (
                r[f"{net}, iterated to {many}: CE"] - r[f"{net}: CE"]
            )
            r[f"process: CE rise when trained deeper, {words}"] = r[f"{deep}: CE"] - r[f"{net}: CE"]
        best = r["process, rbf kernel regression: CE"]
        for kernel in ("exponential", "linear"):
            name = block_name(kernel, some, True)
            r[f"process, {kernel}: CE less kernel regression"] = r[f"process, {name}: CE"] - best
        trained = block_name("exponential", some, True)
        for what, name in (("shuffled", "labels shuffled"), ("trained", trained)):
            r[f"process: {what} less majority"] = (
                r[f"process, {name}: accuracy"] - r["process, majority class: accuracy"]
            )
    arrays = {**parts[0].arrays, **parts[1].arrays}
    rates = parts[0].rates | parts[1].rates
    return Part(readings, parts[0].rows + parts[1].rows, arrays, rates)
