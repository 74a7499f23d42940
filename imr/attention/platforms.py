r"""What suits a platform: the sizes of blocks, and how products are made of what its units multiply.

A program asks for the platform that it is lowered for, not for the one that this process runs on, so
that `jax.export` and ahead-of-time compilation give each platform its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._numerics import chosen_precision, matmul


class Products(NamedTuple):
    """How the products of a block of P are made of operands that are prepared once for many blocks.

    Attributes:
      sides: S, shape (r, n), and K, shape (r, m), made ready for `logits`; their last axes stay.
      logits: $S^T K$ of columns of the sides, shape (n, m).
      parts: X, shape (s, a), made ready for `product`; its last axis stays.
      product: the sum over an axis of E, shape (n, m), of X times E: $X E$ over its rows and
        $X E^T$ over its columns.
    """

    sides: Callable[..., Any]
    logits: Callable[..., Any]
    parts: Callable[..., Any]
    product: Callable[..., Any]


def _plain_product(x, e, axis):
    return matmul(x, e if axis == 0 else e.T)


PLAIN = Products(
    sides=lambda s, k: (s, k), logits=lambda s, k: matmul(s.T, k), parts=lambda x: x,
    product=_plain_product,
)  # fmt: skip


def _split(x):
    """Three bfloat16 numbers whose sum is x, to 24 bits."""
    # A cast to bfloat16 and back may be simplified away.
    high = jax.lax.reduce_precision(x, 8, 7)
    rest = x - high
    middle = jax.lax.reduce_precision(rest, 8, 7)
    low = jax.lax.reduce_precision(rest - middle, 8, 7)
    return tuple(part.astype(jnp.bfloat16) for part in (high, middle, low))


def _pass(a, b, axis_of_a, axis_of_b):
    axes = (((axis_of_a,), (axis_of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _packed_sides(s, k):
    (a, b, c), (x, y, z) = _split(s), _split(k)
    return jnp.concatenate([a, a, b, b, a, c]), jnp.concatenate([x, y, x, y, z, x])


def _packed_logits(left, right):
    return _pass(left, right, 0, 0)


def _packed_parts(x):
    return jnp.concatenate(_split(x))


def _packed_product(parts, e, axis):
    high, middle, low = _split(e)
    rows = len(parts) // 3
    first = _pass(parts, high, 1, axis)
    second = _pass(parts[: 2 * rows], middle, 1, axis)
    small = first[2 * rows :] + second[rows:] + _pass(parts[:rows], low, 1, axis)
    return first[:rows] + (first[rows : 2 * rows] + second[:rows] + small)


# float32 from bfloat16 products. With s = a + b + c and k = x + y + z, three parts each, the parts
# stacked along the contraction, [a a b b a c] . [x y x y z x], have all products above 2^-24: a matrix
# unit that contracts 128 numbers at a time takes ceil(6 r / 128) passes for the logits, and six times
# ceil(r / 128) by itself. A product with P takes a pass for each part of P, three instead of six, the
# parts of X stacked as rows, of which a matrix unit has room for 128.
# By the compiler's count for a v5e the strips of 65,536 tokens gain 1.6 at rank 16, 1.3 at 32, and lose
# at 64: three parts of 42 rows are what 128 have room for.
_WIDEST = 42
PACKED = Products(_packed_sides, _packed_logits, _packed_parts, _packed_product)


class Platform(NamedTuple):
    """Blocks and products of a platform.

    Attributes:
      tile: rows of a square tile.
      rows, entries: a strip has as many rows as make so many entries, but no fewer than `rows`.
      ring_entries: the same of a ring, which holds one array of them at a time.
      packs: whether float32 is faster as `PACKED`.
    """

    tile: int
    rows: int
    entries: int
    ring_entries: int
    packs: bool = False

    def strip_size(self, m: int, ring: bool = False) -> int:
        """Rows of a strip of m columns."""
        entries = self.ring_entries if ring else self.entries
        return max(self.rows, entries // max(m, 1))

    def products(self, x: Float[Array, "s a"]) -> Products:
        """Those that suit arrays such as x, unless the user has chosen a precision of products."""
        packs = self.packs and x.dtype == jnp.float32 and len(x) <= _WIDEST
        return PACKED if packs and not chosen_precision() else PLAIN

    def logits(self, s: Float[Array, "r n"], k: Float[Array, "r m"]) -> Float[Array, "n m"]:
        """$S^T K$, with its derivatives."""
        return _logits(self.products(s), s, k)

    def parts(self, x: Float[Array, "s a"]) -> Any:
        """`Products.parts`, made once for many products with x; None where they are x itself."""
        products = self.products(x)
        if products is PLAIN:
            return None
        # A compiler would make them in a loop again, beside each product.
        return jax.lax.optimization_barrier(products.parts(jax.lax.stop_gradient(x)))

    def product(
        self, x: Float[Array, "s a"], e: Float[Array, "n m"], axis: int, parts: Any = None
    ) -> Any:
        """`Products.product`, with its derivatives."""
        products = self.products(x)
        return _product(products, axis, x, products.parts(x) if parts is None else parts, e)


# Derivatives are products at full precision: the transpose of a product of parts would round what
# comes back to bfloat16.
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logits(products, s, k):
    return products.logits(*products.sides(s, k))


@_logits.defjvp
def _logits_jvp(products, primals, tangents):
    (s, k), (ds, dk) = primals, tangents
    return _logits(products, s, k), PLAIN.logits(ds, k) + PLAIN.logits(s, dk)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _product(products, axis, x, parts, e):
    return products.product(parts, e, axis)


@_product.defjvp
def _product_jvp(products, axis, primals, tangents):
    (x, parts, e), (dx, _, de) = primals, tangents
    made = PLAIN.product(dx, e, axis) + PLAIN.product(x, de, axis)
    return _product(products, axis, x, parts, e), made


# A CPU's tile stays in its second cache, 256 KB; a strip of few rows stays near the cores.
CPU = Platform(256, 16, 2**18, 2**18)
# By the compiler's count strips of so many entries take 0.077 s instead of 0.087 for 65,536 tokens on a
# v5e, 0.060 instead of 0.104 on a v5p, where logits and exponentials, 32 MB each, stay on the chip.
TPU = Platform(2048, 128, 2**23, 2**24, packs=True)
GPU = Platform(4096, 128, 2**24, 2**24)


def by_platform(program: Callable[..., Any], *arrays: Any, cuda: Any = None) -> Any:
    """program(*arrays, on=platform) of the platform that it is lowered for; `cuda(*arrays)` if given."""
    special = {} if cuda is None else {"cuda": cuda}
    return jax.lax.platform_dependent(
        *arrays, cpu=partial(program, on=CPU), tpu=partial(program, on=TPU),
        default=partial(program, on=GPU), **special,
    )  # fmt: skip
