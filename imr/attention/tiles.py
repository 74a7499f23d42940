r"""Both products of self-attention in square tiles, each of which serves its mirror image too.

$e_{ij} = \exp(\beta q_i q_j - a_i - a_j)$ with $a_i = \beta |q_i|^2 / 2$ is symmetric and at most 1, and
$P_{ij} = e_{ij} w_j / \sum_l e_{il} w_l$ with $w_j = \exp(a_j - \max a)$: no row needs its largest logit.
One sweep over the pairs sums the rows, another the columns.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from imr.parallel.mesh import mesh_axis, pad_axis, padding, ring_order


def _gauge(scaled, q):
    """a and w."""
    gauge = 0.5 * jnp.sum(scaled * q, axis=0)
    return gauge, jnp.exp(gauge - jnp.max(gauge))


def _with_ones(q):
    return jnp.concatenate([q, jnp.ones_like(q[:1])])


def _positive(sums):
    """Rows that fill up see real columns only through exponentials that underflow: their sum is 0."""
    return jnp.where(sums > 0, sums, 1)


class _Cut:
    """Tiles of arrays whose last axis is that of the tokens."""

    def __init__(self, tile):
        self.tile = tile

    def __call__(self, x, i):
        return jax.lax.dynamic_slice_in_dim(x, i * self.tile, self.tile, -1)

    def add(self, x, i, more):
        return jax.lax.dynamic_update_slice_in_dim(x, self(x, i) + more, i * self.tile, -1)


def _exponentials(logits, above, below):
    """A tile of e; made once, since a compiler that fuses it into both products makes it twice."""
    return jax.lax.optimization_barrier(jnp.exp(logits - above[:, None] - below[None, :]))


def tiles(scaled, q, *, tile, columns, on):
    """On one device: the tiles on and above the diagonal."""
    n = q.shape[1]
    extra = padding(n, tile)
    gauge, weights = _gauge(scaled, q)
    # Columns that fill up have weight zero.
    gauge, weights = pad_axis(gauge, extra), pad_axis(weights, extra)
    scaled, padded = pad_axis(scaled, extra, 1), pad_axis(q, extra, 1)
    count, cut, products = padded.shape[1] // tile, _Cut(tile), on.products(q)
    left, right = products.sides(scaled, padded)

    def sweep(x):
        """x e, shape (r, n)."""
        parts = products.parts(x)

        def pair(_, carry):
            i, j, total = carry
            # A tile on the diagonal is its own mirror image.
            share = jnp.where(i == j, 0.5, 1.0).astype(x.dtype)
            e = _exponentials(
                products.logits(cut(left, i), cut(right, j)), cut(gauge, i), cut(gauge, j)
            )
            total = cut.add(total, i, share * products.product(cut(parts, j), e, 1))
            total = cut.add(total, j, share * products.product(cut(parts, i), e, 0))
            i = i + (j + 1 == count)
            return i, jnp.where(j + 1 == count, i, j + 1), total

        # One loop over pairs i <= j, whose length a compiler knows.
        start = jnp.int32(0), jnp.int32(0), jnp.zeros_like(x)
        return jax.lax.fori_loop(0, count * (count + 1) // 2, pair, start)[2]

    sums = sweep(_with_ones(padded) * weights[None, :])
    total = _positive(sums[-1:])
    rows = (sums[:-1] / total)[:, :n]
    return rows, (weights[None, :] * sweep(padded / total))[:, :n] if columns else None


def ring_tiles(scaled, q, *, mesh, tile, columns, on):
    """On p devices, of which each meets the keys of one half of the others.

    Keys go half round the ring, together with what they sum: a tile of device i's queries and device j's
    keys serves the queries of j and the keys of i as well. Each of the two sweeps takes n^2 / 2
    exponentials, and a device sends (4 r + 5) n / 2 numbers in all, beside those of its last hops.
    """
    n = q.shape[1]
    axis, parts = mesh_axis(mesh)
    # Tiles of one size that fill a device's share, with little to spare.
    share = math.ceil(n / parts)
    count = math.ceil(share / tile)
    size = math.ceil(share / count)
    size += padding(size, max(1, tile // 16))
    extra = parts * count * size - n
    gauge, weights = _gauge(scaled, q)
    across, along = PartitionSpec(None, axis), PartitionSpec(axis)
    mapped = jax.shard_map(
        partial(_local, axis=axis, ring=ring_order(mesh), tile=size, columns=columns, on=on),
        mesh=mesh,
        in_specs=(across, across, along, along),
        out_specs=(across, across if columns else None),
        check_vma=False,
    )
    rows, cols = mapped(*(pad_axis(x, extra, x.ndim - 1) for x in (scaled, q, gauge, weights)))
    return rows[:, :n], None if cols is None else cols[:, :n]


def _local(scaled, q, gauge, weights, *, axis, ring, tile, columns, on):
    """The computation of one device."""
    parts = len(ring)
    count, cut, products = q.shape[1] // tile, _Cut(tile), on.products(q)
    left, _ = products.sides(scaled, q)

    def move(tree, hops=1):
        onward = [(here, ring[(i + hops) % parts]) for i, here in enumerate(ring)]
        return jax.lax.ppermute(tree, axis, onward)

    def sweep(extend, scale):
        """x e, with x = scale extend(q)."""
        here = products.parts(extend(q) * scale[None, :])

        def meet(visitors, total, away=None):
            """Adds what visiting keys give to the rows, and what the queries give to them."""
            k, there, scale = visitors
            right = products.sides(k, k)[1]
            parts_of_keys = products.parts(extend(k) * scale[None, :])

            def pair(number, carry):
                total, away = carry
                i, j = number // count, number % count
                e = _exponentials(
                    products.logits(cut(left, i), cut(right, j)), cut(gauge, i), cut(there, j)
                )
                total = cut.add(total, i, products.product(cut(parts_of_keys, j), e, 1))
                if away is not None:
                    away = cut.add(away, j, products.product(cut(here, i), e, 0))
                return total, away

            return jax.lax.fori_loop(0, count**2, pair, (total, away))

        def hop(carry, _):
            visitors, total, away = carry
            total, away = meet(visitors, total, away)
            return (*move((visitors,)), total, move(away)), None

        own = q, gauge, scale
        none = jnp.zeros_like(extend(q))
        # Keys of its own, and of the device opposite, are met from both sides.
        total, _ = meet(own, none)
        met = (parts - 1) // 2
        visitors, total, away = jax.lax.scan(hop, (move(own), total, none), length=met)[0]
        if met:
            total = total + move(away, -(met + 1))
        return meet(visitors, total)[0] if parts % 2 == 0 else total

    sums = sweep(_with_ones, weights)
    total = _positive(sums[-1])
    rows = sums[:-1] / total[None, :]
    return rows, weights[None, :] * sweep(lambda q: q, 1 / total) if columns else None
