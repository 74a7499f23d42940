"""Multinomial models N(z, theta): features and parameters in, logits out.

Every model is a pure function of the features and of its parameters, so that the gradient flow of
the features is `jax.grad` away (`imr.feature_loss`, `imr.gradient_field`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_axis, check_floating, check_rank
from imr._numerics import matmul
from imr._typing import Bias, ClassWeights, Features
from imr.errors import ImrError


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


def quadratic_logits(z: Features, theta: Float[Array, "f f"]) -> Float[Array, "n n"]:
    r"""Quadratic model, the logits of self-attention: $N = Z \theta Z^T$.

    Args:
      z: features, shape (n, f).
      theta: shape (f, f).

    Returns:
      Logits, shape (n, n).

    Raises:
      ImrError: where shapes do not fit; both are named.

    >>> import jax.numpy as jnp
    >>> quadratic_logits(jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 2.0], [3.0, 4.0]]

    Reference: arXiv 2509.04653, Theorem 2.
    """
    _check_features(z)
    check_rank("theta", theta, 2, "(f, f)")
    for axis in (0, 1):
        check_axis("z", z.shape[1], "theta", theta.shape[axis], f"features (theta's axis {axis})")
    return matmul(matmul(z, theta), z.T)


def low_rank_logits(
    z: Features,
    phi: Float[Array, "f r"] | Float[Array, "h f r"],
    k: Float[Array, "f r"] | Float[Array, "h f r"] | None = None,
) -> Float[Array, "n n"] | Float[Array, "h n n"]:
    r"""Quadratic model of low rank: $N = Z \phi \phi^T Z^T$, or $N = Z Q K^T Z^T$ with Q = phi.

    Args:
      z: features, shape (n, f).
      phi: shape (f, r), or (h, f, r) for h heads; r at most f.
      k: of the same shape; None is symmetric, K = phi.

    Returns:
      Logits, shape (n, n), or (h, n, n): `feature_loss` adds the losses of heads.

    Raises:
      ImrError: where shapes do not fit, or the rank is larger than f.

    >>> import jax.numpy as jnp
    >>> low_rank_logits(jnp.eye(2), jnp.array([[1.0], [2.0]])).tolist()
    [[1.0, 2.0], [2.0, 4.0]]

    Reference: arXiv 2509.04653, Corollary of Theorem 2.
    """
    check_projections(z, phi, k)
    queries = matmul(z, phi)
    keys = queries if k is None else matmul(z, k)
    return matmul(queries, jnp.swapaxes(keys, -1, -2))


def polynomial_logits(z: Features, theta: ClassWeights, degree: int) -> Float[Array, "n k"]:
    r"""Polynomial model: $N = (Z \theta^T)^p$, entry by entry.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f).
      degree: p, an integer of at least 1; 1 is the linear model.

    Returns:
      Logits, shape (n, k).

    Raises:
      ImrError: where shapes do not fit or the degree is no positive integer.

    >>> import jax.numpy as jnp
    >>> polynomial_logits(jnp.ones((1, 2)), jnp.array([[1.0, 2.0]]), 2).tolist()
    [[9.0]]

    Reference: arXiv 2509.04653.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise ImrError(f"degree must be an integer of at least 1; found {degree!r}.")
    return linear_logits(z, theta) ** degree


def check_projections(z: Array, phi: Array, k: Array | None) -> None:
    """Demands projections (f, r) or (h, f, r) that fit features (n, f), of rank r at most f."""
    _check_features(z)
    if jnp.ndim(phi) not in (2, 3):
        raise ImrError(
            f"phi must have shape (f, r), or (h, f, r) for heads; found {jnp.shape(phi)}."
        )
    check_axis("z", z.shape[1], "phi", phi.shape[-2], "features")
    if phi.shape[-1] > phi.shape[-2]:
        raise ImrError(
            f"phi has rank {phi.shape[-1]}, more than the {phi.shape[-2]} features: theta = phi "
            "phi^T needs no more. Use fewer columns, or quadratic_logits with the full theta."
        )
    if k is not None and jnp.shape(k) != phi.shape:
        raise ImrError(f"k must have the shape of phi, {phi.shape}; found {jnp.shape(k)}.")


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
