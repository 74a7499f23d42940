"""The flow of latents in a context: labels come from the examples, the rest from the classes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from imr._checks import as_choice_of, as_floats, check_axis, check_rank, check_scalar
from imr._module import Module
from imr._typing import Features, Rows, ScalarLike
from imr.context.kernels import Kernel, Labelled, as_kernel
from imr.errors import ImrError
from imr.losses import FeatureLoss
from imr.models.model import RowModel
from imr.targets import DenseTargets, LabelTargets, Targets, as_targets


class ContextField(Module):
    """The flow of the latents of a context; `context_field` makes one."""

    loss: FeatureLoss
    kernel: Kernel
    labelled: Bool[Array, "n"]
    ridge: Array
    weights: Rows | None

    def __call__(self, t: Any, f: Features, args: Any = None) -> Features:
        del t, args
        check_axis("z", f.shape[0], "kernel", self.kernel.size, "tokens")
        loss = self.loss
        choices = {} if loss.where is None else {"where": loss.where}
        slope = loss.model.descent(f, loss.operator(f), **choices)
        if self.weights is not None:
            slope = self.weights.astype(f.dtype)[:, None] * slope
        slope = jnp.where(self.labelled[:, None], slope, 0)
        return self.kernel.mv(slope) - self.ridge.astype(f.dtype) * f


def context_field(
    loss: FeatureLoss,
    kernel: Any,
    labelled: Labelled,
    ridge: ScalarLike = 0.0,
    *,
    weights: Rows | None = None,
) -> ContextField:
    r"""The gradient flow of the labelled tokens' cross-entropy in the space of functions of a kernel.

    $$df_i/dt = \sum_{j \, labelled} K_{ij} \, w_j \, (c_j - softmax(N(f_j))) \, dN/df_j - \lambda f_i$$

    For `imr.Linear(W)` this is attention over examples that carries their labels, less attention over
    classes: functional gradient descent of $\sum_j w_j CE_j + (\lambda / 2) \|f\|_K^2$. A query attends
    to the labelled tokens alone, never to itself.

    Args:
      loss: as `imr.feature_loss` returns it, of a model of rows such as `imr.Linear`, without an
        anchor; targets are labels or a dense matrix. Those of unlabelled tokens are never read, and
        may be -1.
      kernel: as `as_kernel` takes it, over all n tokens.
      labelled: boolean, or integers 0 and 1, shape (n,): the examples.
      ridge: lambda, at least 0.
      weights: w, shape (n,), such as the density of `normalised_kernel`; one by default.
    Returns: A field f(t, z, args) of latents, shape (n, d).
    Raises: ImrError if the loss is of another kind, shapes do not fit, no token is labelled, a label
      of a labelled token is out of range, or ridge is negative.

    >>> import jax.numpy as jnp, imr
    >>> loss = imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([0, -1]))
    >>> field = context_field(loss, jnp.ones((2, 2)), jnp.array([True, False]))
    >>> field(0.0, jnp.zeros((2, 2)), None).tolist()
    [[0.5, -0.5], [0.5, -0.5]]
    """
    if not isinstance(loss, FeatureLoss) or not isinstance(loss.model, RowModel):
        found = type(loss.model if isinstance(loss, FeatureLoss) else loss).__name__
        raise ImrError(
            "loss must be imr.feature_loss of a model of rows, such as imr.Linear or imr.Latent; "
            f"found {found}."
        )
    if loss.anchor is not None:
        raise ImrError("loss must have no anchor here; ridge holds the latents back.")
    if loss.targets is None:
        raise ImrError("targets must be given; found None. Labels of unlabelled tokens may be -1.")
    targets, labelled = of_examples(loss.targets, labelled)
    kernel = as_kernel(kernel, labelled.shape[0])
    check_scalar("ridge", ridge, 0)
    if weights is not None:
        weights = as_floats("weights", weights)
        check_rank("weights", weights, 1, "(n,)")
        check_axis("weights", weights.shape[0], "labelled", labelled.shape[0], "tokens")
    loss = FeatureLoss(loss.model, targets, loss.where, None)
    return ContextField(loss, kernel, labelled, jnp.asarray(ridge, float), weights)


def of_examples(targets: Any, labelled: Any) -> tuple[Targets, Bool[Array, "n"]]:
    """The same targets, made valid in the rows that are not read, and the mask of those that are."""
    targets, labelled = as_targets(targets), as_choice_of("token", "labelled", labelled)
    if isinstance(targets, LabelTargets):
        check_axis("targets", targets.columns.shape[0], "labelled", len(labelled), "tokens")
        return LabelTargets(jnp.where(labelled, targets.columns, 0)), labelled
    if isinstance(targets, DenseTargets):
        check_axis("targets", targets.matrix.shape[0], "labelled", len(labelled), "tokens")
        first = jnp.zeros_like(targets.matrix).at[:, 0].set(1)
        return DenseTargets(jnp.where(labelled[:, None], targets.matrix, first)), labelled
    raise ImrError(
        f"targets must be labels or a dense matrix in a context; found {type(targets).__name__}."
    )
