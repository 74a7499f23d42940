"""Flows and regressions in the kernel of a context, and predictors without one.

A context has n tokens, of which the first m are the examples. `targets` are theirs, shape (m, k);
logits are of all tokens, shape (n, k). Each function is of one context, for `jax.vmap`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import imr
from imr.context import diffusion_kernel

Tokens = Float[Array, "n p"]
Weights = Float[Array, "n m"]
Targets = Float[Array, "m k"]
Logits = Float[Array, "n k"]

MOST_STEPS = 300  # of kernel regression
MOST_NEIGHBOURS = 25


def squared_distances(x: Tokens, m: int) -> Weights:
    """Between tokens and examples."""
    squares = jnp.sum(x**2, axis=1)
    return jnp.maximum(squares[:, None] + squares[None, :m] - 2 * x @ x[:m].T, 0)


def attention(kind: str, x: Tokens, m: int, beta: Any) -> Weights:
    """The weights of `imr.nn.ContextBlock` with the projection sqrt(beta) 1."""
    if kind == "linear":
        return beta * x @ x[:m].T / m
    if kind == "softmax":
        return jax.nn.softmax(beta * x @ x[:m].T, axis=1)
    return jnp.exp(-0.5 * beta * squared_distances(x, m))


def flow(
    weights: Weights, targets: Targets, tau: Any, steps: Any, ridge: Any = 0.0
) -> Float[Array, "s n k"]:
    r"""Logits after some Euler steps of $f' = A (C - softmax(f)) - \lambda f$ from 0.

    Args:
      weights, targets: A and C.
      tau: step size.
      steps: the numbers of steps after which to read, increasing.
      ridge: lambda.
    """
    m = len(targets)

    def step(b, _):
        slope = targets - jax.nn.softmax(weights[:m] @ b)
        b = b + tau * (slope - ridge * b)
        return b, b

    every = jax.lax.scan(step, jnp.zeros_like(targets), length=int(steps[-1]))[1]
    return weights @ every[np.asarray(steps) - 1]


def kernel_regression(
    kernel: Float[Array, "n n"], targets: Targets, ridge: Any, tol: Any = 1e-6
) -> Logits:
    """Logits of multinomial regression at its optimum, the end of the flow with that ridge.

    NaN where the objective is not certified to be within `tol` of its least, as a share of it, so that
    no setting is chosen whose optimum was not found.
    """
    m, (n, _) = len(targets), kernel.shape
    labels = jnp.zeros(n, jnp.int32).at[:m].set(jnp.argmax(targets, axis=1).astype(jnp.int32))
    loss = imr.feature_loss(imr.Linear(jnp.eye(targets.shape[1], dtype=kernel.dtype)), labels)
    fit = imr.context.kernel_regression(
        loss, kernel, np.arange(n) < m, ridge, tol=tol, max_steps=MOST_STEPS
    )
    return jnp.where(fit.converged, fit.z, jnp.nan)


def nearest(x: Tokens, targets: Targets, count: Any) -> Logits:
    """Votes of the nearest examples, of at most `MOST_NEIGHBOURS`; the nearer ones decide ties."""
    most = min(MOST_NEIGHBOURS, len(targets))
    index = jax.lax.top_k(-squared_distances(x, len(targets)), most)[1]
    order = jnp.arange(most, dtype=x.dtype)
    votes = jnp.where(order < count, 1 + 1e-3 / (1 + order), 0)
    return jnp.einsum("j,njk->nk", votes, targets[index])


def class_means(x: Tokens, targets: Targets, beta: Any, shrink: Any = 0.0) -> Logits:
    """Logits -beta |x - m|^2 / 2 for the mean m of each class's examples."""
    # A class without an example has its mean at 0.
    counts = jnp.maximum(targets.sum(axis=0) + shrink, 1e-6)
    means = targets.T @ x[: len(targets)] / counts[:, None]
    return -0.5 * beta * jnp.sum((x[:, None] - means[None]) ** 2, axis=2)


def bayes(x: Tokens, targets: Targets, spread: float, noise: float) -> Logits:
    """Log-odds of Gaussian classes, means N(0, spread^2) and examples N(mean, noise^2) about them."""
    shrink = (noise / spread) ** 2
    variance = noise**2 * (1 + 1 / (targets.sum(axis=0) + shrink))
    logits = class_means(x, targets, 1.0, shrink) / variance
    return logits - 0.5 * x.shape[1] * jnp.log(variance)


def propagated(x: Tokens, targets: Targets, beta: Any, share: Any) -> Logits:
    """What the labels become that spread in the diffusion kernel over all tokens."""
    kernel = jnp.exp(-0.5 * beta * squared_distances(x, len(x)))
    spread = diffusion_kernel(kernel, share).matrix()
    return spread[:, : len(targets)] @ (targets - 1 / targets.shape[1])


def propagated_alone(x: Tokens, targets: Targets, beta: Any, share: Any) -> Logits:
    """The same for each token that is no example in a context of its own; of others nothing."""
    m = len(targets)

    def one(query):
        return propagated(jnp.concatenate([x[:m], query[None]]), targets, beta, share)[m]

    return jnp.concatenate([jnp.zeros_like(targets), jax.vmap(one)(x[m:])])


def scores(logits: Logits, labels: Array, m: int) -> Array:
    """Accuracy and cross-entropy of the tokens that are no examples."""
    log_p, labels = jax.nn.log_softmax(logits[m:]), labels[m:]
    hits = jnp.argmax(log_p, axis=1) == labels
    losses = -jnp.take_along_axis(log_p, labels[:, None], axis=1)
    return jnp.stack([jnp.mean(hits), jnp.mean(losses)])


def over_tasks(function: Any, tasks: Any, batch: int = 100) -> Any:
    """The mean over tasks, leading axis of all leaves, of a function of one of them."""
    count = len(jax.tree.leaves(tasks)[0])
    each = jax.lax.map(partial(_apply, function), tasks, batch_size=min(batch, count))
    return jax.tree.map(lambda x: x.mean(axis=0), each)


def _apply(function, task):
    return function(*task)
