"""Affine recurrences x' = a x + b with noise: each prefix of a sequence is a context."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.incontext.config import Config, Sizes
from experiments.incontext.models import Learned, Standard, count_parameters, train_net
from experiments.incontext.readings import Part, mean_row
from experiments.incontext.tasks import (
    INTERCEPT,
    RECURRENCE_NOISE,
    SLOPE,
    keys_for,
    recurrence_task,
)
from experiments.incontext.theory import affine_bayes
from imr.context import linear_kernel, squared_flow
from imr.lab.folder import RunFolder

BATCH = 64  # sequences in a step of training
POSITIONS = (2, 3, 5, 8)  # pairs that have been seen
TIMES = tuple(np.geomspace(0.5, 500, 13))  # of the flow
WIDTHS = tuple(np.geomspace(0.1, 100, 13))  # of kernel smoothers
RIDGES = tuple(np.geomspace(1e-3, 1.0, 7))


def bayes(s: np.ndarray, t: int) -> np.ndarray:
    """The posterior mean; its prior does not know that no slope exceeds two standard deviations."""
    return affine_bayes(s[:, :t], s[:, 1 : t + 1], s[:, t], SLOPE, INTERCEPT, RECURRENCE_NOISE)


@partial(jax.jit, static_argnums=1)
def of_flow(s, t: int, time):
    """The squared loss' flow from zero at a time, in the prior's kernel."""

    def one(s):
        covariates = jnp.stack([SLOPE * s[: t + 1], INTERCEPT * jnp.ones(t + 1)], axis=1)
        values = jnp.append(s[1 : t + 1], 0.0)[:, None]
        return squared_flow(linear_kernel(covariates), values, np.arange(t + 1) < t, time)[t, 0]

    return jax.vmap(one)(s)


def of_differences(s: np.ndarray, t: int, ridge: float) -> np.ndarray:
    """From the slope of successive differences, which know no b."""
    d = np.diff(s[:, : t + 1], axis=1)
    slope = np.sum(d[:, 1:] * d[:, :-1], axis=1) / (np.sum(d[:, :-1] ** 2, axis=1) + ridge)
    return s[:, t] + slope * d[:, -1]


def smoothed(s: np.ndarray, t: int, width: float, negative: bool) -> np.ndarray:
    """The mean of the successors, by similarity with what is asked or by its negative."""
    past, asked = s[:, :t], s[:, t : t + 1]
    logits = -width * past * asked if negative else -0.5 * width * (past - asked) ** 2
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.sum(weights * s[:, 1 : t + 1], axis=1) / weights.sum(axis=1)


def least_squares(s: np.ndarray, t: int) -> np.ndarray:
    """The affine map through the pairs, the shortest of them."""
    pairs = np.stack([s[:, :t], np.ones_like(s[:, :t])], axis=2)
    w = (np.linalg.pinv(pairs) @ s[:, 1 : t + 1, None])[..., 0]
    return w[:, 0] * s[:, t] + w[:, 1]


METHODS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "Bayes": (lambda s, t, _: bayes(s, t), (None,)),
    "squared-loss flow": (of_flow, TIMES),
    "least squares": (lambda s, t, _: least_squares(s, t), (None,)),
    "differences": (of_differences, RIDGES),
    "Nadaraya-Watson": (partial(smoothed, negative=False), WIDTHS),
    "negative similarity": (partial(smoothed, negative=True), WIDTHS),
    "last value": (lambda s, t, _: s[:, t], (None,)),
}


def errors(function, setting, s: np.ndarray) -> np.ndarray:
    """Mean squared errors at the positions."""
    return np.array(
        [np.mean((np.asarray(function(s, t, setting)) - s[:, t + 1]) ** 2) for t in POSITIONS]
    )


def predictions(net: Any, s: jax.Array) -> jax.Array:
    """Of all elements but the first, shape (l - 1,), each from those before it."""
    x, before = s[:-1], jnp.concatenate([jnp.zeros(1), s[:-2]])
    tokens = jnp.stack([x, before, jnp.arange(len(x)) > 0], axis=1)
    return net(tokens, np.tri(len(x), dtype=bool))[:, 0]


def net_errors(net: Any, s: jax.Array) -> jax.Array:
    """Mean squared error at each position from the first pair on, of sequences (b, l)."""
    found = jax.vmap(partial(predictions, net))(s)
    return jnp.mean((found - s[:, 1:])[:, 1:] ** 2, axis=0)


def learned(sizes: Sizes, name: str, call: Any) -> Learned:
    """A net and how it is trained."""

    def draw(keys):
        return jax.vmap(recurrence_task)(keys)

    def loss(net, key, own):
        del own
        return net_errors(net, draw(jax.random.split(key, BATCH))).mean()

    return Learned(f"recurrences, {name}", call, loss, sizes.recurrence_steps)


def measure_recurrences(config: Config, sizes: Sizes, run: RunFolder) -> Part:
    """Every method and the nets, on fresh sequences."""

    def draw(seed, use):
        return np.asarray(
            jax.jit(jax.vmap(recurrence_task))(keys_for(seed, use, sizes.recurrences))
        )

    seeds = range(config.seed, config.seed + config.seeds)
    chosen, tests = draw(config.seed, "choose"), [draw(seed, "test") for seed in seeds]
    readings, rows, arrays = [{} for _ in seeds], [], {"positions": np.array(POSITIONS)}

    def note(name, found, trained=None, tunings=0, parameters=0):
        numbers = {f"after {t}": found[:, i] for i, t in enumerate(POSITIONS)}
        row = mean_row({"method": name}, numbers, trained, tunings)
        rows.append(row | {"parameters": parameters})
        arrays[name] = found
        for reading, own in zip(readings, found, strict=True):
            reading[f"{name}: error"] = float(own.mean())

    for name, (function, settings) in METHODS.items():
        # A setting for each position by itself.
        best = np.argmin([errors(function, setting, chosen) for setting in settings], axis=0)
        found = np.array([
            [errors(function, settings[b], test)[i] for i, b in enumerate(best)] for test in tests
        ])  # fmt: skip
        note(name, found, tunings=len(settings))
    name, call = "standard transformer", partial(Standard, 3, 1)
    trained = train_net(config, sizes, run, learned(sizes, name, call))
    # Each net on its own sequences.
    found = jax.jit(jax.vmap(lambda params, s: net_errors(nnx.merge(trained.graph, params), s)))(
        trained.params, np.stack(tests)
    )
    found = np.asarray(found)[:, np.array(POSITIONS) - 1]
    note(name, found, trained, parameters=count_parameters(trained.params))
    for r in readings:
        for name in (
            "squared-loss flow",
            "negative similarity",
            "Nadaraya-Watson",
            "standard transformer",
        ):
            r[f"{name} over Bayes"] = r[f"{name}: error"] / r["Bayes: error"]
        r["negative similarity over Nadaraya-Watson"] = (
            r["negative similarity: error"] / r["Nadaraya-Watson: error"]
        )
    return Part(readings, rows, arrays, {})
