"""Targets C of a multinomial: labels, distributions, and (n, n) ones that are never built."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Bool, Float, Int

from imr._checks import check_floating, check_rank, is_concrete
from imr._numerics import matmul
from imr.errors import ImrError


class LowRankTargets(NamedTuple):
    """Targets $C = L R^T$ by their factors, each of shape (n, c): nothing of size n x n is built."""

    left: Float[Array, "n c"]
    right: Float[Array, "n c"]


def same_class_targets(labels: Int[Array, "n"], num_classes: int | None = None) -> LowRankTargets:
    r"""Targets of the quadratic model that spread each row evenly over the rows of its class.

    $$C_{ij} = [y_i = y_j] \,/\, |\{l : y_l = y_i\}| = (M M^T)_{ij}, \quad
      M_{ic} = [y_i = c] \,/\, \sqrt{n_c}$$

    Args:
      labels: integers from 0, shape (n,).
      num_classes: c; by default the largest label and one. Needed under a trace.

    Returns:
      `LowRankTargets`, accepted wherever targets of shape (n, n) are; O(n c) numbers.

    Raises:
      ImrError: where labels are no integers from 0, or num_classes is missing under a trace.

    >>> import jax.numpy as jnp
    >>> targets = same_class_targets(jnp.array([0, 1, 0]))
    >>> (targets.left @ targets.right.T).round(2).tolist()
    [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    """
    check_rank("labels", labels, 1, "(n,)")
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ImrError(f"labels must be integers; found dtype {jnp.result_type(labels)}.")
    if num_classes is None:
        if not is_concrete(labels):
            raise ImrError("num_classes must be given where labels are traced (jit, vmap, grad).")
        num_classes = int(np.max(np.asarray(labels), initial=0)) + 1
    if is_concrete(labels):
        values = np.asarray(labels)
        bad = (values < 0) | (values >= num_classes)
        if bad.any():
            row = int(np.argmax(bad))
            raise ImrError(
                f"labels must lie in 0 to {num_classes - 1}; found labels[{row}] = {values[row]}."
            )
    members = jax.nn.one_hot(labels, num_classes)
    factor = members / jnp.sqrt(jnp.maximum(members.sum(axis=0), 1))[None, :]
    return LowRankTargets(factor, factor)


def target_logits(targets: Any, logits: Float[Array, "n m"]) -> Float[Array, "n"]:
    r"""$\langle C_i, N_i \rangle$ for each row, shape (n,)."""
    if isinstance(targets, LowRankTargets):
        right = targets.right.astype(logits.dtype)
        return jnp.sum(targets.left.astype(logits.dtype) * matmul(logits, right), axis=1)
    if isinstance(targets, BCOO):
        rows, columns = targets.indices[:, 0], targets.indices[:, 1]
        return (
            jnp.zeros(logits.shape[0], logits.dtype)
            .at[rows]
            .add(targets.data.astype(logits.dtype) * logits[rows, columns])
        )
    if targets.ndim == 1:
        out = out_of_range(targets, logits.shape[1])
        inside = jnp.where(out, 0, targets)
        # Times NaN, so that the gradient is NaN too.
        return jnp.where(out, jnp.nan, 1) * jnp.take_along_axis(logits, inside[:, None], 1)[:, 0]
    # A logit of -inf under a target of zero contributes nothing: 0 * inf would be NaN.
    return jnp.sum(jnp.where(targets == 0, 0, targets * logits), axis=1)


def out_of_range(labels: Int[Array, "n"], m: int) -> Bool[Array, "n"]:
    """Labels that are no column of m. Under a trace nothing can be raised; they make NaN instead."""
    return (labels < 0) | (labels >= m)


def target_product(targets: Any, y: Float[Array, "m r"]) -> Float[Array, "n r"]:
    """$C Y$; what the targets are is never expanded."""
    if isinstance(targets, LowRankTargets):
        left, right = (factor.astype(y.dtype) for factor in targets)
        return matmul(left, matmul(right.T, y))
    if isinstance(targets, BCOO):
        rows, columns = targets.indices[:, 0], targets.indices[:, 1]
        weighted = targets.data.astype(y.dtype)[:, None] * y[columns]
        return jnp.zeros((targets.shape[0], y.shape[1]), y.dtype).at[rows].add(weighted)
    if targets.ndim == 1:
        return jnp.where(out_of_range(targets, y.shape[0])[:, None], jnp.nan, y[targets])
    return matmul(targets.astype(y.dtype), y)


def transposed_target_product(
    targets: Any, y: Float[Array, "n r"], num_columns: int
) -> Float[Array, "m r"]:
    """$C^T Y$; what the targets are is never expanded."""
    if isinstance(targets, LowRankTargets):
        left, right = (factor.astype(y.dtype) for factor in targets)
        return matmul(right, matmul(left.T, y))
    if isinstance(targets, BCOO):
        rows, columns = targets.indices[:, 0], targets.indices[:, 1]
        weighted = targets.data.astype(y.dtype)[:, None] * y[rows]
        return jnp.zeros((num_columns, y.shape[1]), y.dtype).at[columns].add(weighted)
    if targets.ndim == 1:
        return jnp.zeros((num_columns, y.shape[1]), y.dtype).at[targets].add(y)
    return matmul(targets.astype(y.dtype).T, y)


def check_targets(shape: tuple[int, ...], targets: Any, where: Any = None) -> None:
    """Demands targets (and a mask) that fit logits of that shape.

    Raises:
      ImrError: where shapes or dtypes do not fit; for concrete values, where a label is out of
        range, a row of targets is no distribution or puts weight on an excluded entry, or a row is
        fully masked.
    """
    if len(shape) != 2:
        raise ImrError(
            f"logits must have shape (n, m); found shape {shape}. "
            "For leading batch axes use jax.vmap."
        )
    n, m = shape
    if where is not None:
        _check_mask(shape, where)
    if isinstance(targets, LowRankTargets):
        if targets.left.shape[0] != n or targets.right.shape[0] != m:
            raise ImrError(
                f"targets are of shape ({targets.left.shape[0]}, {targets.right.shape[0]}), the "
                f"logits of shape {shape}: they must be equal."
            )
        row_sums = matmul(targets.left, targets.right.sum(axis=0)[:, None])[:, 0]
        least = jnp.minimum(targets.left.min(axis=1), targets.right.min())
        return _check_rows(least, row_sums, targets.left.dtype, m)
    if jnp.ndim(targets) == 1:
        if jnp.shape(targets)[0] != n:
            raise ImrError(
                f"targets has {jnp.shape(targets)[0]} labels, but the logits have {n} rows: they "
                "must be equal."
            )
        if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
            raise ImrError(
                f"targets of shape (n,) must be integer labels; found dtype "
                f"{jnp.result_type(targets)}. Distributions have shape (n, m)."
            )
        return _check_labels(targets, m, where)
    if tuple(targets.shape) != shape:
        raise ImrError(
            f"targets must be labels, shape ({n},), or distributions, shape {shape} as the logits; "
            f"found shape {tuple(targets.shape)}."
        )
    if isinstance(targets, BCOO):
        ones = jnp.ones((m, 1), targets.dtype)
        least = jnp.broadcast_to(jnp.min(targets.data, initial=0), (n,))
        return _check_rows(least, target_product(targets, ones)[:, 0], targets.dtype, m)
    check_floating("targets of shape (n, m)", targets)
    if not is_concrete(targets):
        return
    wide = np.asarray(targets, np.promote_types(np.float32, np.dtype(targets.dtype)))
    _check_rows(wide.min(axis=1), wide.sum(axis=1), jnp.result_type(targets), m)
    if where is not None and is_concrete(where):
        hidden = np.where(np.asarray(where), 0, wide).sum(axis=1) > 0
        if hidden.any():
            raise ImrError(
                f"targets puts weight on entries that where excludes in row "
                f"{int(np.argmax(hidden))}: its loss would be infinite. Change one of them."
            )


def _check_mask(shape: tuple[int, ...], where: Any) -> None:
    if jnp.shape(where) != shape or jnp.result_type(where) != jnp.dtype(bool):
        raise ImrError(
            f"where must be boolean with the shape of the logits, {shape}; found shape "
            f"{jnp.shape(where)} and dtype {jnp.result_type(where)}."
        )
    if is_concrete(where):
        empty = ~np.asarray(where).any(axis=1)
        if empty.any():
            raise ImrError(
                f"where must leave each row an entry; row {int(np.argmax(empty))} is fully masked. "
                "Leave that row out."
            )


def _check_labels(labels: Any, m: int, where: Any) -> None:
    if not is_concrete(labels):
        return
    values = np.asarray(labels)
    bad = (values < 0) | (values >= m)
    if bad.any():
        row = int(np.argmax(bad))
        raise ImrError(
            f"targets must be column indices of the logits, 0 to {m - 1}; found targets[{row}] = "
            f"{int(values[row])}."
        )
    if where is not None and is_concrete(where):
        hidden = ~np.asarray(where)[np.arange(values.size), values]
        if hidden.any():
            row = int(np.argmax(hidden))
            raise ImrError(
                f"targets[{row}] = {int(values[row])} is an entry that where excludes: its loss "
                "would be infinite. Change the label or the mask."
            )


def _check_rows(least: Any, sums: Any, dtype: Any, m: int) -> None:
    """Demands rows whose least entries and sums are those of distributions."""
    if not is_concrete(least, sums):
        return
    least, sums = np.asarray(least), np.asarray(sums)
    # A row of m numbers of precision eps sums to 1 within about m * eps.
    tolerance = max(1e-6, 4 * m * float(jnp.finfo(dtype).eps))
    bad = ~((least >= 0) & (np.abs(sums - 1) <= tolerance))
    if bad.any():
        row = int(np.argmax(bad))
        raise ImrError(
            "targets must be distributions, non-negative rows that sum to 1; row "
            f"{row} has least entry {least[row]:.6g} and sum {sums[row]:.6g}."
        )
