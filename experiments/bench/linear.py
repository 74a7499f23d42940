"""The flow of the linear model, three ways to the same end."""

from typing import Any

import jax

import imr
from experiments.bench.rounds import difference, race
from imr.console import Progress

REDUCED, AUTODIFF, CLOSED = "linear_flow", "solve(gradient_field)", "solve(linear_field)"
FORMATS = {"difference": ".1e", f"times {REDUCED}": ".1f", "scale": "g"}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Times every way on every problem: what was done, and a row for each."""
    rows = []
    with Progress(len(config.scales), "linear flow", "problem") as progress:
        for count, scale in enumerate(config.scales):
            rows += compare(config, scale)
            progress.update(count + 1)
    return (
        f"The linear model's flow, n={config.n} f={config.features} k={config.classes}, "
        f"t1={config.t1:g}, rtol {config.rtol:g}, atol {config.atol:g}, float32. `scale`: length of "
        f"the rows of theta. `difference`: from {AUTODIFF}, largest over the largest entry."
    ), rows


def compare(config: Any, scale: float) -> list[dict[str, Any]]:
    """A row for each way on one problem."""
    z0, theta, labels = problem(config, scale)
    options = {"t1": config.t1, "rtol": config.rtol, "atol": config.atol}
    ways = {
        REDUCED: lambda: imr.linear_flow(z0, theta, labels, **options),
        CLOSED: lambda: imr.solve(imr.linear_field(theta, labels), z0, **options),
        AUTODIFF: lambda: imr.solve(
            imr.gradient_field(imr.feature_loss(imr.linear_logits, theta, labels)), z0, **options
        ),
    }
    flows, times = race(ways, config.repetitions, REDUCED)
    return [
        {
            "scale": scale,
            **times[name],
            "difference": difference(flow.z, flows[AUTODIFF].z),
            "steps": int(flow.num_steps),
            "converged": bool(flow.converged),
        }
        for name, flow in flows.items()
    ]


def problem(config: Any, scale: float) -> tuple[Any, Any, Any]:
    """Random features, class weights with rows of about that length, labels."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    z0 = jax.random.normal(keys[0], (config.n, config.features))
    theta = jax.random.normal(keys[1], (config.classes, config.features))
    labels = jax.random.randint(keys[2], (config.n,), 0, config.classes)
    return z0, scale * theta / config.features**0.5, labels
