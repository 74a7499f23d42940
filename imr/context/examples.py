"""The labelled tokens of a context alone: what a flow in coordinates of them reads."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imr._checks import is_concrete
from imr._module import Module
from imr._numerics import matmul
from imr._typing import Mask
from imr.context.fields import ContextField
from imr.context.kernels import DenseKernel, FactorKernel, Kernel
from imr.losses import checked_targets
from imr.targets import Targets


class Examples(Module):
    """The examples of a context of n tokens; `examples_of` makes them.

    Attributes:
      size: n.
      rows: which tokens they are, shape (s,); None if that is known only when the program runs. All
        tokens then are rows of what follows, and those that are no examples take no part.
      targets, where: of them.
      kernel: between them, (s, s); a `FactorKernel` only if its factor has fewer columns than rows.
      leading: whether they are known to come first: slices of a batch are faster than gathers.
    """

    rows: Int[Array | np.ndarray, "s"] | None
    targets: Targets | None
    where: Mask | None
    kernel: Kernel
    leading: bool = eqx.field(static=True)

    def _index(self) -> Any:
        return slice(self.kernel.size) if self.leading else self.rows

    def gather(self, x: Float[Array, "n d"]) -> Float[Array, "s d"]:
        """The rows of the examples."""
        return x if self.rows is None else x[self._index()]

    def scatter(self, x: Float[Array, "s d"], num_tokens: int) -> Float[Array, "n d"]:
        """Zero in the rows of all other tokens."""
        if self.rows is None:
            return x
        return jnp.zeros((num_tokens, x.shape[1]), x.dtype).at[self._index()].set(x)

    def spread(self, kernel: Kernel, x: Float[Array, "s d"]) -> Float[Array, "n d"]:
        r"""$K_{\cdot S} X$ by the kernel of all tokens."""
        if self.rows is not None and isinstance(kernel, DenseKernel):
            return matmul(kernel.values.astype(x.dtype)[:, self._index()], x)
        return kernel.mv(self.scatter(x, kernel.size))


def examples_of(field: ContextField, num_classes: int) -> Examples:
    """The examples of a context, gathered if the mask is concrete."""
    loss, kernel, labelled = field.loss, field.kernel, field.labelled
    shape = (kernel.size, num_classes)
    checked_targets(loss.targets, shape, loss.where)  # here, where rows have the numbers of tokens
    targets, where = loss.targets, loss.where
    if is_concrete(labelled):
        rows = np.flatnonzero(np.asarray(labelled))
        shape, leading = (len(rows), num_classes), len(rows) == rows[-1] + 1
        index = slice(len(rows)) if leading else rows
        targets, where = jax.tree.map(lambda x: x[index], (targets, where))
        kernel = kernel.of_tokens(index)
    else:
        rows, leading, of_rows = None, False, jnp.broadcast_to(labelled[:, None], shape)
        where = of_rows if where is None else of_rows & where
    if isinstance(kernel, FactorKernel) and kernel.factor.shape[1] >= kernel.size:
        kernel = DenseKernel(matmul(kernel.factor, kernel.factor.T))
    targets = checked_targets(targets, shape, where)
    return Examples(rows, targets, where, kernel, bool(leading))
