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
    """Times every way in turn, round by round, and writes the table."""
    if config.smoke:
        config = replace(config, n=200, features=50, repetitions=2)
    z0, theta, labels = problem(config)
    options = {"t1": config.t1, "rtol": config.rtol, "atol": config.atol}
    ways = {
        REDUCED: lambda: imr.linear_flow(z0, theta, labels, **options),
        CLOSED: lambda: imr.solve(imr.linear_field(theta, labels), z0, **options),
        AUTODIFF: lambda: imr.solve(
            imr.gradient_field(imr.feature_loss(imr.linear_logits, theta, labels)), z0, **options
        ),
    }
    flows = {name: jax.block_until_ready(way()) for name, way in ways.items()}  # compiles
    seconds = {name: [] for name in ways}
    with Progress(config.repetitions, "bench", "round") as progress:
        for count in range(config.repetitions):
            for name, way in ways.items():
                seconds[name].append(timed(way))
            progress.update(count + 1)
    rows = [
        {
            "way": name,
            "median s": float(np.median(seconds[name])),
            "least s": float(np.min(seconds[name])),
            "most s": float(np.max(seconds[name])),
            "times linear_flow": float(
                np.median(np.array(seconds[name]) / np.array(seconds[REDUCED]))
            ),
            "difference": difference(flows[name].z, flows[AUTODIFF].z),
            "steps": int(flows[name].num_steps),
            "converged": bool(flows[name].converged),
        }
        for name in ways
    ]
    table = markdown_table(rows, formats={"difference": ".1e", "times linear_flow": ".1f"})
    head = (
        f"The linear model's flow, n={config.n} f={config.features} k={config.classes}, "
        f"t1={config.t1:g}, rtol {config.rtol:g}, atol {config.atol:g}, float32; warm, median of "
        f"{config.repetitions} rounds; {machine}. `times linear_flow`: median over rounds of the ratio "
        f"in one round. `difference`: from {AUTODIFF}, largest over the largest entry."
    )
    run.finish({"linear": rows, "seconds": seconds, "machine": machine}, f"{head}\n\n{table}")


def problem(config: Any) -> tuple[Any, Any, Any]:
    """Random features, class weights of unit size, labels."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    z0 = jax.random.normal(keys[0], (config.n, config.features))
    theta = jax.random.normal(keys[1], (config.classes, config.features))
    labels = jax.random.randint(keys[2], (config.n,), 0, config.classes)
    return z0, theta / jnp.sqrt(config.features), labels


def timed(way: Callable[[], Any]) -> float:
    """Seconds of one call, to the last array."""
    start = time.perf_counter()
    jax.block_until_ready(way())
    return time.perf_counter() - start


def difference(found: Any, wanted: Any) -> float:
    """Largest difference over the largest entry."""
    return float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))
