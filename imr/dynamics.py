"""Vector fields f(t, z, args) of the features."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from imr._checks import ImrError
from imr._typing import Loss


def gradient_field(loss: Loss) -> Partial:
    """The gradient flow of a loss, by automatic differentiation: $f(t, z, args) = -dL/dz$.

    Args:
      loss: z -> scalar; `feature_loss` makes one, and any function of the user's will do.

    Returns:
      A field f(t, z, args), a `jax.tree_util.Partial`: the leaves of the loss, theta among them,
      are its leaves, so that every adjoint of a solver sees them. It makes no use of t and args.

    Raises:
      ImrError: where the loss cannot be called.

    >>> import jax.numpy as jnp
    >>> field = gradient_field(lambda z: 0.5 * jnp.sum(z**2))
    >>> field(0.0, jnp.array([1.0, -2.0]), None).tolist()
    [-1.0, 2.0]
    """
    if not callable(loss):
        raise ImrError(f"loss must be callable as loss(z); found {type(loss).__name__}.")
    return Partial(_gradient_field, loss if isinstance(loss, Partial) else Partial(loss))


def _gradient_field(loss: Partial, t: Any, z: Any, args: Any) -> Any:
    del t, args
    return jax.tree.map(jnp.negative, jax.grad(loss)(z))
