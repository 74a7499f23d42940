"""Multinomial models N(z, theta): features and parameters in, logits out.

Every model is a pure function of the features and of its parameters, so that the gradient flow of
the features is `jax.grad` away (`imr.feature_loss`, `imr.gradient_field`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import ImrError, check_axis, check_floating, check_rank
from imr._numerics import matmul
from imr._typing import Bias, ClassWeights, Features


def linear_logits(
    z: Features, theta: ClassWeights, bias: Bias | None = None
) -> Float[Array, "n k"]:
    r"""Linear model, the logits of multinomial regression: $N = Z \theta^T + b$.

    Args:
      z: features, shape (n, f).
      theta: one row of weights for each class, shape (k, f).
      bias: optional, shape (k,).

    Returns:
      Logits, shape (n, k).

    Raises:
      ImrError: where shapes do not fit; both are named.

    >>> import jax.numpy as jnp
    >>> linear_logits(jnp.ones((1, 2)), jnp.array([[1.0, 2.0], [0.0, 1.0]])).tolist()
    [[3.0, 1.0]]

    Reference: arXiv 2509.04653, Theorem 1.
    """
    _check_features(z)
    check_rank("theta", theta, 2, "(k, f)")
    check_axis("z", z.shape[1], "theta", theta.shape[1], "features (its last axis)")
    logits = matmul(z, theta.T)
    if bias is None:
        return logits
    check_rank("bias", bias, 1, "(k,)")
    check_axis("bias", bias.shape[0], "theta", theta.shape[0], "classes (its first axis)")
    return logits + bias[None, :]


def check_group(logits: Array, group: Array) -> None:
    """Demands prototype logits (n, m) and an integer class for each of the m prototypes."""
    check_rank("logits", logits, 2, "(n, m)")
    check_rank("group", group, 1, "(m,)")
    check_axis("group", jnp.shape(group)[0], "logits", logits.shape[1], "prototypes")
    if not jnp.issubdtype(jnp.result_type(group), jnp.integer):
        raise ImrError(f"group must hold integers; found dtype {jnp.result_type(group)}.")


def _check_features(z: Array) -> None:
    check_rank("z", z, 2, "(n, f)")
    check_floating("z", z)
