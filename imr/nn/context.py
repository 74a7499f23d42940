"""A transformer block whose label term comes from labelled examples in its context."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imr._checks import (
    as_choice_of,
    check_choice,
    check_counts,
    check_positive,
    check_rngs,
    check_scalar,
)
from imr._numerics import matmul, softmax
from imr._shapes import check_features
from imr._typing import Features, LabelsLike
from imr.context.fields import Labelled, of_examples
from imr.models import Linear

KERNELS = ("softmax", "exponential", "linear")


class ContextBlock(nnx.Module):
    r"""Tied layers of attention over examples less attention over classes.

    $$f^+ = f + \tau \, (A \, M (C - softmax(f \theta^T)) \, \theta - \lambda f), \quad f_0 = 0$$

    M keeps the labelled tokens. A are the attention weights of the kernel on $Y = X W$: the softmax of
    $y_i \cdot y_j$ over labelled j, $\exp(-|y_i - y_j|^2 / 2)$, or $y_i \cdot y_j$ over their number. Each
    layer is an Euler step of `imr.context.context_field`, and a query is never its own key. W,
    theta, $\tau$ and $\lambda$ are the block's parameters.

    Args:
      num_features: p, of the covariates.
      num_classes: k; latents have as many entries, and theta starts as the identity.
      layers: steps, of the same parameters.
      rank: columns of W, which starts as the identity; p by default.
      kernel: "softmax", "exponential" or "linear".
      tau: the step size to start from; its logarithm is the parameter.
      ridge: lambda to start from; its logarithm is the parameter. None leaves the term out.
      noise: W and theta start as identities plus N(0, noise^2) in every entry.
      rngs: random streams of flax nnx; `params` draws that noise. Not needed without.
    Raises: ImrError if a size is no positive integer, the kernel is unknown, tau or ridge is not
      positive, noise is negative, or there is noise and no rngs.

    >>> import jax.numpy as jnp
    >>> block = ContextBlock(num_features=1, num_classes=2, kernel="exponential")
    >>> x, labels = jnp.array([[-1.0], [1.0], [0.9]]), jnp.array([0, 1, -1])
    >>> block(x, labels, labels >= 0).argmax(axis=1).tolist()
    [0, 1, 1]

    Reference: Cheng, Chen, Sra, Transformers implement functional gradient descent to learn
    non-linear functions in context, arXiv 2312.06528.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, layers: int = 5, rank: int | None = None,
        kernel: str = "softmax", tau: float = 1.0, ridge: float | None = None, noise: float = 0.0,
        rngs: nnx.Rngs | None = None,
    ):  # fmt: skip
        rank = num_features if rank is None else rank
        check_counts(num_features=num_features, num_classes=num_classes, layers=layers, rank=rank)
        check_choice("kernel", kernel, KERNELS)
        check_scalar("tau", tau)
        check_positive("tau", tau)
        self.layers, self.kernel = layers, kernel
        check_scalar("noise", noise, 0)
        if noise > 0:
            check_rngs(rngs)

        def start(*shape):
            if rngs is None or noise == 0:
                return nnx.Param(jnp.eye(*shape))
            return nnx.Param(jnp.eye(*shape) + noise * jax.random.normal(rngs.params(), shape))

        self.projection = start(num_features, rank)
        self.theta = start(num_classes, num_classes)
        self.step = nnx.Param(jnp.full((), math.log(tau), float))
        if ridge is not None:
            check_scalar("ridge", ridge)
            check_positive("ridge", ridge)
        self.log_ridge = None if ridge is None else nnx.Param(jnp.full((), math.log(ridge), float))

    def weights(self, x: Features, labelled: Labelled) -> Float[Array, "n n"]:
        """A, the attention of every token to the labelled ones; other columns are zero."""
        check_features(x)
        labelled = as_choice_of("token", "labelled", labelled, len(x))
        y = matmul(x, self.projection[...])
        products = matmul(y, y.T)
        if self.kernel == "softmax":
            return softmax(products, labelled[None, :])
        if self.kernel == "linear":
            return jnp.where(labelled[None, :], products, 0) / jnp.maximum(labelled.sum(), 1)
        squares = jnp.sum(y**2, axis=1)
        distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
        return jnp.where(labelled[None, :], jnp.exp(-0.5 * distances), 0)

    def __call__(self, x: Features, labels: LabelsLike, labelled: Labelled) -> Float[Array, "n k"]:
        """Logits of every token.

        Args:
          x: covariates, shape (n, p).
          labels: integers, shape (n,); those of unlabelled tokens are never read, and may be -1.
          labelled: boolean, or integers 0 and 1, shape (n,): the examples.
        Returns: Shape (n, k).
        Raises: ImrError if shapes do not fit, no token is labelled, or a label is out of range.
        """
        check_features(x)
        model, (targets, labelled) = Linear(self.theta[...]), of_examples(labels, labelled)
        shape = (x.shape[0], self.theta.shape[0])
        targets.check(shape)
        weights, tau = self.weights(x, labelled), jnp.exp(self.step[...])
        decay = 0.0 if self.log_ridge is None else jnp.exp(self.log_ridge[...])

        def layer(f, _):
            return f + tau * (matmul(weights, model.descent(f, targets)) - decay * f), None

        f = jax.lax.scan(layer, jnp.zeros(shape, x.dtype), length=self.layers)[0]
        return model(f)
