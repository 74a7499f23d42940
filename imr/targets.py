r"""Targets C of a multinomial as operators: what they are is never expanded.

`as_targets` makes labels, distributions, sparse and low-rank matrices a `Targets` with products."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Bool, Float, Int

from imr._checks import check_rank, is_concrete, out_of_traces
from imr._module import Module
from imr._numerics import matmul
from imr._typing import LabelsLike
from imr.errors import ImrError


class Targets(Module):
    """Targets C, shape (n, m): row i is the distribution that row i of the logits should have."""

    @abc.abstractmethod
    def mv(self, y: Float[Array, "m r"]) -> Float[Array, "n r"]:
        """$C Y$."""

    @abc.abstractmethod
    def rmv(self, y: Float[Array, "n r"], num_columns: int) -> Float[Array, "m r"]:
        """$C^T Y$ for targets of `num_columns` columns."""

    @abc.abstractmethod
    def inner(self, logits: Float[Array, "n m"]) -> Float[Array, "n"]:
        r"""$\langle C_i, N_i \rangle$ for each row."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, int], where: Any = None) -> None:
        """Demands that the targets fit logits of a shape (n, m), and a mask of that shape.

        Raises: ImrError if the shapes do not fit; for concrete values, if a label is out of range,
          or a row is no distribution or puts weight on an entry that the mask excludes.
        """

    def transposed(self, num_columns: int, dtype: Any) -> Float[Array, "m n"]:
        """$C^T$ as a dense matrix."""
        return self.mv(jnp.eye(num_columns, dtype=dtype)).T

    def minus(self, p: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """$(C - P)^T$ for probabilities P, given as their transpose."""
        return self.transposed(p.shape[0], p.dtype) - p

    def invalid_rows(self, num_columns: int) -> Bool[Array, "n"] | None:
        """Rows whose values cannot be targets and could not be refused under a trace."""
        return None


class LabelTargets(Targets):
    """One-hot rows, given by the column of the one in each: labels, or pointers to tokens.

    Attributes:
      columns: integers, shape (n,); under a trace the row of one out of range becomes NaN.
    """

    columns: Int[Array, "n"]

    def mv(self, y):
        out = self.invalid_rows(y.shape[0])
        return jnp.where(out[:, None], jnp.nan, y[self.columns])

    def rmv(self, y, num_columns):
        return jnp.zeros((num_columns, y.shape[1]), y.dtype).at[self.columns].add(y)

    def inner(self, logits):
        out = self.invalid_rows(logits.shape[1])
        inside = jnp.where(out, 0, self.columns)
        # Times NaN, so that the gradient is NaN too.
        return jnp.where(out, jnp.nan, 1) * jnp.take_along_axis(logits, inside[:, None], 1)[:, 0]

    def minus(self, p):
        """1 - p of the label is taken as the sum of the others: late in a flow 1 - p has no digits."""
        own, out = self.columns[None, :] == jnp.arange(len(p))[:, None], self.invalid_rows(len(p))
        others = jnp.where(own, 0, p)
        rest = jnp.where(out, jnp.nan, others.sum(axis=0))  # a pass less than NaN in the others
        return jnp.where(own | out[None], rest[None], 0) - others

    def invalid_rows(self, num_columns):
        return (self.columns < 0) | (self.columns >= num_columns)

    def check(self, shape, where=None):
        n, m = shape
        if self.columns.shape[0] != n:
            raise ImrError(
                f"targets has {self.columns.shape[0]} labels, but the logits have {n} rows: they "
                "must be equal."
            )
        if not is_concrete(self.columns):
            return
        columns = np.asarray(self.columns)
        bad = (columns < 0) | (columns >= m)
        if bad.any():
            row = int(np.argmax(bad))
            raise ImrError(
                f"targets must be column indices of the logits, 0 to {m - 1}; found targets[{row}] = "
                f"{columns[row]}."
            )
        if where is not None and is_concrete(where):
            hidden = ~np.asarray(where)[np.arange(n), columns]
            if hidden.any():
                row = int(np.argmax(hidden))
                raise ImrError(
                    f"targets[{row}] = {columns[row]} is an entry that where excludes: its loss "
                    "would be infinite. Change the label or the mask."
                )


class DenseTargets(Targets):
    """Distributions as a dense matrix C, shape (n, m)."""

    matrix: Float[Array, "n m"]

    def mv(self, y):
        return matmul(self.matrix.astype(y.dtype), y)

    def rmv(self, y, num_columns):
        del num_columns
        return matmul(self.matrix.astype(y.dtype).T, y)

    def inner(self, logits):
        # A logit of -inf under a target of zero contributes nothing: 0 * inf would be NaN.
        return jnp.sum(jnp.where(self.matrix == 0, 0, self.matrix * logits), axis=1)

    def transposed(self, num_columns, dtype):
        del num_columns
        return self.matrix.T.astype(dtype)

    def check(self, shape, where=None):
        _check_shape(self.matrix.shape, shape)
        if not is_concrete(self.matrix):
            return
        dtype = self.matrix.dtype
        wide = np.asarray(self.matrix, np.promote_types(np.float32, dtype))
        _check_rows(wide.min(axis=1, initial=np.inf), wide.sum(axis=1), dtype, shape[1])
        if where is not None and is_concrete(where):
            _check_hidden(np.flatnonzero(np.where(np.asarray(where), 0, wide).sum(axis=1) > 0))


class SparseTargets(Targets):
    """Distributions as a sparse matrix C, shape (n, m): a BCOO of jax.experimental.sparse."""

    matrix: BCOO

    def _entries(self, dtype):
        return self.matrix.indices[:, 0], self.matrix.indices[:, 1], self.matrix.data.astype(dtype)

    def mv(self, y):
        rows, columns, data = self._entries(y.dtype)
        start = jnp.zeros((self.matrix.shape[0], y.shape[1]), y.dtype)
        return start.at[rows].add(data[:, None] * y[columns])

    def rmv(self, y, num_columns):
        rows, columns, data = self._entries(y.dtype)
        start = jnp.zeros((num_columns, y.shape[1]), y.dtype)
        return start.at[columns].add(data[:, None] * y[rows])

    def inner(self, logits):
        rows, columns, data = self._entries(logits.dtype)
        return jnp.zeros(len(logits), logits.dtype).at[rows].add(data * logits[rows, columns])

    def check(self, shape, where=None):
        _check_shape(self.matrix.shape, shape)
        if where is not None and is_concrete(where, self.matrix):
            rows, columns = np.asarray(self.matrix.indices).T
            seen = np.asarray(where)[rows, columns] | (np.asarray(self.matrix.data) <= 0)
            _check_hidden(rows[~seen])
        ones = jnp.ones((shape[1], 1), self.matrix.dtype)
        least = jnp.broadcast_to(jnp.min(self.matrix.data, initial=0), (shape[0],))
        _check_rows(least, self.mv(ones)[:, 0], self.matrix.dtype, shape[1])


class LowRankTargets(Targets):
    """Targets $C = L R^T$ by their factors: nothing of size n x m is built.

    Args:
      left: L, shape (n, c).
      right: R, shape (m, c).
    """

    left: Float[Array, "n c"]
    right: Float[Array, "m c"]

    def mv(self, y):
        return matmul(self.left.astype(y.dtype), matmul(self.right.astype(y.dtype).T, y))

    def rmv(self, y, num_columns):
        del num_columns
        return matmul(self.right.astype(y.dtype), matmul(self.left.astype(y.dtype).T, y))

    def inner(self, logits):
        weighted = matmul(logits, self.right.astype(logits.dtype))
        return jnp.sum(self.left.astype(logits.dtype) * weighted, axis=1)

    def check(self, shape, where=None):
        _check_shape((self.left.shape[0], self.right.shape[0]), shape)
        if where is not None and is_concrete(where, self.left, self.right):
            weight = np.asarray(self.left) * (~np.asarray(where) @ np.asarray(self.right))
            _check_hidden(np.flatnonzero(weight.sum(axis=1) > 0))
        row_sums = matmul(self.left, self.right.sum(axis=0)[:, None])[:, 0]
        least = jnp.minimum(self.left.min(axis=1), self.right.min())
        _check_rows(least, row_sums, self.left.dtype, shape[1])


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
    if isinstance(x, Targets):
        return x
    if isinstance(x, BCOO):
        return SparseTargets(x)
    try:
        with out_of_traces(x):
            x = jnp.asarray(x)
    except (TypeError, ValueError):
        raise ImrError(
            f"targets must be integer labels, shape (n,), or distributions, shape (n, m); found {x!r}."
        ) from None
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
    return LabelTargets(_as_int32("targets", columns))


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
    labels = _as_int32("labels", labels)
    if num_classes is None:
        if not is_concrete(labels):
            raise ImrError("num_classes must be given if labels are traced (jit, vmap, grad).")
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


def _as_int32(name: str, x: Any) -> Int[Array, "n"]:
    # Labels that are concrete must not escape the checks of their values by being cast in a trace.
    with out_of_traces(x):
        x = jnp.asarray(x)
        check_rank(name, x, 1, "(n,)")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ImrError(
                f"{name} of shape (n,) must be integers; found dtype {x.dtype}. Distributions have "
                "shape (n, m)."
            )
        # What int32 cannot hold is out of range for any number of columns, and stays so.
        has, holds = jnp.iinfo(x.dtype), jnp.iinfo(jnp.int32)
        return jnp.clip(x, max(has.min, holds.min), min(has.max, holds.max)).astype(jnp.int32)


def _check_shape(targets: tuple[int, ...], logits: tuple[int, ...]) -> None:
    if tuple(targets) != tuple(logits):
        raise ImrError(
            f"targets must be labels, shape ({logits[0]},), or distributions, shape {tuple(logits)} as "
            f"the logits; found shape {tuple(targets)}."
        )


def _check_hidden(rows: np.ndarray) -> None:
    """Refuses targets with weight on excluded entries, if there are such rows."""
    if rows.size:
        raise ImrError(
            f"targets puts weight on entries that where excludes in row {rows[0]}: its loss would be "
            "infinite. Change one of them."
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
