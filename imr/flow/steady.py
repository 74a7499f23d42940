"""The steady state of a flow, with an implicit derivative."""

from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from imr._checks import check_finite
from imr._module import as_pytree, numbers_as_leaves
from imr._typing import Field, Loss, PyTree, ScalarLike
from imr.errors import ImrError
from imr.flow.derivatives import in_reverse
from imr.flow.integrate import Path, check_method, integrate
from imr.flow.solve import Flow, check_shapes, finished, measured
from imr.flow.state import StateField, as_arrays, as_state, state_dtype


def solve_to_steady_state(
    field: Field,
    z0: PyTree,
    *,
    rtol: ScalarLike = 1e-5,
    atol: ScalarLike = 1e-6,
    loss: Loss | None = None,
    args: Any = None,
    solver: dfx.AbstractSolver | None = None,
    max_steps: int = 4096,
    throw: bool | None = None,
) -> Flow:
    r"""Follows $dz/dt = f(z)$ to its steady state, $\|f(z)\| < atol + rtol \, \|z\|$.

    The derivative of the result is that of the implicit function, $dz = -(df/dz)^{-1} \, df$: it
    needs memory for one state, not for the whole solve, and does not depend on z0. The linear system
    is solved by BiCGSTAB with products of the Jacobian. It is meaningless if no steady state was
    found (see `converged`). Derivatives are taken in reverse mode alone; for forward mode follow the flow
    by `imr.solve`, with `adjoint=diffrax.ForwardMode()`.

    Args:
      field: f(t, z, args), taken at t = 0; it must not depend on time. The limit must exist: the
        features of a multinomial model run away for ever unless an anchor holds them.
      z0: features, shape (n, f), or any pytree of arrays.
      rtol: relative tolerance, of the norm and of the steps.
      atol: absolute tolerance, of the norm and of the steps; norms are root mean squares.
      loss, args: as in `imr.solve`; the loss is evaluated at the end.
      solver: of diffrax; the default is Dopri8. Near the steady state, methods of lower order step at
        their limit of stability, and their errors keep the norm above the tolerance.
      max_steps: step limit.
      throw: whether to raise `FlowError` if no steady state was found; as in `imr.solve`.
    Returns: A `Flow` whose ts holds the time at which the steady state was found.
    Raises:
      ImrError: for concrete values, if z0 is not finite or a tolerance is not positive; for a
        derivative in forward mode.
      FlowError: if no steady state was found, unless throw is False.

    >>> import jax, jax.numpy as jnp
    >>> pull = lambda t, z, args: args - z
    >>> limit = lambda x: solve_to_steady_state(pull, jnp.zeros(1), args=x).z[0]
    >>> round(jax.grad(limit)(jnp.array([3.0])).item(), 4)
    1.0
    """
    z0 = as_arrays("z0", z0)
    check_finite("z0", z0)
    if not callable(field):
        raise ImrError(f"field must be one function f(t, z, args); found {type(field).__name__}.")
    check_method(rtol, atol, None, solver, None, max_steps, throw)
    field, args = as_pytree("field", field), numbers_as_leaves(args)
    field = check_shapes(field, z0, args, loss)
    rtol, atol = numbers_as_leaves((rtol, atol))
    path = _steady_state(field, as_state(z0), args, solver, rtol, atol, max_steps)
    flow = measured(field, path, args, loss, saved=False)
    return finished(flow, z0, throw)


@eqx.filter_jit
def _steady_state(field, z0, args, solver, rtol, atol, max_steps) -> Path:
    start = jax.lax.stop_gradient(z0)
    field, args = in_reverse((field, args))
    solver = dfx.Dopri8() if solver is None else solver
    return _relaxed((field, args), start, solver, rtol, atol, max_steps)


@eqx.filter_custom_vjp
def _relaxed(field_and_args, z0, solver, rtol, atol, max_steps) -> Path:
    field, args = field_and_args
    dtype = state_dtype(z0)
    return integrate(
        jax.tree_util.Partial(_autonomous, field), z0, t0=jnp.zeros((), dtype),
        t1=jnp.full((), jnp.inf, dtype), args=args,
        solver=solver, rtol=rtol, atol=atol, max_steps=max_steps, steady=True,
    )  # fmt: skip


@_relaxed.def_fwd
def _relaxed_forward(perturbed, field_and_args, z0, solver, rtol, atol, max_steps):
    del perturbed
    path = _relaxed(field_and_args, z0, solver, rtol, atol, max_steps)
    return path, path.y


@_relaxed.def_bwd
def _relaxed_backward(z, cotangent, perturbed, field_and_args, z0, solver, rtol, atol, max_steps):
    """Of f(z(p), p) = 0: the cotangent of p is -(df/dp)^T (df/dz)^-T that of z."""
    del perturbed, z0, solver, rtol, atol, max_steps
    leaves, rest = eqx.partition(field_and_args, eqx.is_inexact_array)

    def still(z, leaves):
        field, args = eqx.combine(leaves, rest)
        return StateField(partial(_autonomous, field))(jnp.zeros((), state_dtype(z)), z, args)

    _, transposed = jax.vjp(still, z, leaves)
    right = jax.tree.map(
        lambda c, x: jnp.zeros_like(x) if c is None else c, cotangent.y, z, is_leaf=_is_none
    )
    tolerance = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(z))).eps) ** 0.75
    w, _ = jax.scipy.sparse.linalg.bicgstab(
        lambda v: transposed(v)[0], right, tol=tolerance, maxiter=1000
    )
    return jax.tree.map(jnp.negative, transposed(w)[1])


def _autonomous(field, t, z, args):
    return field(jnp.zeros_like(t), z, args)


def _is_none(x: Any) -> bool:
    return x is None
