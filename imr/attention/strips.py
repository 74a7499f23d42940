r"""Some rows of an attention matrix at a time, and what they give to $P K$ and $P^T Q$."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._numerics import below, largest, mask_logits
from imr.attention.platforms import CPU, by_platform
from imr.parallel.mesh import pad_axis, padding


class Label(NamedTuple):
    """The entry of each row of P that only its sum sees: the products are those of the others."""

    column: Int[Array, "n"]
    logit: Float[Array, "n"]


def _with_ones(k):
    return jnp.concatenate([k, jnp.ones_like(k[:1])])


def strip(scaled, q, k, where, label, parts=None, *, columns, on=CPU):
    """Some rows of P and what they give: (r, n), (r, m), and for labels the rest of P, (n,)."""
    if label is not None:
        others = label.column[:, None] != jnp.arange(k.shape[1])[None, :]
        where = others if where is None else where & others
    logits = mask_logits(on.logits(scaled, k), where)
    seen: Any = None if where is None else where.any(axis=1)
    logit: Any = None if label is None else label.logit[:, None]
    top = largest(logits)
    if logit is not None:
        top = jnp.where(seen[:, None], jnp.maximum(top, jax.lax.stop_gradient(logit)), top)
    # Made once: a compiler that fuses it into both products makes it twice.
    e = jax.lax.optimization_barrier(jnp.exp(below(logits, top)))
    sums = on.product(_with_ones(k), e, 1, parts)
    total, rest = sums[-1:], None
    if logit is not None:
        # A row that sees its label alone has no others to sum.
        total = total + jnp.where(seen, jnp.exp(below(logit, top))[:, 0], 0)[None, :]
        rest = jnp.where(seen, sums[-1] / total[0], 0)
    rows, weighted = sums[:-1] / total, q / total
    if seen is not None:
        rows, weighted = (jnp.where(seen[None, :], x, 0) for x in (rows, weighted))
    return rows, on.product(weighted, e, 0) if columns else None, rest


def strips(scaled, q, k, where, label, *, size, columns, on=CPU):
    """Strip after strip of `size` rows; the last is padded with zero queries, which add 0 to the columns."""
    (r, n), m = q.shape, k.shape[1]
    size = on.strip_size(m) if size is None else size
    extra = padding(n, size)

    def cut(x):
        return jnp.moveaxis(pad_axis(x, extra, 1).reshape(r, -1, size), 1, 0)

    masks = None
    if where is not None:
        masks = pad_axis(where, extra, value=True).reshape(-1, size, m)
    labels = jax.tree.map(lambda x: pad_axis(x, extra).reshape(-1, size), label)
    # The derivative recomputes each strip; it needs no sums over strips. In a loop nothing can be
    # shared with the first time, and without a barrier what is made of k is made once for all strips.
    parts = on.parts(_with_ones(k))
    one = jax.checkpoint(
        lambda s, q, *rest: strip(s, q, k, *rest, parts=parts, columns=columns, on=on),
        prevent_cse=False,
    )

    def step(total, block):
        rows, cols, rest = one(*block)
        return (total + cols if columns else None), (rows, rest)

    start = jnp.zeros_like(k) if columns else None
    blocks = cut(scaled), cut(q), masks, labels
    total, (rows, rest) = jax.lax.scan(step, start, blocks)
    rows = jnp.moveaxis(rows, 0, 1).reshape(r, -1)[:, :n]
    return rows, total, None if rest is None else rest.reshape(-1)[:n]


def plain_strips(scaled, q, k, *, columns):
    """Both products without a mask and labels, in strips of a size that suits the platform."""
    program = partial(strips, size=None, columns=columns)
    return by_platform(program, scaled, q, k, None, None)[:2]
