"""The flow itself in the place of a block: depth that is continuous."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array

from imr._checks import check_count
from imr._typing import Features, ScalarLike
from imr.errors import ImrError
from imr.flow.integrate import check_method
from imr.flow.moving import linear_path
from imr.flow.solve import Flow, solve
from imr.flow.splitting import midpoint
from imr.models import Linear
from imr.nn.block import MLP, LieBlock, draw_theta


class FlowBlock(LieBlock):
    r"""Features in, Z(T) out: the flow whose Lie step is `Block`, solved by diffrax.

    $$dZ/dt = -CA(Z, \theta(t)) + MLP(Z), \quad Z(0) = X$$

    theta, or theta(t), bias, MLP and the duration T are parameters; their gradients go through the
    solver's adjoint. Time is counted from 0 to 1 inside, and the field multiplied by T.

    Args:
      num_features, num_classes, attention, mlp_width, rngs: as in `Block`.
      tau: the duration T to start from; its logarithm is the parameter.
      knots: 1 is an autonomous flow, tied depth. More are values of theta at even times from 0 to
        T, straight lines between: untied depth. The read-out's theta is that at T.
      steps: constant steps from 0 to T by the explicit midpoint rule, in a plain scan, which costs a
        fraction of diffrax's; None solves adaptively.
      rtol, atol, solver, adjoint, max_steps: as in `imr.solve`, for the adaptive solve.
    Raises: ImrError if a size is no positive integer, steps do not end at the knots, or tau is not
      positive.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> block = FlowBlock(num_features=3, num_classes=2, tau=2.0, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((5, 3))).shape, bool(block.solve(jnp.ones((5, 3))).converged)
    ((5, 3), True)

    Reference: arXiv 2509.04653, Theorem 1; Chen et al., arXiv 1806.07366 (learning through a flow).
    """

    def __init__(
        self, num_features: int, num_classes: int, *, attention: bool = True,
        mlp_width: int | None = 128, tau: float = 0.25, knots: int = 1, steps: int | None = None,
        rtol: float = 1e-4, atol: float = 1e-6, solver: Any = None, adjoint: Any = None,
        max_steps: int = 256, rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(num_features, num_classes, attention, tau)
        check_count("knots", knots)
        check_method(rtol, atol, None, solver, adjoint, max_steps, None)
        if steps is not None:
            check_count("steps", steps)
            if steps % max(knots - 1, 1):
                raise ImrError(
                    f"steps must be a multiple of knots - 1 = {knots - 1}, so that none crosses a "
                    f"corner of theta(t); found {steps}."
                )
        self.steps, self.rtol, self.atol, self.max_steps = steps, rtol, atol, max_steps
        self.solver, self.adjoint = nnx.static(solver), nnx.static(adjoint)
        shape = (num_classes, num_features)
        self.thetas = draw_theta(rngs, *shape) if knots == 1 else draw_theta(rngs, knots, *shape)
        self.mlp = None if mlp_width is None else MLP(num_features, mlp_width, rngs=rngs)

    @property
    def theta(self) -> Array:
        """Class weights (k, f) at the end of the flow."""
        thetas = self.thetas[...]
        return thetas if thetas.ndim == 2 else thetas[-1]

    def solve(self, z: Features, *, ts: Any = None) -> Flow:
        """The adaptive solve from z, with its result code; times from 0 to 1, in units of T."""
        graph, params = nnx.split(self, nnx.Param)
        return solve(
            Partial(_field, graph), z, t1=1.0, ts=ts, args=params, throw=False, rtol=self.rtol,
            atol=self.atol, solver=self.solver, adjoint=self.adjoint, max_steps=self.max_steps,
        )  # fmt: skip

    def __call__(self, z: Features) -> Features:
        """Z(T), shape (n, f); NaN if the adaptive solve did not reach T."""
        if self.steps is not None:
            tau = 1 / self.steps

            def field(t, z, args):
                return self.slope(t, z)

            def step(z, l):
                return midpoint(field, z, tau, l * tau, None), None

            return jax.lax.scan(step, z, jnp.arange(self.steps))[0]
        # A step across a knot, where theta(t) has a corner, would lose its order.
        knots = self.thetas.shape[0] if self.thetas.ndim == 3 else 1
        flow = self.solve(z, ts=jnp.linspace(0, 1, knots)[1:-1] if knots > 2 else None)
        return jnp.where(flow.converged, flow.z, jnp.nan)

    def slope(self, t: ScalarLike, z: Features) -> Features:
        """dz/dt at time t of 0 to 1, in units of T: T times the field."""
        slope = jnp.zeros_like(z)
        if self.attention:
            slope = slope + self._descend(t, z)
        if self.mlp is not None:
            slope = slope + self.mlp(z)
        return self.tau * slope

    def _descend(self, t, z):
        theta = self.thetas[...]
        if theta.ndim == 3:
            theta = linear_path(jnp.linspace(0, 1, len(theta), dtype=theta.dtype), theta)(t)
        return -Linear(theta, self.bias[...]).attention(z)


def _field(graph, t, z, params):
    """The module as a function of its parameters, which so reach every adjoint as args."""
    return nnx.merge(graph, params).slope(t, z)
