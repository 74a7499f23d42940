"""The linear model: the logits of multinomial regression, whose flow is cross-attention."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_axis, check_finite, check_floating, check_positive, check_rank
from imr._typing import Bias, ClassWeights, Scalar, ScalarLike
from imr.models.model import RowModel


class Linear(RowModel):
    r"""Linear model: $N = \beta (Z \theta^T + b)$.

    Its flow is cross-attention plus a label term,
    $dZ/dt = \beta (C \theta - CA(Z, \theta))$, $CA = softmax(\beta (Z \theta^T + b)) \theta$.

    Args:
      theta: one row of weights for each class, shape (k, f).
      bias: b, shape (k,); None is zero.
      beta: inverse temperature, positive. It is an array, so that other values compile nothing new.

    Raises:
      ImrError: if shapes do not fit or a value is not finite.

    >>> import jax.numpy as jnp
    >>> Linear(jnp.array([[1.0, 2.0], [0.0, 1.0]]))(jnp.ones((1, 2))).tolist()
    [[3.0, 1.0]]

    Reference: arXiv 2509.04653, Theorem 1.
    """

    theta: ClassWeights
    bias: Bias | None
    beta: Scalar

    def __init__(self, theta: ClassWeights, bias: Bias | None = None, beta: ScalarLike = 1.0):
        self.theta, self.bias, self.beta = class_parameters(theta, bias, beta)

    def span(self) -> ClassWeights:
        """theta."""
        return self.theta

    def logits(self, y: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return scaled(self.beta, y if self.bias is None else y + self.bias[:, None])

    def pullback(self, y: Float[Array, "k n"], a: Float[Array, "k n"]) -> Float[Array, "k n"]:
        return scaled(self.beta, a)


def class_parameters(theta, bias, beta, rows: str = "(k, f)"):
    """theta, bias and beta as checked arrays; beta has at least the precision of float32."""
    theta = jnp.asarray(theta)
    check_rank("theta", theta, 2, rows)
    check_floating("theta", theta)
    check_finite("theta", theta)
    if bias is not None:
        bias = jnp.asarray(bias)
        check_rank("bias", bias, 1, f"({rows[1]},)")
        check_axis("bias", bias.shape[0], "theta", theta.shape[0], "classes (its first axis)")
        check_finite("bias", bias)
    return theta, bias, as_beta(beta, theta)


def as_beta(beta: ScalarLike, like: Array) -> Scalar:
    """The inverse temperature as an array of the precision of the parameters, float32 or wider."""
    check_positive("beta", beta)
    return jnp.asarray(beta, jnp.promote_types(like.dtype, jnp.float32))


def scaled(beta: Scalar, x: Array) -> Array:
    """beta times x in the dtype of x, as if beta were a Python number."""
    return beta.astype(x.dtype) * x
