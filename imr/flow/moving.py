"""Fields under parameters that move: along a given path, or together with the features."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    as_mask,
    as_numbers,
    check_axis,
    check_finite,
    check_rank,
    is_concrete,
)
from imr._module import Module, as_pytree
from imr._typing import Features, Mask, ScalarLike
from imr.errors import ImrError
from imr.flow.state import as_arrays
from imr.losses import as_anchor, feature_loss


class PathField(Module):
    """The gradient flow under parameters that move in time; `path_field` makes one."""

    logits_fn: Any
    path: Any
    targets: Any
    where: Any
    anchor: Any

    def __call__(self, t: Any, z: Any, args: Any = None) -> Any:
        del args
        theta = self.path(t)

        def loss(z):
            model = Partial(_at_theta, self.logits_fn, theta)
            return feature_loss(model, self.targets, where=self.where, anchor=self.anchor)(z)

        return jax.tree.map(jnp.negative, jax.grad(loss)(z))


def _at_theta(logits_fn, theta, z):
    return logits_fn(z, theta)


def path_field(
    logits_fn: Callable[[Any, Any], Array],
    path: Callable[[Any], Any],
    targets: Any,
    *,
    where: Mask | None = None,
    anchor: tuple[ScalarLike, Features] | None = None,
) -> PathField:
    """The gradient flow under a theta that moves in time: untied depth.

    Args:
      logits_fn: the model as a function of both, `logits_fn(z, theta)`, such as
        `lambda z, theta: imr.Linear(theta)(z)`.
      path: from time t to theta, any pytree; `linear_path` makes one, and its knots are leaves of
        the field.
      targets, where, anchor: as in `feature_loss`.
    Returns: A field f(t, z, args).
    Raises: ImrError if logits_fn or path cannot be called, or the mask is no mask.

    >>> import jax.numpy as jnp, imr
    >>> path = linear_path(jnp.array([0.0, 1.0]), jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]))
    >>> field = path_field(lambda z, theta: imr.Linear(theta)(z), path, jnp.array([0]))
    >>> field(1.0, jnp.zeros((1, 2)), None).tolist()
    [[1.0, -1.0]]
    """
    logits_fn, path = as_pytree("logits_fn", logits_fn), as_pytree("path", path)
    return PathField(logits_fn, path, targets, as_mask(where), as_anchor(anchor))


class LinearPath(Module):
    """Straight lines through knots; `linear_path` makes one."""

    ts: Float[Array, "s"]
    values: Any

    def __call__(self, t: Any) -> Any:
        ts, values = self.ts, self.values
        if ts.shape[0] == 1:
            return jax.tree.map(lambda v: v[0], values)
        index = jnp.clip(jnp.searchsorted(ts, t, side="right") - 1, 0, ts.shape[0] - 2)
        share = jnp.clip((t - ts[index]) / (ts[index + 1] - ts[index]), 0, 1)
        return jax.tree.map(lambda v: (1 - share) * v[index] + share * v[index + 1], values)


def linear_path(ts: Float[Array, "s"] | list[float], values: Any) -> LinearPath:
    """A path through knots, straight between them and constant outside: t -> value.

    Args:
      ts: increasing times, shape (s,).
      values: a pytree whose leaves have a leading axis of s; a list of numbers is one leaf.
    Returns: A callable pytree, t -> values at t.
    Raises: ImrError if the times do not increase, the leading axes do not fit, or what is given are
      no numbers.

    >>> import jax.numpy as jnp
    >>> linear_path(jnp.array([0.0, 2.0]), jnp.array([[1.0], [3.0]]))(0.5).tolist()
    [1.5]
    """
    ts, values = as_floats("ts", ts), as_arrays("values", values)
    check_rank("ts", ts, 1, "(s,)")
    check_finite("ts", ts)
    if ts.shape[0] == 0:
        raise ImrError("ts must hold one or more times; found none.")
    if is_concrete(ts) and not (np.diff(np.asarray(ts)) > 0).all():
        raise ImrError(f"ts must increase; found {ts}.")
    for leaf in jax.tree.leaves(values):
        if leaf.ndim == 0:
            raise ImrError("values must have a leading axis of knots; found a scalar.")
        check_axis("values", leaf.shape[0], "ts", ts.shape[0], "knots (its first axis)")
    return LinearPath(ts, values)


class JointField(Module):
    """Features and parameters moving together; `joint_field` makes one."""

    loss: Any
    decay: tuple[Any, Any]
    rates: tuple[Any, Any]

    def __call__(self, t: Any, state: Any, args: Any = None) -> Any:
        del t, args
        gradients = jax.grad(self.loss, argnums=(0, 1))(*state)
        return tuple(
            jax.tree.map(lambda g, x, r=r, w=w: -r * (g + w * x), gradient, value)
            for gradient, value, w, r in zip(gradients, state, self.decay, self.rates, strict=True)
        )


def joint_field(
    loss: Callable[[Any, Any], Array],
    *,
    decay: tuple[ScalarLike, ScalarLike] = (0.0, 0.0),
    rates: tuple[ScalarLike, ScalarLike] = (1.0, 1.0),
) -> JointField:
    r"""Features and parameters moving together, with weight decay: unconstrained features.

    $$dZ/dt = -r_z (dL/dZ + \lambda_z Z), \qquad d\theta/dt = -r_\theta (dL/d\theta +
      \lambda_\theta \theta)$$

    Args:
      loss: `loss(z, theta)`, a scalar.
      decay: weight decay of z and of theta.
      rates: speeds of z and of theta.
    Returns: A field f(t, (z, theta), args). Decay and rates are leaves of it: other values compile
      nothing new.
    Raises: ImrError if the loss cannot be called, or decay or rates are no pairs of finite numbers.

    >>> import jax.numpy as jnp
    >>> field = joint_field(lambda z, theta: jnp.sum(z * theta))
    >>> [x.item() for x in field(0.0, (jnp.array(2.0), jnp.array(3.0)), None)]
    [-3.0, -2.0]

    Reference: Mixon, Parshall, Pi, arXiv 2011.11619 (unconstrained features).
    """
    if not callable(loss):
        raise ImrError(f"loss must be callable as loss(z, theta); found {type(loss).__name__}.")
    return JointField(as_pytree("loss", loss), _as_pair("decay", decay), _as_pair("rates", rates))


def _as_pair(name: str, pair: Any) -> tuple[Array, Array]:
    """A number for z and one for theta, as arrays."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ImrError(f"{name} must be a pair of numbers, of z and of theta; found {pair!r}.")
    of_z, of_theta = (as_numbers(name, number) for number in pair)
    for number in (of_z, of_theta):
        check_rank(f"each of {name}", number, 0, "()")
        check_finite(name, number)
    return of_z, of_theta
