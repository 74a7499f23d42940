"""How linear attention learns to regress in context: the flow of its parameters."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from imr._checks import as_floats, check_positive, check_rank, check_scalar
from imr._module import Module
from imr._typing import Rows, ScalarLike


class AttentionDynamics(Module):
    """The flow of (u, v); `attention_dynamics` makes one."""

    eigenvalues: Rows
    num_examples: Array

    def __call__(self, t: Any, state: Any, args: Any = None) -> Any:
        del t, args
        u, v = state
        s = self.eigenvalues
        second = s**2 * (1 + 1 / self.num_examples) + s * jnp.sum(s) / self.num_examples
        slope = s**2 - v * u * s * second
        return v * slope, jnp.sum(u * slope)


def attention_dynamics(eigenvalues: Rows, num_examples: ScalarLike) -> AttentionDynamics:
    r"""Gradient flow of a linear attention layer on random linear regression tasks.

    The prediction is $v \, h^T U x_q$ with $h = \frac1N \sum_i y_i x_i$; in the eigenbasis of the
    covariance, with eigenvalues $s_i$, U stays diagonal with entries u and

    $$\dot u_i = v s_i^2 - v^2 u_i s_i q_i, \quad \dot v = \sum_i u_i s_i^2 - v u_i^2 s_i q_i, \quad
      q_i = s_i^2 (1 + 1/N) + s_i \, tr(\Lambda) / N.$$

    Each mode rises in its own time, larger eigenvalues first, to $v u_i = s_i / q_i$.

    Args:
      eigenvalues: s, shape (d,), positive.
      num_examples: N, positive.
    Returns: A field f(t, (u, v), args), for `imr.solve` with u of shape (d,) and v a scalar.
    Raises: ImrError if a value is not positive.

    >>> import jax.numpy as jnp
    >>> field = attention_dynamics(jnp.array([1.0]), 10)
    >>> [x.round(3).tolist() for x in field(0.0, (jnp.array([0.5]), jnp.array(0.5)))]
    [[0.35], 0.35]

    Reference: Zhang et al., Training dynamics of in-context learning in linear attention,
    arXiv 2501.16265.
    """
    eigenvalues = as_floats("eigenvalues", eigenvalues)
    check_rank("eigenvalues", eigenvalues, 1, "(d,)")
    check_positive("eigenvalues", eigenvalues)
    check_scalar("num_examples", num_examples)
    check_positive("num_examples", num_examples)
    return AttentionDynamics(eigenvalues, jnp.asarray(num_examples, eigenvalues.dtype))
