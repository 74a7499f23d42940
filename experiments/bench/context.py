"""Kernel regression of many contexts: one call under vmap beside a loop of scikit-learn's."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import imr
from experiments.bench.rounds import race
from imr.context import kernel_regression
from imr.lab.console import Progress

VMAPPED, LOOP = "kernel_regression", "scikit-learn"
FORMATS = {"gap": ".1e", f"times {VMAPPED}": ".1f", "ridge": "g"}
CLASSES, SHOTS, QUERIES, FEATURES = 5, 10, 15, 8
LABELLED = np.arange(CLASSES * (SHOTS + QUERIES)) < CLASSES * SHOTS
GAP = 1e-3  # of the objective above its optimum, as a share of it


class Contexts(NamedTuple):
    """Kernels (c, n, n), float32, and labels (c, n) of which the first 50 are read."""

    kernels: np.ndarray
    labels: np.ndarray


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Times both ways at every ridge: what was done, and a row for each."""
    rows, contexts = [], problem(config.contexts, config.seed)
    with Progress(len(config.ridges), "contexts", "ridge") as progress:
        for count, ridge in enumerate(config.ridges):
            rows += compare(contexts, ridge, config.repetitions)
            progress.update(count + 1)
    return (
        f"{config.contexts} contexts of {LABELLED.sum()} labelled and {(~LABELLED).sum()} unlabelled "
        f"tokens, {CLASSES} classes: from kernels to the latents of all tokens. `{VMAPPED}`: one call "
        f"under jax.vmap, float32, stopped where the gap is certified to be below {GAP:g}. `{LOOP}`: "
        "LogisticRegression(C=1/ridge, fit_intercept=False) on the triangular factor, one context "
        "after the other, at its own tolerance, 1e-4, and at 1e-3. `gap`: of the objective above the "
        "optimum as a share of it, the largest of all contexts."
    ), rows


def problem(count: int, seed: int) -> Contexts:
    """Classes are Gaussian clouds about random prototypes; the kernel is exponential."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), SHOTS + QUERIES).reshape(CLASSES, -1)
    labels = np.concatenate([labels[:, :SHOTS].ravel(), labels[:, SHOTS:].ravel()])
    prototypes = random.normal(size=(count, CLASSES, FEATURES))
    x = prototypes[:, labels] + 0.6 * random.normal(size=(count, len(labels), FEATURES))
    squares = np.sum((x[:, :, None] - x[:, None]) ** 2, axis=3)
    kernels = np.exp(-0.5 * squares / FEATURES).astype(np.float32)
    return Contexts(kernels, np.broadcast_to(labels, (count, len(labels))))


def compare(contexts: Contexts, ridge: float, repetitions: int) -> list[dict[str, Any]]:
    """A row for each way at one ridge."""
    on_device = jnp.asarray(contexts.kernels), jnp.asarray(contexts.labels)
    ways = {VMAPPED: lambda: fit_all(*on_device, ridge, GAP)[:2]}
    for tol in (1e-4, 1e-3):
        ways[f"{LOOP}, {tol:g}"] = partial(loop, contexts, ridge, tol)
    fits, times = race(ways, repetitions, VMAPPED)
    with jax.enable_x64(True):
        wide = contexts.kernels.astype(np.float64), contexts.labels
        best = np.asarray(fit_all(*map(jnp.asarray, wide), ridge, 1e-10).objective)
    return [
        {
            "ridge": ridge, **times[name],
            "gap": float(np.max(objectives(contexts, np.asarray(b), ridge) / best - 1)),
        }
        for name, (_, b) in fits.items()
    ]  # fmt: skip


@jax.jit
def fit_all(kernels: Any, labels: Any, ridge: Any, tol: Any) -> Any:
    """imr's regression in every context."""

    def one(kernel, labels):
        loss = imr.feature_loss(imr.Linear(jnp.eye(CLASSES, dtype=kernel.dtype)), labels)
        return kernel_regression(loss, kernel, LABELLED, ridge, tol=tol)

    return jax.vmap(one)(kernels, labels)


def loop(contexts: Contexts, ridge: float, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's in each context: latents K B of all tokens, and B, zero for unlabelled ones."""
    from scipy.linalg import solve_triangular
    from sklearn.linear_model import LogisticRegression

    found = np.zeros((*contexts.labels.shape, CLASSES))
    latents = np.zeros_like(found)
    for i, (kernel, labels) in enumerate(zip(*contexts, strict=True)):
        keys = kernel[:, LABELLED].astype(np.float64)
        root = np.linalg.cholesky(keys[LABELLED])
        model = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=tol)
        theta = model.fit(root, labels[LABELLED]).coef_
        found[i, LABELLED] = solve_triangular(root, theta.T, trans=1, lower=True)
        latents[i] = keys @ found[i, LABELLED]
    return latents, found


def objectives(contexts: Contexts, coefficients: np.ndarray, ridge: float) -> np.ndarray:
    """Cross-entropy of the examples and the ridge's term, in float64."""
    b = coefficients[:, LABELLED].astype(np.float64)
    keys = contexts.kernels[:, LABELLED][:, :, LABELLED].astype(np.float64)
    f = keys @ b
    own = np.take_along_axis(f, contexts.labels[:, LABELLED, None], axis=2)[..., 0]
    losses = np.log(np.sum(np.exp(f - own[..., None]), axis=2))
    return losses.sum(axis=1) + 0.5 * ridge * np.sum(b * f, axis=(1, 2))
