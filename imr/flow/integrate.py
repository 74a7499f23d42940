"""The integration under all solves: stretch by stretch, with codes instead of exceptions."""

import enum
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array

from imr._checks import check_choice, check_count, check_positive, check_scalar, is_concrete
from imr._typing import PyTree, ScalarLike
from imr.errors import ImrError
from imr.flow.control import Guarded, GuardedConstant
from imr.flow.derivatives import forward_alone, once_in_reverse
from imr.flow.stages import LARGE, UnrolledTsit5
from imr.flow.state import StateField, all_finite, as_state, norm, state_dtype
from imr.flow.times import in_order


class Result(enum.IntEnum):
    """How a flow ended; the code in `Flow.result`."""

    SUCCESS = 0
    STEP_LIMIT = 1
    """`max_steps` steps did not reach the end."""
    DIVERGED = 2
    """The features, their field or their loss left the finite numbers, or never were there: NaN,
    labels out of range or rows of targets that are no distribution, under a trace, where nothing can
    be raised."""
    STEP_TOO_SMALL = 3
    """The error control asked for steps that cannot be told from zero: a kink, features that run to
    infinity in finite time, or precision that is used up."""
    BAD_TIMES = 4
    """Under a trace, where nothing can be raised: t1 equal to t0, times not in order from one to
    the other, or noise backwards in time."""


class Path(NamedTuple):
    """What an integration gives, before anything is read off it.

    Attributes:
      ts: the times asked for, or the time reached, shape (s,); inf if not reached.
      end: the time that was reached.
      y: the state at `end`.
      ys: the states at ts, or None if no times were asked for.
      num_steps: steps of the solver, rejected ones counted.
      result: a code, see `Result`.
    """

    ts: Array
    end: Array
    y: PyTree
    ys: PyTree
    num_steps: Array
    result: Array


class Method(NamedTuple):
    """How to integrate: a solver of diffrax, its adjoint and its tolerances."""

    solver: dfx.AbstractSolver
    adjoint: dfx.AbstractAdjoint
    max_steps: int
    rtol: Any
    atol: Any
    dt0: Any
    steady: bool


class Noise(NamedTuple):
    """Additive noise sigma dW, drawn by a random key."""

    sigma: Array
    key: Array


def integrate(
    field: Any,
    y0: PyTree,
    *,
    t0: Any,
    t1: Any,
    ts: Any = None,
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
    """Integrates a state of any kind; with `steady`, until its field is below the tolerances.

    Times are those of `as_times`. The state has the dtype that `as_state` gives it, to the end.
    """
    if isinstance(adjoint, dfx.ImplicitAdjoint):
        raise ImrError(
            "adjoint=diffrax.ImplicitAdjoint() has the derivative of a steady state, which t1 is not: "
            "take imr.solve_to_steady_state."
        )
    y0, dtype = as_state(y0), state_dtype(y0)

    def time(t):
        return None if t is None else jnp.asarray(t, dtype)

    def fixed(x):
        return None if x is None else jax.lax.stop_gradient(time(x))

    adjoint = dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    if solver is None and noise is not None:
        solver = dfx.Euler()
    elif solver is None:
        large = sum(x.size for x in jax.tree.leaves(y0)) >= LARGE
        written_out = large and not isinstance(adjoint, dfx.BacksolveAdjoint)
        solver = UnrolledTsit5() if written_out else dfx.Tsit5()
    method = Method(solver, adjoint, max_steps, fixed(rtol), fixed(atol), fixed(dt0), steady)
    if noise is not None:
        noise = Noise(jnp.asarray(noise[0], dtype), noise[1])
    return _integrate(field, y0, time(t0), time(t1), time(ts), args, method, noise)


def check_method(
    rtol: Any, atol: Any, dt0: Any, solver: Any, adjoint: Any, max_steps: Any, throw: Any
) -> None:
    """Demands positive tolerances and steps, and a solver and an adjoint of diffrax."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        check_scalar(name, value)
        check_positive(name, value)
    if dt0 is not None:
        check_scalar("dt0", dt0)
        if is_concrete(dt0) and not np.asarray(dt0) > 0:
            raise ImrError(
                f"dt0 is the size of the steps, positive also where t1 lies before t0; found {dt0}."
            )
    if not isinstance(solver, dfx.AbstractSolver | None):
        raise ImrError(f"solver must be one of diffrax, as diffrax.Tsit5() is; found {solver!r}.")
    if not isinstance(adjoint, dfx.AbstractAdjoint | None):
        raise ImrError(
            f"adjoint must be one of diffrax, as diffrax.DirectAdjoint() is; found {adjoint!r}."
        )
    check_count("max_steps", max_steps)
    check_choice("throw", throw, (None, True, False))


class _State(NamedTuple):
    """What travels from stretch to stretch: where it stands, its step size, and how it went."""

    t: Array
    y: PyTree
    size: Array
    num_steps: Array
    result: Array


@eqx.filter_jit
def _integrate(field, y0, t0, t1, ts, args, method: Method, noise: Noise | None) -> Path:
    """From one time asked for to the next, so that diffrax has no times of its own to check.

    Its checks raise from inside the program, which then runs on no platform but the one it was
    traced for. What is wrong here comes out as a code.
    """
    if isinstance(method.adjoint, _ONCE) and not method.steady:
        inputs = once_in_reverse((field, y0, t0, t1, ts, args, noise), method.adjoint)
        field, y0, t0, t1, ts, args, noise = inputs
    code = _first_code(y0, t0, t1, ts, method, noise)
    # From a time that is not finite nothing goes, and noise is drawn at none.
    t0 = jnp.where(jnp.isfinite(t0), t0, 0)
    # The times asked for and the end in one scan, so that there is one solve to compile.
    ends = t1[None] if ts is None else jnp.append(ts, t1)
    diffusion = None if noise is None else _diffusion(y0, t0, ends, method, noise)

    def step(state, stretch):
        state = _advance(field, diffusion, args, method, state, *stretch)
        if ts is not None:
            state = _over_no_time(field, args, state, *stretch)
        reached = state.result == Result.SUCCESS
        time = state.t if method.steady else stretch[1]
        saved = jax.tree.map(lambda x: jnp.where(reached, x, jnp.inf), (time, state.y))
        return state, saved

    first = _State(t0, y0, jnp.zeros_like(t0), jnp.zeros((), jnp.int32), code)
    state, (times, ys) = jax.lax.scan(step, first, (jnp.append(t0, ends[:-1]), ends))
    if ts is None:
        times, ys = jnp.where(state.result == Result.BAD_TIMES, jnp.inf, state.t)[None], None
    else:
        times, ys = jax.tree.map(lambda x: x[:-1], (times, ys))
    path = Path(times, state.t, state.y, ys, state.num_steps, state.result)
    return forward_alone(path) if isinstance(method.adjoint, dfx.ForwardMode) else path


_ONCE = dfx.RecursiveCheckpointAdjoint, dfx.BacksolveAdjoint


def _first_code(y0, t0, t1, ts, method: Method, noise):
    """What is wrong before the first step."""
    ordered = in_order(t0, t1, ts) & (method.steady | jnp.isfinite(t1))
    if noise is not None:
        ordered &= t1 > t0
    code = jnp.where(all_finite(y0), Result.SUCCESS, Result.DIVERGED)
    return jnp.where(ordered, code, Result.BAD_TIMES).astype(jnp.int32)


def _diffusion(y0, t0, ends, method: Method, noise: Noise) -> Any:
    """The term of the noise."""
    shape = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), y0)
    t0, ends = jax.lax.stop_gradient((t0, ends))
    # Below its tolerance the tree is no Brownian motion: the shortest step is above it.
    gaps = jnp.diff(ends, prepend=t0)
    shortest = jnp.minimum(method.dt0, jnp.min(jnp.where(gaps > 0, gaps, method.dt0)))
    # It raises from inside the program if it has no length; such times come out as a code.
    end = jnp.where(jnp.isfinite(ends[-1]) & (ends[-1] > t0), ends[-1], t0 + 1)
    motion = dfx.VirtualBrownianTree(t0, end, tol=shortest / 4, shape=shape, key=noise.key)
    return dfx.ControlTerm(_Diffusion(noise.sigma), motion)


class _Diffusion(eqx.Module):
    """The diffusion of additive noise, sigma times the identity."""

    sigma: Array

    def __call__(self, t, y, args):
        del t, args
        entries = jax.tree.map(lambda x: jnp.full_like(x, self.sigma), y)
        return lineax.DiagonalLinearOperator(entries)


class _Clock(eqx.Module):
    """The times of a stretch as functions of where it starts and ends, for derivatives by both.

    diffrax has no second derivatives in its times. So it is given constants, and the field runs at a
    rate which is one, and has a derivative.
    """

    start: Array
    end: Array

    def __call__(self, tau: Array) -> Array:
        start = jax.lax.stop_gradient(self.start)
        return tau + (self.start - start) + (tau - start) * (self.rate - 1)

    @property
    def rate(self) -> Array:
        length = self.end - self.start
        fixed = jax.lax.stop_gradient(length)
        goes = jnp.isfinite(fixed) & (fixed != 0)
        return jnp.where(goes, length, 1) / jnp.where(goes, fixed, 1)


class _Timed(eqx.Module):
    """A field by a clock."""

    field: Any
    clock: _Clock

    def __call__(self, t, y, args):
        slopes = StateField(self.field)(self.clock(t), y, args)
        return jax.tree.map(lambda slope: self.clock.rate * slope, slopes)


def _terms(field, clock, diffusion) -> Any:
    """The terms of diffrax: one of a field, several to be split, or one with noise."""
    if isinstance(field, tuple):
        return dfx.MultiTerm(*(dfx.ODETerm(_Timed(part, clock)) for part in field))
    drift = dfx.ODETerm(_Timed(field, clock))
    return drift if diffusion is None else dfx.MultiTerm(drift, diffusion)


def _advance(field, diffusion, args, method: Method, state: _State, start, end) -> _State:
    """From one time to the next, or nowhere once something has gone wrong."""
    clock = _Clock(start, end)
    start, end = jax.lax.stop_gradient((start, end))
    going = state.result == Result.SUCCESS
    if method.dt0 is None:
        adaptive = dfx.PIDController(rtol=method.rtol, atol=method.atol)
        controller = Guarded(adaptive, state.size)
    else:
        controller = GuardedConstant(method.dt0)
    event = None
    if method.steady:
        still = dfx.steady_state_event(method.rtol, method.atol, norm=_root_mean_square)
        event = dfx.Event(still)
    solution: Any = dfx.diffeqsolve(
        _terms(field, clock, diffusion), method.solver, start, jnp.where(going, end, start), None, state.y, args,
        saveat=dfx.SaveAt(t1=True), adjoint=method.adjoint, stepsize_controller=controller,
        max_steps=method.max_steps, throw=False, event=event,
    )  # fmt: skip
    new = jax.tree.map(lambda x: x[0], solution.ys)
    # diffrax saves inf if it has made no step at all.
    moved = going & all_finite(new)
    size = jnp.abs(end - start) / solution.stats["num_accepted_steps"]
    return _State(
        jnp.where(moved, clock(solution.ts[0]), state.t),
        jax.tree.map(lambda x, old: jnp.where(moved, x, old), new, state.y),
        jnp.where(end != start, size, 0),
        state.num_steps + solution.stats["num_steps"].astype(jnp.int32),
        jnp.where(going, _outcome(solution, new, method), state.result),
    )


def _over_no_time(field, args, state: _State, start, end) -> _State:
    """A state after a stretch of length zero, with first and second derivatives by its start and end.

    diffrax makes no step there. The midpoint rule has its value, and these derivatives.
    """
    fields = [StateField(part) for part in (field if isinstance(field, tuple) else (field,))]
    length = end - start
    length -= jax.lax.stop_gradient(length)

    def moved(t, y, size):
        slopes = (f(t, y, args) for f in fields)
        return jax.tree.map(lambda y, *parts: y + size * sum(parts), state.y, *slopes)

    def derived():
        middle = moved(start, state.y, length / 2)
        return end, moved(start + length / 2, middle, length)

    at_once = (state.result == Result.SUCCESS) & (start == end)
    t, y = jax.lax.cond(at_once, derived, lambda: (state.t, state.y))
    return state._replace(t=t, y=y)


def _outcome(solution, new, method: Method):
    """The code of one solve of diffrax."""
    goal = dfx.RESULTS.event_occurred if method.steady else dfx.RESULTS.successful
    failure = jnp.where(
        solution.result == dfx.RESULTS.max_steps_reached,
        Result.STEP_LIMIT,
        Result.STEP_TOO_SMALL if method.dt0 is None else Result.DIVERGED,
    )
    code = jnp.where(solution.result == goal, Result.SUCCESS, failure)
    return jnp.where(all_finite(new), code, Result.DIVERGED).astype(jnp.int32)


def _root_mean_square(tree: PyTree) -> Array:
    return norm(tree) / max(sum(x.size for x in jax.tree.leaves(tree)), 1) ** 0.5
