"""What the machine can do, what the fields make of it, and what the cost model says of larger ones."""

from typing import Any

import jax
import jax.numpy as jnp

import imr
from experiments.bench.rounds import race
from imr.parallel import cost

RANK = 16
FORMATS = {
    "GFLOP/s": ".1f", "Gexp/s": ".3f", "GB/s": ".1f", "median s": ".2g", "model s": ".2g",
    "model's share": ".2f", "GFLOP": ".3g", "Gexp": ".3g",
}  # fmt: skip


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Rows of the machine's own rates, of the fields, and of fields on other machines."""
    machine, own = peaks(config)
    rows = [*own, *(achieved(machine, *each) for each in fields(config)), *elsewhere()]
    return (
        "`peak`: a product of two 1024 x 1024 matrices, exponentials of 16,384 numbers in cache, 16 million "
        "numbers gone through in place: all in float32. `here`: measured, beside the model's sum of FLOPs, exponentials and "
        "bytes at those peaks. `model`: one evaluation at a machine's published peaks (imr.parallel.cost), a bound that "
        "nothing here has measured."
    ), rows


def peaks(config: Any) -> tuple[cost.Machine, list[dict[str, Any]]]:
    """FLOPs, exponentials and bytes a second of this machine."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    size, many = (256, 2**20) if config.smoke else (1024, 2**24)
    a, b = (jax.random.normal(key, (size, size)) for key in keys[:2])
    x, y = jax.random.normal(keys[2], (2**14,)), jnp.ones(many)
    rounds, passes = 1000, 10
    ways = {
        "product": jax.jit(jnp.matmul),
        "exponential": jax.jit(
            lambda x: jax.lax.fori_loop(0, rounds, lambda _, x: jnp.exp(x) - 1.0, 0.01 * x)
        ),
        "memory": jax.jit(
            lambda y: jax.lax.fori_loop(0, passes, lambda _, y: 0.5 * y + 1.0, y), donate_argnums=0
        ),
    }
    box = [y]  # gone through in place

    def memory():
        box[0] = ways["memory"](box[0])
        return box[0]

    arguments = {"product": (a, b), "exponential": (x,)}
    calls: dict[str, Any] = {n: lambda n=n: ways[n](*arguments[n]) for n in arguments}
    calls["memory"] = memory
    _, times = race(calls, config.repetitions, "product")
    least = {name: times[name]["least s"] for name in ways}
    machine = cost.Machine(
        "here", 2.0 * size**3 / least["product"], rounds * x.size / least["exponential"],
        8.0 * many * passes / least["memory"], 0.0, 0.0,
    )  # fmt: skip
    shown = {"GFLOP/s": machine.flops, "Gexp/s": machine.exponentials, "GB/s": machine.bytes}
    return machine, [{"what": "peak", **{name: value / 1e9 for name, value in shown.items()}}]


def fields(config: Any) -> list[tuple[str, Any, Any, cost.Cost]]:
    """Name, function, argument and cost."""
    n = 2048 if config.smoke else 8192
    keys = jax.random.split(jax.random.key(config.seed), 4)
    tokens = jax.random.normal(keys[0], (n, RANK)) / RANK**0.25
    z = jax.random.normal(keys[1], (config.n, config.features))
    theta = jax.random.normal(keys[2], (config.classes, config.features)) / config.features**0.5
    labels = jax.random.randint(keys[3], (config.n,), 0, config.classes)
    loss = imr.feature_loss(imr.Linear(theta), labels)
    return [
        (
            f"self-attention field, n={n}, r={RANK}",
            imr.closed_field(imr.feature_loss(imr.Quadratic(jnp.eye(RANK)), None)),
            tokens,
            cost.quadratic_field_cost(n, RANK, RANK, way="tiles"),
        ),
        (
            f"linear field by autodiff, n={config.n}, f={config.features}, k={config.classes}",
            imr.gradient_field(loss),
            z,
            cost.linear_field_cost(config.n, config.features, config.classes),
        ),
    ]


def achieved(machine: cost.Machine, name: str, field: Any, z: Any, model: cost.Cost) -> dict[str, Any]:  # fmt: skip
    """A field's rates here."""
    run = jax.jit(lambda z: field(0.0, z, None))
    _, times = race({name: lambda: run(z)}, 5, name)
    least, bound = times[name]["least s"], cost.seconds(model, machine)
    return {
        "what": f"here: {name}", "GFLOP/s": model.flops / least / 1e9,
        "Gexp/s": model.exponentials / least / 1e9, "GB/s": model.bytes / least / 1e9,
        "median s": times[name]["median s"], "model s": bound, "model's share": bound / least,
        "GFLOP": model.flops / 1e9, "Gexp": model.exponentials / 1e9,
    }  # fmt: skip


def elsewhere() -> list[dict[str, Any]]:
    """The self-attention field at sizes that take about a second."""
    found = []
    for machine, devices, n in (
        (cost.H100, 1, 2**19),
        (cost.H200, 1, 2**19),
        (cost.V5E, 256, 2**22),
    ):
        way = "tiles" if devices == 1 else "ring"
        model = cost.quadratic_field_cost(n, RANK, RANK, way=way, block=4096, devices=devices)
        found.append(
            {
                "what": f"model: {devices} x {machine.name}, n={n:,}, r={RANK}",
                "model s": cost.seconds(model, machine, devices),
                "GFLOP": model.flops / 1e9, "Gexp": model.exponentials / 1e9,
            }
        )  # fmt: skip
    return found
