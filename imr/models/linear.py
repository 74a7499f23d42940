"""The linear model: the logits of multinomial regression, whose flow is cross-attention."""

from jaxtyping import Array, Float

from imr._typing import Bias, BiasLike, ClassWeights, Scalar, ScalarLike, WeightsLike
from imr.models.model import RowModel, class_parameters, scaled


class Linear(RowModel):
    r"""Linear model: $N = \beta (Z \theta^T + b)$.

    Its flow is cross-attention plus a label term,
    $dZ/dt = \beta (C \theta - CA(Z, \theta))$, $CA = softmax(\beta (Z \theta^T + b)) \theta$.

    Args:
      theta: one row of weights for each class, shape (k, f).
      bias: b, shape (k,); None is zero.
      beta: inverse temperature, positive. It is an array, so that other values compile nothing new.
    Raises: ImrError if shapes do not fit or a value is not finite.

    >>> import jax.numpy as jnp
    >>> Linear(jnp.array([[1.0, 2.0], [0.0, 1.0]]))(jnp.ones((1, 2))).tolist()
    [[3.0, 1.0]]

    Reference: arXiv 2509.04653, Theorem 1.
    """

    theta: ClassWeights
    bias: Bias | None
    beta: Scalar

    def __init__(self, theta: WeightsLike, bias: BiasLike | None = None, beta: ScalarLike = 1.0):
        self.theta, self.bias, self.beta = class_parameters(theta, bias, beta)

    def span(self) -> ClassWeights:
        """theta."""
        return self.theta

    def logits(self, y: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return scaled(self.beta, y if self.bias is None else y + self.bias[:, None])

    def pullback(self, y: Float[Array, "k n"], a: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return scaled(self.beta, a)
