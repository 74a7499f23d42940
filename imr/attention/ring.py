r"""$P K$ and $P^T Q$ with rows distributed over devices: keys go round the ring, queries stay."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from imr._numerics import mask_logits, matmul
from imr.parallel.mesh import mesh_axis, pad_axis, padding


def ring_products(scaled, q, k, where, *, mesh, size, columns):
    """Both products (r, n) and log-sums of rows (n,) of queries and keys (r, n), on p devices.

    The keys go round the ring twice: first for the sums of each row, which are rescaled to the
    largest logit so far, then, together with the sums that they collect, for the columns. Each time
    n r numbers pass each device. A device holds O(n r / p) numbers and strips of `size` rows by n / p
    keys.
    """
    n = q.shape[1]
    axis, parts = mesh_axis(mesh)
    extra = padding(n, parts)
    if where is not None:
        where = pad_axis(pad_axis(where, extra, value=True), extra, 1, value=False)
    across, along = PartitionSpec(None, axis), PartitionSpec(axis)
    mapped = jax.shard_map(
        partial(_local, count=n, axis=axis, parts=parts, size=size, columns=columns),
        mesh=mesh,
        in_specs=(across, across, across, along),
        out_specs=(across, across if columns else None, along),
        check_vma=False,
    )
    scaled, q, k = (pad_axis(x, extra, 1) for x in (scaled, q, k))
    rows, cols, lse = mapped(scaled, q, k, where)
    return rows[:, :n], None if cols is None else cols[:, :n], lse[:n]


def _local(scaled, q, k, where, *, count, axis, parts, size, columns):
    """The computation of one device; keys from number `count` on are padding."""
    r, n = q.shape
    size = min(size, n)
    extra = padding(n, size)
    queries = tuple(
        jnp.moveaxis(pad_axis(x, extra, 1).reshape(r, -1, size), 1, 0) for x in (scaled, q)
    )
    masks = None
    if where is not None:
        masks = pad_axis(where, extra, value=True).reshape(-1, size, n * parts)
    here = jax.lax.axis_index(axis)
    onward = [(i, (i + 1) % parts) for i in range(parts)]

    def move(tree):
        return jax.lax.ppermute(tree, axis, onward)

    def logits(scaled, mask, k, hop):
        # After `hop` hops the keys are those of the device `hop` places back.
        start = (here - hop) % parts * n
        seen = (start + jnp.arange(n) < count)[None, :]
        if mask is not None:
            seen = seen & jax.lax.dynamic_slice_in_dim(mask, start, n, 1)
        return mask_logits(matmul(scaled.T, k), seen)

    @jax.checkpoint
    def accumulate(block, k, hop):
        """Adds the keys that are here now to the sums of a strip."""
        (scaled, mask), (top, sums) = block
        x = logits(scaled, mask, k, hop)
        new = jnp.maximum(top, jax.lax.stop_gradient(jnp.max(x, axis=1)))
        safe = jnp.where(jnp.isneginf(new), 0, new)
        e = jnp.exp(x - safe[:, None])
        fresh = matmul(jnp.concatenate([k, jnp.ones_like(k[:1])]), e.T)
        return new, sums * jnp.exp(top - safe)[None, :] + fresh

    def first_round(carry, hop):
        state, k = carry
        state = jax.lax.map(lambda block: accumulate(block, k, hop), ((queries[0], masks), state))
        return (state, move(k)), None

    strips = queries[0].shape[0]
    empty = jnp.full((strips, size), -jnp.inf, q.dtype), jnp.zeros((strips, r + 1, size), q.dtype)
    hops = jnp.arange(parts)
    ((top, sums), _), _ = jax.lax.scan(first_round, (empty, k), hops)
    rows = jnp.moveaxis(sums[:, :-1] / sums[:, -1:], 0, 1).reshape(r, -1)[:, :n]
    lse = top + jnp.log(sums[:, -1])
    flat = lse.reshape(-1)[:n]
    if not columns:
        return rows, None, flat

    @jax.checkpoint
    def contribution(block, k, hop):
        """The contribution of a strip's queries to the keys that are here now."""
        scaled, q, mask, lse = block
        return matmul(q, jnp.exp(logits(scaled, mask, k, hop) - lse[:, None]))

    def second_round(carry, hop):
        k, total = carry

        def step(total, block):
            return total + contribution(block, k, hop), None

        total = jax.lax.scan(step, total, (*queries, masks, lse))[0]
        return move((k, total)), None

    _, total = jax.lax.scan(second_round, (k, jnp.zeros_like(k)), hops)[0]
    return rows, total, flat
