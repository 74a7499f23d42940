"""Solving any field with diffrax, and the `Flow` that all solvers return."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import check_finite, check_key, check_positive, is_concrete
from imr._module import as_pytree, numbers_as_leaves
from imr._typing import Field, Loss, PyTree, ScalarLike
from imr.errors import FlowError, ImrError
from imr.flow.derivatives import with_captured
from imr.flow.integrate import Path, Result, check_method, integrate
from imr.flow.splitting import Splitting, check_fields, midpoint, strang_stages
from imr.flow.state import StateField, all_finite, as_arrays, cast_like, norm, state_dtype
from imr.flow.times import as_times


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
    grad_norm belong to the last good state. z and zs have the dtype of z0; of half precision they
    are computed in float32, as times, loss and grad_norm are.
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
    r"""Solves $dz/dt = f(t, z, args)$ from z0 at t0 to t1, later or earlier.

    Args:
      field: f(t, z, args), as `gradient_field` returns it, or any function. A list of fields is
        solved by operator splitting, in steps of dt0; f is their sum.
      z0: features, shape (n, f), or any pytree of floating arrays. Their dtype is that of the
        result, whatever that of the parameters; float16 and bfloat16 are float32 on the way.
      t1: the end. Before t0 the flow is followed backwards, which is the less stable the more it
        contracts.
      t0: the start.
      ts: times to save at, in order from t0 to t1, shape (s,). What a rounding has put outside of
        the interval is moved to its end.
      loss: z -> scalar, evaluated at the saved times.
      args: handed to the field; a Python float in it arrives as an array, so that another value
        compiles nothing new.
      solver: of diffrax. The default is Tsit5, with its stages written out for states of a million
        entries or more; with noise it is Euler, and for several fields Strang's splitting by
        `imr.splitting.Splitting`.
      rtol: relative tolerance of the adaptive steps; the error norm is the root mean square over
        all entries of z.
      atol: absolute tolerance.
      dt0: constant steps instead of adaptive ones, of this size, or a little less so that
        they divide the stretches between the times asked for evenly; positive in either direction.
      noise: (sigma, key), the SDE $dz = f dt + \sigma dW$ in the sense of Itô; needs dt0
        and t1 after t0.
      adjoint: of diffrax; the default is RecursiveCheckpointAdjoint, for first derivatives in
        reverse mode, as BacksolveAdjoint is. `diffrax.ForwardMode()` is for `jax.jvp` and
        `jax.jacfwd`, once and again, `diffrax.DirectAdjoint()` for all, second derivatives in times
        and in what the field closes over among them. Steps are taken as constants.
      max_steps: step limit, from one time asked for to the next.
      throw: whether to raise `FlowError` if the end is not reached. None raises if the result is
        concrete, and leaves the code to the caller under `jax.jit` and `jax.vmap`; False never
        raises.
    Returns: A `Flow`. Two calls with other values of the same shapes compile once, if the field is
      a pytree or the same function. A lambda written in the call is another one at each call, and
      compiles each time: name it once, or hold its numbers in a `jax.tree_util.Partial` or args. As
      under `jax.jit`, what a function or an object that is no pytree reads besides its arguments
      (globals, attributes) is read at the first call: a later change of it is not seen.
    Raises:
      ImrError: for concrete values, if z0 is not finite, t1 is t0, or the times are out of order or
        outside of [t0, t1]; for a derivative that the adjoint does not have.
      FlowError: if the end is not reached, unless throw is False.

    >>> import jax.numpy as jnp
    >>> flow = solve(lambda t, z, args: -z, jnp.ones((1, 1)), t1=1.0, rtol=1e-6)
    >>> round(flow.z.item(), 4), bool(flow.converged)
    (0.3679, True)
    """
    check_method(rtol, atol, dt0, solver, adjoint, max_steps, throw)
    if noise is not None:
        if dt0 is None:
            raise ImrError(
                "noise needs dt0, the constant step of the stochastic solver; found None."
            )
        if not (isinstance(noise, tuple) and len(noise) == 2):
            raise ImrError(f"noise must be a pair (sigma, key); found {type(noise).__name__}.")
        check_positive("noise's sigma", noise[0])
        check_key(noise[1])
    z0 = as_arrays("z0", z0)
    check_finite("z0", z0)
    t0, t1, ts = as_times(t0, t1, ts, state_dtype(z0))
    if noise is not None and is_concrete(t0, t1) and t1 < t0:
        raise ImrError(f"noise goes forward in time; found t1 = {t1} before t0 = {t0}.")
    parts, args = as_fields(field), numbers_as_leaves(args)
    parts = check_shapes(parts, z0, args, loss)
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
    return finished(flow, z0, throw)


def as_fields(field: Field | Sequence[Field]) -> Any:
    """A field as a pytree, or several as a tuple of pytrees."""
    if callable(field):
        return as_pytree("field", field)
    return tuple(as_pytree("field", each) for each in check_fields(field))


def check_shapes(field: Any, z0: PyTree, args: Any, loss: Loss | None) -> Any:
    """Demands what field and loss must give, from shapes alone: nothing is computed.

    What they hold, targets among it, is concrete here and checked by their own; in the compiled
    solve it is not. Fresh functions, for jax keeps an entry of a cache for each call on an old one.

    Returns: the field, or fields, with traced values that they close over as leaves.
    """
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "OSUMm":
            raise ImrError(f"args must hold arrays of numbers; found dtype {leaf.dtype}.")
    dtype = state_dtype(z0)
    time = jax.ShapeDtypeStruct((), dtype)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), z0)
    parts = []
    for part in field if isinstance(field, tuple) else (field,):
        with _explained("field", "field(t, z, args)"):
            traced, found = jax.make_jaxpr(
                lambda t, z, part=part: part(t, z, args), return_shape=True
            )(time, state)
        same = jax.tree.structure(found) == jax.tree.structure(state)
        if not same or _shapes(found) != _shapes(state):
            raise ImrError(
                f"field must return the shapes of z0, {_shapes(state)}; found {_shapes(found)}."
            )
        if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(found)):
            raise ImrError("field must return real numbers; found complex ones.")
        parts.append(with_captured(part, traced, args, time, state))
    if loss is not None:
        if not callable(loss):
            raise ImrError(f"loss must be callable as loss(z); found {type(loss).__name__}.")
        with _explained("loss", "loss(z)"):
            found = jax.eval_shape(lambda z: loss(z), state)
        real = [not jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(found)]
        if _shapes(found) != [()] or not all(real):
            told = " and ".join(f"{x.dtype} of shape {x.shape}" for x in jax.tree.leaves(found))
            raise ImrError(f"loss must return one real number, shape (); found {told or None}.")
    return tuple(parts) if isinstance(field, tuple) else parts[0]


@contextmanager
def _explained(name: str, call: str) -> Iterator[None]:
    """Says of which function of the user's an error is that comes out of it."""
    try:
        yield
    except ImrError:
        raise
    except Exception as error:
        hint = " A loss is made a field by gradient_field(loss)." if name == "field" else ""
        raise ImrError(
            f"{name} cannot be called as {call}, or fails on z0: {type(error).__name__}: {error}.{hint}"
        ) from error


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


@eqx.filter_jit
def measured(field, path: Path, args, loss: Callable | None, *, saved: bool) -> Flow:
    """Loss and norm of the field at the saved states, one after the other."""

    fields = [StateField(part) for part in (field if isinstance(field, tuple) else (field,))]

    def at(t, y):
        slope = jax.tree.map(lambda *parts: sum(parts), *(f(t, y, args) for f in fields))
        size = norm(slope)
        return size, None if loss is None else jnp.asarray(loss(y)).astype(size.dtype)

    reached = jnp.isfinite(path.ts)
    if saved:
        # What was not reached is replaced before it is measured: masked only after, it would make
        # every gradient NaN.
        ts = jnp.where(reached, path.ts, path.end)
        ys = jax.tree.map(lambda ys, y: _where_rows(reached, ys, y), path.ys, path.y)
        norms, losses = jax.lax.map(lambda pair: at(*pair), (ts, ys))
    else:
        norms, losses = jax.tree.map(lambda x: x[None], at(path.end, path.y))
    return as_flow(path, path.y, path.ys if saved else None, losses, norms)


def as_flow(path: Path, z: PyTree, zs: PyTree | None, losses: Any, norms: Array) -> Flow:
    """A path with its measures; one whose measures are not finite has diverged."""
    failed = (path.result != Result.BAD_TIMES) & ~all_finite((norms, losses))
    result = jnp.where(failed, Result.DIVERGED, path.result).astype(jnp.int32)
    reached = jnp.isfinite(path.ts)
    norms, losses = jax.tree.map(lambda x: jnp.where(reached, x, jnp.inf), (norms, losses))
    return Flow(path.ts, z, zs, losses, norms, path.num_steps, result, result == Result.SUCCESS)


def _where_rows(reached, ys, y):
    mask = reached.reshape(-1, *(1,) * y.ndim)
    return jnp.where(mask, ys, y[None])


def finished(flow: Flow, z0: PyTree, throw: bool | None) -> Flow:
    """The flow in the dtypes of z0; a `FlowError` if it did not reach its end, as `throw` says."""
    leaves = zip(jax.tree.leaves(flow.z), jax.tree.leaves(z0), strict=True)
    if any(x.dtype != y.dtype for x, y in leaves):
        z, zs = cast_like(flow.z, z0), None if flow.zs is None else cast_like(flow.zs, z0)
        # A range smaller than that of float32 may not hold what was reached.
        pairs = zip(*map(jax.tree.leaves, ((z, zs), (flow.z, flow.zs))), strict=True)
        kept = jnp.stack([jnp.all(jnp.isfinite(x) == jnp.isfinite(y)) for x, y in pairs]).all()
        result = jnp.where(kept, flow.result, jnp.maximum(flow.result, Result.DIVERGED))
        flow = flow._replace(z=z, zs=zs, result=result, converged=flow.converged & kept)
    return checked(flow, throw)


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
