"""C1: layers of linear self-attention that descend the squared loss of the examples in a context."""

import jax.numpy as jnp
import numpy as np

from imr.context import curvature_filter, gradient_step_weights, linear_self_attention

LAYERS = 5
STEP = 0.1  # of gradient descent on covariates of unit variance


def gradient_steps(c):
    """Predictions of L steps on the examples; queries among the keys change them."""
    x, y, s = c.x, jnp.where(c.labelled[:, None], c.values, 0), c.s
    weights = gradient_step_weights(x.shape[1], y.shape[1], STEP)
    right = wrong = jnp.concatenate([x, y], axis=1)
    w = jnp.zeros((y.shape[1], x.shape[1]))
    for _ in range(LAYERS):
        w = w + STEP / s * (y - x @ w.T)[:s].T @ x[:s]
        right = linear_self_attention(right, weights, c.labelled)
        wrong = linear_self_attention(wrong, weights, np.full(c.n, True))
    ends = (-tokens[s:, x.shape[1] :] for tokens in (right, wrong))
    return tuple((end, x[s:] @ w.T) for end in ends)


def causal(c):
    """Each token predicts by L steps on the tokens before it."""
    x, y, everyone = c.x, c.values, np.full(c.n, True)
    p, o = x.shape[1], y.shape[1]
    weights = gradient_step_weights(p, o, STEP, causal=True)
    tokens = jnp.concatenate([x, x, y, jnp.zeros_like(y)], axis=1)
    for _ in range(LAYERS):
        tokens = linear_self_attention(tokens, weights, everyone, causal=True)

    def steps(examples, query):
        w = jnp.zeros((o, p))
        for _ in range(LAYERS):
            w = w + STEP / examples * (y - x @ w.T)[:examples].T @ x[:examples]
        return w @ x[query]

    before = jnp.stack([steps(i, i) for i in range(1, c.n)])
    with_own = jnp.stack([steps(i + 1, i) for i in range(1, c.n)])
    found = tokens[1:, -o:]
    return (found, before), (found, with_own)


def curvature(c):
    """Residuals of layers that also transform the covariates, in the eigenbasis of X X^T / N."""
    steps, curvature = jnp.array([0.1, 0.2, 0.3]), jnp.array([0.1, 0.05, 0.1])
    x, y = c.x[: c.s], c.values[: c.s]
    spectrum, vectors = jnp.linalg.eigh(x @ x.T / c.s)
    tokens, known = jnp.concatenate([x, y], axis=1), np.full(c.s, True)
    for eta, gamma in zip(steps, curvature, strict=True):
        weights = gradient_step_weights(x.shape[1], y.shape[1], eta, gamma)
        tokens = linear_self_attention(tokens, weights, known)

    def filtered(curvature):
        gain = curvature_filter(spectrum, steps, curvature)
        return vectors @ (gain[:, None] * (vectors.T @ y))

    residuals = tokens[:, x.shape[1] :]
    return (residuals, filtered(curvature)), (residuals, filtered(0 * curvature))
