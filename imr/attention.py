"""Attention in closed form: what the gradient of a log-sum-exp of logits is."""

from jaxtyping import Array, Float

from imr._numerics import matmul, softmax
from imr._typing import Bias, ClassWeights, Features
from imr.logits import linear_logits


def cross_attention(
    z: Features,
    theta: ClassWeights,
    bias: Bias | None = None,
    *,
    beta: Float[Array, ""] | float = 1.0,
) -> Features:
    r"""Cross-attention, the gradient of the log-sum-exp of the linear model.

    $$CA(Z, \theta) = softmax(\beta (Z \theta^T + b)) \theta$$

    The queries are Z; theta is keys and values. With C the targets, the gradient flow of
    `feature_loss(linear_logits, theta, C, beta=beta)` is
    $dZ/dt = \beta (C \theta - CA(Z, \theta))$.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f).
      bias: of the logits, shape (k,).
      beta: inverse temperature, multiplies the logits.

    Returns:
      Shape (n, f).

    Raises:
      ImrError: where shapes do not fit; both are named.

    >>> import jax.numpy as jnp
    >>> cross_attention(jnp.zeros((1, 2)), jnp.array([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[1.0, 2.0]]

    Reference: arXiv 2509.04653, Theorem 1.
    """
    return matmul(softmax(beta * linear_logits(z, theta, bias)), theta)
