r"""Targets C of a multinomial as operators: what they are is never expanded.

`as_targets` makes labels, distributions, sparse and low-rank matrices a `Targets` with products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from imr._checks import as_labels, as_numbers, check_count, check_flags, is_concrete
from imr._targets import DenseTargets as DenseTargets
from imr._targets import LabelTargets as LabelTargets
from imr._targets import LowRankTargets as LowRankTargets
from imr._targets import MaskedTargets as MaskedTargets
from imr._targets import SparseTargets as SparseTargets
from imr._targets import Targets as Targets
from imr._typing import LabelsLike
from imr.errors import ImrError


def as_targets(x: Any, *, square: bool = False) -> Targets:
    """Targets of any kind as an operator; every function that takes targets calls this.

    Args:
      x: integer labels, shape (n,); distributions, shape (n, m), dense or sparse (BCOO); or what
        `same_class_targets`, `pointers` or this function returns.
      square: whether the model's logits have a column for each row, so that bare labels could mean
        two things.
    Returns: A `Targets`. Labels are cast to int32, for a narrower type wraps beside a large number.
    Raises: ImrError if x is of no such kind, or holds bare labels for a square model.

    >>> import jax.numpy as jnp
    >>> as_targets(jnp.array([1, 0])).mv(jnp.array([[5.0], [7.0]])).tolist()
    [[7.0], [5.0]]
    """
    check_flags(square=square)
    if isinstance(x, Targets):
        return x
    if isinstance(x, BCOO):
        if x.n_batch or x.n_dense or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ImrError(
                "sparse targets must be a BCOO of floating numbers without batch and dense axes; found "
                f"dtype {x.dtype}, n_batch {x.n_batch} and n_dense {x.n_dense}. Convert them with "
                ".astype(float) and .update_layout(n_batch=0, n_dense=0)."
            )
        return SparseTargets(x)
    x = as_numbers("targets", x)
    if x.ndim == 1:
        if square:
            raise ImrError(
                "targets of shape (n,) can mean two things for a model whose logits are (n, n). For "
                "class labels pass imr.same_class_targets(labels); for the token that each token "
                "should attend to pass imr.pointers(columns)."
            )
        return pointers(x)
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ImrError(
            "targets must be integer labels, shape (n,), or distributions, a floating array of shape "
            f"(n, m); found shape {x.shape} and dtype {x.dtype}."
        )
    return DenseTargets(x)


def pointers(columns: LabelsLike) -> LabelTargets:
    """Targets of a square model that name for each token the token that it should attend to.

    Args:
      columns: integers, shape (n,): row i of C is one at `columns[i]` and zero elsewhere.
    Returns: `LabelTargets`, accepted wherever targets are.
    Raises: ImrError if columns are no integers of shape (n,).

    >>> import jax.numpy as jnp
    >>> pointers(jnp.array([1, 1])).mv(jnp.array([[5.0], [7.0]])).tolist()
    [[7.0], [7.0]]
    """
    return LabelTargets(as_labels("targets", columns))


def same_class_targets(labels: LabelsLike, num_classes: int | None = None) -> LowRankTargets:
    r"""Targets of a square model that spread each row evenly over the rows of its class.

    $$C_{ij} = [y_i = y_j] \,/\, |\{l : y_l = y_i\}| = (M M^T)_{ij}, \quad
      M_{ic} = [y_i = c] \,/\, \sqrt{n_c}$$

    Args:
      labels: integers from 0, shape (n,).
      num_classes: c; by default the largest label and one. Needed under a trace.
    Returns: `LowRankTargets`, accepted wherever targets are; O(n c) numbers.
    Raises: ImrError if labels are no integers from 0 to num_classes - 1, or num_classes is missing
      under a trace.

    >>> import jax.numpy as jnp
    >>> targets = same_class_targets(jnp.array([0, 1, 0]))
    >>> (targets.left @ targets.right.T).round(2).tolist()
    [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    """
    labels = as_labels("labels", labels)
    if num_classes is None:
        if not is_concrete(labels):
            raise ImrError("num_classes must be given if labels are traced (jit, vmap, grad).")
        num_classes = int(np.max(np.asarray(labels), initial=0)) + 1
    check_count("num_classes", num_classes)
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
