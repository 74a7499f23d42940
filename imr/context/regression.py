"""Multinomial regression in the space of functions of a kernel, at its optimum."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imr._checks import check_count, check_positive, check_scalar
from imr._numerics import matmul
from imr._typing import Features, Scalar, ScalarLike
from imr.context.examples import examples_of
from imr.context.fields import Labelled, context_field
from imr.errors import ImrError
from imr.models import Linear


class KernelRegression(NamedTuple):
    """A fit in a context of n tokens.

    Attributes:
      z: latents of all tokens, shape (n, d), $K B \\theta$.
      coefficients: B, shape (n, k); zero for tokens that are no examples.
      objective: at z.
      gap: what the objective is at most above the optimum, as a share of it.
      num_steps: steps taken.
      converged: whether the gap is within the tolerance.
    """

    z: Features
    coefficients: Float[Array, "n k"]
    objective: Scalar
    gap: Scalar
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


class _State(NamedTuple):
    """Coefficients b and where to go from them; the products of each are $G B K$."""

    b: Float[Array, "k s"]
    y: Float[Array, "k s"]  # products of b
    p: Float[Array, "k s"]  # the direction
    q: Float[Array, "k s"]  # products of p
    residual: Float[Array, "k s"]  # the gradient in function space
    square: Array  # of its norm there
    gap: Array


def kernel_regression(
    loss: Any,
    kernel: Any,
    labelled: Labelled,
    ridge: ScalarLike,
    *,
    tol: ScalarLike = 1e-8,
    max_steps: int = 10_000,
) -> KernelRegression:
    r"""Where the flow of a context with a ridge ends, without following it.

    $$\min_f \sum_{j \, labelled} CE_j(f) + \frac{\lambda}{2} \|f\|_K^2, \qquad
      f = K_{\cdot S} B \theta, \quad \lambda B = C - softmax(f_S \theta^T)$$

    By conjugate gradients (Polak and Ribière) in function space: one product with K a step. The
    objective is strongly convex there, so that the norm of the gradient bounds how far above the
    optimum it is. The derivative is that of the implicit function.

    Args:
      loss: as `imr.context.context_field` takes it, of an `imr.Linear`.
      kernel: as `as_kernel` takes it, over all n tokens; that between examples is held.
      labelled: boolean, or integers 0 and 1, shape (n,): the examples. A class may have none.
      ridge: lambda, positive.
      tol: of the objective above its optimum, as a share of it.
      max_steps: step limit.
    Returns: A `KernelRegression`.
    Raises: ImrError as `context_field` does; also if the model is not linear or ridge is not positive.

    >>> import jax.numpy as jnp, imr
    >>> loss = imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0, -1]))
    >>> fit = kernel_regression(loss, jnp.ones((2, 2)), jnp.array([True, False]), 0.1)
    >>> b = fit.coefficients[0, 0]                      # ridge b = 1 - softmax
    >>> round(float(0.1 * b - 1 / (1 + jnp.exp(2 * b))), 4), bool(fit.z[1, 0] == fit.z[0, 0])
    (0.0, True)
    """
    context = context_field(loss, kernel, labelled, ridge)
    model = context.loss.model
    if not isinstance(model, Linear):
        raise ImrError(
            f"loss must be of an imr.Linear, which makes it convex; found {type(model).__name__}. "
            "imr.solve_to_steady_state follows the flow of context_field to its end."
        )
    check_positive("ridge", ridge)
    check_scalar("tol", tol)
    check_positive("tol", tol)
    check_count("max_steps", max_steps)
    return _fit(context, examples_of(context, model.theta.shape[0]), tol, max_steps)


@partial(jax.jit, static_argnums=3)
def _fit(context, examples, tol, max_steps) -> KernelRegression:
    model, theta = context.loss.model, context.loss.model.theta
    k, gram = examples.kernel.matrix().astype(theta.dtype), matmul(theta, theta.T)
    ridge, most = context.ridge.astype(theta.dtype), 0.5 * model.beta.astype(theta.dtype) ** 2

    def descent(y):
        return model.descent_at(y, examples.targets, where=examples.where)

    def products(b):
        return matmul(gram, matmul(b, k))

    def residual(b):
        # By the columns of K, as z is: a derivative may move entries that mirror one another apart.
        return ridge * b - descent(matmul(gram, matmul(b, k.T)))

    def objective(b, y):
        loss = model.loss_at(y, examples.targets, where=examples.where)
        return loss + 0.5 * ridge * jnp.sum(b * y)

    def state(b, y, last=None):
        """From b, and the state before it if there is one."""
        r = ridge * b - descent(y)
        slope = products(r)
        square = jnp.sum(r * slope)
        p, q = -r, -slope
        if last is not None:
            share = jnp.maximum(square - jnp.sum(last.residual * slope), 0) / last.square
            # Not along a direction in which the objective rises.
            share = jnp.where(share * jnp.sum(last.p * slope) < square, share, 0)
            p, q = p + share * last.p, q + share * last.q
        return _State(b, y, p, q, r, square, square / (2 * ridge * objective(b, y)))

    def step(carry):
        at, count = carry
        level, bend = ridge * jnp.sum(at.b * at.q), ridge * jnp.sum(at.p * at.q)

        def slope(a):
            return level + a * bend - jnp.sum(descent(at.y + a * at.q) * at.q)

        # No Hessian of a cross-entropy exceeds 1/2, so that the objective falls at least so far.
        start = jnp.sum(at.residual * at.q)
        least = -start / (bend + most * jnp.sum(at.q * at.q))
        first, second = jax.jvp(slope, (least,), (jnp.ones_like(least),))
        newton = jnp.maximum(least - first / second, least)
        a = jnp.where(slope(newton) < -0.5 * start, newton, least)
        return state(at.b + a * at.p, at.y + a * at.q, at), count + 1

    def unfinished(carry):
        at, count = carry
        # A gap that is NaN is no reason to go on.
        return (at.gap > tol) & (count < max_steps)

    def solve(_, b):
        start = state(b, b), jnp.zeros((), jnp.int32)
        at, count = jax.lax.while_loop(unfinished, step, start)
        # What K does not see of b has no part in the objective, but in derivatives with respect to K:
        # near the optimum the fixed point says what it is.
        fixed = descent(at.y) / ridge
        rounding = 1 + 8 * jnp.finfo(b.dtype).eps
        as_good = objective(fixed, products(fixed)) <= rounding * objective(at.b, at.y)
        b = jnp.where(as_good, fixed, at.b)
        return b, (at.gap, count.astype(b.dtype))  # integers have no derivative for custom_root

    def inverse(linear, right):
        tolerance = float(jnp.finfo(right.dtype).eps) ** 0.75
        return jax.scipy.sparse.linalg.bicgstab(linear, right, tol=tolerance, maxiter=1000)[0]

    def tangent(linear, right):
        return jax.lax.custom_linear_solve(linear, right, inverse, inverse)

    start = jnp.zeros((theta.shape[0], k.shape[0]), theta.dtype)
    b, (gap, count) = jax.lax.custom_root(residual, start, solve, tangent, has_aux=True)
    z = examples.spread(context.kernel, matmul(b.T, theta))
    coefficients = examples.scatter(b.T, context.kernel.size)
    value, count = objective(b, products(b)), count.astype(jnp.int32)
    return KernelRegression(z, coefficients, value, gap, count, gap <= tol)
