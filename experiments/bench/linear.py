"""The flow of the linear model, three ways to the same end."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import imr
from experiments.bench.rounds import difference, race
from imr.lab.console import Progress

REDUCED, AUTODIFF, CLOSED = "linear_flow", "solve(gradient_field)", "solve(linear_field)"
TORCH = "torchdiffeq dopri5"
FORMATS = {"difference": ".1e", f"times {REDUCED}": ".1f", "scale": "g"}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Times every way on every problem: what was done, and a row for each."""
    rows = []
    with Progress(len(config.scales), "linear flow", "problem") as progress:
        for count, scale in enumerate(config.scales):
            rows += compare(config, scale)
            progress.update(count + 1)
    skipped = f" Skipped: {TORCH}; torch and torchdiffeq are not installed."
    return (
        f"The linear model's flow, n={config.n} f={config.features} k={config.classes}, "
        f"t1={config.t1:g}, rtol {config.rtol:g}, atol {config.atol:g}, float32. `scale`: length of "
        f"the rows of theta. `{REDUCED}`: imr.solve_reduced; `{CLOSED}`: the closed field. "
        f"`difference`: from {AUTODIFF}, largest over the largest entry."
        + ("" if TORCH in {row["way"] for row in rows} else skipped)
    ), rows


def compare(config: Any, scale: float) -> list[dict[str, Any]]:
    """A row for each way on one problem."""
    z0, theta, labels = problem(config, scale)
    options = {"t1": config.t1, "rtol": config.rtol, "atol": config.atol}

    def loss():
        return imr.feature_loss(imr.Linear(theta), labels)

    ways = {
        REDUCED: lambda: imr.solve_reduced(loss(), z0, **options),
        CLOSED: lambda: imr.solve(imr.closed_field(loss()), z0, **options),
        AUTODIFF: lambda: imr.solve(imr.gradient_field(loss()), z0, **options),
    }
    flows, times = race(ways, config.repetitions, REDUCED)
    rows = [
        {
            "scale": scale, **times[name], "difference": difference(flow.z, flows[AUTODIFF].z),
            "steps": int(flow.num_steps), "converged": bool(flow.converged),
        }
        for name, flow in flows.items()
    ]  # fmt: skip
    run = torch_flow(z0, theta, labels, config)
    if run is not None:
        # In rounds of its own: where both hold the threads, each slows the other down.
        found, slow = race({TORCH: run}, max(2, config.repetitions // 3), TORCH)
        ratio = slow[TORCH]["median s"] / times[REDUCED]["median s"]
        apart = difference(found[TORCH], flows[AUTODIFF].z)
        del slow[TORCH][f"times {TORCH}"]
        rows.append({"scale": scale, **slow[TORCH], f"times {REDUCED}": ratio, "difference": apart})
    return rows


def torch_flow(z0: Any, theta: Any, labels: Any, config: Any) -> Callable[[], Any] | None:
    """The same flow by torchdiffeq, the field by torch's autograd; None if one of them is missing."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        return None
    if not config.all_cores:
        torch.set_num_threads(1)
    z, weights = (torch.tensor(np.asarray(x)) for x in (z0, theta))
    targets = torch.tensor(np.asarray(labels), dtype=torch.long)

    def field(t, z):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(z @ weights.T, targets, reduction="sum")
            return -torch.autograd.grad(loss, z)[0]

    times = torch.tensor([0.0, config.t1])

    def run():
        with torch.no_grad():
            options = {"rtol": config.rtol, "atol": config.atol, "method": "dopri5"}
            return odeint(field, z, times, **options)[-1].numpy()

    return run


def problem(config: Any, scale: float) -> tuple[Any, Any, Any]:
    """Random features, class weights with rows of about that length, labels."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    z0 = jax.random.normal(keys[0], (config.n, config.features))
    theta = jax.random.normal(keys[1], (config.classes, config.features))
    labels = jax.random.randint(keys[2], (config.n,), 0, config.classes)
    return z0, scale * theta / config.features**0.5, labels
