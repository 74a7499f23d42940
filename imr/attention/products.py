r"""The two products of an attention matrix, $P K$ and $P^T Q$, without holding the matrix.

Arrays lie on their side here, (r, n): a CPU multiplies few long rows faster than many short ones.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_axis, check_floating, check_rank
from imr._numerics import log_sum_exp, mask_logits, matmul, widen
from imr._typing import Mask, ScalarLike
from imr.attention.ring import ring_products
from imr.errors import ImrError
from imr.parallel.mesh import mesh_axis, pad_axis, padding

_DENSE = 2**20  # entries of P up to which it is made at once
# Columns that the GPU's kernel holds. At 64 the gain is 1.4 (3.0 at 16, 2.5 at 32) and the keys in
# flight take 131 KB of shared memory, more than a workstation's card has.
_WIDEST = 32


def attention_products(
    queries: Float[Array, "n r"],
    keys: Float[Array, "m r"] | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    block: int | None = None,
    mesh: Any = None,
    columns: bool = True,
) -> tuple[Float[Array, "n r"], Any]:
    r"""$P K$ and $P^T Q$ for $P = softmax(\beta Q K^T)$, without holding P.

    P is computed in strips of rows, and each strip serves both products: one exponential for each
    pair of a query and a key. If the keys are the queries, $e^{\beta q_i q_j}$ is symmetric, and P is
    computed in square tiles on and above the diagonal, each of which serves its mirror image too.
    That takes two sweeps, one for the sums of rows and one for $P^T Q$, so again one exponential for
    each pair, in tiles that stay in cache. Tiles need $\beta |q_i|^2$ to vary by less than 136 (1360 in
    float64); this is tested at run time, and strips are used otherwise. On an NVIDIA GPU a kernel
    does it in float32, without a mask, and holds no tile in memory. Derivatives, forward and reverse,
    recompute the strips.

    Args:
      queries: Q, shape (n, r).
      keys: K, shape (m, r); None if they are the queries.
      beta: inverse temperature.
      where: boolean, shape (n, m).
      block: rows of a strip or a tile; n computes all of P at once. By default P is computed at once
        up to a million entries, and beyond in blocks that suit the platform.
      mesh: of one axis, see `imr.parallel.make_mesh`: rows of Q and K are spread over its devices
        and keys go round in a ring, with two exponentials for each pair. n and m must be equal.
      columns: whether the second product is computed.
    Returns: $P K$, shape (n, r), and $P^T Q$, shape (m, r), or None in its place. Memory is O((n +
      m) r + block m).
    Raises: ImrError: for a block that is no positive integer, or a mesh that does not fit.

    >>> q = jnp.array([[1.0], [0.0]])
    >>> rows, columns = attention_products(q)
    >>> rows.round(3).tolist(), columns.round(3).tolist()
    ([[0.731], [0.5]], [[0.731], [0.269]])
    """
    n, m = _sizes(queries, keys, where, block, mesh)
    dtype = queries.dtype
    q = widen(queries).T
    k = q if keys is None else widen(keys).T
    scaled = jnp.asarray(beta, q.dtype) * q
    if mesh is not None:
        size = _strip_size(math.ceil(n / mesh.size)) if block is None else block
        found = ring_products(scaled, q, k, where, mesh=mesh, size=size, columns=columns)[:2]
    elif (n * m <= _DENSE) if block is None else block >= n:
        found = _strip(scaled, q, k, where, columns=columns)
    elif block is None and where is None and _kernel_serves(q):
        found = _fused(scaled, q, k, columns)
    elif keys is None and where is None:
        found = _symmetric(scaled, q, _tile_size() if block is None else block, columns)
    else:
        size = _strip_size(m) if block is None else block
        found = _strips(scaled, q, k, where, size=size, columns=columns)
    rows, cols = found
    return rows.T.astype(dtype), None if cols is None else cols.T.astype(dtype)


def attention_log_sums(
    queries: Float[Array, "n r"],
    keys: Float[Array, "m r"] | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    block: int | None = None,
    mesh: Any = None,
) -> Float[Array, "n"]:
    r"""$\log \sum_j \exp(\beta q_i k_j)$, shape (n,), a strip of rows at a time.

    Args:
      queries, keys, beta, where, block, mesh: as in `attention_products`.
    Returns: Shape (n,).
    Raises: ImrError as `attention_products`.

    >>> attention_log_sums(jnp.array([[1.0], [0.0]])).round(3).tolist()
    [1.313, 0.693]
    """
    n, m = _sizes(queries, keys, where, block, mesh)
    dtype = queries.dtype
    queries = widen(queries)
    keys = queries if keys is None else widen(keys)
    scaled = jnp.asarray(beta, queries.dtype) * queries
    if mesh is not None:
        size = _strip_size(math.ceil(n / mesh.size)) if block is None else block
        found = ring_products(
            scaled.T, queries.T, keys.T, where, mesh=mesh, size=size, columns=False
        )[2]
        return found.astype(dtype)

    @jax.checkpoint
    def row(pair):
        return log_sum_exp(matmul(pair[0][None], keys.T), pair[1])[0]

    size = min(n, _strip_size(m) if block is None else block)
    masks = None if where is None else where[:, None, :]
    return jax.lax.map(row, (scaled, masks), batch_size=size).astype(dtype)


def _sizes(queries, keys, where, block, mesh):
    for name, array in (("queries", queries), ("keys", queries if keys is None else keys)):
        check_rank(name, array, 2, "(n, r)")
        check_floating(name, array)
        check_axis(name, array.shape[1], "queries", queries.shape[1], "columns")
    n, m = queries.shape[0], queries.shape[0] if keys is None else keys.shape[0]
    if where is not None and jnp.shape(where) != (n, m):
        raise ImrError(f"where must have shape {(n, m)}; found {jnp.shape(where)}.")
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ImrError(f"block must be an integer of at least 1; found {block!r}.")
    if mesh is not None:
        mesh_axis(mesh)
        if n != m:
            raise ImrError(f"on a mesh there must be as many queries as keys; found {n} and {m}.")
    return n, m


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _strip_size(m: int) -> int:
    """Rows of a strip: a few that stay near the cores of a CPU, many to keep an accelerator busy."""
    return max(16, 2**18 // m) if _on_cpu() else max(128, 2**24 // m)


def _tile_size() -> int:
    # On a CPU a tile stays in the second cache, 256 KB.
    return 256 if _on_cpu() else 4096


def _kernel_serves(q) -> bool:
    """Whether this process has a GPU that the kernel suits; `jax.export` refuses kernels elsewhere."""
    if jax.default_backend() != "gpu" or q.dtype != jnp.float32 or len(q) > _WIDEST:
        return False
    return float(getattr(jax.devices()[0], "compute_capability", 0)) >= 8  # the first with tf32


@partial(jax.custom_jvp, nondiff_argnums=(3,))
@partial(jax.jit, static_argnums=3)
def _fused(scaled, q, k, columns):
    from imr.attention.kernel import kernel_products  # pallas takes long to import

    strips = partial(_strips, where=None, size=_strip_size(k.shape[1]), columns=columns)
    kernel = partial(kernel_products, columns=columns)
    return jax.lax.platform_dependent(scaled, q, k, cuda=kernel, default=strips)


@_fused.defjvp
def _fused_jvp(columns, primals, tangents):
    strips = partial(_strips, where=None, size=_strip_size(primals[2].shape[1]), columns=columns)
    return _fused(*primals, columns), jax.jvp(strips, primals, tangents)[1]


def _strip(scaled, q, k, where, *, columns):
    """Some rows of P and what they give: (r, n) and (r, m)."""
    logits = mask_logits(matmul(scaled.T, k), where)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    # Made once: a compiler that fuses it into both products makes it twice.
    e = jax.lax.optimization_barrier(jnp.exp(logits - top))
    sums = matmul(jnp.concatenate([k, jnp.ones_like(k[:1])]), e.T)
    rows = sums[:-1] / sums[-1:]
    return rows, matmul(q / sums[-1:], e) if columns else None


def _strips(scaled, q, k, where, *, size, columns):
    """Strip after strip; the last is padded with zero queries, which add 0 to the columns."""
    (r, n), m = q.shape, k.shape[1]
    extra = padding(n, size)

    def cut(x):
        return jnp.moveaxis(pad_axis(x, extra, 1).reshape(r, -1, size), 1, 0)

    masks = None
    if where is not None:
        masks = pad_axis(where, extra, value=True).reshape(-1, size, m)
    # The derivative recomputes each strip; it needs no sums over strips.
    strip = jax.checkpoint(lambda s, q, mask: _strip(s, q, k, mask, columns=columns))

    def step(total, block):
        rows, cols = strip(*block)
        return (total + cols if columns else None), rows

    start = jnp.zeros_like(k) if columns else None
    total, rows = jax.lax.scan(step, start, (cut(scaled), cut(q), masks))
    return jnp.moveaxis(rows, 0, 1).reshape(r, -1)[:, :n], total


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _symmetric(scaled, q, tile, columns):
    """By tiles if no exponential that matters underflows or overflows, else by strips."""
    # What underflows, below e^-87 or e^-708, is then below e^-19 of the sum of its row.
    limit = 68.0 if q.dtype == jnp.float32 else 680.0
    by_strips = partial(_strips, where=None, size=_strip_size(q.shape[1]), columns=columns)

    # One after the other under vmap: both branches would run otherwise.
    @jax.custom_batching.sequential_vmap
    def either(scaled, q):
        gauge = 0.5 * jnp.sum(scaled * q, axis=0)
        small = (jnp.max(gauge) - jnp.min(gauge) <= limit) & (jnp.min(gauge) >= 0)  # beta too
        return jax.lax.cond(
            small,
            partial(_tiles, tile=tile, columns=columns),
            lambda s, q: by_strips(s, q, q),
            scaled,
            q,
        )

    return either(scaled, q)


@_symmetric.defjvp
def _symmetric_jvp(tile, columns, primals, tangents):
    size = _strip_size(primals[1].shape[1])

    def strips(scaled, q):
        return _strips(scaled, q, q, None, size=size, columns=columns)

    return _symmetric(*primals, tile, columns), jax.jvp(strips, primals, tangents)[1]


def _tiles(scaled, q, *, tile, columns):
    r"""$e_{ij} = \exp(\beta q_i q_j - a_i - a_j)$, $a_i = \beta |q_i|^2 / 2$, on tiles with i <= j.

    Each tile serves (i, j) and (j, i), and no e is above 1. $P_{ij} = e_{ij} w_j / \sum_l e_{il} w_l$
    with $w_j = \exp(a_j - \max a)$.
    """
    n = q.shape[1]
    extra = padding(n, tile)
    gauge = 0.5 * jnp.sum(scaled * q, axis=0)
    # Columns that fill up have weight zero.
    weights = pad_axis(jnp.exp(gauge - jnp.max(gauge)), extra)
    scaled, padded = pad_axis(scaled, extra, 1), pad_axis(q, extra, 1)
    gauge = pad_axis(gauge, extra)
    count = padded.shape[1] // tile

    def cut(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i * tile, tile, -1)

    def add(x, i, more):
        return jax.lax.dynamic_update_slice_in_dim(x, cut(x, i) + more, i * tile, -1)

    def sweep(x):
        """x e, shape (r, n)."""

        def pair(i, j, total):
            # A tile on the diagonal is its own mirror image.
            share = jnp.where(i == j, 0.5, 1.0).astype(x.dtype)
            logits = matmul(cut(scaled, i).T, cut(padded, j))
            logits = logits - cut(gauge, i)[:, None] - cut(gauge, j)[None, :]
            e = jax.lax.optimization_barrier(jnp.exp(logits))
            total = add(total, i, share * matmul(cut(x, j), e.T))
            return add(total, j, share * matmul(cut(x, i), e))

        def row(i, total):
            return jax.lax.fori_loop(i, count, partial(pair, i), total)

        return jax.lax.fori_loop(0, count, row, jnp.zeros_like(x))

    sums = sweep(jnp.concatenate([padded, jnp.ones_like(padded[:1])]) * weights[None, :])
    rows = (sums[:-1] / sums[-1:])[:, :n]
    return rows, (weights[None, :] * sweep(padded / sums[-1:]))[:, :n] if columns else None
