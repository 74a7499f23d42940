"""Solving the flows with diffrax: any field, or the models' own in reduced coordinates."""

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import check_finite, check_floating, check_positive, is_concrete
from imr._typing import Field, Loss, PyTree, ScalarLike
from imr.errors import FlowError, ImrError
from imr.flow.control import Guarded, GuardedConstant, all_finite
from imr.flow.splitting import Splitting, check_fields, midpoint, strang_stages


class Result(enum.IntEnum):
    """How a flow ended; the code in `Flow.result`."""

    SUCCESS = 0
    STEP_LIMIT = 1
    """`max_steps` steps did not reach the end."""
    DIVERGED = 2
    """The features left the finite numbers, or what was handed in was not finite."""
    STEP_TOO_SMALL = 3
    """The error control asked for steps that cannot be told from zero: a kink, features that run to
    infinity in finite time, or precision that is used up."""
    BAD_TIMES = 4
    """Under a trace, where nothing can be raised: t1 not after t0, or unsorted times."""


class Flow(NamedTuple):
    """A solved flow; a pytree, so that it comes out of `jax.jit` and `jax.vmap`.

    Attributes:
      ts: times, shape (s,); s = 1, the end, where no times were asked for. Steady state: the time
        at which it was found.
      z: the features at the end, or the last good state where the end was not reached.
      zs: the features at the times asked for, a leading axis of s; None where none were.
      loss: at ts, shape (s,), or None.
      grad_norm: the Frobenius norm of the field at ts, shape (s,).
      num_steps: steps of the solver, rejected ones counted.
      result: a code, see `Result`.
      converged: whether it solved to t1, or found the steady state.

    What was not reached is inf; where no times were asked for, ts, loss and grad_norm are those of
    the last good state.
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
    throw: bool = False,
) -> Flow:
    r"""Solves $dz/dt = f(t, z, args)$ from z0 at t0 to t1.

    Args:
      field: f(t, z, args); of `gradient_field` and its like, or any function. Several of them are
        solved by operator splitting, in steps of dt0; f is their sum.
      z0: features, shape (n, f), or any pytree of arrays.
      t1: the end, after t0.
      t0: the start.
      ts: times to save at, increasing, within [t0, t1], shape (s,).
      loss: z -> scalar, evaluated at the saved times.
      args: handed to the field.
      solver: of diffrax; Tsit5 unless said (Euler under noise; of several fields Strang's splitting
        by `imr.splitting.Splitting`).
      rtol: relative tolerance of the adaptive steps; the error norm is the root mean square over
        all entries of z.
      atol: absolute tolerance.
      dt0: constant steps instead of adaptive ones, of this size, or a little less where that makes
        them even between the times asked for.
      noise: (sigma, key), the SDE $dz = f dt + \sigma dW$ in the sense of Itô; needs dt0.
      adjoint: of diffrax; RecursiveCheckpointAdjoint unless said. With BacksolveAdjoint the field
        must be a pytree that holds its parameters (`jax.tree_util.Partial`), or take them in args.
      max_steps: step limit, from one time asked for to the next.
      throw: raise `FlowError` where the end is not reached; not under `jax.jit`.

    Returns:
      A `Flow`. Two calls with other values of the same shapes compile once, if the field is a
      pytree or the same function.

    Raises:
      ImrError: for concrete values, where z0 is not finite, t1 is not after t0, or the times are
        unsorted or outside of [t0, t1].
      FlowError: where asked for.

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
    check_finite("z0", z0)
    parts = as_partials(field)
    _check_shapes(parts, t0, z0, args, loss)
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
    return raised(flow) if throw else flow


def as_partials(field: Field | Sequence[Field]) -> Any:
    """A field as a pytree, or several as a tuple of pytrees."""
    partial = lambda f: f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)  # noqa: E731
    return partial(field) if callable(field) else tuple(map(partial, check_fields(field)))


def _check_shapes(field: Any, t0: Any, z0: PyTree, args: Any, loss: Loss | None) -> None:
    """Demands what field and loss must give, from shapes alone: nothing is computed.

    What they hold, targets among it, is concrete here and checked by their own; in the compiled
    solve it is not.
    """
    shapes = lambda tree: [jnp.shape(x) for x in jax.tree.leaves(tree)]  # noqa: E731
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


class Path(NamedTuple):
    """What the integration of a state gives, before anything is read off it: y is at `end`."""

    ts: Array
    end: Array
    y: PyTree
    ys: PyTree
    num_steps: Array
    result: Array


def integrate(
    field: Any,
    y0: PyTree,
    *,
    t0: ScalarLike,
    t1: ScalarLike,
    ts: Any,
    args: Any = None,
    solver: dfx.AbstractSolver | None = None,
    rtol: ScalarLike = 1e-5,
    atol: ScalarLike = 1e-7,
    dt0: ScalarLike | None = None,
    noise: tuple[ScalarLike, Any] | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    max_steps: int = 4096,
    steady: bool = False,
) -> Path:
    """Integrates a state of any kind; with `steady`, until its field is below the tolerances."""
    if not steady:
        check_times(t0, t1, ts)
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    if dt0 is not None:
        check_positive("dt0", dt0)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ImrError(f"max_steps must be an integer of at least 1; found {max_steps!r}.")
    dtype = jnp.result_type(*jax.tree.leaves(y0), jnp.float32)
    time = lambda t: None if t is None else jnp.asarray(t, dtype)  # noqa: E731
    if noise is not None:
        noise = (jnp.asarray(noise[0], dtype), noise[1])
    if solver is None:
        solver = dfx.Euler() if noise is not None else dfx.Tsit5()
    adjoint = dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    return _diffeqsolve(
        field, y0, time(t0), time(t1), time(ts), args, solver, time(rtol), time(atol), time(dt0),
        noise, adjoint, max_steps, steady,
    )  # fmt: skip


@eqx.filter_jit
def _diffeqsolve(
    field, y0, t0, t1, ts, args, solver, rtol, atol, dt0, noise, adjoint, max_steps, steady
) -> Path:
    """From one time asked for to the next, so that diffrax has no times of its own to check.

    Its checks raise from inside the program, which then runs on no platform but the one it was
    traced for. What is wrong here comes out as a code.
    """
    ordered = t1 > t0
    if ts is not None:
        ordered &= jnp.all(jnp.diff(ts) > 0) & jnp.all((ts >= t0) & (ts <= t1))
    finite = all_finite(y0)
    code = jnp.where(finite, Result.SUCCESS, Result.DIVERGED)
    code = jnp.where(ordered, code, Result.BAD_TIMES).astype(jnp.int32)

    several = isinstance(field, tuple)
    terms: Any = dfx.MultiTerm(*map(dfx.ODETerm, field)) if several else dfx.ODETerm(field)
    if noise is not None:
        sigma, key = noise
        shape = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), y0)
        # Below its tolerance the tree is no Brownian motion: the shortest step is above it.
        gaps = jnp.diff(t1[None] if ts is None else jnp.append(ts, t1), prepend=t0)
        shortest = jnp.minimum(dt0, jnp.min(jnp.where(gaps > 0, gaps, dt0)))
        motion = dfx.VirtualBrownianTree(t0, t1, tol=shortest / 4, shape=shape, key=key)
        terms = dfx.MultiTerm(terms, dfx.ControlTerm(_Diffusion(sigma), motion))
    control = dfx.PIDController(rtol=rtol, atol=atol)
    event = (
        dfx.Event(dfx.steady_state_event(rtol, atol, norm=_root_mean_square)) if steady else None
    )

    def step(carry, times):
        """From one time to the next, or nowhere once something has gone wrong."""
        start, end = times
        t, y, size, steps, code = carry
        going = code == Result.SUCCESS
        controller = Guarded(control, size) if dt0 is None else GuardedConstant(dt0)
        solution: Any = dfx.diffeqsolve(
            terms, solver, start, jnp.where(going, end, start), None, y, args,
            saveat=dfx.SaveAt(t1=True), adjoint=adjoint, stepsize_controller=controller,
            max_steps=max_steps, throw=False, event=event,
        )  # fmt: skip
        wanted = dfx.RESULTS.event_occurred if steady else dfx.RESULTS.successful
        failure = jnp.where(
            solution.result == dfx.RESULTS.max_steps_reached,
            Result.STEP_LIMIT,
            Result.STEP_TOO_SMALL if dt0 is None else Result.DIVERGED,
        )
        new = jax.tree.map(lambda x: x[0], solution.ys)
        # Of nothing reached at all diffrax saves inf.
        some = all_finite(new)
        ended = jnp.where(solution.result == wanted, Result.SUCCESS, failure)
        ended = jnp.where(some, ended, Result.DIVERGED).astype(jnp.int32)
        moved = going & some
        y = jax.tree.map(lambda x, old: jnp.where(moved, x, old), new, y)
        t = jnp.where(moved, solution.ts[0], t)
        steps = steps + solution.stats["num_steps"].astype(jnp.int32)
        size = jax.lax.stop_gradient(end - start) / solution.stats["num_accepted_steps"]
        code = jnp.where(going, ended, code)
        reached = code == Result.SUCCESS
        saved = jax.tree.map(lambda x: jnp.where(reached, x, jnp.inf), (t if steady else end, y))
        return (t, y, jnp.where(end > start, size, 0), steps, code), saved

    # The times asked for and the end in one scan, so that there is one solve to compile.
    ends = t1[None] if ts is None else jnp.append(ts, t1)
    stretches = jnp.append(t0, ends[:-1]), ends
    first = (t0, y0, jnp.zeros_like(t0), jnp.zeros((), jnp.int32), code)
    (t, y, _, steps, code), (times, ys) = jax.lax.scan(step, first, stretches)
    if ts is None:
        return Path(jnp.where(code == Result.BAD_TIMES, jnp.inf, t)[None], t, y, None, steps, code)
    times, ys = jax.tree.map(lambda x: x[:-1], (times, ys))
    return Path(times, t, y, ys, steps, code)


class _Diffusion(eqx.Module):
    """The diffusion of additive noise, sigma times the identity."""

    sigma: Array

    def __call__(self, t, y, args):
        del t, args
        entries = jax.tree.map(lambda x: jnp.full_like(x, self.sigma), y)
        return lineax.DiagonalLinearOperator(entries)


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


def raised(flow: Flow) -> Flow:
    """The flow, or a `FlowError` where it did not reach its end."""
    if not is_concrete(flow.result):
        raise ImrError(
            "throw=True needs concrete values; under jax.jit or jax.vmap look at result."
        )
    codes = np.atleast_1d(np.asarray(flow.result))
    if codes.any():
        result = Result(int(codes[codes != 0][0]))
        raise FlowError(
            f"the flow did not reach its end: {result.name} after {flow.num_steps} steps. "
            "Look at the Flow without throw=True. More steps (max_steps) or looser tolerances help "
            "a long flow; one that runs to infinity needs a regulariser (anchor) or an earlier t1."
        )
    return flow


def check_times(t0: Any, t1: Any, ts: Any) -> None:
    """Demands t0 < t1 and increasing times between, where they are concrete."""
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


def _root_mean_square(tree: PyTree) -> Array:
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum(jnp.sum(x**2) for x in leaves) / sum(x.size for x in leaves))
