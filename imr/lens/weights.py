r"""What the weights of heads say: is the value circuit that of a gradient step?

$\theta = W_Q W_K^T / \sqrt r$. A head that descends the log-sum-exp has $W_V W_O \propto
-\theta^T$; one that climbs it, $+\theta^T$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._numerics import matmul
from imr.lens.model import Heads


class WeightCosines(NamedTuple):
    r"""Cosine of $W_V W_O$ with $+\theta^T$ for each head, and against a null.

    Attributes:
      cosine: shape (l, h). null_mean, null_std: of the cosines with the $\theta$ of other heads of
        all layers, (l, h). z: (cosine - null_mean) / null_std.
    """

    cosine: Float[Array, "l h"]
    null_mean: Float[Array, "l h"]
    null_std: Float[Array, "l h"]
    z: Float[Array, "l h"]


@jax.jit
def weight_cosines(heads: Heads) -> WeightCosines:
    r"""Cosine of each value circuit with each $+\theta^T$, in the inner product of matrices.

    $\langle W_V W_O, W_K W_Q^T \rangle = \sum_{ab} (W_V^T W_K)_{ab} (W_O W_Q)_{ab}$: r x r
    products, never d x d.

    Args:
      heads: of a `Model`; norms are not folded in.
    Returns: `WeightCosines`; null and z are NaN with fewer than three heads.

    Reference: arXiv 2509.04653; the measure is imr's own.
    """
    l, h = heads.query.shape[:2]
    flat = lambda x: x.reshape(l * h, *x.shape[2:])  # noqa: E731
    query, key, value = flat(heads.query), flat(heads.key), flat(heads.value)
    output = jnp.swapaxes(flat(heads.output), 1, 2)

    def norms(a, b):
        """Of a b^T for each head."""
        gram = lambda x: matmul(jnp.swapaxes(x, 1, 2), x)  # noqa: E731
        return jnp.sqrt(jnp.sum(gram(a) * gram(b), axis=(1, 2)))

    def row(one):
        """A value circuit with every theta."""
        v, o = one
        left, right = matmul(v.T[None], key), matmul(o.T[None], query)
        return jnp.sum(left * right, axis=(1, 2))

    inner = jax.lax.map(row, (value, output))
    cosines = inner / (norms(value, output)[:, None] * norms(key, query)[None, :])
    count = l * h
    own = jnp.eye(count, dtype=bool)
    others = count - 1
    cosine = jnp.diagonal(cosines)
    rest = jnp.where(own, 0, cosines)
    mean = rest.sum(axis=1) / others
    spread = jnp.where(own, 0, (cosines - mean[:, None]) ** 2).sum(axis=1) / (others - 1)
    std = jnp.sqrt(spread)
    found = (cosine, mean, std, (cosine - mean) / std)
    return WeightCosines(*(x.reshape(l, h) for x in found))
