"""Cross-entropy, and the loss of the features that a fixed multinomial model defines."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from imr._checks import as_floats, as_mask, check_finite, check_floating, is_concrete
from imr._module import Module, as_pytree
from imr._numerics import log_sum_exp, widen
from imr._typing import Features, LogitsLike, Mask, Rows, ScalarLike
from imr.errors import ImrError
from imr.models import Model
from imr.models.model import as_scalar, scaled
from imr.targets import MaskedTargets, Targets, as_targets


def cross_entropy(logits: LogitsLike, targets: Any, where: Mask | None = None) -> Rows:
    r"""Negative log-likelihood of a multinomial, row by row.

    $$L_i = \log \sum_j \exp N_{ij} - \langle C_i, N_i \rangle$$

    Args:
      logits: N, shape (n, m).
      targets: integer labels, shape (n,), always column indices of the logits; or distributions C,
        shape (n, m), dense, sparse (BCOO) or `LowRankTargets`. None leaves the second term out.
      where: boolean, or integers 0 and 1, shape (n, m); True says that the entry takes part. A row
        without an entry takes no part: its loss is 0, so are its gradients, and its targets are not
        read.
    Returns: Nats, shape (n,), accumulated in float32 or wider.
    Raises: ImrError if shapes do not fit; for concrete values, if a label is out of range, a row of
      targets is no distribution or puts weight on an excluded entry, or the mask is no mask. Under
      a trace such a row is NaN.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4).tolist()
    [1.3863, 1.3863]

    Reference: arXiv 2509.04653, Section 2.
    """
    logits = as_floats("logits", logits)
    where = as_mask(where)
    return _cross_entropy(logits, checked_targets(targets, logits.shape, where), where)


def _cross_entropy(logits, targets, where):
    logits = widen(logits)
    return log_sum_exp(logits, where) if targets is None else targets.cross_entropy(logits, where)


def checked_targets(
    targets: Any, shape: tuple[int, ...], where: Any = None, *, square: bool = False
) -> Targets | None:
    """Targets as an operator that fits logits of a shape and their mask; None stays None."""
    if len(shape) != 2:
        raise ImrError(
            f"logits must have shape (n, m); found shape {tuple(shape)}. "
            "For leading batch axes use jax.vmap."
        )
    if shape[0] and not shape[1]:
        raise ImrError(f"logits must have a column; found shape {tuple(shape)}.")
    where = as_mask(where, shape)
    if targets is None:
        return None
    operator = as_targets(targets, square=square)
    operator.check(shape, where)
    operator = operator.marked(where)
    if where is None or (is_concrete(where) and np.asarray(where).any(axis=1).all()):
        return operator
    return MaskedTargets(operator, where.any(axis=1))


class FeatureLoss(Module):
    """The loss of features under a fixed model; `feature_loss` makes one.

    Attributes:
      model: from features to logits.
      targets, anchor: as they were given; numbers are arrays.
      where: as booleans.
    """

    model: Any
    targets: Any
    where: Any
    anchor: Any

    def __call__(self, z: Features) -> Array:
        """The loss, a scalar."""
        logits = self.model(z)
        check_floating("model(z)", logits)
        heads = logits if jnp.ndim(logits) == 3 else logits[None]
        targets = self.operator(z, heads.shape[1:])
        loss = jnp.sum(jax.vmap(lambda one: _cross_entropy(one, targets, self.where))(heads))
        if self.anchor is None:
            return loss
        return loss + 0.5 * self.pull(jnp.sum(self.offset(z) ** 2))

    def pull(self, x: Array) -> Array:
        """lam times x, in the dtype of x."""
        return scaled(self.anchor[0], x)

    def operator(self, z: Features, shape: tuple[int, ...] | None = None) -> Targets | None:
        """The targets as an operator, held against the shape that the logits of z have."""
        if shape is None:
            # Not by jax.eval_shape, which keeps an entry of a cache for each call on one model.
            shape = tuple(eqx.filter_eval_shape(self.model, z).shape[-2:])
        square = isinstance(self.model, Model) and self.model.square
        return checked_targets(self.targets, shape, self.where, square=square)

    def offset(self, z: Features) -> Features:
        """z less the anchor's x."""
        x = self.anchor[1]
        z = jnp.asarray(z)
        if jnp.shape(x) != jnp.shape(z):
            raise ImrError(
                f"anchor's x must have the shape of z, {jnp.shape(z)}; found {jnp.shape(x)}."
            )
        return z - x


def feature_loss(
    model: Any,
    targets: Any,
    *,
    where: Mask | None = None,
    anchor: tuple[ScalarLike, Features] | None = None,
) -> FeatureLoss:
    r"""The loss of the features under a fixed model: its gradient flow is what attention steps along.

    $$L(Z) = \sum_i CE_i(N(Z), C) + \frac{\lambda}{2} \|Z - X\|^2$$

    Args:
      model: `imr.Linear` and its kin, or any callable from z to logits, shape (n, m), or (h, n, m)
        for heads, whose losses add. A plain function holds its parameters as constants; a pytree
        (an `imr.Model`, a `jax.tree_util.Partial`) hands them to `jax.grad` and to solvers.
      targets: as `imr.as_targets` takes them; None is the log-sum-exp alone.
      where: as in `cross_entropy`; rows that take no part feel the anchor alone.
      anchor: (lam, x), a weight and the features that hold z back, shape (n, f).
    Returns: A callable z -> scalar, the sum over rows. It is a pytree whose leaves are those of the
      model, targets, where and anchor: it passes through `jax.jit` as an argument, and the loss of
      other values of the same shapes compiles nothing new.
    Raises: ImrError if the model is no callable; for concrete values, if a parameter is not finite
      or the anchor is malformed. Targets are checked against the logits when the loss meets z.

    >>> import jax.numpy as jnp, imr
    >>> loss = feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0, 1]))
    >>> loss(jnp.zeros((2, 2))).round(4).item()
    1.3863

    Reference: arXiv 2509.04653, Section 2.
    """
    if inspect.isclass(model):
        raise ImrError(
            f"model must be an instance; found the class {model.__name__}. Construct it."
        )
    if not callable(model):
        raise ImrError(
            f"model must be callable as model(z); found {type(model).__name__}. imr.Linear(theta) is "
            "the model of class weights theta."
        )
    model = as_pytree("model", model)
    check_finite("model", model)
    if targets is not None and isinstance(model, Model) and model.square:
        as_targets(targets, square=True)  # refused here, where it was written
    if isinstance(targets, list | tuple):
        targets = as_targets(targets)  # its numbers are no leaves of a loss
    return FeatureLoss(model, targets, as_mask(where), as_anchor(anchor))


def as_anchor(anchor: Any) -> tuple[Array, Array] | None:
    """A pair (lam, x) of finite arrays, a scalar and features; None stays None."""
    if anchor is None:
        return None
    if not (isinstance(anchor, tuple) and len(anchor) == 2):
        raise ImrError(f"anchor must be a pair (lam, x); found {type(anchor).__name__}.")
    x = as_floats("anchor's x", anchor[1])
    check_finite("anchor's x", x)
    return as_scalar("anchor's lam", anchor[0], x), x
