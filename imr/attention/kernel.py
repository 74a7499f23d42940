r"""The two products of an attention matrix in one GPU kernel each: no entry of P leaves the chip.

One kernel goes through the keys of a block of queries, keeping the largest logit and the sums so far,
and gives $P K$ and the log-sum-exp of each row; with that, another goes through the queries of a block
of keys and gives $P^T Q$. That is two exponentials for each pair and two reads of the features, where
XLA's own program writes each tile of P to memory and reads it several times.

Reference: Dao, Fu, Ermon, Rudra, Ré, FlashAttention, arXiv 2205.14135.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from imr.parallel.mesh import pad_axis, padding

# On an H200, of 11 shapes and numbers of warps: 14 ms for 65,536 tokens of rank 16, others 14 to 30.
_BLOCK, _WARPS = 64, 4
# Three products of the tensor cores, as exact as float32 itself: 1e-6 of the largest entry of P K.
_PRECISION = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def kernel_products(
    scaled: Float[Array, "r n"], q: Float[Array, "r n"], k: Float[Array, "r m"], *,
    columns: bool, interpret: bool = False,
) -> tuple[Float[Array, "r n"], Any]:  # fmt: skip
    r"""$(P K)^T$ and $(P^T Q)^T$ for $P = softmax(S^T K)$ in float32, S being beta Q.

    Args:
      scaled, q, k: S, Q and K on their side, of at most 32 rows.
      columns: whether the second product is computed; None stands in its place otherwise.
      interpret: run the kernel's program without a GPU, slowly, as a test does.
    """
    (r, n), m = q.shape, k.shape[1]
    width = max(16, 2 ** math.ceil(math.log2(r)))  # a power of two, as the tensor cores demand

    def upright(x):
        return pad_axis(pad_axis(x, width - r), padding(x.shape[1], _BLOCK), 1).T

    precision = None if interpret else _PRECISION
    dot = partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)
    call = partial(
        pl.pallas_call, interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=3),
    )  # fmt: skip
    block = pl.BlockSpec((_BLOCK, width), lambda i: (i, 0))
    of_rows = pl.BlockSpec((_BLOCK,), lambda i: (i,))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)

    s, keys = upright(scaled * math.log2(math.e)), upright(k)  # a GPU's exponential is that of 2
    length = jax.ShapeDtypeStruct(s.shape[:1], s.dtype)
    rows, logs = call(
        partial(_rows, num_keys=m, dot=dot), grid=(len(s) // _BLOCK,), in_specs=[block, whole(keys)],
        out_specs=[block, of_rows], out_shape=[s, length],
    )(s, keys)  # fmt: skip
    rows = rows[:n, :r].T
    if not columns:
        return rows, None
    logs = jnp.where(jnp.arange(len(s)) < n, logs, jnp.inf)  # queries that fill up have no weight
    queries = upright(q)
    cols = call(
        partial(_columns, dot=dot), grid=(len(keys) // _BLOCK,),
        in_specs=[block, whole(s), whole(queries), whole(logs)], out_specs=block, out_shape=keys,
    )(keys, s, queries, logs)  # fmt: skip
    return rows, cols[:m, :r].T


def _rows(s_ref, k_ref, rows_ref, logs_ref, *, num_keys, dot):
    """P K and log2-sum-exp2 of a block of queries."""
    s = s_ref[...]

    def step(j, carry):
        total, weight, top = carry
        k = k_ref[pl.ds(j * _BLOCK, _BLOCK), :]
        logits = dot(s, k.T)
        if num_keys % _BLOCK:
            inside = j * _BLOCK + jnp.arange(_BLOCK) < num_keys
            logits = jnp.where(inside[None, :], logits, -jnp.inf)
        higher = jnp.maximum(top, jnp.max(logits, axis=1))
        e, shrink = jnp.exp2(logits - higher[:, None]), jnp.exp2(top - higher)
        weight = weight * shrink + jnp.sum(e, axis=1)
        return total * shrink[:, None] + dot(e, k), weight, higher

    lowest = jnp.full(_BLOCK, jnp.finfo(s.dtype).min, s.dtype)
    start = jnp.zeros_like(s), jnp.zeros(_BLOCK, s.dtype), lowest
    total, weight, top = jax.lax.fori_loop(0, pl.cdiv(num_keys, _BLOCK), step, start)
    rows_ref[...] = total / weight[:, None]
    logs_ref[...] = top + jnp.log2(weight)


def _columns(k_ref, s_ref, q_ref, logs_ref, columns_ref, *, dot):
    """P^T Q of a block of keys."""
    k = k_ref[...]

    def step(i, total):
        some = pl.ds(i * _BLOCK, _BLOCK)
        p = jnp.exp2(dot(k, s_ref[some, :].T) - logs_ref[some][None, :])
        return total + dot(p, q_ref[some, :])

    count = s_ref.shape[0] // _BLOCK
    columns_ref[...] = jax.lax.fori_loop(0, count, step, jnp.zeros_like(k))
