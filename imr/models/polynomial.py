"""The polynomial model: powers of the linear model's products."""

import equinox as eqx
from jaxtyping import Array, Float

from imr._checks import check_count
from imr._typing import Bias, BiasLike, ClassWeights, Scalar, ScalarLike, WeightsLike
from imr.models.model import RowModel, class_parameters, scaled


class Polynomial(RowModel):
    r"""Polynomial model: $N = \beta ((Z \theta^T)^p + b)$, entry by entry.

    Args:
      theta: class weights, shape (k, f).
      degree: p, an integer of at least 1; 1 is the linear model.
      bias: b, shape (k,); None is zero.
      beta: inverse temperature, positive.
    Raises: ImrError if shapes do not fit, a value is not finite, or the degree is no positive
      integer.

    >>> import jax.numpy as jnp
    >>> Polynomial(jnp.array([[1.0, 2.0]]), 2)(jnp.ones((1, 2))).tolist()
    [[9.0]]

    Reference: arXiv 2509.04653, the Lemma.
    """

    theta: ClassWeights
    bias: Bias | None
    beta: Scalar
    degree: int = eqx.field(static=True)

    def __init__(
        self,
        theta: WeightsLike,
        degree: int,
        bias: BiasLike | None = None,
        beta: ScalarLike = 1.0,
    ):
        check_count("degree", degree)
        self.theta, self.bias, self.beta = class_parameters(theta, bias, beta)
        self.degree = degree

    def span(self) -> ClassWeights:
        """theta."""
        return self.theta

    def logits(self, y: Float[Array, "k n"]) -> Float[Array, "k n"]:
        power = y**self.degree
        return scaled(self.beta, power if self.bias is None else power + self.bias[:, None])

    def pullback(self, y: Float[Array, "k n"], a: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return scaled(self.beta, self.degree * y ** (self.degree - 1) * a)
