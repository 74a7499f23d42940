"""A5: closed forms, growth laws, anchors and Hessians."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imr
from experiments.theorems import formulas, reference
from experiments.theorems.claims import (
    AUTODIFF,
    CENTRAL,
    ORDER,
    ROUNDING,
    SOLVED,
    Measured,
    errors,
    identity,
    slope,
)
from experiments.theorems.fields import linear_loss
from experiments.theorems.flows import TOLERANCES
from imr.lab.bounds import at_most, near
from imr.lab.claims import Check, Claim
from imr.metrics import margins

TIMES = np.logspace(-2, 4, 25)
# Late enough that the constants in e^m ~ a k t + ... no longer tell, four points a decade.
LATE = np.logspace(4, 7, 13)


def _flow(z0, theta, labels, times) -> Any:
    """The reduced flow of the linear model, saved at the times."""
    loss = imr.feature_loss(imr.Linear(theta), labels)
    return imr.solve_reduced(loss, z0, t1=float(times[-1]), ts=jnp.asarray(times), **TOLERANCES)


def _two_class(p):
    """Margins u of a solve and of the closed form, (times, rows)."""
    labels, theta = p.labels % 2, p.theta[:2]
    differences = jnp.where(labels[:, None] == 0, 1, -1) * (theta[0] - theta[1])[None, :]
    zs = _flow(p.z, theta, labels, TIMES).zs
    solved = jnp.sum(zs * differences[None], axis=2)
    start, gap = jnp.sum(p.z * differences, axis=1), jnp.sum(differences**2, axis=1)
    closed = formulas.two_class_margin(start, gap, jnp.asarray(TIMES))
    return errors((solved, closed), times=TIMES, solve=solved, closed=closed)


def simplex_frame(p):
    """A simplex frame of k vectors, turned at random: theta theta^T = a (I - 11^T/k) with a = beta."""
    k = len(p.theta)
    return jnp.sqrt(p.beta) * (jnp.eye(k) - 1 / k) @ p.rotation[:k]


def _frame(p):
    """Margins over every other class, of a solve from zero and of the closed form."""
    theta, k = simplex_frame(p), len(p.theta)
    flow = _flow(jnp.zeros_like(p.z), theta, p.labels, TIMES)
    logits = flow.zs @ theta.T
    own = jnp.take_along_axis(logits, p.labels[None, :, None], axis=2)
    m = formulas.frame_margin(k, p.beta, jnp.asarray(TIMES))
    others = jax.nn.one_hot(p.labels, k) == 0
    closed = jnp.where(others[None], m[:, None, None], 0)
    # All rows are alike, so the loss is n log(1 + (k - 1) e^-m).
    loss = len(p.z) * jnp.log1p((k - 1) * jnp.exp(-m))
    solved = jax.vmap(lambda one: margins(one, p.labels))(logits)
    return errors(
        (own - logits, closed), (flow.loss, loss), times=TIMES, scale=p.beta,
        solve=solved, closed=m, loss=flow.loss, loss_closed=loss,
    )  # fmt: skip


def _growth(p):
    """Exponent of the loss in t, and growth of the least margin in log t, at late times."""
    flow = _flow(p.z, p.theta, p.labels, LATE)
    least = jax.vmap(lambda z: margins(z @ p.theta.T, p.labels).min())(flow.zs)
    late = jnp.log(jnp.asarray(LATE))
    values = (slope(late, jnp.log(flow.loss)), slope(late, least))
    return Measured(values, {"times": LATE, "loss": flow.loss, "margin": least})


def _anchored(p, theta, x):
    return imr.feature_loss(imr.Linear(theta), p.targets, anchor=(p.lam, x))


def _limit(p):
    """The steady state from two starts against Newton's minimum, and the convexity behind it."""
    loss = _anchored(p, p.theta, p.anchor)
    field = imr.closed_field(loss)
    minimum = reference.minimum(loss, p.anchor)
    ends = [imr.solve_to_steady_state(field, z, rtol=1e-11, atol=1e-11).z for z in (p.z, p.other)]
    size = p.z.size
    least = jnp.linalg.eigvalsh(jax.hessian(loss)(minimum).reshape(size, size))[0]
    values = errors(*((end, minimum) for end in ends)).values
    return Measured((*values, jnp.maximum(1 - least / p.lam, 0)))


def _implicit(p):
    """The gradient of the limit by imr, by the implicit function theorem, by differences."""

    def by_solve(parameters):
        field = imr.closed_field(_anchored(p, *parameters))
        return jnp.sum(p.weights * imr.solve_to_steady_state(field, p.z, rtol=1e-11, atol=1e-11).z)

    size, parameters = p.z.size, (p.theta, p.anchor)
    minimum = reference.minimum(_anchored(p, *parameters), p.anchor)

    def by_newton(moved):
        # From so near, Newton's method has converged after two or three steps.
        return jnp.sum(p.weights * reference.minimum(_anchored(p, *moved), minimum, num_steps=4))

    hessian = jax.hessian(_anchored(p, *parameters))(minimum).reshape(size, size)
    adjoint = jnp.linalg.solve(hessian, p.weights.reshape(size)).reshape(p.z.shape)

    # -(d^2 L / dp dZ) H^-1 w, as the gradient in p of <dL/dZ, -H^-1 w>.
    def tilt(moved):
        return -jnp.sum(adjoint * jax.grad(_anchored(p, *moved))(minimum))

    implicit = jax.grad(tilt)(parameters)
    solved = jax.grad(by_solve)(parameters)
    differences = (
        reference.central_difference(lambda theta: by_newton((theta, p.anchor)), p.theta),
        reference.central_difference(lambda x: by_newton((p.theta, x)), p.anchor),
    )
    return errors((solved, implicit), (differences, implicit))


def _logit_hessian(p):
    logits = p.z @ p.theta.T
    written = formulas.logit_hessian(logits)

    def one(row, c):
        return imr.cross_entropy(row[None], c[None])[0]

    def by_differences(row, c):
        return reference.central_difference(lambda r: jax.grad(one)(r, c), row)

    hessians = (jax.vmap(h)(logits, p.targets) for h in (jax.hessian(one), by_differences))
    return errors(*((hessian, written) for hessian in hessians))


def _feature_hessian(p):
    return jax.hessian(linear_loss(p))(p.z), formulas.feature_hessian(p.z, p.theta)


def _balance(p):
    """d/dt (Z^T Z - theta^T theta) of the joint flow and -2 decay times it."""

    def loss(z, theta):
        return imr.feature_loss(imr.Linear(theta), p.targets)(z)

    def balance(z, theta):
        return z.T @ z - theta.T @ theta

    state = (p.z, p.theta)
    rate = jax.jvp(balance, state, imr.joint_field(loss, decay=(p.lam, p.lam))(0.0, state, None))[1]
    return rate, -2 * p.lam * balance(*state)


def _energy(p):
    """L(0) - L(T) and the integral of the squared gradient norms that a flow reports."""
    nodes, weights = np.polynomial.legendre.leggauss(len(TIMES) - 1)
    # Gauss's quadrature; the end is early enough for 24 nodes to resolve the fastest decay.
    end = 0.25
    times = end * np.append((nodes + 1) / 2, 1.0)
    flow = _flow(p.z, p.theta, p.labels, times)
    start = imr.feature_loss(imr.Linear(p.theta), p.labels)(p.z)
    return start - flow.loss[-1], jnp.sum(end * weights / 2 * flow.grad_norm[:-1] ** 2)


CLAIMS = (
    Claim("A5.two_class", "k = 2: u + eᵘ = u₀ + exp(u₀) + ‖θ_c − θ_other‖² t, to t = 10⁴",
          _two_class, (Check("closed form", at_most(SOLVED)),)),
    Claim("A5.frame", "simplex frame from 0: eᵐ + (k−1)m = 1 + akt, to t = 10⁴", _frame,
          (Check("closed form", at_most(SOLVED)), Check("closed form of the loss", at_most(SOLVED)))),
    Claim("A5.growth", "the loss falls like 1/t, the least margin grows like log t", _growth,
          (Check("exponent of the loss", near(-1.0, ORDER)),
           Check("margin per log t", near(1.0, ORDER)))),
    identity("A5.energy", "L(0) − L(T) = ∫‖dL/dZ‖² dt by what the reduced flow reports", _energy,
             "quadrature", SOLVED),
    Claim("A5.anchor.limit", "(λ/2)‖Z − X‖²: one limit from every start, Hessian at least λ", _limit,
          (Check("from one start", at_most(SOLVED)), Check("from another", at_most(SOLVED)),
           Check("least eigenvalue below λ", at_most(ROUNDING)))),
    Claim("A5.anchor.gradient", "gradient of the limit by the implicit function theorem", _implicit,
          (Check("implicit formula, in θ, X", at_most(SOLVED)), CENTRAL)),
    Claim("A5.hessian.logits", "Hessian in the logits: diag(p) − ppᵀ", _logit_hessian,
          (AUTODIFF, CENTRAL)),
    identity("A5.hessian.features",
             "rows are independent: Hessian θᵀ(diag(pᵢ) − pᵢpᵢᵀ)θ in row i, 0 between rows",
             _feature_hessian, "autodiff"),
    identity("A5.joint", "joint flow with decay λ of both: d(ZᵀZ − θᵀθ)/dt = −2λ(ZᵀZ − θᵀθ)",
             _balance, "autodiff"),
)  # fmt: skip
