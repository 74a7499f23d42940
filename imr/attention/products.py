r"""The two products of an attention matrix, $P K$ and $P^T Q$, without holding the matrix.

Arrays lie on their side here, (r, n): a CPU multiplies few long rows faster than many short ones.
"""

from functools import partial
from reprlib import repr as shortened
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    as_mask,
    check_axis,
    check_count,
    check_flags,
    check_rank,
    check_scalar,
)
from imr._numerics import log_sum_exp, matmul, widen
from imr._targets import LabelTargets
from imr._typing import AnyArray, Mask, ScalarLike
from imr.attention.memory import check_block
from imr.attention.platforms import by_platform
from imr.attention.ring import ring_products
from imr.attention.strips import Label, plain_strips, strip, strips
from imr.attention.tiles import ring_tiles, tiles
from imr.errors import ImrError
from imr.parallel.mesh import mesh_axis

_DENSE = 2**20  # entries of P up to which it is made at once
# Columns that the GPU's kernel holds. At 64 the gain is 1.4 (3.0 at 16, 2.5 at 32) and the keys in
# flight take 131 KB of shared memory, more than a workstation's card has.
_WIDEST = 32


def attention_products(
    queries: Float[AnyArray, "n r"],
    keys: Float[AnyArray, "m r"] | None = None,
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
      where: boolean, or integers 0 and 1, shape (n, m); True says that the query may see the key.
        The row of P of a query that may see none is zero, and so are its gradients.
      block: rows of a strip or a tile; n computes all of P at once. By default P is computed at once
        up to a million entries, and beyond in blocks that suit the platform.
      mesh: of one axis, see `imr.parallel.make_mesh`: rows of Q and K are spread over its devices
        and keys go round in a ring, with two exponentials for each pair. n and m must be equal.
      columns: whether the second product is computed.
    Returns: $P K$, shape (n, r), and $P^T Q$, shape (m, r), or None in its place. Memory is O((n +
      m) r + block m).
    Raises: ImrError: for a mask that is no mask, a block that is no positive integer or does not fit
      the memory of the device, or a mesh that does not fit.

    >>> q = jnp.array([[1.0], [0.0]])
    >>> rows, columns = attention_products(q)
    >>> rows.round(3).tolist(), columns.round(3).tolist()
    ([[0.731], [0.5]], [[0.731], [0.269]])
    """
    queries, keys, where = checked_sides(queries, keys, beta, where, block, mesh, columns)
    rows, cols, _ = _products(queries, keys, None, beta, where, block, mesh, columns)
    return rows, cols


def residual_products(
    queries: Float[AnyArray, "n r"],
    keys: Float[AnyArray, "m r"] | None,
    targets: Any,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    block: int | None = None,
    mesh: Any = None,
    columns: bool = True,
) -> tuple[Float[Array, "n r"], Any]:
    r"""$(C - P) K$ and $(C - P)^T Q$ for targets C with a one in each row, at column $c_i$.

    $1 - P_{i c_i}$ is taken as $s_i = \sum_{j \neq c_i} P_{ij}$: late in a flow the difference has no
    digits. With P' the other entries of P, the products are $s_i k_{c_i} - P' K$ and the like.

    Args:
      queries, keys, beta, where, block, mesh, columns: as in `attention_products`.
      targets: `imr.targets.LabelTargets`; the columns that they name must be visible.
    Returns: Shape (n, r), and (m, r) or None in its place.
    Raises: ImrError as `attention_products`.

    >>> import imr
    >>> rows, _ = residual_products(jnp.array([[1.0], [0.0]]), None, imr.pointers(jnp.array([0, 0])))
    >>> rows.round(3).tolist()
    [[0.269], [0.5]]
    """
    if not isinstance(targets, LabelTargets):
        raise ImrError(f"targets must be imr.targets.LabelTargets; found {shortened(targets)}.")
    queries, keys, where = checked_sides(queries, keys, beta, where, block, mesh, columns)
    m = queries.shape[0] if keys is None else keys.shape[0]
    targets.check((queries.shape[0], m), where)
    named = targets.mv(queries if keys is None else keys)
    wide = widen(queries)
    logits = jnp.asarray(beta, wide.dtype) * jnp.sum(wide * widen(named), axis=1)
    label = Label(targets.columns, logits)
    rows, cols, rest = _products(queries, keys, label, beta, where, block, mesh, columns)
    rows = rest[:, None] * named - rows
    if not columns:
        return rows, None
    return rows, targets.rmv(rest[:, None] * queries, m) - cols


def _products(queries, keys, label, beta, where, block, mesh, columns) -> tuple[Any, Any, Any]:
    """Both products, and the sum of the entries of P that served them in each row."""
    n, m = queries.shape[0], queries.shape[0] if keys is None else keys.shape[0]
    dtype = queries.dtype
    q = widen(queries).T
    k = q if keys is None else widen(keys).T
    scaled = jnp.asarray(beta, q.dtype) * q
    symmetric = keys is None and where is None and label is None
    if mesh is not None and n:
        if symmetric:
            found = (*_symmetric(scaled, q, block, columns, mesh), None)
        else:
            ring = partial(ring_products, mesh=mesh, size=block, columns=columns)
            found = by_platform(ring, scaled, q, k, where, label)[:3]
    elif (n * m <= _DENSE) if block is None else block >= n:
        found = strip(scaled, q, k, where, label, columns=columns)
    elif block is None and where is None and label is None and _kernel_serves(q):
        found = (*_fused(scaled, q, k, keys is None, columns), None)
    elif symmetric:
        found = (*_symmetric(scaled, q, block, columns, None), None)
    else:
        program = partial(strips, size=block, columns=columns)
        found = by_platform(program, scaled, q, k, where, label)
    rows, cols, rest = (None if x is None else x.T.astype(dtype) for x in found)
    return rows, cols, rest


def attention_log_sums(
    queries: Float[AnyArray, "n r"],
    keys: Float[AnyArray, "m r"] | None = None,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    block: int | None = None,
    mesh: Any = None,
) -> Float[Array, "n"]:
    r"""$\log \sum_j \exp(\beta q_i k_j)$, shape (n,), a strip of rows at a time.

    Args:
      queries, keys, beta, where, block, mesh: as in `attention_products`.
    Returns: Shape (n,); that of a query that may see no key is 0, a constant.
    Raises: ImrError as `attention_products`.

    >>> attention_log_sums(jnp.array([[1.0], [0.0]])).round(3).tolist()
    [1.313, 0.693]
    """
    queries, keys, where = checked_sides(queries, keys, beta, where, block, mesh)
    dtype = queries.dtype
    queries = widen(queries)
    keys = queries if keys is None else widen(keys)
    n, m = queries.shape[0], keys.shape[0]
    scaled = jnp.asarray(beta, queries.dtype) * queries
    if n == 0:
        return jnp.zeros(0, dtype)
    if mesh is not None:
        ring = partial(ring_products, mesh=mesh, size=block, columns=False)
        found = by_platform(ring, scaled.T, queries.T, keys.T, where, None)[3]
        return found.astype(dtype)

    @jax.checkpoint
    def row(pair):
        return log_sum_exp(matmul(pair[0][None], keys.T), pair[1])[0]

    def rows(*pairs, on):
        size = on.strip_size(m) if block is None else block
        return jax.lax.map(row, pairs, batch_size=min(n, size))

    masks = None if where is None else where[:, None, :]
    return by_platform(rows, scaled, masks).astype(dtype)


def checked_sides(queries, keys, beta, where, block, mesh, columns=True):
    """Queries, keys and mask as arrays that fit one another."""
    check_scalar("beta", beta)
    check_flags(columns=columns)
    queries = as_floats("queries", queries)
    keys = None if keys is None else as_floats("keys", keys)
    for name, array in (("queries", queries), ("keys", queries if keys is None else keys)):
        check_rank(name, array, 2, "(n, r)")
        check_axis(name, array.shape[1], "queries", queries.shape[1], "columns")
    n, m = queries.shape[0], queries.shape[0] if keys is None else keys.shape[0]
    if mesh is not None:
        mesh_axis(mesh)
        if n != m:
            raise ImrError(f"on a mesh there must be as many queries as keys; found {n} and {m}.")
    if block is not None:
        check_count("block", block)
        check_block(block, queries, m, mesh)
    where = as_mask(where, (n, m))
    if where is None and not m:
        where = jnp.zeros((n, 0), bool)  # without keys no query sees one
    return queries, keys, where


def _kernel_serves(q) -> bool:
    """Whether this process has a GPU that the kernel suits; `jax.export` refuses kernels elsewhere."""
    if jax.default_backend() != "gpu" or q.dtype != jnp.float32 or len(q) > _WIDEST:
        return False
    return float(getattr(jax.devices()[0], "compute_capability", 0)) >= 8  # the first with tf32


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4))
def _fused(scaled, q, k, symmetric, columns):
    from imr.attention.kernel import kernel_products  # pallas takes long to import

    def others(scaled, q, k, *, on):
        if symmetric:
            return _tiles_or_strips(scaled, q, tile=None, columns=columns, on=on)
        return strips(scaled, q, k, None, None, size=None, columns=columns, on=on)[:2]

    kernel = partial(kernel_products, columns=columns)
    return by_platform(others, scaled, q, k, cuda=kernel)


@_fused.defjvp
def _fused_jvp(symmetric, columns, primals, tangents):
    by_strips = partial(plain_strips, columns=columns)
    return _fused(*primals, symmetric, columns), jax.jvp(by_strips, primals, tangents)[1]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _symmetric(scaled, q, tile, columns, mesh):
    program = partial(_tiles_or_strips, tile=tile, columns=columns, mesh=mesh)
    return by_platform(program, scaled, q)


@_symmetric.defjvp
def _symmetric_jvp(tile, columns, mesh, primals, tangents):
    def by_strips(scaled, q, *, on):
        return _strips_of(scaled, q, tile=tile, columns=columns, mesh=mesh, on=on)

    found, slopes = jax.jvp(partial(by_platform, by_strips), primals, tangents)
    # The derivative of a ring needs its sums, and so gives the products too; of strips it needs nothing.
    return found if mesh is not None else _symmetric(*primals, tile, columns, None), slopes


def _strips_of(scaled, q, *, tile, columns, mesh, on):
    """Strips of a size that suits the platform; in a ring, of the size that was asked for."""
    if mesh is None:
        return strips(scaled, q, q, None, None, size=None, columns=columns, on=on)[:2]
    return ring_products(scaled, q, q, None, None, mesh=mesh, size=tile, columns=columns, on=on)[:2]


def _tiles_or_strips(scaled, q, *, tile, columns, mesh=None, on):
    """By tiles if no exponential that matters underflows or overflows, else by strips."""
    # What underflows, below e^-87 or e^-708, is then below e^-19 of the sum of its row.
    limit = 68.0 if q.dtype == jnp.float32 else 680.0
    of_tiles = tiles if mesh is None else partial(ring_tiles, mesh=mesh)
    by_tiles = partial(of_tiles, tile=tile or on.tile, columns=columns, on=on)
    by_strips = partial(_strips_of, tile=tile, columns=columns, mesh=mesh, on=on)

    # One after the other under vmap: both branches would run otherwise.
    @jax.custom_batching.sequential_vmap
    def either(scaled, q):
        gauge = 0.5 * jnp.sum(scaled * q, axis=0)
        low, high = jnp.min(gauge), jnp.max(gauge)
        # beta is positive too, and q_i q_j - a_i - a_j keeps its digits.
        small = (high - low <= limit) & (low >= 0) & (high * jnp.finfo(q.dtype).eps <= 2**-6)
        return jax.lax.cond(small, by_tiles, by_strips, scaled, q)

    return either(scaled, q)
