"""The kinds of targets, and what they demand of their values."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Bool, Float, Int

from imr._checks import is_concrete, numpy_of
from imr._module import Module
from imr._numerics import log_sum_exp, matmul, widen
from imr._target_rows import (
    bad_rows,
    check_hidden,
    check_rows,
    check_shape,
    read_rows,
    rounding,
)
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

        Rows that the mask leaves without an entry are not read.

        Raises: ImrError if the shapes do not fit; for concrete values, if a label is out of range,
          or a row is no distribution or puts weight on an entry that the mask excludes.
        """

    def cross_entropy(self, logits: Float[Array, "n m"], where: Any = None) -> Float[Array, "n"]:
        r"""$\log \sum_j \exp N_{ij} - \langle C_i, N_i \rangle$ for each row."""
        return log_sum_exp(logits, where) - self.inner(logits)

    def transposed(self, num_columns: int, dtype: Any) -> Float[Array, "m n"]:
        """$C^T$ as a dense matrix."""
        return self.mv(jnp.eye(num_columns, dtype=dtype)).T

    def minus(self, p: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """$(C - P)^T$ for probabilities P, given as their transpose.

        1 - p, where a target is 1, is taken as the sum of the others: late in a flow it has no digits.
        """
        c = self.transposed(p.shape[0], p.dtype)
        others = jnp.where(c == 1, 0, p)
        return jnp.where(c == 1, jnp.sum(others, axis=0, keepdims=True), c - others)

    def marked(self, where: Any = None) -> "Targets":
        """The targets with NaN in the rows that `check` would refuse, but cannot under a trace.

        `where` is a mask of booleans, or None; rows that it leaves without an entry are not read.
        """
        return self


class LabelTargets(Targets):
    """One-hot rows, given by the column of the one in each: labels, or pointers to tokens.

    Attributes:
      columns: integers, shape (n,); under a trace the row of one out of range becomes NaN.
    """

    columns: Int[Array, "n"]

    @property
    def _columns(self) -> Any:
        """The columns, by numpy if they are known: of what jax computes from constants in a trace it
        keeps an entry of a cache for each call."""
        return numpy_of(self.columns).asarray(self.columns)

    def mv(self, y):
        out = self._out_of(y.shape[0])
        return jnp.where(out[:, None], jnp.nan, y[self._columns])

    def rmv(self, y, num_columns):
        return jnp.zeros((num_columns, y.shape[1]), y.dtype).at[self._columns].add(y)

    def inner(self, logits):
        out, xp = self._out_of(logits.shape[1]), numpy_of(self.columns)
        inside = xp.where(out, 0, self._columns)
        # Times NaN, so that the gradient is NaN too.
        nan = jnp.asarray(xp.where(out, jnp.nan, 1), logits.dtype)
        return nan * jnp.take_along_axis(logits, inside[:, None], 1)[:, 0]

    def cross_entropy(self, logits, where=None):
        r"""$\log(1 + \sum_{j \neq c} \exp(N_{ij} - N_{ic}))$: a small loss keeps its digits."""
        own = self.inner(logits)
        others = self.columns[:, None] != jnp.arange(logits.shape[1])[None, :]
        others = others if where is None else others & where
        # Without a rival the loss is 0; not a constant, so that NaN and infinities stay visible.
        rivals = jnp.max(jnp.where(others, logits, -jnp.inf), axis=1, initial=-jnp.inf)
        alone = jnp.isneginf(rivals)
        gap = log_sum_exp(jnp.where(alone[:, None], 0, logits), others) - own
        return jnp.where(alone, 0 * own, jax.nn.softplus(jnp.where(alone, 0, gap)))

    def minus(self, p):
        own, out = self.columns[None, :] == jnp.arange(len(p))[:, None], self._out_of(len(p))
        others = jnp.where(own, 0, p)
        rest = jnp.where(out, jnp.nan, others.sum(axis=0))  # a pass less than NaN in the others
        return jnp.where(own | out[None], rest[None], 0) - others

    def _out_of(self, num_columns):
        return (self._columns < 0) | (self._columns >= num_columns)

    def marked(self, where=None):
        if where is None or is_concrete(self.columns, where):
            return self
        inside = jnp.clip(self.columns, 0, where.shape[1] - 1)
        seen = jnp.take_along_axis(where, inside[:, None], 1)[:, 0]
        return LabelTargets(jnp.where(seen | ~where.any(axis=1), self.columns, -1))

    def check(self, shape, where=None):
        n, m = shape
        if self.columns.shape[0] != n:
            raise ImrError(
                f"targets has {self.columns.shape[0]} labels, but the logits have {n} rows: they "
                "must be equal."
            )
        if not is_concrete(self.columns):
            return
        columns, read = np.asarray(self.columns), read_rows(where, n)
        bad = ((columns < 0) | (columns >= m)) & read
        if bad.any():
            row = int(np.argmax(bad))
            raise ImrError(
                f"targets must be column indices of the logits, 0 to {m - 1}; found targets[{row}] = "
                f"{columns[row]}."
            )
        if where is not None and is_concrete(where):
            inside = np.where(read, columns, 0)
            hidden = read & ~np.asarray(where)[np.arange(n), inside]
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
        check_shape(self.matrix.shape, shape)
        if not is_concrete(self.matrix):
            return
        dtype = self.matrix.dtype
        wide = np.asarray(self.matrix, np.promote_types(np.float32, dtype))
        least = wide.min(axis=1, initial=np.inf)
        check_rows(least, wide.sum(axis=1), dtype, shape, where)
        if where is not None and is_concrete(where):
            check_hidden(np.where(np.asarray(where), 0, wide).sum(axis=1) > 0, where)

    def marked(self, where=None):
        if is_concrete(self.matrix, where):
            return self
        wide = widen(self.matrix)
        hidden = None if where is None else jnp.where(where, 0, wide).sum(axis=1)
        tolerance = rounding(self.matrix.dtype, self.matrix.shape[1])
        least = wide.min(axis=1, initial=jnp.inf)
        bad = bad_rows(least, wide.sum(axis=1), tolerance, hidden, where)
        return DenseTargets(jnp.where(bad[:, None], jnp.nan, self.matrix))


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
        start = jnp.zeros(logits.shape[0], logits.dtype)
        return start.at[rows].add(data * logits[rows, columns])

    def check(self, shape, where=None):
        check_shape(self.matrix.shape, shape)
        if not is_concrete(self.matrix):
            return
        rows, columns = np.asarray(self.matrix.indices).T
        # Entries that fill up a BCOO lie outside of it.
        inside = (rows < shape[0]) & (columns < shape[1])
        rows, columns, data = rows[inside], columns[inside], np.asarray(self.matrix.data)[inside]
        least, sums, hidden = (np.zeros(shape[0], float) for _ in range(3))
        np.minimum.at(least, rows, data)
        np.add.at(sums, rows, data)
        check_rows(least, sums, self.matrix.dtype, shape, where)
        if where is not None and is_concrete(where):
            np.add.at(hidden, rows, np.where(np.asarray(where)[rows, columns], 0, data))
            check_hidden(hidden > 0, where)

    def marked(self, where=None):
        if is_concrete(self.matrix, where):
            return self
        rows, columns, data = self._entries(jnp.promote_types(self.matrix.dtype, jnp.float32))
        zeros = jnp.zeros(self.matrix.shape[0], data.dtype)
        hidden = None
        if where is not None:
            hidden = zeros.at[rows].add(jnp.where(where[rows, columns], 0, data))
        least, sums = zeros.at[rows].min(data), zeros.at[rows].add(data)
        tolerance = rounding(self.matrix.dtype, self.matrix.shape[1])
        bad = bad_rows(least, sums, tolerance, hidden, where)
        # All of them: a row without an entry has none that could be marked.
        data = jnp.where(jnp.any(bad), jnp.nan, self.matrix.data)
        return SparseTargets(BCOO((data, self.matrix.indices), shape=self.matrix.shape))


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
        check_shape((self.left.shape[0], self.right.shape[0]), shape)
        if not is_concrete(self.left, self.right):
            return
        left, right = np.asarray(self.left), np.asarray(self.right)
        read = read_rows(where, shape[0])
        for name, factor in (("left", left[read]), ("right", right)):
            if factor.min(initial=0) < 0:
                raise ImrError(
                    f"{name} of low-rank targets must not be negative, so that their product, which is "
                    f"never built, cannot be; found {factor.min():.6g}. Use factors without negative "
                    "entries, or pass left @ right.T."
                )
        sums = left @ right.sum(axis=0)
        check_rows(np.zeros_like(sums), sums, left.dtype, shape, where)
        if where is not None and is_concrete(where):
            check_hidden((left * (~np.asarray(where) @ right)).sum(axis=1) > 0, where)

    def marked(self, where=None):
        if is_concrete(self.left, self.right, where):
            return self
        left, right = widen(self.left), widen(self.right)
        sums, hidden = jnp.sum(left * jnp.sum(right, axis=0)[None], axis=1), None
        if where is not None:
            hidden = jnp.sum(left * matmul(~where, right), axis=1)
        least = jnp.minimum(left.min(axis=1, initial=0), right.min(initial=0))
        tolerance = rounding(self.left.dtype, len(self.right))
        bad = bad_rows(least, sums, tolerance, hidden, where)
        return LowRankTargets(jnp.where(bad[:, None], jnp.nan, self.left), self.right)


class MaskedTargets(Targets):
    """Targets some of whose rows take no part: those count as zeros, and are not read.

    Attributes:
      targets: of all rows.
      rows: boolean, shape (n,), True for the rows that take part.
    """

    targets: Targets
    rows: Bool[Array, "n"]

    def mv(self, y):
        return jnp.where(self.rows[:, None], self.targets.mv(y), 0)

    def rmv(self, y, num_columns):
        return self.targets.rmv(jnp.where(self.rows[:, None], y, 0), num_columns)

    def inner(self, logits):
        # Left out before and after: what a row that is not read makes of them may be NaN.
        logits = jnp.where(self.rows[:, None], logits, 0)
        return jnp.where(self.rows, self.targets.inner(logits), 0)

    def cross_entropy(self, logits, where=None):
        logits = jnp.where(self.rows[:, None], logits, 0)
        return jnp.where(self.rows, self.targets.cross_entropy(logits, where), 0)

    def minus(self, p):
        return jnp.where(self.rows[None, :], self.targets.minus(p), -p)

    def check(self, shape, where=None):
        self.targets.check(shape, where)
