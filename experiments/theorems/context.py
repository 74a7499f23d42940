"""C1: the label term from labelled examples; each statement beside a control that must fail it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imr
from experiments.theorems import formulas, layers, reference
from experiments.theorems.claims import (
    NO_GRADIENT,
    ROUNDING,
    Measured,
    errors,
    relative_error,
)
from experiments.theorems.flows import END, TOLERANCES
from experiments.theorems.splitting import order_claim
from imr.context import (
    context_field,
    kernel_regression,
    normalised_kernel,
    squared_flow,
)
from imr.lab.bounds import Bound, at_least, at_most, near
from imr.lab.claims import Check, Claim

FLOWS = 1e-10  # of flows at relative tolerance 1e-11
QUERIES = 2  # the last tokens, which have no label
ORDER = 0.06  # of measured orders of convergence
EARLY = 0.2036  # the largest 1/(1 + x) - exp(-x)
HEAVY = (
    0.14  # weight between a hub and its leaves; the star's least eigenvalue is 1 - HEAVY sqrt(50)
)


class Context:
    """What the rows read of a problem: latents `other` and covariates `z` of its rows as tokens."""

    def __init__(self, p):
        self.n, self.s = len(p.z), len(p.z) - QUERIES
        self.x, self.f, self.theta, self.ridge = p.z, p.other, p.theta, p.lam
        self.labelled = np.arange(self.n) < self.s
        self.labels = jnp.where(self.labelled, p.labels, -1)  # never read
        self.one_hot = jax.nn.one_hot(p.labels, len(p.theta))
        squares = jnp.sum((p.z[:, None] - p.z[None]) ** 2, axis=2)
        self.kernel = jnp.exp(-0.5 * squares / p.z.shape[1])
        self.thin = p.z @ p.q[0]  # a factor of few columns
        self.values = p.anchor[:, :2]

    def loss(self, theta=None):
        """imr's, of these labels."""
        return imr.feature_loss(imr.Linear(self.theta if theta is None else theta), self.labels)

    def field(self, kernel, ridge=0.0, theta=None, **choices) -> Callable:
        """imr's, of that kernel."""
        return context_field(self.loss(theta), kernel, self.labelled, ridge, **choices)

    def labelled_loss(self, f):
        """Written out: the cross-entropy of the examples."""
        logits = f[: self.s] @ self.theta.T
        return formulas.negative_log_likelihood(logits, self.one_hot[: self.s])

    def slope(self, kernel, f, ridge=0.0, theta=None):
        """Written out: K M (C - softmax(f theta^T)) theta - ridge f."""
        theta = self.theta if theta is None else theta
        slope = formulas.linear(f, theta, self.one_hot)
        return kernel[:, : self.s] @ slope[: self.s] - ridge * f

    def end(self, kernel, start, ridge=0.0):
        """Written out, by the Runge-Kutta method."""
        return reference.flow(lambda t, f, args: self.slope(kernel, f, ridge), start, END)

    def reduced(self, kernel, start, ridge=0.0):
        """By imr, in coordinates."""
        return imr.solve_reduced(
            self.loss(), start, t1=END, kernel=kernel, labelled=self.labelled, ridge=ridge,
            **TOLERANCES,
        ).z  # fmt: skip


def _claim(
    id: str, statement: str, measure: Callable, control: str, limit: float = ROUNDING,
    checks: tuple[str, ...] = ("written out",), bound: Bound | None = None,
) -> Claim:  # fmt: skip
    """`measure` is context -> a pair for each check, then one for the control, which must differ."""
    named = tuple(Check(name, at_most(limit)) for name in checks)
    broken = Check(f"control: {control}", at_least(NO_GRADIENT) if bound is None else bound)
    return Claim(id, statement, lambda p: errors(*measure(Context(p))), (*named, broken))


def _gradient(c):
    slope = c.field(c.kernel, c.ridge)(0.0, c.f)
    gradient = jax.grad(c.labelled_loss)(c.f)
    free = c.field(c.kernel)(0.0, c.f)
    falls = jax.jvp(c.labelled_loss, (c.f,), (free,))[1]
    return (
        (slope, c.slope(c.kernel, c.f, c.ridge)),
        (slope, -c.kernel @ gradient - c.ridge * c.f),
        (falls, -jnp.sum(gradient * (c.kernel @ gradient))),
        (free, -gradient),
    )


def _reduced(c):
    end, other = c.reduced(c.kernel, c.f, c.ridge), c.end(c.kernel, c.f, c.ridge)
    moved = end - jnp.exp(-c.ridge * END) * c.f
    known = jnp.linalg.solve(c.kernel[: c.s, : c.s], moved[: c.s])
    return (
        (end, other), (moved[c.s :], c.kernel[c.s :, : c.s] @ known),
        (end[c.s :], c.f[c.s :]),  # as if the unlabelled tokens stood still
    )  # fmt: skip


def _factor(c):
    thin = c.thin @ c.thin.T
    return (c.reduced(c.thin, c.f), c.end(thin, c.f)), (c.end(c.kernel, c.f), c.end(thin, c.f))


def _identity(c):
    linear = imr.feature_loss(imr.Linear(c.theta), jnp.argmax(c.one_hot, axis=1))
    flow = imr.solve_reduced(linear, c.f, t1=END, **TOLERANCES).z
    known = slice(c.s)
    end = c.reduced(jnp.eye(c.n), c.f)
    return (end[known], flow[known]), (c.reduced(c.kernel, c.f)[known], flow[known])


def _theta(c):
    """Latents X theta^T with W = 1: they move as theta's own gradient flow moves them."""

    def of_theta(theta):
        logits = c.x[: c.s] @ theta.T
        return formulas.negative_log_likelihood(logits, c.one_hot[: c.s])

    one = jnp.eye(len(c.theta))
    latents, moves = c.x @ c.theta.T, -c.x @ jax.grad(of_theta)(c.theta).T
    linear, other = (c.field(k, theta=one)(0.0, latents) for k in (c.x @ c.x.T, c.kernel))
    return (linear, moves), (other, moves)


def _one_step(c):
    """A linear attention layer: queries and keys are the covariates, values (C - 1/k) W."""
    values = (c.one_hot - 1 / len(c.theta))[: c.s] @ c.theta
    layer = layers.STEP * c.x @ (c.x[: c.s].T @ values)
    field = c.field(c.x @ c.x.T)
    first = imr.lie_step([field], jnp.zeros_like(c.f), layers.STEP)
    second = imr.lie_step([field], first, layers.STEP)
    return (first, layer), (second, 2 * layer)


def _ridge(c):
    """Newton's method on features that are the triangular factor of K."""
    root = jnp.linalg.cholesky(c.kernel[: c.s, : c.s])

    def objective(theta):
        loss = formulas.negative_log_likelihood(root @ theta.T, c.one_hot[: c.s])
        return loss + 0.5 * c.ridge * jnp.sum(theta**2)

    k = len(c.theta)
    best = reference.minimum(objective, jnp.zeros((k, c.s)))
    fits = [
        kernel_regression(c.loss(jnp.eye(k)), c.kernel, c.labelled, r, tol=1e-24)
        for r in (c.ridge, 0.5 * c.ridge)
    ]
    b, p = fits[0].coefficients, jax.nn.softmax(fits[0].z, axis=1)
    return (
        (fits[0].z[: c.s], root @ best.T), (c.ridge * b[: c.s], (c.one_hot - p)[: c.s]),
        (fits[1].z[: c.s], root @ best.T),
    )  # fmt: skip


def _squared(c):
    y, known = c.values, jnp.asarray(c.labelled)[:, None]

    def field(t, f, args):
        return c.kernel @ jnp.where(known, y - f, 0)

    flow = reference.flow(field, jnp.zeros_like(y), END)
    among = c.kernel[: c.s, : c.s] + c.ridge * jnp.eye(c.s)
    fit = c.kernel[:, : c.s] @ jnp.linalg.solve(among, y[: c.s])
    found = squared_flow(c.kernel, y, c.labelled, END)
    late = squared_flow(c.kernel, y, c.labelled, jnp.inf, c.ridge)
    return (found, flow), (late, fit), (squared_flow(c.kernel, y, c.labelled, 2 * END), flow)


def _early_stopping(p):
    """Early stopping at t against a ridge of 1/t: the largest difference of their filters at any t."""
    c, ts = Context(p), jnp.geomspace(1e-2, 1e2, 1000)
    # Of every direction among the examples, so that the difference is that of two matrices.
    each = jnp.eye(c.n)[:, : c.s]

    def largest(ratio):
        def apart(t):
            late = squared_flow(c.kernel, each, c.labelled, jnp.inf, ratio / t)
            found = squared_flow(c.kernel, each, c.labelled, t) - late
            return jnp.max(jnp.abs(jnp.linalg.eigvalsh(found[: c.s])))

        return jnp.max(jax.lax.map(apart, ts))

    return Measured((largest(1.0), largest(2.0)))


def _softmax(p):
    """Weights K / d are a flow of sum_j d_j CE_j; on a star, the plain loss rises along it."""
    c = Context(p)
    keys = c.kernel[:, : c.s]
    attention = keys / jnp.sum(keys, axis=1, keepdims=True)
    kernel, weights = normalised_kernel(c.kernel, c.labelled)
    field = c.field(kernel, weights=weights)
    layer = attention @ formulas.linear(c.f, c.theta, c.one_hot)[: c.s]
    same = relative_error(field(0.0, c.f), layer)
    n = 51
    hub = (jnp.arange(n)[:, None] == 0) ^ (jnp.arange(n)[None] == 0)
    star = jnp.eye(n) + HEAVY * hub
    labels = jnp.minimum(jnp.arange(n), 1)
    loss = imr.feature_loss(imr.Linear(jnp.eye(2)), labels)
    kernel, weights = normalised_kernel(star)
    field = context_field(loss, kernel, np.full(n, True), weights=weights)
    at = jnp.where(jnp.arange(n)[:, None] == 0, 0.0, jnp.array([[0.0, 1.0]]) * (2.5 + c.ridge))

    def rate(weights):
        def total(f):
            return jnp.sum(weights * imr.cross_entropy(f, labels))

        return jax.jvp(total, (at,), (field(0.0, at),))[1]

    return Measured((same, rate(weights), rate(jnp.ones(n))))


def _joint(c):
    """Features and theta flow together: the logits' velocity, and what is conserved."""

    def loss(f, theta):
        logits = f[: c.s] @ theta.T
        return formulas.negative_log_likelihood(logits, c.one_hot[: c.s])

    state = c.f, c.theta
    slopes = jax.tree.map(jnp.negative, jax.grad(loss, argnums=(0, 1))(*state))
    r = (c.one_hot - jax.nn.softmax(c.f @ c.theta.T, axis=1)).at[c.s :].set(0)
    velocity = jax.jvp(lambda f, theta: f @ theta.T, state, slopes)[1]
    parts = r @ c.theta @ c.theta.T, c.f @ c.f[: c.s].T @ r[: c.s]

    def end(known):
        return jax.jvp(lambda f, theta: f[:known].T @ f[:known] - theta.T @ theta, state, slopes)[1]

    zero, scale = end(c.s), c.f[: c.s].T @ slopes[0][: c.s]
    return (
        (velocity, sum(parts)), (scale + zero, scale), (c.f[c.s :] + slopes[0][c.s :], c.f[c.s :]),
        (velocity, parts[0]),  # the features' part alone
    )  # fmt: skip


def _stability(p):
    """The largest curvature in function space over its bound; and of softmax attention, exactly 1."""
    c = Context(p)
    among, gram = c.kernel[: c.s, : c.s], c.theta @ c.theta.T
    bound = jnp.linalg.eigvalsh(among)[-1] * jnp.linalg.eigvalsh(gram)[-1] / 2
    root = jnp.kron(jnp.linalg.cholesky(among), jnp.eye(c.theta.shape[1]))
    hessian = jax.hessian(c.labelled_loss)(c.f)[: c.s, :, : c.s].reshape(len(root), len(root))
    largest = jnp.linalg.eigvalsh(root.T @ hessian @ root)[-1]
    density = jnp.sum(among, axis=1)
    scaled = jnp.linalg.eigvalsh(among / jnp.sqrt(density[:, None] * density[None]))[-1]
    return Measured((largest / bound, jnp.abs(scaled - 1), jnp.linalg.eigvalsh(among)[-1] - 1))


def _parts(p) -> tuple[Any, Any]:
    """Attention over examples that carries labels, and attention over classes, of features z."""
    c = Context(p._replace(z=p.other, other=p.z))

    def label(t, f, args):
        return c.kernel[:, : c.s] @ (c.one_hot @ c.theta)[: c.s]

    def attend(t, f, args):
        return c.slope(c.kernel, f) - label(t, f, args)

    return attend, label


def _attention_first(c):
    """The label term is a constant here: after attention it makes an Euler step, before it does not."""
    field = c.field(c.kernel)

    def label(t, f, args):
        return c.kernel[:, : c.s] @ (c.one_hot @ c.theta)[: c.s]

    def attend(t, f, args):
        return field(t, f) - label(t, f, args)

    euler = imr.lie_step([field], c.f, layers.STEP)
    return tuple(
        (imr.lie_step(parts, c.f, layers.STEP), euler)
        for parts in ([attend, label], [label, attend])
    )


CLAIMS = (
    _claim("C1.gradient", "df/dt = K M (CW − softmax(fWᵀ)W) − λf = −K∇L − λf, dL/dt = −‖∇L‖²_H",
           _gradient, "the gradient in the features", checks=("written out", "autodiff", "along the flow")),
    _claim("C1.reduced", "f = exp(−λt)f₀ + K_·S BW, labelled rows alone; f_U = K_US K_SS⁻¹ f_S",
           _reduced, "unlabelled tokens stand still", FLOWS, ("full flow", "rebuilt")),
    _claim("C1.reduced.factor", "K = XXᵀ of rank r: r rows are integrated", _factor,
           "another kernel", FLOWS, ("full flow",)),
    _claim("C1.identity", "K = I is the linear flow", _identity, "another kernel", FLOWS,
           ("reduced linear flow",)),
    _claim("C1.theta", "W = I, linear K: the θ-flow of the same loss, seen at every token", _theta,
           "another kernel", checks=("autodiff",)),
    _claim("C1.one_step", "one Euler step from 0, linear K = linear attention, values (C − 1/k)W",
           _one_step, "two steps, two such layers"),
    _claim("C1.ridge", "λB = C − softmax: kernel multinomial regression", _ridge, "half the ridge",
           FLOWS, ("Newton's method", "fixed point")),
    _claim("C1.squared", "squared loss: K_·S (1 − exp(−tK_SS))/K_SS y; its limit with a ridge", _squared,
           "twice the time", FLOWS, ("Runge-Kutta", "kernel ridge regression")),
    Claim("C1.early_stopping", "stopping at t = a ridge of 1/t up to max 1/(1 + x) − exp(−x) in the filter",
          _early_stopping, (Check("largest difference", near(EARLY, 1e-4)),
                            Check("control: a ridge of 2/t", at_least(EARLY + NO_GRADIENT)))),
    _claim("C1.gradient_steps", "L linear self-attention layers = L gradient steps", layers.gradient_steps,
           "a query among its own keys", checks=("gradient descent",)),
    _claim("C1.causal", "causal layers: at each token L steps on those before it", layers.causal,
           "its own label seen", checks=("gradient descent",)),
    _claim("C1.curvature", "GD++: residuals ∏(1 − ηs), s ← s(1 − γs)²", layers.curvature,
           "without the correction", checks=("layers",)),
    Claim("C1.softmax", "D⁻¹K attention is the flow of Σ d_j CE_j in the kernel K/(d dᵀ)", _softmax,
          (Check("written out", at_most(ROUNDING)), Check("its loss along it, a star", at_most(0.0)),
           Check("control: the plain loss along it", at_least(NO_GRADIENT)))),
    _claim("C1.joint", "joint flow: d(Zθᵀ)/dt = Rθθᵀ + Z Z_Sᵀ R; Z_SᵀZ_S − θᵀθ kept, Z_U at rest",
           _joint, "the features' part alone", checks=("written out", "conserved", "unlabelled")),
    Claim("C1.step", "steps below 4/(λmax(K_SS)λmax(WWᵀ)) are stable; λmax(D⁻¹K) = 1", _stability,
          (Check("curvature over its bound", at_most(1.0)), Check("|λmax(D⁻¹K) − 1|", at_most(ROUNDING)),
           Check("control: λmax(K) − 1", at_least(NO_GRADIENT)))),
    _claim("C1.attention_first", "a Lie step with attention first is an Euler step", _attention_first,
           "label first", checks=("Euler step",), bound=at_least(1e-4)),
    order_claim("C1.order.euler", "the flow of a context: Euler, order 1", 1, imr.lie_step,
                lambda p: (lambda t, f, args: sum(part(t, f, args) for part in _parts(p)),), within=ORDER),
    order_claim("C1.order.lie", "Lie splitting, label first, order 1", 1, imr.lie_step,
                lambda p: _parts(p)[::-1], within=ORDER),
    order_claim("C1.order.strang", "Strang splitting of attention and label, order 2", 2,
                imr.strang_step, _parts, within=ORDER),
)  # fmt: skip
