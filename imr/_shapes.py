"""Demands on the shapes of what models and attention take."""

from typing import Any

import jax.numpy as jnp

from imr._checks import check_axis, check_floating, check_rank
from imr.errors import ImrError


def check_linear(z: Any, theta: Any, bias: Any) -> None:
    """Demands features (n, f), class weights (k, f) and, if there is one, a bias (k,)."""
    check_features(z)
    check_rank("theta", theta, 2, "(k, f)")
    check_axis("z", z.shape[1], "theta", theta.shape[1], "features (its last axis)")
    if bias is not None:
        check_rank("bias", bias, 1, "(k,)")
        check_axis("bias", bias.shape[0], "theta", theta.shape[0], "classes (its first axis)")


def check_projections(z: Any, q: Any, k: Any) -> None:
    """Demands features (n, f) and projections (f, r) or (h, f, r), of rank r at most f."""
    check_features(z)
    check_projection_pair(q, k)
    check_axis("z", z.shape[1], "q", q.shape[-2], "features")


def check_projection_pair(q: Any, k: Any) -> None:
    """Demands q of shape (f, r) or (h, f, r), r at most f, and k of the same shape or None."""
    if jnp.ndim(q) not in (2, 3):
        raise ImrError(
            f"q must have shape (f, r), or (h, f, r) for heads; found shape {jnp.shape(q)}."
        )
    if q.shape[-1] > q.shape[-2]:
        raise ImrError(
            f"q has rank {q.shape[-1]}, more than the {q.shape[-2]} features: theta = q k^T needs no "
            "more. Use fewer columns, or imr.Quadratic.full with the whole theta."
        )
    if k is not None and jnp.shape(k) != q.shape:
        raise ImrError(f"k must have the shape of q, {q.shape}; found {jnp.shape(k)}.")


def check_features(z: Any) -> None:
    """Demands floating features (n, f)."""
    check_rank("z", z, 2, "(n, f)")
    check_floating("z", z)
