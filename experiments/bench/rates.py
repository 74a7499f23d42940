"""What the machine can do, what the fields make of it, and what the cost model says of larger ones."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import imr
from experiments.bench.linear import problem
from experiments.bench.rounds import race
from imr.parallel import cost

RANK = 16
FORMATS = {
    "GFLOP/s": ".1f", "Gexp/s": ".3f", "GB/s": ".1f", "median s": ".2g", "model s": ".2g",
    "model's share": ".2f", "GFLOP": ".3g", "Gexp": ".3g",
}  # fmt: skip


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Rows of the machine's own rates, of the fields, and of fields on other machines."""
    machine = peaks(config)
    peak = {"what": "peak", **_rates(machine, 1.0)}
    rows = [peak, *here(config, machine), *elsewhere()]
    return (
        "`peak`: a product of two 1024 x 1024 matrices, exponentials of 16,384 numbers in cache, 16 million "
        "numbers gone through in place: all in float32. `here`: measured, beside the model's sum of FLOPs, exponentials and "
        "bytes at those peaks. `model`: one evaluation at a machine's published peaks (imr.parallel.cost), a bound that "
        "nothing here has measured."
    ), rows


def peaks(config: Any) -> cost.Machine:
    """FLOPs, exponentials and bytes a second of this machine."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    size, many = (256, 2**20) if config.smoke else (1024, 2**24)
    a, b = (jax.random.normal(key, (size, size)) for key in keys[:2])
    x, box = (
        jax.random.normal(keys[2], (2**14,)),
        [jnp.ones(many)],
    )  # the box is gone through in place
    rounds, passes = 1000, 10

    @jax.jit
    def exponentials(x):
        return jax.lax.fori_loop(0, rounds, lambda _, x: jnp.exp(x) - 1.0, 0.01 * x)

    @partial(jax.jit, donate_argnums=0)
    def through(y):
        return jax.lax.fori_loop(0, passes, lambda _, y: 0.5 * y + 1.0, y)

    def memory():
        box[0] = through(box[0])
        return box[0]

    product = jax.jit(jnp.matmul)
    ways = {
        "product": lambda: product(a, b), "exponential": lambda: exponentials(x), "memory": memory
    }  # fmt: skip
    _, times = race(ways, config.repetitions, "product")
    least = {name: times[name]["least s"] for name in ways}
    return cost.Machine(
        "here", 2.0 * size**3 / least["product"], rounds * x.size / least["exponential"],
        8.0 * many * passes / least["memory"], 0.0, 0.0,
    )  # fmt: skip


def _rates(amounts: cost.Machine | cost.Cost, seconds: float) -> dict[str, float]:
    return {
        "GFLOP/s": amounts.flops / seconds / 1e9, "Gexp/s": amounts.exponentials / seconds / 1e9,
        "GB/s": amounts.bytes / seconds / 1e9,
    }  # fmt: skip


def _sizes(model: cost.Cost) -> dict[str, float]:
    return {"GFLOP": model.flops / 1e9, "Gexp": model.exponentials / 1e9}


def here(config: Any, machine: cost.Machine) -> list[dict[str, Any]]:
    """The rates of two fields on this machine, beside what the cost model says."""
    n, f, k = config.n, config.features, config.classes
    many = 2048 if config.smoke else 8192
    tokens = jax.random.normal(jax.random.key(config.seed), (many, RANK)) / RANK**0.25
    attention = imr.closed_field(imr.feature_loss(imr.Quadratic(jnp.eye(RANK)), None))
    tiles = cost.quadratic_field_cost(many, RANK, RANK, way="tiles")
    z, theta, labels = problem(config, 1.0)
    linear = imr.gradient_field(imr.feature_loss(imr.Linear(theta), labels))
    whole = cost.linear_field_cost(n, f, k)
    rows = []
    for name, field, start, model in (
        (f"self-attention field, n={many}, r={RANK}", attention, tokens, tiles),
        (f"linear field by autodiff, n={n}, f={f}, k={k}", linear, z, whole),
    ):  # fmt: skip
        run = jax.jit(partial(field, 0.0))
        _, times = race({name: partial(run, start, None)}, 5, name)
        least, bound = times[name]["least s"], cost.seconds(model, machine)
        rows.append(
            {
                "what": f"here: {name}", **_rates(model, least),
                "median s": times[name]["median s"], "model s": bound,
                "model's share": bound / least, **_sizes(model),
            }
        )  # fmt: skip
    return rows


def elsewhere() -> list[dict[str, Any]]:
    """The self-attention field at sizes that take about a second."""
    rows, n = [], 2**19
    for machine in (cost.H100, cost.H200):
        model = cost.quadratic_field_cost(n, RANK, RANK, way="tiles", block=4096)
        name = f"model: {machine.name}, n={n:,}, r={RANK}"
        rows.append({"what": name, "model s": cost.seconds(model, machine), **_sizes(model)})
    return rows
