r"""Exact reduced flows: integrate coordinates, rebuild features only where they are asked for.

A flow of a model with a span never leaves $Z_0$ + span. With the vectors V (m, f) that span it,

$$Z(t) = X + e^{-\lambda t} (Z_0 - X) + B(t) V, \qquad dB/dt = g(Z V^T) - \lambda B, \quad B(0) = 0,$$

where g is minus the gradient of the cross-entropy with respect to the products $Z V^T$, and Z V^T
follows from B and from products taken once. Without an anchor lambda = 0.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    check_choice,
    check_count,
    check_finite,
    check_scalar,
    is_concrete,
)
from imr._module import Module
from imr._numerics import matmul
from imr._shapes import check_features
from imr._typing import Features, ScalarLike
from imr.context.fields import Labelled
from imr.errors import ImrError
from imr.flow.integrate import Path, check_method, integrate
from imr.flow.kernel import solve_in_context
from imr.flow.solve import Flow, as_flow, finished
from imr.flow.state import as_state, atol_of_coordinates, cast_like
from imr.flow.state import norm as state_norm
from imr.flow.times import as_times
from imr.losses import FeatureLoss
from imr.models import Model, SpanModel
from imr.parallel.mesh import mesh_axis, pad_axis, padding, split_over

Norm = Literal["coordinates", "features"]


def solve_reduced(
    loss: FeatureLoss,
    z0: Features,
    *,
    t1: ScalarLike,
    t0: ScalarLike = 0.0,
    ts: Any = None,
    solver: dfx.AbstractSolver | None = None,
    rtol: ScalarLike = 1e-5,
    atol: ScalarLike = 1e-7,
    dt0: ScalarLike | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    max_steps: int = 4096,
    norm: Norm = "coordinates",
    block: int | None = None,
    mesh: Any = None,
    throw: bool | None = None,
    kernel: Any = None,
    labelled: Labelled | None = None,
    ridge: ScalarLike = 0.0,
) -> Flow:
    r"""The flow of a feature loss, exactly, in the coordinates of its model's span.

    Linear: $Z(t) = Z_0 + B \theta$, $dB/dt = \beta (C - softmax(\beta (Z_0 \theta^T + B G + b)))$ with
    $G = \theta \theta^T$: n x k numbers instead of n x f. Quadratic: $Z(t) = Z_0 + B_1 Q^T + B_2 K^T$,
    $dB_1/dt = \beta A Z K$, $dB_2/dt = \beta A^T Z Q$ with $A = C - softmax(\beta Z Q K^T Z^T)$, which is
    never held.

    With a kernel K between tokens it is the flow of `imr.context.context_field`, in which labelled
    tokens alone are integrated: $Z(t) = e^{-\lambda t} Z_0 + K_{\cdot S} B \theta$,
    $dB/dt = C - softmax(Z_S \theta^T) - \lambda B$, with one row of B for each of them, or r rows if
    K has a factor of fewer columns. K = I is the linear flow.

    Args:
      loss: as `imr.feature_loss` returns it, of a model with a span: `imr.Linear`, `imr.Latent`,
        `imr.Polynomial`, `imr.Quadratic`, or a subclass of `imr.models.SpanModel`.
      z0: features, shape (n, f); their dtype is that of the result, as in `imr.solve`.
      t1, t0, ts, solver, rtol, atol, dt0, adjoint, max_steps, throw: as in `imr.solve`.
      norm: what the error control acts on. `coordinates`: the root mean square over the entries of
        B. Large vectors make much of a small B, so atol is lowered to what rtol and atol leave to the
        features, divided by their length. `features`: over the coordinates of Z in an orthonormal basis of the span, so that errors
        are lengths in feature space and are relative to Z's part in the span; its gradients need
        vectors of full rank.
      block: rows of a square model's softmax at a time, see `imr.attention.attention_products`.
      mesh: of one axis, see `imr.parallel.make_mesh`: rows are spread over its devices, whether
        they divide n or not; steps are those of the whole. Keys of a square model go round in a ring.
      kernel: K, shape (n, n), or a factor X of it, (n, r); as `imr.context.as_kernel` takes it. The
        loss then has a model of rows (`imr.Linear`, `imr.Latent`, ...) and no anchor.
      labelled: boolean, or integers 0 and 1, shape (n,), the examples; goes with a kernel. Labels of
        other tokens are never read, and may be -1; a class may have no example. A mask that is traced
        may differ between the contexts of a `jax.vmap`.
      ridge: lambda, at least 0, of $\frac{\lambda}{2} \|Z\|_K^2$; goes with a kernel.
    Returns: A `Flow`, with its loss; in a context that is the sum over examples, without the ridge.
    Raises:
      ImrError: if the model has no span, shapes do not fit, targets are no distributions, values are
        not finite, or times are out of order; if the kernel is not symmetric or not positive
        semi-definite, no token is labelled, ridge is negative, or an argument does not go with kernel.
      FlowError: if the end is not reached, unless throw is False.

    >>> import jax.numpy as jnp, imr
    >>> loss = imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0]))
    >>> flow = solve_reduced(loss, jnp.zeros((1, 2)), t1=3.0, rtol=1e-6)
    >>> u = flow.z[0, 0] - flow.z[0, 1]  # u + exp(u) = 1 + 2 t
    >>> round((u + jnp.exp(u)).item(), 3)
    7.000

    Reference: arXiv 2509.04653, Theorems 1 and 2; the reduction is an extension of imr.
    """
    check_choice("norm", norm, ("coordinates", "features"))
    check_method(rtol, atol, dt0, solver, adjoint, max_steps, throw)
    check_scalar("ridge", ridge, 0)
    if kernel is not None:
        _check_alone(norm=norm == "coordinates", block=block is None, mesh=mesh is None)
        return solve_in_context(
            loss, z0, kernel, labelled, ridge, t0=t0, t1=t1, ts=ts, solver=solver, rtol=rtol,
            atol=atol, dt0=dt0, adjoint=adjoint, max_steps=max_steps, throw=throw,
        )  # fmt: skip
    if labelled is not None or not is_concrete(ridge) or ridge != 0:
        raise ImrError(
            "labelled and ridge go with kernel, which is None. What holds features back without one is "
            "the anchor of the loss."
        )
    vectors = _checked_span(loss)
    given = as_floats("z0", z0)
    check_features(given)
    check_finite("z0", given)
    targets = loss.operator(given)
    z0 = as_state(given)
    vectors = vectors.astype(z0.dtype)
    t0, t1, ts = as_times(t0, t1, ts, z0.dtype)
    if loss.anchor is None:
        lam, x = jnp.zeros((), z0.dtype), None
    else:
        loss.offset(given)  # its check of shapes
        lam, x = cast_like(loss.anchor, (z0, z0))
    if block is not None:
        check_count("block", block)
        if not loss.model.square:
            raise ImrError(
                f"block has no meaning for {type(loss.model).__name__}, whose rows do not attend to one "
                f"another; found {block}. Leave it out."
            )
    if norm == "coordinates":
        # If B (n, m) is off by e in the root mean square, Z = Z_0 + B V is by at most e |V| sqrt(m / f).
        m, f = vectors.shape
        atol = atol_of_coordinates(z0, state_norm(vectors) * (m / max(f, 1)) ** 0.5, rtol, atol)
    n = z0.shape[0]
    if mesh is not None:
        extra = padding(n, mesh_axis(mesh)[1])
        z0 = split_over(mesh, pad_axis(z0, extra))
        x = None if x is None else split_over(mesh, pad_axis(x, extra))
        # Rows that fill up stand still, and would lower the error norm, a mean over all.
        share = (n / (n + extra)) ** 0.5 if extra else 1.0
        rtol, atol = share * rtol, share * atol
    drift = Drift(loss.model, targets, loss.where, n, block, mesh)
    frame = _frame(z0, vectors, x, norm)
    field = CoordinateField(drift, frame, lam, jnp.asarray(t0))
    path = integrate(
        field, frame.start, t0=t0, t1=t1, ts=ts, solver=solver, rtol=rtol, atol=atol, dt0=dt0,
        adjoint=adjoint, max_steps=max_steps,
    )  # fmt: skip
    flow = _read_off(path, z0, x, field, saved=ts is not None)
    if z0.shape[0] > n:
        flow = flow._replace(z=flow.z[:n], zs=None if flow.zs is None else flow.zs[:, :n])
    return finished(flow, given, throw)


def _check_alone(**left_out: bool) -> None:
    """Refuses what does not go with kernel."""
    for name, is_left_out in left_out.items():
        if not is_left_out:
            raise ImrError(
                f"{name} does not go with kernel; leave it out. A kernel too large to hold is "
                "imr.context.exponential_kernel(x, block=...), or a factor."
            )


def _checked_span(loss: Any) -> Array:
    if not isinstance(loss, FeatureLoss):
        raise ImrError(
            f"loss must be made by imr.feature_loss; found {type(loss).__name__}. For any other flow "
            "there is imr.solve."
        )
    model = loss.model
    vectors = model.span() if isinstance(model, Model) else None
    if vectors is None or not isinstance(model, SpanModel):
        raise ImrError(
            f"{type(model).__name__} has no span smaller than the feature space, or does not know it. "
            "Solve its field with imr.solve, or make it a subclass of imr.models.RowModel, which "
            "implements span, logits and pullback, or of SpanModel: span, descent_at and loss_at."
        )
    return vectors


class Frame(NamedTuple):
    """What the reduced equations need of the features, computed once.

    V: vectors (m, f). S^T = B M + S_0^T: the integrated state, (d, n); Z = decayed + (S - S_0)^T U.
    The state lies on its side, as the products of a `SpanModel` do.
    """

    basis: Array  # U (d, f)
    change: Array | None  # M^T (d, m), dS = M^T dB^T; None is the identity
    gram: Array  # V U^T (m, d)
    start: Array  # S_0 (d, n)
    at_start: Array  # V Z_0^T (m, n)
    at_anchor: Array | None  # V X^T (m, n)

    def products(self, lam, elapsed, moved):
        """V Z^T of a state that has moved so far from the start, (m, n)."""
        products = self.at_start + matmul(self.gram, moved)
        if self.at_anchor is None:
            return products
        return products + jnp.expm1(-lam * elapsed) * (self.at_start - self.at_anchor)


@partial(jax.jit, static_argnames="norm")
def _frame(z0: Array, vectors: Array, x: Array | None, norm: Norm) -> Frame:
    at_start = matmul(vectors, z0.T)
    at_anchor = None if x is None else matmul(vectors, x.T)
    if norm == "coordinates":
        # Features that are not finite must show in the state.
        start = jnp.where(jnp.isfinite(at_start), jnp.zeros_like(at_start), jnp.nan)
        return Frame(vectors, None, matmul(vectors, vectors.T), start, at_start, at_anchor)
    orthonormal, upper = jnp.linalg.qr(vectors.T)
    start = matmul(orthonormal.T, z0.T)
    return Frame(orthonormal.T, upper, upper.T, start, at_start, at_anchor)


class Drift(Module):
    """The model's part of the flow, of the first n rows; rows that fill up a mesh stand still."""

    model: SpanModel
    targets: Any
    where: Any
    n: int = eqx.field(static=True)
    block: Any = eqx.field(static=True)
    mesh: Any = eqx.field(static=True)

    def __call__(self, y: Float[Array, "m n"]) -> Float[Array, "m n"]:
        slope = self._apply(self.model.descent_at, y)
        return pad_axis(slope, y.shape[1] - self.n, 1)

    def loss(self, y: Float[Array, "m n"]) -> Float[Array, ""]:
        """The cross-entropy, from the products."""
        return self._apply(self.model.loss_at, y)

    def _apply(self, method, y):
        y = y if y.shape[1] == self.n else y[:, : self.n]
        return method(y, self.targets, where=self.where, block=self.block, mesh=self.mesh)


class CoordinateField(Module):
    """dS/dt = M^T g - lam (S - S_0)."""

    drift: Drift
    frame: Frame
    lam: Array
    t0: Any

    def __call__(self, t: Any, state: Any, args: Any) -> Any:
        del args
        moved = state - self.frame.start
        slope = self.drift(self.products(t, moved)).astype(state.dtype)
        change = self.frame.change
        return (slope if change is None else matmul(change, slope)) - self.lam * moved

    def products(self, t, moved):
        """V Z^T at a time, of a state that has moved so far from the start."""
        return self.frame.products(self.lam, t - self.t0, moved)


@eqx.filter_jit
def _read_off(path: Path, z0, x, field: CoordinateField, *, saved: bool) -> Flow:
    """Features at the end and at the times asked for, and the measures of each."""
    z, loss, norm = _measured(field, z0, x, path.end, path.y)
    if not saved:
        return as_flow(path, z, None, loss[None], norm[None])
    # What was not reached is replaced before it is measured: masked only after, it would make every
    # gradient NaN.
    reached = jnp.isfinite(path.ts)
    times = jnp.where(reached, path.ts, path.end)
    states = jnp.where(reached[:, None, None], path.ys, path.y[None])
    zs, losses, norms = jax.lax.map(lambda pair: _measured(field, z0, x, *pair), (times, states))
    return as_flow(path, z, jnp.where(reached[:, None, None], zs, jnp.inf), losses, norms)


def _measured(field: CoordinateField, z0: Array, x: Array | None, t: Array, state: Array):
    """Features, loss and norm of the field from the coordinates."""
    moved, lam = state - field.frame.start, field.lam
    z = z0 + matmul(moved.T, field.frame.basis)
    slope = field(t, state, None)
    value = field.drift.loss(field.products(t, moved))
    if x is None:
        return z, value, _length(slope, field.frame.basis)
    # Z = X + e (Z_0 - X) + B V, and the field is that of B less lam e (Z_0 - X).
    gone = jnp.expm1(-lam * (t - field.t0))
    z = z + gone * (z0 - x)
    value = value + 0.5 * lam * jnp.sum((z - x) ** 2)
    return z, value, state_norm(matmul(slope.T, field.frame.basis) - lam * (1 + gone) * (z0 - x))


@jax.custom_jvp
def _length(slope: Array, basis: Array) -> Array:
    """The norm of S^T U, by a triangular factor of U instead of n x f numbers.

    The Gram matrix of U would do too, but for half of its digits if vectors depend on one another.
    The triangular factor has no derivative there, so that of the product is taken.
    """
    return state_norm(matmul(jnp.linalg.qr(basis.T, mode="r"), slope))


@_length.defjvp
def _length_jvp(primals, tangents):
    def norm(slope, basis):
        return state_norm(matmul(slope.T, basis))

    return _length(*primals), jax.jvp(norm, primals, tangents)[1]
