"""The cost model against XLA's own analysis of the compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import imr
from imr.attention import attention_products
from imr.parallel import cost

N, R, K, F = 512, 16, 10, 784


def analysed(function, *arguments):
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in arguments]
    actual: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
    return actual["flops"], actual["transcendentals"]


def check(actual, expected, tolerance):
    flops, exponentials = actual
    assert abs(flops / expected.flops - 1) < tolerance
    assert exponentials == expected.exponentials


def test_attention():
    whole = analysed(lambda q: attention_products(q, block=N), (N, R))
    check(whole, cost.attention_cost(N, R), 0.02)
    # The body of a loop counts once: one strip of eight.
    strip = analysed(lambda q, k: attention_products(q, k, block=64), (N, R), (N, R))
    eighth = cost.attention_cost(N, R, way="strips", block=64).times(1 / 8)
    check(strip, eighth, 0.02)


def test_tiles():
    """Two bodies of a loop, a pair of tiles each; XLA reports the larger branch, so it is alone."""
    from imr.attention.platforms import CPU
    from imr.attention.products import _tiles

    block = 128
    pair = analysed(lambda q: _tiles(q, q, tile=block, columns=True, on=CPU), (R, N))
    pairs = (N // block) * (N // block + 1) / 2
    model = cost.attention_cost(N, R, way="tiles", block=block).times(1 / pairs)
    assert abs(pair[0] / model.flops - 1) < 0.05
    # and the weights of the columns, once.
    assert pair[1] == model.exponentials + N


def test_linear():
    labels = jnp.zeros(N, int)
    targets = imr.as_targets(labels)
    model = imr.Linear(jnp.zeros((K, F), jnp.float32))

    def drift(y, gram):
        return model.descent_at(gram @ y, targets)

    check(analysed(drift, (K, N), (K, K)), cost.linear_flow_cost(N, K), 0.1)

    def field(z, theta):
        return imr.gradient_field(imr.feature_loss(imr.Linear(theta), labels))(0.0, z)

    check(analysed(field, (N, F), (K, F)), cost.linear_field_cost(N, F, K), 0.03)


def test_sums_and_errors():
    one = cost.Cost(1.0, 2.0, 3.0, 4.0)
    assert one.plus(one) == one.times(2)
    machine = cost.Machine("m", 1.0, 2.0, 3.0, 0.0, 8.0)
    assert cost.seconds(one, machine) == 3.0
    assert cost.seconds(one, machine, devices=3) == 1.5
    with pytest.raises(imr.ImrError, match="way must be one of whole, strips, tiles, ring"):
        cost.attention_cost(8, 2, way="dense")
    with pytest.raises(imr.ImrError, match="n must be an integer of at least 1; found 0"):
        cost.linear_flow_cost(0, 2)
    with pytest.raises(imr.ImrError, match="numbers_per_row must be positive"):
        cost.largest_n(cost.H100, 0)
