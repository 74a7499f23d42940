"""Linear regression in context: trained linear self-attention nets against tuned gradient descent."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.optimize import minimize

from experiments.incontext.config import Config, Sizes
from experiments.incontext.models import Learned, Trained, count_parameters, train_net
from experiments.incontext.readings import Part, cosines, mean_row, off_identity
from experiments.incontext.tasks import FEATURES, keys_for, linear_task, rotation_task
from experiments.incontext.theory import one_step
from imr.context import curvature_filter
from imr.lab.folder import RunFolder
from imr.nn import LinearSelfAttention

BATCH = 64  # contexts in a step of training
STARTS = 64  # of the tuning of gradient descent
TRIED_ON = 500  # contexts that tell the best of these starts
LOOKED_AT = 1000  # contexts on which sensitivities are compared
BOUNDED = 3  # layers from which the logarithm of a context's loss is minimised
KINDS = ("trained", "untrained", "GD++", "GD")


class Net(NamedTuple):
    """A net and its contexts; keys and queries are separate if there is a rank."""

    layers: int
    examples: int
    rank: int | None = None

    @property
    def tag(self) -> str:
        """Its name in tables and claims."""
        words = ", separate keys and queries" if self.rank else ""
        return f"{self.layers} layers, {self.examples} examples{words}"

    @property
    def bounded(self) -> bool:
        """Whether the logarithm of each context's loss is what is minimised.

        Of many layers the loss is a polynomial of so high a degree that a mean is that of a few contexts.
        """
        return self.layers >= BOUNDED

    @property
    def call(self) -> Any:
        """What makes it."""
        return partial(LinearSelfAttention, FEATURES, 1, layers=self.layers, rank=self.rank)


def nets(sizes: Sizes) -> list[Net]:
    """Those of a run: of one and two layers with separate keys and queries too."""
    few = sizes.examples[0]
    separate = [Net(layers, few, FEATURES) for layers in sizes.layers if layers < BOUNDED]
    return separate + [Net(layers, n) for n in sizes.examples for layers in sizes.layers]


class Steps(NamedTuple):
    """Sizes of gradient steps and of their curvature correction, shape (layers,)."""

    step: np.ndarray
    curvature: np.ndarray


def tuned_steps(spectrum: np.ndarray, net: Net, curved: bool) -> Steps:
    """The best steps on contexts of these spectra, shape (contexts, d), each start to convergence.

    For w ~ N(0, I) and a query of variance 1/3 a context's expected loss is a third of the sum of the
    squares of its residuals. Of it is minimised what the net minimises.
    """
    layers = net.layers

    def objective(theta, spectrum):
        curvature = theta[layers:] if curved else jnp.zeros(layers)
        left = jax.vmap(lambda s: curvature_filter(s, theta[:layers], curvature))(spectrum)
        return over_contexts(jnp.sum(left**2, axis=1) / 3, net.bounded)

    # Late steps may be ten times the first: a curvature correction near one has shrunk what they see.
    random = np.random.default_rng(0)
    starts = np.exp(random.uniform(np.log(0.3), np.log(20), (STARTS, layers * (1 + curved))))
    if curved:
        starts[:, layers:] *= 0.1
    with jax.enable_x64(True):
        slope = jax.jit(jax.value_and_grad(objective))

        def descend(start, spectrum):
            points = jnp.asarray(spectrum)
            return minimize(lambda t: jax.tree.map(np.float64, slope(t, points)), start, jac=True)

        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a search may step too far, and turns back
            tried: list[Any] = [descend(each, spectrum[:TRIED_ON]) for each in starts]
        best = min((fit for fit in tried if np.isfinite(fit.fun)), key=lambda fit: fit.fun)
        best = descend(best.x, spectrum)
    curvature = best.x[layers:].copy() if curved else np.zeros(layers)
    curvature[-1] = 0.0  # it moves nothing that is read
    return Steps(best.x[:layers], curvature)


def spectra(seed: int, examples: int, count: int) -> np.ndarray:
    """Eigenvalues of X^T X / N of contexts on which steps are chosen."""
    keys = keys_for(seed, "choose", count)
    x = jax.jit(jax.vmap(lambda key: linear_task(key, examples).x[:examples]))(keys)
    x = np.asarray(x, np.float64)
    return np.linalg.eigvalsh(x.mT @ x / examples)


def over_contexts(losses: jax.Array, bounded: bool) -> jax.Array:
    """The mean, or that of log(1 + loss), which no few contexts dominate."""
    return jnp.mean(jnp.log1p(losses) if bounded else losses)


def squared_losses(net: LinearSelfAttention, tasks) -> jax.Array:
    """Of each context, the mean over its queries."""
    found = jax.vmap(net)(*tasks)
    asked = jnp.broadcast_to(~tasks.labelled[..., None], found.shape)
    return jnp.mean((found - tasks.y) ** 2, axis=(1, 2), where=asked)


def learned(sizes: Sizes, net: Net) -> Learned:
    """A net and how it is trained."""

    def loss(module, key, own):
        del own
        tasks = jax.vmap(lambda key: linear_task(key, net.examples))(jax.random.split(key, BATCH))
        return over_contexts(squared_losses(module, tasks), net.bounded)

    return Learned(f"linear, {net.tag}", net.call, loss, sizes.regression_steps)


def construction(net: Net, steps: Steps) -> Any:
    """Parameters of the net that takes these steps."""
    module = net.call(rngs=nnx.Rngs(0))
    module.gradient_steps(
        jnp.asarray(steps.step, jnp.float32), jnp.asarray(steps.curvature, jnp.float32)
    )
    return nnx.state(module, nnx.Param)


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(graph, params, keys, examples: int):
    """Losses of several nets on the same tasks, as drawn and with x doubled, each plain and bounded,
    shape (2, 2, nets); and the sensitivity of a prediction to its query, (nets, contexts, d)."""

    def sensitivity(net, task):
        def prediction(x):
            return net(x, task.y, task.labelled)[examples, 0]

        return jax.grad(prediction)(task.x)[examples]

    def one(params):
        net, losses = nnx.merge(graph, params), []
        for scale in (1.0, 2.0):
            tasks = jax.vmap(lambda key: linear_task(key, examples, scale))(keys)  # noqa: B023
            found = squared_losses(net, tasks)
            losses.append(jnp.stack([over_contexts(found, bounded) for bounded in (False, True)]))
        some = jax.vmap(lambda key: linear_task(key, examples))(keys[:LOOKED_AT])
        return jnp.stack(losses), jax.vmap(partial(sensitivity, net))(some)

    losses, sensitivities = jax.lax.map(one, params)
    return jnp.moveaxis(losses, 0, -1), sensitivities


def measure_regression(config: Config, sizes: Sizes, run: RunFolder) -> Part:
    """Every net beside the best steps."""
    readings, rows, arrays, rates = [{} for _ in range(config.seeds)], [], {}, {}
    for net in nets(sizes):
        trained = train_net(config, sizes, run, learned(sizes, net))
        rates[trained.folder] = trained.rate
        spectrum = spectra(config.seed, net.examples, sizes.regression_tests)
        tuned = {curved: tuned_steps(spectrum, net, curved) for curved in (True, False)}
        losses = np.empty((config.seeds, 2, 2, len(KINDS)))
        similar = np.empty((config.seeds, len(KINDS)))
        for s in range(config.seeds):
            each = [jax.tree.map(lambda x: x[s], p) for p in (trained.params, trained.untrained)]  # noqa: B023
            each += [construction(net, tuned[curved]) for curved in (True, False)]
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
            keys = keys_for(config.seed + s, "test", sizes.regression_tests)
            losses[s], sensitivity = jax.tree.map(
                np.asarray, evaluate(trained.graph, stacked, keys, net.examples)
            )
            similar[s] = cosines(sensitivity, sensitivity[2]).mean(axis=1)
        for s, reading in enumerate(readings):
            note(reading, net, losses[s, :, int(net.bounded)], similar[s])
            if net.layers == 1:
                reading |= learned_step(net.tag, trained, s)
        for k, kind in enumerate(KINDS):
            numbers = {
                "loss": losses[:, 0, 0, k], "log(1 + loss)": losses[:, 0, 1, k],
                "x doubled": losses[:, 1, 0, k], "cosine": similar[:, k],
            }  # fmt: skip
            head = {
                "layers": net.layers,
                "examples": net.examples,
                "rank": net.rank,
                "method": kind,
            }
            count = count_parameters(trained.params) if k < 2 else net.layers * (2 if k == 2 else 1)
            row = mean_row(head, numbers, trained if k == 0 else None, STARTS if k > 1 else 0)
            rows.append(row | {"parameters": count})
        arrays[net.tag] = losses
    return Part(readings, rows, arrays, rates)


def note(reading: dict[str, float], net: Net, losses: np.ndarray, similar: np.ndarray) -> None:
    """Ratios of losses, (2, kinds), as drawn and with x doubled, and cosines."""
    with np.errstate(invalid="ignore"):  # with x doubled deep nets exceed any float
        ratios = losses / losses[:, 2:3]
    for k, kind in enumerate(KINDS):
        reading[f"{net.tag}: {kind} over GD++"] = float(ratios[0, k])
        reading[f"{net.tag}: {kind} over GD++, x doubled"] = float(ratios[1, k])
        reading[f"{net.tag}: cosine of {kind}"] = float(similar[k])
        if net.layers == 1:
            # On the same tasks, so that what is random in them cancels.
            apart = (losses[0, k] - losses[0, 2]) / one_step(FEATURES, net.examples).loss
            reading[f"{net.tag}: {kind} less the step, over the closed form"] = float(apart)


def learned_step(tag: str, trained: Trained, seed: int) -> dict[str, float]:
    """The step size that a net of one layer has learned, and what of it is no multiple of 1."""
    net: Any = nnx.merge(trained.graph, jax.tree.map(lambda x: x[seed], trained.params))
    key_query, value = (np.asarray(each[0, 0]) for each in net.weights)
    step = -key_query[:FEATURES, :FEATURES] * value[-1, -1]
    return {
        f"{tag}: step": float(np.trace(step) / FEATURES),
        f"{tag}: off identity": off_identity(step, np.eye(FEATURES)),
    }


# The autoregressive variant: every prefix of a sequence is a context.


def sequence_loss(net: LinearSelfAttention, s) -> jax.Array:
    """Mean squared error of the next element, from the second one on, of sequences (b, l, p)."""
    found = predictions(net, s)
    return jnp.mean(jnp.sum((found - s[:, 1:])[:, 1:] ** 2, axis=2))


def predictions(net: LinearSelfAttention, s) -> jax.Array:
    """Of the elements after the first, shape (b, l - 1, p)."""
    everyone = np.full(s.shape[1] - 1, True)
    return jax.vmap(lambda s: net(s[:-1], s[1:], everyone))(s)


def isotropic_terms(s) -> jax.Array:
    """Sums of v_j (k_j . x_i) over j < i for v and k among x and y, what a layer without a direction
    can write at each element from the second on, shape (b, l - 2, p, 4)."""
    x, y = s[:, :-1], s[:, 1:]
    before = np.tri(x.shape[1], k=-1)
    weights = before / np.maximum(before.sum(axis=1, keepdims=True), 1)
    terms = [
        jnp.einsum("ij,bip,bjp,bjq->biq", weights, x, key, value)
        for value in (x, y)
        for key in (x, y)
    ]
    return jnp.stack(terms, axis=-1)[:, 1:]


def measure_autoregression(config: Config, sizes: Sizes, run: RunFolder) -> Part:
    """A causal net of one layer on rotations, against the best gradient step at every prefix."""
    p = rotation_task(jax.random.key(0)).shape[1]
    call = partial(LinearSelfAttention, p, p, causal=True)

    def draw(keys):
        return jax.vmap(rotation_task)(keys)

    def loss(net, key, own):
        del own
        return sequence_loss(net, draw(jax.random.split(key, BATCH)))

    what = Learned("autoregressive, 1 layer", call, loss, sizes.autoregression_steps)
    trained = train_net(config, sizes, run, what)

    def step_of(size):
        net = call(rngs=nnx.Rngs(0))
        net.gradient_steps(size)
        return net

    # The prediction is linear in the step: the best one is a quotient.
    chosen = draw(keys_for(config.seed, "choose", sizes.regression_tests // 4))
    unit, target = predictions(step_of(1.0), chosen)[:, 1:], chosen[:, 2:]
    size = float(jnp.sum(unit * target) / jnp.sum(unit**2))
    terms = np.asarray(isotropic_terms(chosen), np.float64).reshape(-1, 4)
    mixture = np.linalg.lstsq(terms, np.asarray(target, np.float64).ravel())[0]
    readings, numbers = [], {}
    for s in range(config.seeds):
        test = draw(keys_for(config.seed + s, "test", sizes.regression_tests // 4))
        nets = {
            kind: nnx.merge(trained.graph, jax.tree.map(lambda x: x[s], params))  # noqa: B023
            for kind, params in (("trained", trained.params), ("untrained", trained.untrained))
        }
        nets["best step"] = step_of(size)
        found = {kind: np.asarray(predictions(net, test)[:, 1:]) for kind, net in nets.items()}
        found["best mixture"] = np.asarray(isotropic_terms(test)) @ mixture
        losses = {k: float(np.mean(np.sum((f - test[:, 2:]) ** 2, -1))) for k, f in found.items()}
        reading = {}
        for kind, f in found.items():
            reading[f"{kind} over best step"] = losses[kind] / losses["best step"]
            reading[f"{kind} over best mixture"] = losses[kind] / losses["best mixture"]
            reading[f"cosine of {kind}"] = float(cosines(f, found["best step"]).mean())
            numbers.setdefault(kind, []).append((losses[kind], reading[f"cosine of {kind}"]))
        readings.append(reading)
    rows = [
        mean_row({"method": kind}, {"loss": [a for a, _ in pairs], "cosine": [b for _, b in pairs]},
                 trained if kind == "trained" else None, int(kind.startswith("best")))
        for kind, pairs in numbers.items()
    ]  # fmt: skip
    return Part(
        readings, rows, {"step": np.array(size), "mixture": mixture}, {trained.folder: trained.rate}
    )
