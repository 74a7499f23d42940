"""Latent classes: each class is a set of prototypes, and its probability the sum of theirs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imr._checks import as_numbers, check_axis, check_count, check_rank, is_concrete
from imr._numerics import below, widen
from imr._typing import Bias, BiasLike, ClassWeights, Scalar, ScalarLike, WeightsLike
from imr.errors import ImrError
from imr.models.model import RowModel, class_parameters, scaled


class Latent(RowModel):
    r"""A mixture of multinomial regressions: class logits over prototypes.

    $$N_{ic} = \log \sum_{j : g_j = c} \exp(\beta (z_i \theta_j + b_j))$$

    The softmax over classes is the sum of the softmax over the prototypes of each class, so that
    plain cross-entropy of these logits is the loss of the latent model. The label term is an
    attention too, over the prototypes of the label.

    Args:
      theta: prototypes, shape (m, f).
      group: g, the class of each prototype, integers from 0, shape (m,). Under a trace one
        that is out of range makes theta NaN, and a class without a prototype has the logit -inf.
      bias: b, of each prototype, shape (m,); None is zero.
      beta: inverse temperature, positive.
      num_classes: c; by default the largest entry of group and one. Needed under a trace.
    Raises: ImrError if shapes do not fit, a class has no prototype, or num_classes is missing under
      a trace.

    >>> import jax.numpy as jnp
    >>> model = Latent(jnp.zeros((3, 2)), jnp.array([0, 0, 1]))
    >>> model(jnp.ones((1, 2))).round(4).tolist()       # log 2 and log 1
    [[0.6931, 0.0]]

    Reference: an extension of arXiv 2509.04653; with one prototype a class it is `Linear`.
    """

    theta: ClassWeights
    group: Int[Array, "m"]
    bias: Bias | None
    beta: Scalar
    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        theta: WeightsLike,
        group: Any,
        bias: BiasLike | None = None,
        beta: ScalarLike = 1.0,
        num_classes: int | None = None,
    ):
        self.theta, self.bias, self.beta = class_parameters(theta, bias, beta, "(m, f)")
        self.group, self.num_classes = _checked_group(group, self.theta.shape[0], num_classes)
        if not is_concrete(self.group):
            # What could not be refused here must show: sums by class leave it out.
            out = (self.group < 0) | (self.group >= self.num_classes)
            self.theta = jnp.where(out.any(), jnp.nan, self.theta)

    def span(self) -> ClassWeights:
        """theta, the prototypes."""
        return self.theta

    def logits(self, y: Float[Array, "m n"]) -> Float[Array, "c n"]:
        prototypes = self._prototype_logits(y)
        _, sums, top = self._exponentials(prototypes)
        return (jnp.log(sums) + top).astype(prototypes.dtype)

    def pullback(self, y: Float[Array, "m n"], a: Float[Array, "c n"]) -> Float[Array, "m n"]:
        e, sums, _ = self._exponentials(self._prototype_logits(y))
        share = (e / sums[self.group]).astype(y.dtype)  # of each prototype in its class
        return scaled(self.beta, share * a[self.group])

    def _prototype_logits(self, y):
        return scaled(self.beta, y if self.bias is None else y + self.bias[:, None])

    def _exponentials(self, prototypes):
        """Exponentials of prototypes, their sums over classes, and the logits that they are less."""
        wide = widen(prototypes)
        top = jax.lax.stop_gradient(jax.ops.segment_max(wide, self.group, self.num_classes))
        e = jnp.exp(below(wide, top[self.group]))
        return e, jax.ops.segment_sum(e, self.group, self.num_classes), top


def _checked_group(group: Any, num_prototypes: int, num_classes: int | None):
    group = as_numbers("group", group)
    check_rank("group", group, 1, "(m,)")
    check_axis("group", group.shape[0], "theta", num_prototypes, "prototypes")
    if not jnp.issubdtype(group.dtype, jnp.integer):
        raise ImrError(f"group must hold integers; found dtype {group.dtype}.")
    if num_classes is None:
        if not is_concrete(group):
            raise ImrError("num_classes must be given if group is traced (jit, vmap, grad).")
        num_classes = int(np.max(np.asarray(group), initial=0)) + 1
    check_count("num_classes", num_classes)
    if is_concrete(group):
        values = np.asarray(group)
        if values.min() < 0 or values.max() >= num_classes:
            raise ImrError(
                f"group must lie in 0 to {num_classes - 1}; found {values.min()} to {values.max()}."
            )
        missing = np.setdiff1d(np.arange(num_classes), values)
        if missing.size:
            raise ImrError(
                f"group must give each class a prototype; class {missing[0]} of 0 to "
                f"{num_classes - 1} has none."
            )
    return group.astype(jnp.int32), num_classes
