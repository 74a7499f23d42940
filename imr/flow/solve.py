"""Solving any field with diffrax, and the `Flow` that all solvers return."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import check_finite, check_floating, check_positive, is_concrete
from imr._module import as_pytree
from imr._typing import Field, Loss, PyTree, ScalarLike
from imr.errors import FlowError, ImrError
from imr.flow.integrate import Path, Result, integrate
from imr.flow.splitting import Splitting, check_fields, midpoint, strang_stages


class Flow(NamedTuple):
    """A solved flow; a pytree, so that it comes out of `jax.jit` and `jax.vmap`.

    Attributes:
      ts: times, shape (s,): those asked for, or the end alone (s = 1). For a steady state, the time
        at which it was reached.
      z: the features at the end, or the last good state if the end was not reached.
      zs: the features at the times asked for, with a leading axis of s; None without such times.
      loss: at ts, shape (s,), or None.
      grad_norm: the Frobenius norm of the field at ts, shape (s,).
      num_steps: steps of the solver, rejected ones counted.
      result: a code, see `Result`.
      converged: whether the solve reached t1, or the steady state.

    Entries of times that were not reached are inf. If no times were asked for, ts, loss and
    grad_norm belong to the last good state.
    """

    ts: Float[Array, "s"]
    z: PyTree
    zs: PyTree | None
    loss: Float[Array, "s"] | None
    grad_norm: Float[Array, "s"]
    num_steps: Int[Array, ""]
    result: Int[Array, ""]
    converged: Bool[Array, ""]


def solve(
    field: Field | Sequence[Field],
    z0: PyTree,
    *,
    t1: ScalarLike,
    t0: ScalarLike = 0.0,
    ts: Any = None,
    loss: Loss | None = None,
    args: Any = None,
    solver: dfx.AbstractSolver | None = None,
    rtol: ScalarLike = 1e-5,
    atol: ScalarLike = 1e-7,
    dt0: ScalarLike | None = None,
    noise: tuple[ScalarLike, Any] | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    max_steps: int = 4096,
    throw: bool | None = None,
) -> Flow:
    r"""Solves $dz/dt = f(t, z, args)$ from z0 at t0 to t1.

    Args:
      field: f(t, z, args), as `gradient_field` returns it, or any function. A list of fields is
        solved by operator splitting, in steps of dt0; f is their sum.
      z0: features, shape (n, f), or any pytree of arrays.
      t1: the end, after t0.
      t0: the start.
      ts: times to save at, increasing, within [t0, t1], shape (s,).
      loss: z -> scalar, evaluated at the saved times.
      args: handed to the field.
      solver: of diffrax. The default is Tsit5; with noise it is Euler, and for several fields
        Strang's splitting by `imr.splitting.Splitting`.
      rtol: relative tolerance of the adaptive steps; the error norm is the root mean square over
        all entries of z.
      atol: absolute tolerance.
      dt0: constant steps instead of adaptive ones, of this size, or a little less so that
        they divide the stretches between the times asked for evenly.
      noise: (sigma, key), the SDE $dz = f dt + \sigma dW$ in the sense of Itô; needs dt0.
      adjoint: of diffrax; the default is RecursiveCheckpointAdjoint. With BacksolveAdjoint the field
        must be a pytree that holds its parameters (`jax.tree_util.Partial`), or take them in args.
      max_steps: step limit, from one time asked for to the next.
      throw: whether to raise `FlowError` if the end is not reached. None raises if the result is
        concrete, and leaves the code to the caller under `jax.jit` and `jax.vmap`; False never
        raises.
    Returns: A `Flow`. Two calls with other values of the same shapes compile once, if the field is
      a pytree or the same function.
    Raises:
      ImrError: for concrete values, if z0 is not finite, t1 is not after t0, or the times are
        unsorted or outside of [t0, t1].
      FlowError: if the end is not reached, unless throw is False.

    >>> import jax.numpy as jnp
    >>> flow = solve(lambda t, z, args: -z, jnp.ones((1, 1)), t1=1.0, rtol=1e-6)
    >>> round(flow.z.item(), 4), bool(flow.converged)
    (0.3679, True)
    """
    if noise is not None:
        if dt0 is None:
            raise ImrError(
                "noise needs dt0, the constant step of the stochastic solver; found None."
            )
        if not (isinstance(noise, tuple) and len(noise) == 2):
            raise ImrError(f"noise must be a pair (sigma, key); found {type(noise).__name__}.")
        check_positive("noise's sigma", noise[0])
    check_times(t0, t1, ts)
    check_finite("z0", z0)
    parts = as_fields(field)
    check_shapes(parts, t0, z0, args, loss)
    if isinstance(parts, tuple):
        if dt0 is None:
            raise ImrError("several fields are split in constant steps: give their size, dt0.")
        if noise is not None:
            raise ImrError("noise goes with one field; found several. Add them up in one function.")
        if isinstance(adjoint, dfx.BacksolveAdjoint):
            raise ImrError(
                "several fields are split, which BacksolveAdjoint cannot undo: leave it out."
            )
        solver = Splitting(strang_stages(len(parts)), midpoint) if solver is None else solver
    elif isinstance(solver, Splitting):
        raise ImrError("the solver splits several fields: give them as a list; found one field.")
    end = integrate(
        parts, z0, t0=t0, t1=t1, ts=ts, args=args, solver=solver, rtol=rtol, atol=atol, dt0=dt0,
        noise=noise, adjoint=adjoint, max_steps=max_steps,
    )  # fmt: skip
    flow = measured(parts, end, args, loss, saved=ts is not None)
    return checked(flow, throw)


def as_fields(field: Field | Sequence[Field]) -> Any:
    """A field as a pytree, or several as a tuple of pytrees."""
    return as_pytree(field) if callable(field) else tuple(map(as_pytree, check_fields(field)))


def check_shapes(field: Any, t0: Any, z0: PyTree, args: Any, loss: Loss | None) -> None:
    """Demands what field and loss must give, from shapes alone: nothing is computed.

    What they hold, targets among it, is concrete here and checked by their own; in the compiled
    solve it is not.
    """

    def shapes(tree):
        return [jnp.shape(x) for x in jax.tree.leaves(tree)]

    for leaf in jax.tree.leaves(z0):
        check_floating("z0", leaf)
    for part in field if isinstance(field, tuple) else (field,):
        try:
            found = jax.eval_shape(lambda z, part=part: part(jnp.asarray(t0, float), z, args), z0)
        except TypeError as error:
            raise ImrError(
                f"field cannot be called as field(t, z, args), or fails on z0: {error}. A loss is "
                "made a field by gradient_field(loss)."
            ) from error
        same = jax.tree.structure(found) == jax.tree.structure(z0)
        if not same or shapes(found) != shapes(z0):
            raise ImrError(
                f"field must return the shapes of z0, {shapes(z0)}; found {shapes(found)}."
            )
    if loss is not None and not callable(loss):
        raise ImrError(f"loss must be callable as loss(z); found {type(loss).__name__}.")
    if loss is not None and (found := jnp.shape(jax.eval_shape(loss, z0))) != ():
        raise ImrError(f"loss must be a function z -> scalar; found a result of shape {found}.")


@eqx.filter_jit
def measured(field, path: Path, args, loss: Callable | None, *, saved: bool) -> Flow:
    """Loss and norm of the field at the saved states, one after the other."""

    fields = field if isinstance(field, tuple) else (field,)

    def at(t, y):
        slope = jax.tree.map(lambda *parts: sum(parts), *(f(t, y, args) for f in fields))
        norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(slope)))
        return norm, None if loss is None else loss(y)

    reached = jnp.isfinite(path.ts)
    if saved:
        # What was not reached is replaced before it is measured: masked only after, it would make
        # every gradient NaN.
        ts = jnp.where(reached, path.ts, path.end)
        ys = jax.tree.map(lambda ys, y: _where_rows(reached, ys, y), path.ys, path.y)
        norms, losses = jax.lax.map(lambda pair: at(*pair), (ts, ys))
    else:
        norms, losses = jax.tree.map(lambda x: x[None], at(path.ts[0], path.y))
    norms, losses = jax.tree.map(lambda x: jnp.where(reached, x, jnp.inf), (norms, losses))
    return Flow(
        path.ts, path.y, path.ys if saved else None, losses, norms, path.num_steps, path.result,
        path.result == Result.SUCCESS,
    )  # fmt: skip


def _where_rows(reached, ys, y):
    mask = reached.reshape(-1, *(1,) * y.ndim)
    return jnp.where(mask, ys, y[None])


def checked(flow: Flow, throw: bool | None) -> Flow:
    """The flow; a `FlowError` if it did not reach its end, as `throw` says."""
    if throw is False:
        return flow
    if not is_concrete(flow.result):
        if throw:
            raise ImrError(
                "throw=True needs concrete values; found traced ones. Under jax.jit or jax.vmap "
                "leave throw out and look at result."
            )
        return flow
    codes = np.atleast_1d(np.asarray(flow.result))
    if codes.any():
        result = Result(int(codes[codes != 0][0]))
        raise FlowError(
            f"the flow did not reach its end: {result.name} after {flow.num_steps} steps. "
            "throw=False returns the Flow with its last good state. More steps (max_steps) or looser "
            "tolerances help a long flow; one that runs to infinity needs a regulariser (anchor) or "
            "an earlier t1."
        )
    return flow


def check_times(t0: Any, t1: Any, ts: Any) -> None:
    """Demands t0 < t1 and increasing times between them, if they are concrete."""
    if jnp.ndim(t0) or jnp.ndim(t1):
        raise ImrError(
            f"t0 and t1 must be scalars; found shapes {jnp.shape(t0)} and {jnp.shape(t1)}. For several "
            "use jax.vmap."
        )
    if is_concrete(t0, t1) and np.all(np.isposinf(np.asarray(t1))):
        raise ImrError("t1 must be finite; for the limit there is solve_to_steady_state.")
    if is_concrete(t0, t1) and not np.all(np.asarray(t1) > np.asarray(t0)):
        raise ImrError(f"t1 must be after t0 = {t0}; found t1 = {t1}.")
    if ts is None:
        return
    if jnp.ndim(ts) != 1 or jnp.shape(ts)[0] == 0:
        raise ImrError(f"ts must hold one or more times, shape (s,); found shape {jnp.shape(ts)}.")
    if is_concrete(t0, t1, ts):
        values = np.asarray(ts)
        if not np.all(np.diff(values) > 0):
            at = int(np.argmin(np.diff(values) > 0))
            raise ImrError(
                f"ts must increase; found ts[{at}] = {values[at]} and ts[{at + 1}] = {values[at + 1]}."
            )
        if not (values[0] >= t0 and values[-1] <= t1):
            raise ImrError(
                f"ts must lie within [t0, t1] = [{t0}, {t1}]; found {values[0]} to {values[-1]}."
            )
