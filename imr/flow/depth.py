"""Depth is time: tied blocks against the flow that they step along."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_callable, check_scalar
from imr._module import numbers_as_leaves
from imr._typing import Field, PyTree, Scalar, ScalarLike
from imr.errors import ImrError
from imr.flow.solve import as_fields, solve
from imr.flow.splitting import check_fields, lie_step
from imr.flow.state import as_arrays, as_state, cast_like, state_dtype
from imr.flow.times import as_times


class DepthIsTime(NamedTuple):
    """How a tied stack of blocks comes closer to the flow as it deepens.

    Attributes:
      depths: n, numbers of blocks, shape (s,).
      taus: the step of each, (t1 - t0) / n, shape (s,).
      errors: largest difference from the flow at t1, over its largest entry, shape (s,).
      order: the slope of log error against log tau, by least squares; NaN if an error is not
        above ten times the tolerance of the flow compared with.
      z: the features of the flow at t1.
    """

    depths: Array
    taus: Float[Array, "s"]
    errors: Float[Array, "s"]
    order: Scalar
    z: PyTree


def depth_is_time(
    fields: Sequence[Field],
    z0: PyTree,
    *,
    t1: ScalarLike,
    t0: ScalarLike = 0.0,
    depths: Sequence[int] = (16, 32, 64, 128),
    step: Callable[..., Any] = lie_step,
    args: Any = None,
    tol: ScalarLike | None = None,
) -> DepthIsTime:
    r"""Compares stacks of n tied blocks, each a step of $\tau = T / n$, with the flow itself.

    $$Z_{l+1} = S_\tau(Z_l), \quad \max |Z_n - Z(T)| / \max |Z(T)| \sim \tau^p$$

    Args:
      fields: f(t, z, args), in order of application; the flow is that of their sum.
      z0: features, shape (n, f), or any pytree of arrays.
      t1, t0: the flow's end and start.
      depths: numbers of blocks, increasing.
      step: the block, step(fields, z, tau, t, args): `lie_step`, a residual transformer block,
        `strang_step`, or a partial of `split_step`.
      args: handed to each field.
      tol: relative and absolute tolerance of the flow compared with; 1e-11 in float64, 1e-6 in
        float32.
    Returns: A `DepthIsTime`; its order is near 1 for Lie steps, 2 for Strang's.
    Raises:
      ImrError: if the depths are not increasing numbers from 1, and as `imr.solve` does.
      FlowError: if the flow itself cannot be solved to t1.

    >>> import jax.numpy as jnp, imr
    >>> theta, labels = jnp.eye(3), jnp.array([0, 1])
    >>> attend = lambda t, z, args: -imr.cross_attention(z, theta)
    >>> know = lambda t, z, args: theta[labels]
    >>> depth_is_time([attend, know], jnp.zeros((2, 3)), t1=2.0).order.round(1).item()
    1.0

    Reference: arXiv 2509.04653, Corollary on operator splitting.
    """
    if not isinstance(depths, list | tuple) or not all(isinstance(n, int) for n in depths):
        raise ImrError(f"depths must be a list of integers; found {depths!r}.")
    if len(depths) < 2 or depths[0] < 1 or any(n >= m for n, m in pairwise(depths)):
        raise ImrError(f"depths must be two or more increasing numbers from 1; found {depths}.")
    parts, args = as_fields(check_fields(fields)), numbers_as_leaves(args)
    given = as_arrays("z0", z0)
    z0, dtype = as_state(given), state_dtype(given)
    if tol is None:
        tol = 1e-11 if jnp.finfo(dtype).bits > 32 else 1e-6
    check_scalar("tol", tol)
    check_callable("step", step)
    total = jax.tree_util.Partial(_total, parts)
    t0, t1 = map(jnp.asarray, as_times(t0, t1, None, dtype)[:2])
    z = solve(total, z0, t0=t0, t1=t1, args=args, rtol=tol, atol=tol, max_steps=2**16, throw=True).z
    start, span = t0, t1 - t0
    ends = [_stack(parts, step, z0, jnp.asarray(n), start, span, args) for n in depths]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(z)]))
    errors = jnp.stack([_distance(end, z) for end in ends]) / largest
    taus = span / jnp.array(depths, dtype)
    order = jnp.polyfit(jnp.log(jnp.abs(taus)), jnp.log(errors), 1)[0]
    order = jnp.where(jnp.min(errors) > 10 * tol, order, jnp.nan)
    return DepthIsTime(jnp.array(depths), taus, errors, order, cast_like(z, given))


@eqx.filter_jit
def _stack(fields, step, z0, depth, t0, span, args):
    """n tied blocks; n is an argument, so that all depths share one program."""
    tau = span / depth

    def block(l, z):
        return cast_like(step(fields, z, tau, t0 + l * tau, args), z)

    return jax.lax.fori_loop(0, depth, block, z0)


def _total(fields, t, z, args):
    return jax.tree.map(lambda *parts: sum(parts), *(field(t, z, args) for field in fields))


def _distance(a, b):
    return jnp.max(
        jnp.stack(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), a, b)))
    )
