r"""$P K$ and $P^T Q$ with rows distributed over devices: keys go round the ring, queries stay."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from imr.parallel.mesh import mesh_axis, pad_axis, padding, ring_order


def ring_products(scaled, q, k, where, label, *, mesh, size, columns, on):
    """Both products (r, n), the rest of P beside labels (n,), and log-sums of rows (n,), on p devices.

    The keys go round the ring twice: first for the sums of each row, which are rescaled to the
    largest logit so far, then, together with the sums that they collect, for the columns. Each time
    n r numbers pass each device. A device holds O(n r / p) numbers and strips of `size` rows by n / p
    keys.
    """
    n = q.shape[1]
    axis, parts = mesh_axis(mesh)
    extra = padding(n, parts)
    size = on.strip_size(math.ceil(n / parts), ring=True) if size is None else size
    if where is not None:
        where = pad_axis(pad_axis(where, extra, value=True), extra, 1, value=False)
    across, along = PartitionSpec(None, axis), PartitionSpec(axis)
    mapped = jax.shard_map(
        partial(
            _local, count=n, axis=axis, ring=ring_order(mesh), size=size, columns=columns, on=on
        ),
        mesh=mesh,
        in_specs=(across, across, across, along, along),
        out_specs=(across, across if columns else None, along, along),
        check_vma=False,
    )
    scaled, q, k, label = (
        jax.tree.map(lambda x: pad_axis(x, extra, x.ndim - 1), x) for x in (scaled, q, k, label)
    )
    rows, cols, rest, lse = mapped(scaled, q, k, where, label)
    rest = None if label is None else rest[:n]
    return rows[:, :n], None if cols is None else cols[:, :n], rest, lse[:n]


def _local(scaled, q, k, where, label, *, count, axis, ring, size, columns, on):
    """The computation of one device; keys from number `count` on are padding."""
    (r, n), parts = q.shape, len(ring)
    size = min(size, n)
    extra = padding(n, size)
    queries = tuple(
        jnp.moveaxis(pad_axis(x, extra, 1).reshape(r, -1, size), 1, 0) for x in (scaled, q)
    )
    masks = None
    if where is not None:
        masks = pad_axis(where, extra, value=True).reshape(-1, size, n * parts)
    labels = jax.tree.map(lambda x: pad_axis(x, extra).reshape(-1, size), label)
    here = jnp.argsort(jnp.asarray(ring))[jax.lax.axis_index(axis)]
    onward = [(place, ring[(i + 1) % parts]) for i, place in enumerate(ring)]

    def move(tree):
        return jax.lax.ppermute(tree, axis, onward)

    def logits(strip, k, hop):
        scaled, mask, label = strip
        # After `hop` hops the keys are those of the device `hop` places back in the ring.
        start = jnp.asarray(ring)[(here - hop) % parts] * n
        number = start + jnp.arange(n)[None, :]
        seen = number < count
        if mask is not None:
            seen = seen & jax.lax.dynamic_slice_in_dim(mask, start, n, 1)
        if label is not None:
            seen = seen & (number != label.column[:, None])
        return jnp.where(seen, on.logits(scaled, k), -jnp.inf)

    @jax.checkpoint
    def accumulate(block, k, hop):
        """Adds the keys that are here now to the sums of a strip."""
        strip, (top, sums) = block
        x = logits(strip, k, hop)
        new = jnp.maximum(top, jax.lax.stop_gradient(jnp.max(x, axis=1)))
        safe = jnp.where(jnp.isneginf(new), 0, new)
        e = jnp.exp(_below(x, safe[:, None]))
        fresh = on.product(jnp.concatenate([k, jnp.ones_like(k[:1])]), e, 1)
        return new, sums * jnp.exp(top - safe)[None, :] + fresh

    def first_round(carry, hop):
        state, k = carry
        blocks = (queries[0], masks, labels), state
        return (jax.lax.map(lambda block: accumulate(block, k, hop), blocks), move(k)), None

    strips = queries[0].shape[0]
    top, sums = (
        jnp.full((strips, size), -jnp.inf, q.dtype),
        jnp.zeros((strips, r + 1, size), q.dtype),
    )
    if labels is not None:
        # Labels have a share in the total of their rows, but not in the products.
        top = jax.lax.stop_gradient(labels.logit)
    hops = jnp.arange(parts)
    ((top, sums), _), _ = jax.lax.scan(first_round, ((top, sums), k), hops)
    top = jnp.where(jnp.isneginf(top), 0, top)
    total = sums[:, -1]
    if labels is not None:
        total = total + jnp.exp(_below(labels.logit, top))
    # No key is seen if the total is zero.
    seen = total > 0
    total = jnp.where(seen, total, 1)
    rows = jnp.moveaxis(sums[:, :-1] / total[:, None], 0, 1).reshape(r, -1)[:, :n]
    rest, lse = (x.reshape(-1)[:n] for x in (sums[:, -1] / total, seen * (top + jnp.log(total))))
    if not columns:
        return rows, None, rest, lse

    @jax.checkpoint
    def contribution(block, k, hop):
        """The contribution of a strip's queries to the keys that are here now."""
        strip, q, top, total = block
        x = logits(strip, k, hop)
        return on.product(q / total[None, :], jnp.exp(_below(x, top[:, None])), 0)

    def second_round(carry, hop):
        k, columns = carry

        def step(columns, block):
            return columns + contribution(block, k, hop), None

        blocks = (queries[0], masks, labels), queries[1], top, total
        return move((k, jax.lax.scan(step, columns, blocks)[0])), None

    _, columns = jax.lax.scan(second_round, (k, jnp.zeros_like(k)), hops)[0]
    return rows, columns, rest, lse


def _below(x, top):
    """As `imr._numerics.below`, whose own derivative would lose the second one within a `shard_map`."""
    shifted = x - top
    return shifted - jax.lax.stop_gradient(jnp.where(x >= top, shifted, 0))
