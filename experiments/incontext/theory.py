"""The theory's side of every measurement, and its equations checked in float64."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import imr
from experiments.incontext import baselines
from imr.context import (
    attention_dynamics,
    context_field,
    curvature_filter,
    exponential_kernel,
    linear_kernel,
    squared_flow,
)
from imr.lab.bounds import above, at_most
from imr.nn import ContextBlock, LinearSelfAttention


class OneStep(NamedTuple):
    """The best gradient step of linear regression in context, and its loss."""

    step: float
    loss: float


def one_step(features: int, examples: int) -> OneStep:
    r"""For w ~ N(0, I), y = w x and all entries of x uniform on (-1, 1).

    $$\eta^* = v / q, \quad loss = v d (1 - v^2 / q), \quad q = (1/5 + (d - 1)/9) / N + (1 - 1/N)/9,$$

    with v = 1/3 and q I the mean of $(X^T X / N)^2$.
    """
    v = 1 / 3
    q = (1 / 5 + (features - 1) * v**2) / examples + (1 - 1 / examples) * v**2
    return OneStep(v / q, v * features * (1 - v**2 / q))


def rows() -> list[dict[str, Any]]:
    """Checks every equation."""
    with jax.enable_x64(True):
        return [*_linear_nets(), *_loss(), *_learning(), *_contexts(), *_recurrences()]


def _row(id: str, check: str, value: Any, limit: float, role: str = "claim") -> dict[str, Any]:
    """A claim's value is at most the limit; a control's is above it."""
    bound = above(limit) if role == "control" else at_most(limit)
    return {"id": id, "check": check, "role": role, "value": float(value), "must be": str(bound),
            "passed": bound.holds(value)}  # fmt: skip


def _apart(id: str, check: str, a: Any, b: Any, limit: float = 1e-10, role: str = "claim"):
    """The largest difference over the largest entry of b."""
    a, b = np.asarray(a), np.asarray(b)
    return _row(id, check, np.abs(a - b).max() / np.abs(b).max(), limit, role)


def _descent(x, y, asked, steps, curvature) -> np.ndarray:
    """Predictions of gradient descent in numpy, on features that the curvature correction moves."""
    w, x, asked, target = np.zeros((y.shape[1], x.shape[1])), x.copy(), asked.copy(), y.copy()
    predicted = np.zeros((len(asked), y.shape[1]))
    for eta, gamma in zip(steps, curvature, strict=True):
        # In features that move, the residuals are what a step of zero weights finds.
        w = eta * target.T @ x / len(x)
        predicted, target = predicted + asked @ w.T, target - x @ w.T
        change = np.eye(x.shape[1]) - gamma * x.T @ x / len(x)
        x, asked = x @ change, asked @ change
    return predicted


def _linear_nets() -> Iterator[dict[str, Any]]:
    random, n, p = np.random.default_rng(0), 12, 4
    x, y, known = random.normal(size=(n, p)), random.normal(size=(n, 2)), np.arange(n) < 8
    steps, curvature = random.uniform(0.1, 0.4, 5), random.uniform(0.05, 0.15, 5)
    net = LinearSelfAttention(p, 2, layers=5, rngs=nnx.Rngs(0))
    for id, check, gamma in (("C1", "5 layers - 5 gradient steps", 0 * curvature), ("C2", "the same of GD++", curvature)):  # fmt: skip
        net.gradient_steps(jnp.asarray(steps), jnp.asarray(gamma))
        found = np.asarray(net(jnp.asarray(x), jnp.asarray(y), known))[~known]
        wanted = _descent(x[known], y[known], x[~known], steps, gamma)
        yield _apart(id, check, found, wanted)
    plain = _descent(x[known], y[known], x[~known], steps, 0 * curvature)
    yield _apart("C2", "the same net - plain gradient steps", found, plain, role="control")
    # A query with a guess of 0 for its y, that is its own key, is one more example.
    every = np.asarray(
        net(jnp.asarray(x), jnp.asarray(np.where(known[:, None], y, 0)), np.full(n, True))
    )
    yield _apart("C2", "queries among their own keys", every[~known], found, role="control")
    spectrum, vectors = np.linalg.eigh(x[known] @ x[known].T / 8)
    left = np.asarray(curvature_filter(*map(jnp.asarray, (spectrum, steps, curvature))))
    own = np.asarray(net(jnp.asarray(x), jnp.asarray(y), known))[known]
    yield _apart(
        "C2",
        "residuals of examples - the filter",
        y[known] - own,
        vectors @ (left[:, None] * (vectors.T @ y[known])),
    )
    causal = LinearSelfAttention(p, 2, layers=2, causal=True, rngs=nnx.Rngs(0))
    causal.gradient_steps(0.3)
    found = np.asarray(causal(jnp.asarray(x), jnp.asarray(y), np.full(n, True)))
    steps = np.full(2, 0.3)
    wanted = [_descent(x[:i], y[:i], x[i : i + 1], steps, 0 * steps)[0] for i in range(1, n)]
    yield _apart("C3", "causal net - gradient steps on each prefix", found[1:], np.stack(wanted))
    later = np.stack([_descent(x, y, x[i : i + 1], steps, 0 * steps)[0] for i in range(1, n)])
    yield _apart("C3", "the same, on the whole sequence", found[1:], later, role="control")


def _loss() -> Iterator[dict[str, Any]]:
    """The closed form of one step's loss against random contexts, in standard errors."""
    x = np.random.default_rng(1).uniform(-1, 1, (40_000, 10, 10))
    second = x.mT @ x / 10
    for step, role in ((one_step(10, 10).step, "claim"), (1.0, "control")):
        left = np.eye(10) - step * second
        losses = np.sum(left**2, axis=(1, 2)) / 3
        error = losses.std() / len(losses) ** 0.5
        name = "loss of the best step" if role == "claim" else "loss of the step 1"
        value = abs(losses.mean() - one_step(10, 10).loss) / error
        yield _row("C4", f"{name} - closed form, in standard errors", value, 5, role)


def _learning() -> Iterator[dict[str, Any]]:
    """Equal modes of balanced values rise as a logistic of u^2."""
    d, s, n, u0, t1 = 8, 0.7, 16.0, 0.05, 6.0
    field = attention_dynamics(jnp.full(d, s), n)
    state = jnp.full(d, u0), jnp.asarray(u0 * d**0.5)
    u = np.asarray(imr.solve(field, state, t1=t1, rtol=1e-11, atol=1e-13).z[0])
    q = s**2 * (1 + 1 / n) + d * s**2 / n
    for rate, role in ((2 * d**0.5 * s**2, "claim"), (2 * s**2, "control")):
        height = s / (d**0.5 * q)
        z = height / (1 + (height / u0**2 - 1) * np.exp(-rate * t1))
        name = "2 sqrt(d) s^2" if role == "claim" else "2 s^2"
        yield _apart("C5", f"u^2 - logistic of rate {name}", u**2, np.full(d, z), 1e-8, role)


def _contexts() -> Iterator[dict[str, Any]]:
    random, n, k = np.random.default_rng(2), 14, 3
    x, known = random.normal(size=(n, 3)), np.arange(n) < 9
    labels = jnp.asarray(random.integers(0, k, n))
    targets = jax.nn.one_hot(labels[:9], k, dtype=float)
    loss = imr.feature_loss(imr.Linear(jnp.eye(k)), jnp.where(known, labels, -1))
    kernel = exponential_kernel(jnp.asarray(x), distance=True)
    field = context_field(loss, kernel, known, ridge=0.4)
    block = ContextBlock(3, k, layers=4, kernel="exponential", tau=0.3, ridge=0.4)
    f = jnp.zeros((n, k))
    for _ in range(4):
        f = f + 0.3 * field(0.0, f)
    yield _apart(
        "C6", "4 layers of ContextBlock - Euler steps", block(jnp.asarray(x), labels, known), f
    )
    weights = baselines.attention("exponential", jnp.asarray(x), 9, 1.0)
    steps, free = (baselines.flow(weights, targets, 0.3, (4,), ridge)[0] for ridge in (0.4, 0.0))
    yield _apart("C6", "the same in the examples' coefficients", steps, f)
    yield _apart("C6", "the same without ridge", free, f, role="control")
    end = imr.solve_to_steady_state(field, jnp.zeros((n, k)), rtol=1e-12, atol=1e-12).z
    for ridge, role in ((0.4, "claim"), (0.5, "control")):
        optimum = baselines.kernel_regression(kernel.matrix(), targets, ridge, 1e-20)
        yield _apart(
            "C7", f"end of the flow - kernel regression, ridge {ridge}", optimum, end, 1e-8, role
        )
    # Whatever an unlabelled token believes of itself, its residual is 0.
    free = context_field(loss, kernel, known)(0.0, f)
    guess = jnp.where(known[:, None], jax.nn.one_hot(labels, k, dtype=float), jax.nn.softmax(f))
    soft = imr.feature_loss(imr.Linear(jnp.eye(k)), guess)
    everyone = context_field(soft, kernel, np.full(n, True))(0.0, f)
    yield _apart("C8", "with soft self-labels - without", everyone, free)
    hard = jnp.where(known, labels, f.argmax(axis=1))
    loss = imr.feature_loss(imr.Linear(jnp.eye(k)), hard)
    moved = context_field(loss, kernel, np.full(n, True))(0.0, f)
    yield _apart("C8", "with hard self-labels - without", moved, free, role="control")


def affine_bayes(x: np.ndarray, y: np.ndarray, asked, slope: float, intercept: float, noise: float):
    """Posterior mean of a x + b at what is asked, a and b normal, from pairs with noise."""
    x, y = np.asarray(x), np.asarray(y)
    covariates = np.stack([slope * x, intercept * np.ones_like(x)], axis=-1)
    precision = covariates.mT @ covariates + noise**2 * np.eye(2)
    w = np.linalg.solve(precision, covariates.mT @ y[..., None])[..., 0]
    return slope * w[..., 0] * asked + intercept * w[..., 1]


def _recurrences() -> Iterator[dict[str, Any]]:
    """Bayes is the limit of the squared loss' flow in the prior's kernel, with the noise as ridge."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=6), random.normal(size=6)
    known = np.arange(6) < 5
    covariates = jnp.asarray(np.stack([0.5 * x, np.ones(6)], axis=1))
    found = affine_bayes(x[:5], y[:5], x[5], 0.5, 1.0, 0.1)
    for ridge, role in ((0.01, "claim"), (0.1, "control")):
        limit = squared_flow(
            linear_kernel(covariates), jnp.asarray(y)[:, None], known, jnp.inf, ridge
        )
        yield _apart("C9", f"Bayes - flow of ridge {ridge}", found, limit[-1, 0], role=role)
