r"""Exact reduced flows: integrate coordinates, rebuild features only where they are asked for.

The flow of the linear model never leaves $Z_0 + span(rows of \theta)$, that of the quadratic model
never leaves $Z_0 + span(columns of Q and K)$. With the vectors V (m, f) that span it,

$$Z(t) = X + e^{-\lambda t} (Z_0 - X) + B(t) V, \qquad dB/dt = g(Z V^T) - \lambda B, \quad B(0) = 0,$$

and Z V^T follows from B and from products taken once. Without an anchor lambda = 0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from imr._checks import (
    check_axis,
    check_choice,
    check_finite,
    check_positive,
    check_rank,
    is_concrete,
)
from imr._numerics import log_sum_exp, mask_logits, matmul, widen
from imr._typing import Bias, ClassWeights, Features, Mask, ScalarLike, Static
from imr.attention import Projection, attention_log_sums, attention_products
from imr.errors import ImrError
from imr.flow.solve import Flow, Result, integrate, raised
from imr.models.logits import check_projections, linear_logits
from imr.parallel.mesh import mesh_axis, pad_axis, padding, split_over
from imr.targets import (
    LowRankTargets,
    check_targets,
    out_of_range,
    target_logits,
    target_product,
    transposed_target_product,
)

Norm = Literal["coordinates", "features"]


class Frame(NamedTuple):
    """What the reduced equations need of the features, all of it computed once.

    V: vectors (m, f). S^T = B M + S_0^T: the integrated state, (d, n); Z = decayed + (S - S_0)^T U.
    The state lies on its side: sums over a few classes are then sums of long rows, which a CPU does
    three times as fast.
    """

    basis: Array  # U (d, f)
    change: Array | None  # M^T (d, m), dS = M^T dB^T; None is the identity
    gram: Array  # V U^T (m, d)
    start: Array  # S_0 (d, n)
    at_start: Array  # V Z_0^T (m, n)
    at_anchor: Array | None  # V X^T (m, n)


def linear_flow(
    z0: Features,
    theta: ClassWeights,
    targets: Any,
    *,
    t1: ScalarLike,
    t0: ScalarLike = 0.0,
    ts: Any = None,
    bias: Bias | None = None,
    beta: ScalarLike = 1.0,
    anchor: tuple[ScalarLike, Features] | None = None,
    group: Array | None = None,
    norm: Norm = "coordinates",
    mesh: Any = None,
    throw: bool = False,
    **options: Any,
) -> Flow:
    r"""The flow of the linear model, exactly, in n x k coordinates instead of n x f features.

    $$Z(t) = Z_0 + B \theta, \quad dB/dt = \beta (C - softmax(\beta (Z_0 \theta^T + B G + b))),
      \quad G = \theta \theta^T$$

    Args:
      z0: features, shape (n, f).
      theta: class weights, shape (k, f); prototypes, where `group` is given.
      targets: labels (n,) or distributions (n, k).
      t1, t0, ts: as in `imr.solve`.
      bias: of the logits, shape (k,).
      beta: inverse temperature.
      anchor: (lam, x), adds (lam/2) ||Z - x||^2 to the loss.
      group: the class of each prototype, shape (k,): latent classes. `targets` are then labels of
        classes, and the label term is the softmax over the label's own prototypes.
      norm: what the error control acts on. `coordinates`: the root mean square over the entries of
        B. `features`: over the coordinates of Z in an orthonormal basis of the span, so that errors
        are lengths in feature space and are relative to Z's part in the span; its gradients need
        theta of full rank.
      mesh: of one axis, see `imr.parallel.make_mesh`: rows are spread over its devices, whether
        they divide n or not; steps are those of the whole.
      throw: raise `FlowError` where the end is not reached.
      options: solver, rtol, atol, dt0, adjoint and max_steps, as in `imr.solve`.

    Returns:
      A `Flow`, with its loss.

    Raises:
      ImrError: where shapes do not fit, targets are no distributions, values are not finite, or
        times are out of order.

    >>> import jax.numpy as jnp
    >>> theta = jnp.eye(2)
    >>> flow = linear_flow(jnp.zeros((1, 2)), theta, jnp.array([0]), t1=3.0, rtol=1e-6)
    >>> u = flow.z[0, 0] - flow.z[0, 1]  # u + exp(u) = 1 + 2 t
    >>> round((u + jnp.exp(u)).item(), 3)
    7.000

    Reference: arXiv 2509.04653, Theorem 1; the reduction is imr's own.
    """
    jax.eval_shape(linear_logits, z0, theta, bias)  # its checks
    _check_start(z0, theta, beta, anchor)
    if group is None:
        check_targets((z0.shape[0], theta.shape[0]), targets)
        z0 = _marked(z0, targets, theta.shape[0])
    else:
        check_rank("group", group, 1, "(k,)")
        check_axis("group", group.shape[0], "theta", theta.shape[0], "prototypes")
        check_rank("targets", targets, 1, "(n,), labels of classes, with group")
        check_axis("targets", targets.shape[0], "z0", z0.shape[0], "rows")
        _check_grouped(targets, group)
        targets = group[None, :] == targets[:, None]  # the label's own prototypes
    drift = Partial(_latent_drift if group is not None else _linear_drift, targets, bias, beta)
    loss = Partial(_latent_loss if group is not None else _linear_loss, targets, bias, beta)
    return _reduced(
        z0, theta, drift, loss, anchor=anchor, norm=norm, t0=t0, t1=t1, ts=ts, mesh=mesh,
        throw=throw, **options,
    )  # fmt: skip


def quadratic_flow(
    z0: Features,
    phi: Projection,
    k: Projection | None,
    targets: Any,
    *,
    t1: ScalarLike,
    t0: ScalarLike = 0.0,
    ts: Any = None,
    beta: ScalarLike = 1.0,
    anchor: tuple[ScalarLike, Features] | None = None,
    where: Mask | None = None,
    block: int | None = None,
    norm: Norm = "coordinates",
    mesh: Any = None,
    throw: bool = False,
    **options: Any,
) -> Flow:
    r"""The flow of the quadratic model, exactly, in coordinates of the span of Q and K.

    $$Z(t) = Z_0 + B_1 Q^T + B_2 K^T, \quad dB_1/dt = \beta A Z K, \quad dB_2/dt = \beta A^T Z Q,
      \quad A = C - softmax(\beta Z Q K^T Z^T)$$

    Symmetric (k=None): $Z(t) = Z_0 + B \phi^T$, $dB/dt = \beta (A + A^T) Z \phi$. The n x n softmax
    is made in blocks of rows and never held; labels, sparse and low-rank targets are never expanded.

    Args:
      z0: features, shape (n, f).
      phi: Q, shape (f, r), or (h, f, r) for heads.
      k: K, of the same shape; None is symmetric.
      targets: C, shape (n, n): `same_class_targets` of class labels, sparse (BCOO), dense, or integers
        (n,), which name for each token the token (column) that it should attend to.
      t1, t0, ts: as in `imr.solve`.
      beta: inverse temperature.
      anchor: (lam, x), adds (lam/2) ||Z - x||^2 to the loss.
      where: boolean, shape (n, n).
      block: rows of the softmax at a time, see `imr.attention.attention_products`.
      norm, mesh: as in `linear_flow`; on a mesh keys go round in a ring.
      throw: raise `FlowError` where the end is not reached.
      options: solver, rtol, atol, dt0, adjoint and max_steps, as in `imr.solve`.

    Returns:
      A `Flow`, with its loss.

    Raises:
      ImrError: as `linear_flow`, and where the rank is larger than f.

    >>> import jax, jax.numpy as jnp
    >>> z0 = jax.random.normal(jax.random.key(0), (4, 3))
    >>> flow = quadratic_flow(z0, jnp.eye(3)[:, :2], None, jnp.arange(4), t1=1.0)
    >>> flow.z.shape, bool(flow.converged)
    ((4, 3), True)

    Reference: arXiv 2509.04653, Theorem 2; the reduction is imr's own.
    """
    check_projections(z0, phi, k)
    _check_start(z0, (phi, k), beta, anchor)
    if targets is None:
        raise ImrError(
            "targets must be given; found None. For attention alone solve quadratic_field(phi, k, None)."
        )
    check_targets((z0.shape[0], z0.shape[0]), targets, where)
    z0 = _marked(z0, targets, z0.shape[0])
    f, r = phi.shape[-2:]
    heads = phi.reshape(-1, f, r).shape[0]
    stacked = phi.reshape(heads, f, r)
    if k is not None:
        stacked = jnp.concatenate([stacked, k.reshape(heads, f, r)])
    vectors = jnp.swapaxes(stacked, 1, 2).reshape(-1, f)
    shape = _Heads(heads, r, k is None, block, mesh)
    drift = Partial(_quadratic_drift, shape, targets, where, beta)
    loss = Partial(_quadratic_loss, shape, targets, where, beta)
    return _reduced(
        z0, vectors, drift, loss, anchor=anchor, norm=norm, t0=t0, t1=t1, ts=ts, mesh=mesh,
        throw=throw, **options,
    )  # fmt: skip


def _reduced(
    z0, vectors, drift, loss, *, anchor, norm, t0, t1, ts, mesh, throw, **options: Any
) -> Flow:
    """Integrates the coordinates, and reads features, loss and norm of the field off them."""
    check_choice("norm", norm, ("coordinates", "features"))
    known = ("solver", "rtol", "atol", "dt0", "adjoint", "max_steps")
    for name in options:
        check_choice("a further keyword", name, known)
    lam, x = (jnp.zeros((), z0.dtype), None) if anchor is None else anchor
    n = z0.shape[0]
    if mesh is not None:
        extra = padding(n, mesh_axis(mesh)[1])
        z0 = split_over(mesh, pad_axis(z0, extra))
        x = None if x is None else split_over(mesh, pad_axis(x, extra))
        if extra:
            # Rows that fill up stand still, and would lower the error norm, a mean over all.
            share = (n / (n + extra)) ** 0.5
            for name, default in (("rtol", 1e-5), ("atol", 1e-7)):
                options[name] = share * options.get(name, default)
            drift, loss = (
                Partial(_uneven, Static(n), drift),
                Partial(_uneven_loss, Static(n), loss),
            )
    frame = _frame(z0, vectors, x, norm)
    field = Partial(_coordinate_field, drift, frame, jnp.asarray(lam, z0.dtype), t0)
    path = integrate(field, frame.start, t0=t0, t1=t1, ts=ts, **options)
    flow = _read_off(path, z0, x, vectors, frame, field, loss, saved=ts is not None)
    if z0.shape[0] > n:
        flow = flow._replace(z=flow.z[:n], zs=None if flow.zs is None else flow.zs[:, :n])
    return raised(flow) if throw else flow


@partial(jax.jit, static_argnames="norm")
def _frame(z0: Array, vectors: Array, x: Array | None, norm: Norm) -> Frame:
    at_start = matmul(vectors, z0.T)
    at_anchor = None if x is None else matmul(vectors, x.T)
    if norm == "coordinates":
        start = jnp.zeros_like(at_start)
        return Frame(vectors, None, matmul(vectors, vectors.T), start, at_start, at_anchor)
    orthonormal, upper = jnp.linalg.qr(vectors.T)
    start = matmul(orthonormal.T, z0.T)
    return Frame(orthonormal.T, upper, upper.T, start, at_start, at_anchor)


def _coordinate_field(drift, frame, lam, t0, t, state, args):
    """dS/dt = M^T g - lam (S - S_0)."""
    del args
    moved = state - frame.start
    slope = drift(_products(frame, lam, t - t0, moved))
    return (slope if frame.change is None else matmul(frame.change, slope)) - lam * moved


def _products(frame, lam, elapsed, moved):
    """V Z^T of the state, (m, n)."""
    products = frame.at_start + matmul(frame.gram, moved)
    if frame.at_anchor is None:
        return products
    return products + (jnp.exp(-lam * elapsed) - 1) * (frame.at_start - frame.at_anchor)


@partial(jax.jit, static_argnames="saved")
def _read_off(path, z0, x, vectors, frame, field, loss, *, saved) -> Flow:
    _, _, lam, t0 = field.args
    distance: Any = None if x is None else z0 - x

    def features(t, state):
        z = z0 + matmul((state - frame.start).T, frame.basis)
        return z if x is None else z + (jnp.exp(-lam * (t - t0)) - 1) * distance

    def measure(pair):
        """Loss and norm of the field from the coordinates, without the features."""
        t, state = pair
        slope = field(t, state, None)
        moved = state - frame.start
        value = loss(_products(frame, lam, t - t0, moved).T)
        # The field is F = S'^T U - lam e (Z_0 - X), and Z - X = (S - S_0)^T U + e (Z_0 - X).
        gram = matmul(frame.basis, frame.basis.T)
        square = jnp.sum(matmul(gram, slope) * slope)
        if x is None:
            return value, jnp.sqrt(square)
        decay = jnp.exp(-lam * (t - t0))
        apart = matmul(frame.basis, distance.T)
        length = jnp.sum(distance**2)
        square += decay * lam * (decay * lam * length - 2 * jnp.sum(slope * apart))
        stretch = jnp.sum(matmul(gram, moved) * moved)
        stretch += decay * (decay * length + 2 * jnp.sum(moved * apart))
        return value + 0.5 * lam * stretch, jnp.sqrt(jnp.maximum(square, 0))

    reached = jnp.isfinite(path.ts)
    states = path.ys if saved else path.y[None]
    # Before it is measured: masked only after, it would make every gradient NaN.
    times = jnp.where(reached, path.ts, path.end)
    states = jnp.where(reached[:, None, None], states, path.y[None])
    losses, norms = jax.lax.map(measure, (times, states))
    losses, norms = (jnp.where(reached, v, jnp.inf) for v in (losses, norms))
    zs = None
    if saved:
        zs = jax.vmap(features)(times, states)
        zs = jnp.where(reached[:, None, None], zs, jnp.inf)
    z = features(path.end, path.y)
    return Flow(
        path.ts, z, zs, losses, norms, path.num_steps, path.result, path.result == Result.SUCCESS
    )


def _uneven(n, drift, y):
    """The drift of the first n rows; those that fill up stand still."""
    slope = drift(y[:, : n.value])
    return pad_axis(slope, y.shape[1] - n.value, 1)


def _uneven_loss(n, loss, y):
    return loss(y[: n.value])


# The drifts g of V Z^T (m, n), and the losses of Z V^T (n, m)


def _linear_drift(targets, bias, beta, y):
    logits = beta * (y if bias is None else y + bias[:, None])
    p = _column_softmax(logits)
    if targets.ndim == 2:
        return beta * (targets.T.astype(y.dtype) - p)
    # 1 - p of the label as the sum of the others: late in a flow the difference has no digits.
    own = targets[None, :] == jnp.arange(y.shape[0])[:, None]
    others = jnp.where(own, 0, p)
    return beta * (jnp.where(own, others.sum(axis=0, keepdims=True), 0) - others)


def _linear_loss(targets, bias, beta, y):
    logits = beta * _biased(y, bias)
    return jnp.sum(log_sum_exp(logits) - target_logits(targets, logits))


def _latent_drift(own, bias, beta, y):
    logits = beta * (y if bias is None else y + bias[:, None])
    return beta * (_column_softmax(logits, own.T) - _column_softmax(logits))


def _latent_loss(own, bias, beta, y):
    logits = beta * _biased(y, bias)
    return jnp.sum(log_sum_exp(logits) - log_sum_exp(logits, own))


def _column_softmax(logits, where=None):
    """Over the first axis: what `softmax` is of the transposed."""
    wide = jax.nn.softmax(mask_logits(widen(logits), where), axis=0)
    return wide.astype(logits.dtype)


def _biased(y, bias):
    return y if bias is None else y + bias[None, :]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Heads:
    """How the columns of Y = Z V^T fall into heads: queries first, then keys unless symmetric."""

    count: int
    rank: int
    symmetric: bool
    block: int | None
    mesh: Any

    def split(self, y):
        """Queries and keys, shape (h, n, r)."""
        blocks = jnp.moveaxis(y.reshape(y.shape[0], -1, self.rank), 1, 0)
        return (blocks, blocks) if self.symmetric else (blocks[: self.count], blocks[self.count :])


def _quadratic_drift(heads, targets, where, beta, y):
    y = y.T

    def one(queries, keys):
        row, column = attention_products(
            queries, None if heads.symmetric else keys, beta=beta, where=where, block=heads.block,
            mesh=heads.mesh,
        )  # fmt: skip
        b1 = target_product(targets, keys) - row
        b2 = transposed_target_product(targets, queries, y.shape[0]) - column
        return b1, b2

    b1, b2 = jax.vmap(one)(*heads.split(y))
    parts = b1 + b2 if heads.symmetric else jnp.concatenate([b1, b2])
    return beta * jnp.moveaxis(parts, 0, 1).reshape(y.shape).T


def _quadratic_loss(heads, targets, where, beta, y):
    """Sum over heads and rows, a block of rows at a time."""

    def one(queries, keys):
        lse = attention_log_sums(
            queries, keys, beta=beta, where=where, block=heads.block, mesh=heads.mesh
        )
        return jnp.sum(lse) - beta * jnp.sum(queries * target_product(targets, keys))

    return jnp.sum(jax.vmap(one)(*heads.split(y)))


def _check_grouped(labels, group):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ImrError(f"targets must be integer labels, with group; found dtype {labels.dtype}.")
    if is_concrete(labels, group) and not (there := np.isin(labels, group)).all():
        row = int(np.argmin(there))
        raise ImrError(
            f"targets must be classes that group has; found targets[{row}] = {int(labels[row])}."
        )


def _marked(z0, targets, m):
    """Under a trace a label out of range cannot raise: its row is NaN, and the flow has diverged."""
    if isinstance(targets, LowRankTargets) or targets.ndim != 1 or is_concrete(targets):
        return z0
    return jnp.where(out_of_range(targets, m)[:, None], jnp.nan, z0)


def _check_start(z0, parameters, beta, anchor):
    check_finite("z0", z0)
    check_finite("theta or phi", parameters)
    check_positive("beta", beta)
    if anchor is None:
        return
    if not (isinstance(anchor, tuple) and len(anchor) == 2):
        raise ImrError(f"anchor must be a pair (lam, x); found {type(anchor).__name__}.")
    check_finite("anchor", anchor)
    if jnp.shape(anchor[1]) != z0.shape:
        raise ImrError(
            f"anchor's x must have the shape of z0, {z0.shape}; found {jnp.shape(anchor[1])}."
        )
