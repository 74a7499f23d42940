"""Vector fields f(t, z, args) of the features.

Each is a pytree whose leaves are its parameters: it passes through `jax.jit` as an argument, and
every adjoint of a solver sees what it depends on.
"""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from imr._checks import check_choice, check_flags
from imr._module import Module, as_pytree
from imr._typing import Features, Field, Loss
from imr.attention import Normalise
from imr.errors import ImrError
from imr.losses import FeatureLoss
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
    Returns: A field f(t, z, args), whose leaves are those of the loss, theta among them. It makes
      no use of t and args.
    Raises: ImrError if the loss cannot be called.

    >>> import jax.numpy as jnp
    >>> field = gradient_field(lambda z: 0.5 * jnp.sum(z**2))
    >>> field(0.0, jnp.array([1.0, -2.0]), None).tolist()
    [-1.0, 2.0]
    """
    if not callable(loss):
        raise ImrError(f"loss must be callable as loss(z); found {type(loss).__name__}.")
    return GradientField(as_pytree("loss", loss))


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
        return slope if loss.anchor is None else slope - loss.pull(loss.offset(z))


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

    It equals `gradient_field(loss)` to rounding, and needs no n x n matrix for a square model. Where a
    target is 1, 1 less its probability is taken as the sum of the others by all models of imr, so
    that it keeps its digits late in a flow.

    Args:
      loss: as `feature_loss` returns it, of a model that implements `attention` and `label_term`.
      column_term: whether the column term of a square model is there. Without it this is the flow
        of ordinary attention, which is no gradient unless the keys are held fixed.
      normalise: how the attention weights of a square model are normalised, as in
        `attention_weights`; with `column` the log-sum-exp is over queries.
      block, mesh: how the n x n weights are computed without being held, see
        `imr.attention.attention_products`.
    Returns: A field f(t, z, args) of z, shape (n, f).
    Raises: ImrError if the loss is none of `feature_loss`, its model has no closed form, or a
      keyword has no meaning for the model.

    >>> import jax.numpy as jnp, imr
    >>> field = closed_field(imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0])))
    >>> field(0.0, jnp.zeros((1, 2)), None).tolist()
    [[0.5, -0.5]]

    Reference: arXiv 2509.04653, Theorems 1 and 2.
    """
    model = _closed_model(loss)
    check_flags(column_term=column_term)
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
            reason = f"its attention takes no keyword `{name}`"
            if not model.square:
                reason = "its rows do not attend to one another"
            raise ImrError(
                f"{keyword} has no meaning for {type(model).__name__}, since {reason}; found "
                f"{value!r}. Leave it out."
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
        function = getattr(model, "func", model)  # of a Partial
        name = getattr(function, "__name__", type(function).__name__)
        raise ImrError(
            f"{name} has no closed form. Make the model a subclass of imr.Model that "
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
        targets = loss.operator(z)  # its checks of the mask are the attention's too
        if self.attention:
            return loss.model.descent(
                z, None, **({} if loss.where is None else {"where": loss.where})
            )
        slope = jnp.zeros_like(z) if targets is None else total(loss.model.label_term(z, targets))
        return slope if loss.anchor is None else slope - loss.pull(loss.offset(z))


def split_fields(loss: FeatureLoss) -> tuple[OperatorField, OperatorField]:
    r"""The two operators of a flow, whose sum is `closed_field(loss)`: minus attention, and label term.

    A Lie step of them is a transformer block that knows the labels; an MLP in the place of the
    second is one that does not. A spring to an anchor belongs to the second.

    Args:
      loss: as `feature_loss` returns it, of a model that implements `attention` and `label_term`.
    Returns: Two fields f(t, z, args) of z, shape (n, f).
    Raises: ImrError: as `closed_field`.

    >>> import jax.numpy as jnp, imr
    >>> attend, label = split_fields(imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0])))
    >>> imr.lie_step([attend, label], jnp.zeros((1, 2)), 1.0).tolist()
    [[0.5, -0.5]]

    Reference: arXiv 2509.04653, Corollary on operator splitting.
    """
    _closed_model(loss)
    return OperatorField(loss, True), OperatorField(loss, False)


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
    Returns: A field of the same kind.

    >>> import jax.numpy as jnp
    >>> field = sphere_field(lambda t, z, args: jnp.ones_like(z))
    >>> field(0.0, jnp.array([[2.0, 0.0]]), None).tolist()
    [[0.0, 1.0]]

    Reference: Geshkovski et al., arXiv 2312.10794, Section 2.
    """
    return SphereField(as_pytree("field", field))
