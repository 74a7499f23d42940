"""Vector fields f(t, z, args) of the features.

Each is a pytree whose leaves are its parameters: it passes through `jax.jit` as an argument, and
every adjoint of a solver sees what it depends on.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from imr._checks import check_axis, check_choice, check_finite, check_positive, check_rank
from imr._module import Module, as_pytree
from imr._typing import Features, Field, Loss, Mask, ScalarLike
from imr.attention import Normalise
from imr.errors import ImrError
from imr.losses import FeatureLoss, feature_loss
from imr.models import Model
from imr.models.model import total


class GradientField(Module):
    """Minus the gradient of a loss; `gradient_field` makes one."""

    loss: Any

    def __call__(self, t: Any, z: Any, args: Any = None) -> Any:
        del t, args
        return jax.tree.map(jnp.negative, jax.grad(self.loss)(z))


def gradient_field(loss: Loss) -> GradientField:
    """The gradient flow of a loss, by automatic differentiation: $f(t, z, args) = -dL/dz$.

    Args:
      loss: z -> scalar; `feature_loss` makes one, and any function of the user's will do.

    Returns:
      A field f(t, z, args), whose leaves are those of the loss, theta among them. It makes no use
      of t and args.

    Raises:
      ImrError: if the loss cannot be called.

    >>> import jax.numpy as jnp
    >>> field = gradient_field(lambda z: 0.5 * jnp.sum(z**2))
    >>> field(0.0, jnp.array([1.0, -2.0]), None).tolist()
    [-1.0, 2.0]
    """
    if not callable(loss):
        raise ImrError(f"loss must be callable as loss(z); found {type(loss).__name__}.")
    return GradientField(as_pytree(loss))


class ClosedField(Module):
    """The flow of a feature loss by its model's own formulas; `closed_field` makes one."""

    loss: FeatureLoss
    choices: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def __call__(self, t: Any, z: Features, args: Any = None) -> Features:
        del t, args
        loss, choices = self.loss, dict(self.choices)
        targets = loss.operator(z)
        if loss.where is not None:
            choices["where"] = loss.where
        slope = loss.model.descent(z, targets, **choices)
        return slope if loss.anchor is None else slope - loss.anchor[0] * loss.offset(z)


def closed_field(
    loss: FeatureLoss,
    *,
    column_term: bool = True,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
) -> ClosedField:
    r"""The gradient flow of a feature loss in closed form: label term less attention.

    $$dZ/dt = \sum_{ij} (C_{ij} - softmax_{ij}(N)) \, dN_{ij}/dZ - \lambda (Z - X)$$

    It equals `gradient_field(loss)` to rounding, and needs no n x n matrix for a square model. The
    difference between 1 and the probability of a label is taken as the sum of the other
    probabilities, so that it keeps its digits late in a flow.

    Args:
      loss: as `feature_loss` returns it, of a model that implements `attention` and `label_term`.
      column_term: whether the column term of a square model is there. Without it this is the flow
        of ordinary attention, which is no gradient unless the keys are held fixed.
      normalise: how the attention weights of a square model are normalised, as in
        `attention_weights`; with `column` the log-sum-exp is over queries.
      block, mesh: how the n x n weights are computed without being held, see
        `imr.attention.attention_products`.

    Returns:
      A field f(t, z, args) of z, shape (n, f).

    Raises:
      ImrError: if the loss is none of `feature_loss`, its model has no closed form, or a keyword
        has no meaning for the model.

    >>> import jax.numpy as jnp, imr
    >>> field = closed_field(imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0])))
    >>> field(0.0, jnp.zeros((1, 2)), None).tolist()
    [[0.5, -0.5]]

    Reference: arXiv 2509.04653, Theorems 1 and 2.
    """
    model = _closed_model(loss)
    check_choice("normalise", normalise, ("row", "column", "double"))
    choices = {
        "columns": (column_term, True),
        "normalise": (normalise, "row"),
        "block": (block, None),
        "mesh": (mesh, None),
    }
    chosen = tuple((name, value) for name, (value, usual) in choices.items() if value != usual)
    known = inspect.signature(model.attention).parameters
    if loss.where is not None and "where" not in known:
        raise ImrError(
            f"{type(model).__name__}.attention takes no mask; add a keyword argument `where` to it, or "
            "use gradient_field."
        )
    for name, value in chosen:
        if name not in known:
            keyword = "column_term" if name == "columns" else name
            raise ImrError(
                f"{keyword} has no meaning for {type(model).__name__}, whose rows do not attend to one "
                f"another; found {value!r}. Leave it out."
            )
    return ClosedField(loss, chosen)


def _closed_model(loss: Any) -> Model:
    """The model of a feature loss, which must have a closed form."""
    if not isinstance(loss, FeatureLoss):
        raise ImrError(
            f"loss must be made by imr.feature_loss; found {type(loss).__name__}. For any other loss "
            "there is gradient_field."
        )
    model = loss.model
    if not isinstance(model, Model) or type(model).attention is Model.attention:
        raise ImrError(
            f"{type(model).__name__} has no closed form. Make the model a subclass of imr.Model that "
            "implements attention(self, z) and label_term(self, z, targets), or use gradient_field."
        )
    return model


class OperatorField(Module):
    """One of the two operators of a flow; `split_fields` makes both."""

    loss: FeatureLoss
    attention: bool = eqx.field(static=True)

    def __call__(self, t: Any, z: Features, args: Any = None) -> Features:
        del t, args
        loss = self.loss
        if self.attention:
            return loss.model.descent(
                z, None, **({} if loss.where is None else {"where": loss.where})
            )
        targets = loss.operator(z)
        slope = jnp.zeros_like(z) if targets is None else total(loss.model.label_term(z, targets))
        return slope if loss.anchor is None else slope - loss.anchor[0] * loss.offset(z)


def split_fields(loss: FeatureLoss) -> tuple[OperatorField, OperatorField]:
    r"""The two operators of a flow, whose sum is `closed_field(loss)`: minus attention, and label term.

    A Lie step of them is a transformer block that knows the labels; an MLP in the place of the
    second is one that does not. A spring to an anchor belongs to the second.

    Args:
      loss: as `feature_loss` returns it, of a model that implements `attention` and `label_term`.

    Returns:
      Two fields f(t, z, args) of z, shape (n, f).

    Raises:
      ImrError: as `closed_field`.

    >>> import jax.numpy as jnp, imr
    >>> attend, label = split_fields(imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0])))
    >>> imr.lie_step([attend, label], jnp.zeros((1, 2)), 1.0).tolist()
    [[0.5, -0.5]]

    Reference: arXiv 2509.04653, Corollary on operator splitting.
    """
    _closed_model(loss)
    return OperatorField(loss, True), OperatorField(loss, False)


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

    Returns:
      A field f(t, z, args).

    >>> import jax.numpy as jnp, imr
    >>> path = linear_path(jnp.array([0.0, 1.0]), jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]))
    >>> field = path_field(lambda z, theta: imr.Linear(theta)(z), path, jnp.array([0]))
    >>> field(1.0, jnp.zeros((1, 2)), None).tolist()
    [[1.0, -1.0]]
    """
    return PathField(as_pytree(logits_fn), as_pytree(path), targets, where, anchor)


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


def linear_path(ts: Float[Array, "s"], values: Any) -> LinearPath:
    """A path through knots, straight between them and constant outside: t -> value.

    Args:
      ts: increasing times, shape (s,).
      values: a pytree whose leaves have a leading axis of s.

    Returns:
      A callable pytree, t -> values at t.

    Raises:
      ImrError: if the times do not increase, or the leading axes do not fit.

    >>> import jax.numpy as jnp
    >>> linear_path(jnp.array([0.0, 2.0]), jnp.array([[1.0], [3.0]]))(0.5).tolist()
    [1.5]
    """
    check_rank("ts", ts, 1, "(s,)")
    check_finite("ts", ts)
    check_positive("the steps of ts", jnp.diff(ts))
    for leaf in jax.tree.leaves(values):
        check_axis("values", leaf.shape[0], "ts", ts.shape[0], "knots (its first axis)")
    return LinearPath(ts, values)


class SphereField(Module):
    """A field projected to the tangent of a product of spheres; `sphere_field` makes one."""

    field: Any

    def __call__(self, t: Any, z: Features, args: Any = None) -> Features:
        f = self.field(t, z, args)
        square = jnp.sum(z * z, axis=-1, keepdims=True)
        along = jnp.sum(f * z, axis=-1, keepdims=True) / jnp.where(square > 0, square, 1)
        return jnp.where(square > 0, f - along * z, 0)


def sphere_field(field: Field) -> SphereField:
    r"""A field projected to the tangent of a product of spheres: normalisation layers, in time.

    $$dz_i/dt = f_i - \frac{\langle f_i, z_i \rangle}{\|z_i\|^2} z_i$$

    Each row keeps its norm, to the tolerance of the solver; a row of zeros stays.

    Args:
      field: f(t, z, args) of z, shape (n, f).

    Returns:
      A field of the same kind.

    >>> import jax.numpy as jnp
    >>> field = sphere_field(lambda t, z, args: jnp.ones_like(z))
    >>> field(0.0, jnp.array([[2.0, 0.0]]), None).tolist()
    [[0.0, 1.0]]

    Reference: Geshkovski et al., arXiv 2312.10794, Section 2.
    """
    return SphereField(as_pytree(field))


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

    Returns:
      A field f(t, (z, theta), args).

    >>> import jax.numpy as jnp
    >>> field = joint_field(lambda z, theta: jnp.sum(z * theta))
    >>> [x.item() for x in field(0.0, (jnp.array(2.0), jnp.array(3.0)), None)]
    [-3.0, -2.0]

    Reference: Mixon, Parshall, Pi, arXiv 2011.11619 (unconstrained features).
    """
    return JointField(as_pytree(loss), decay, rates)
