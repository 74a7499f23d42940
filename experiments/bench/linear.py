"""The flow of the linear model, three ways to the same end."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imr
from imr.console import Progress, markdown_table
from imr.run import RunFolder

REDUCED, AUTODIFF, CLOSED = "linear_flow", "solve(gradient_field)", "solve(linear_field)"


def measure(config: Any, run: RunFolder, machine: str) -> None:
    """Times every way on every problem and writes the table."""
    if config.smoke:
        config = replace(config, n=200, features=50, repetitions=2, scales=config.scales[:1])
    rows = []
    with Progress(len(config.scales), "bench", "problem") as progress:
        for count, scale in enumerate(config.scales):
            rows += compare(config, scale)
            progress.update(count + 1)
    table = markdown_table(
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
        formats={"difference": ".1e", "times linear_flow": ".1f", "scale": "g"},
    )
    head = (
        f"The linear model's flow, n={config.n} f={config.features} k={config.classes}, "
        f"t1={config.t1:g}, rtol {config.rtol:g}, atol {config.atol:g}, float32; warm, median of "
        f"{config.repetitions} rounds; {machine}. `scale`: length of the rows of theta. `times "
        "linear_flow`: median over rounds of the ratio in one round. `difference`: from "
        f"{AUTODIFF}, largest over the largest entry."
    )
    run.finish({"linear": rows, "machine": machine}, f"{head}\n\n{table}")


def compare(config: Any, scale: float) -> list[dict[str, Any]]:
    """Each way once a round, one after the other, warm; a row for each way."""
    z0, theta, labels = problem(config, scale)
    options = {"t1": config.t1, "rtol": config.rtol, "atol": config.atol}
    ways = {
        REDUCED: lambda: imr.linear_flow(z0, theta, labels, **options),
        CLOSED: lambda: imr.solve(imr.linear_field(theta, labels), z0, **options),
        AUTODIFF: lambda: imr.solve(
            imr.gradient_field(imr.feature_loss(imr.linear_logits, theta, labels)), z0, **options
        ),
    }
    flows = {name: jax.block_until_ready(way()) for name, way in ways.items()}  # compiles
    rounds = [{name: timed(way) for name, way in ways.items()} for _ in range(config.repetitions)]
    seconds = {name: np.array([times[name] for times in rounds]) for name in ways}
    return [
        {
            "scale": scale,
            "way": name,
            "median s": float(np.median(seconds[name])),
            "least s": float(np.min(seconds[name])),
            "most s": float(np.max(seconds[name])),
            "times linear_flow": float(np.median(seconds[name] / seconds[REDUCED])),
            "difference": difference(flows[name].z, flows[AUTODIFF].z),
            "steps": int(flows[name].num_steps),
            "converged": bool(flows[name].converged),
            "seconds": seconds[name].tolist(),
        }
        for name in ways
    ]


def problem(config: Any, scale: float) -> tuple[Any, Any, Any]:
    """Random features, class weights with rows of about that length, labels."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    z0 = jax.random.normal(keys[0], (config.n, config.features))
    theta = jax.random.normal(keys[1], (config.classes, config.features))
    labels = jax.random.randint(keys[2], (config.n,), 0, config.classes)
    return z0, scale * theta / config.features**0.5, labels


def timed(way: Callable[[], Any]) -> float:
    """Seconds of one call, to the last array."""
    start = time.perf_counter()
    jax.block_until_ready(way())
    return time.perf_counter() - start


def difference(found: Any, wanted: Any) -> float:
    """Largest difference over the largest entry."""
    return float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))
