"""Step control that accepts finite states only, so that a failed solve keeps its last good state."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from imr.flow.state import all_finite


class Guarded(dfx.AbstractAdaptiveStepSizeController):
    """Error control that never accepts a step to a state that is not finite.

    It reports a large finite error instead, so that a smaller step is tried, and the last finite
    state is what remains if none succeeds.
    """

    controller: Any
    size: Array

    def __init__(self, controller: Any, size: Array):
        self.controller, self.size = controller, size

    @property
    def rtol(self):
        """Implicit solvers read their tolerances from rtol, atol and norm."""
        return self.controller.rtol

    @property
    def atol(self):
        """See rtol."""
        return self.controller.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """See rtol."""
        return self.controller.norm

    def wrap(self, direction):
        return Guarded(self.controller.wrap(direction), self.size)

    def init(self, terms, t0, *inputs):
        """Starts with the step size of the stretch before, at least one that moves the time."""
        t1, state = self.controller.init(terms, t0, *inputs)
        least = jnp.maximum(self.size, 100 * jnp.finfo(t1.dtype).eps * jnp.abs(t0))
        return jnp.maximum(t1, t0 + least), state

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, state):
        finite = all_finite(y1_candidate)
        safe = jax.tree.map(lambda y, y1: jnp.where(finite, y1, y), y0, y1_candidate)
        large = jax.tree.map(
            lambda e, y: jnp.where(finite, e, jnp.full_like(y, 1e6) * (1 + jnp.abs(y))), y_error, y0
        )
        keep, t0_next, t1_next, jump, state, result = self.controller.adapt_step_size(
            t0, t1, y0, safe, args, large, error_order, state
        )
        stuck = ~(t1_next > t0_next)
        result = dfx.RESULTS.where(stuck, dfx.RESULTS.dt_min_reached, result)
        return keep & finite, t0_next, t1_next, jump, state, result


class GuardedConstant(dfx.AbstractStepSizeController):
    """Constant steps, which stop at the first state that is not finite: no step is smaller."""

    dt0: Array

    def wrap(self, direction):
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, *inputs):
        """Equal steps from t0 to t1, of size dt0 or a little less."""
        count = jnp.maximum(jnp.ceil((t1 - t0) / self.dt0 - 1e-3), 1)
        return dfx.ConstantStepSize().init(terms, t0, t1, y0, (t1 - t0) / count, *inputs)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, *inputs):
        keep, *rest, result = dfx.ConstantStepSize().adapt_step_size(
            t0, t1, y0, y1_candidate, *inputs
        )
        finite = all_finite(y1_candidate)
        stop = dfx.RESULTS.where(finite, result, dfx.RESULTS.dt_min_reached)
        return keep & finite, *rest, stop
