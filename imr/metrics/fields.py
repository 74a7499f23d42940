"""How far a vector field is from being a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from imr._checks import as_numbers, check_callable, check_count, check_floating, check_key
from imr._numerics import widen
from imr._typing import Field, Scalar, ScalarLike
from imr.errors import ImrError


def antisymmetric_share(
    field: Field, z: Any, key: PRNGKeyArray, num_probes: int = 32, t: ScalarLike = 0.0, args: Any = None
) -> Scalar:  # fmt: skip
    r"""How far a field is from being a gradient: the antisymmetric share of its Jacobian J at z.

    $$\frac{\|(J - J^T) / 2\|_F^2}{\|J\|_F^2} \approx
      \frac{\sum_v \|J v - J^T v\|^2}{2 \sum_v (\|J v\|^2 + \|J^T v\|^2)}, \quad v_i = \pm 1$$

    J is never built: a probe v is a product with J and one with J^T, one probe at a time.

    Args:
      field: f(t, z, args), differentiable in both modes.
      z: features, an array or a pytree of arrays.
      key, num_probes: for the random probes, and how many.
      t, args: handed to the field.
    Returns: A scalar in [0, 1], whatever the probes: exactly 0 for a gradient or a constant field,
      and 1 for a rotation.
    Raises: ImrError if the field returns other shapes than z has, z is not floating or num_probes
      is no positive integer.

    >>> field = lambda t, z, args: z @ jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> antisymmetric_share(field, jnp.ones((3, 2)), jax.random.key(0)).item()
    1.0
    """
    check_count("num_probes", num_probes)
    check_callable("field", field)
    check_key(key)
    for leaf in jax.tree.leaves(z):
        check_floating("z", as_numbers("z", leaf))
    if (found := _shapes(jax.eval_shape(lambda z: field(t, z, args), z))) != _shapes(z):
        raise ImrError(f"field must return the shapes of z, {_shapes(z)}; found {found}.")
    flat, unravel = ravel_pytree(z)

    def flat_field(x):
        return ravel_pytree(field(t, unravel(x), args))[0].astype(x.dtype)

    push = jax.linearize(flat_field, flat)[1]
    pull = jax.linear_transpose(push, flat)

    def squares(key):
        v = jax.random.rademacher(key, flat.shape, flat.dtype)
        forward, backward = widen(push(v)), widen(pull(v)[0])
        return jnp.sum((forward - backward) ** 2), jnp.sum(forward**2 + backward**2)

    above, below = (x.sum() for x in jax.lax.map(squares, jax.random.split(key, num_probes)))
    return above / jnp.where(below > 0, 2 * below, 1)


def _shapes(tree):
    return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]
