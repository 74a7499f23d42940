"""Products of attention by tiles, strips and rings against the whole matrix; random features."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import imr
from imr import parallel
from imr.attention import (
    attention_log_sums,
    attention_products,
    attention_terms,
    random_feature_products,
)
from imr.attention.memory import check_block
from imr.attention.platforms import CPU, TPU
from imr.attention.strips import strips
from imr.attention.tiles import ring_tiles
from imr.parallel.mesh import split_over

ROOT = Path(__file__).resolve().parents[1]
N, R = 45, 4


def problem(seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    q, k, g, h = (jnp.asarray(scale * random.normal(size=(N, R))) for _ in range(4))
    where = (random.random((N, N)) < 0.5) | np.eye(N, dtype=bool)
    where[7] = False  # a query that sees nothing
    return q, k, g, h, jnp.asarray(where)


def relative(actual, expected):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    # Of numpy: Python's own max loses a NaN.
    return float(np.max([jnp.abs(a - b).max() / jnp.abs(b).max() for a, b in pairs]))


def check_all(ways, symmetric, masked, tolerance):
    """Values, gradients in both ways and a derivative of a gradient, against P made at once."""
    q, k, g, h, where = problem()
    k, where = None if symmetric else k, where if masked else None

    @jax.jit
    def everything(q, k, where):
        def one(**options):
            def products(q, k, beta):
                return attention_products(q, k, beta=beta, where=where, **options)

            def scalar(q, k, beta):
                rows, columns = products(q, k, beta)
                return jnp.sum(rows * g) + jnp.sum(columns * h)

            argnums = (0, 2) if symmetric else (0, 1, 2)
            gradient = jax.grad(scalar, argnums=argnums)
            forward = jax.jvp(lambda q: products(q, k, 0.7), (q,), (g,))
            second = jax.jvp(lambda q: gradient(q, k, 0.7)[0], (q,), (h,))
            return products(q, k, 0.7), gradient(q, k, 0.7), forward, second

        return [one(**way) for way in ways]

    expected, *actual = everything(q, k, where)
    for way, each in zip(ways[1:], actual, strict=True):
        assert relative(each, expected) < tolerance, way


@pytest.mark.laws
@pytest.mark.parametrize(("r", "n", "m"), [(5, 150, 70), (16, 64, 128)])
def test_the_kernel_of_a_gpu_is_the_whole_matrix(r, n, m):
    """Its program, interpreted: what a GPU makes of it was measured on one."""
    from imr.attention.kernel import kernel_products

    random = np.random.default_rng(0)
    q, k = (2 * random.normal(size=(size, r)) for size in (n, m))
    p = np.exp(0.7 * q @ k.T)
    p /= p.sum(axis=1, keepdims=True)
    scaled, *sides = (jnp.asarray(x.T, jnp.float32) for x in (0.7 * q, q, k))
    kernel = jax.jit(partial(kernel_products, columns=True, interpret=True))
    assert relative(kernel(scaled, *sides), ((p @ k).T, (p.T @ q).T)) < 3e-6


@pytest.mark.parametrize("r", [16, 42])
def test_packed_products_are_those_of_float32(r):
    """The TPU's arithmetic, bfloat16 parts that are multiplied exactly and summed in float32."""
    random = np.random.default_rng(0)
    s, k = (random.normal(size=(r, n)).astype(np.float32) for n in (48, 64))
    e = np.exp(3 * random.normal(size=(48, 64))).astype(np.float32)

    @jax.jit
    def errors(s, k, e):
        exact = jax.tree.map(lambda x: x.astype(float), (s, k, e))
        made = TPU.logits(s, k), TPU.product(k, e, 1), TPU.product(s, e, 0)
        wide = exact[0].T @ exact[1], exact[1] @ exact[2].T, exact[0] @ exact[2]
        coarse = [jax.lax.reduce_precision(x, 8, 7).astype(float) for x in (s, k)]
        one_pass = jnp.abs(coarse[0].T @ coarse[1] - wide[0]).max() / jnp.abs(wide[0]).max()
        return [
            jnp.abs(a - b).max() / jnp.abs(b).max() for a, b in zip(made, wide, strict=True)
        ], one_pass

    made, one_pass = errors(s, k, e)
    assert max(made) < 1e-6
    assert one_pass > 1e-4  # what a single pass of bfloat16 loses


@pytest.mark.laws
@pytest.mark.parametrize("symmetric", [True, False])
def test_derivatives_of_packed_products(symmetric):
    """Both ways and the second, in float32 against float64, as the TPU's program has them."""
    q, k, g, h, where = problem()

    def everything(on, q, k, g, h):
        def products(q, k):
            left, right = (q.T, q.T) if symmetric else (q.T, k.T)
            return strips(left, q.T, right, where, None, size=16, columns=True, on=on)[:2]

        def scalar(q):
            rows, columns = products(q, k)
            return jnp.sum(rows * g.T) + jnp.sum(columns * h.T)

        gradient = jax.grad(scalar)
        return products(q, k), gradient(q), jax.jvp(gradient, (q,), (h,))[1]

    narrow = [x.astype(jnp.float32) for x in (q, k, g, h)]
    actual = jax.jit(partial(everything, TPU))(*narrow)
    assert relative(actual, jax.jit(partial(everything, CPU))(q, k, g, h)) < 1e-5


def test_a_platform_has_its_blocks_wherever_it_is_lowered():
    """On this machine for all three: the tiles of each, and the TPU's bfloat16 parts."""
    program = jax.jit(attention_products).trace(jax.ShapeDtypeStruct((16384, 16), jnp.float32))
    for platform, tile in {"cpu": 256, "tpu": 2048, "cuda": 4096}.items():
        text = program.lower(lowering_platforms=(platform,)).as_text()
        for other in (256, 2048, 4096):
            assert (f"tensor<{other}x{other}xf32>" in text) == (other == tile), platform
        assert ("bf16" in text) == (platform == "tpu")
        assert ("HIGHEST" in text) == (platform != "tpu")


@pytest.mark.laws
@pytest.mark.parametrize(("symmetric", "masked"), [(True, False), (False, True)])
def test_blocks_of_any_size_equal_the_whole(symmetric, masked):
    check_all([{"block": N}, {"block": 16}, {"block": 7}], symmetric, masked, 1e-13)


@pytest.mark.laws
def test_the_range_of_the_tiles_and_beyond():
    """Where logits leave the range of the tiles, and where they nearly do, in both dtypes."""
    limits = {jnp.float64: 680.0, jnp.float32: 68.0}
    q, _, _, _, _ = problem()
    spread = 0.5 * float(jnp.ptp(jnp.sum(q * q, axis=1)))
    for dtype, limit in limits.items():
        both = jnp.stack([q * np.sqrt(share * limit / spread) for share in (0.99, 1.01, 20)])
        expected = jax.vmap(lambda q: attention_products(q, block=N))(both)
        actual = jax.vmap(lambda q: attention_products(q, block=16))(both.astype(dtype))
        tolerance = 1e-12 if dtype == jnp.float64 else 2e-5
        assert relative(jax.tree.map(lambda x: x.astype(float), actual), expected) < tolerance


def test_what_is_not_finite_stays_visible():
    q = problem()[0].at[3, 0].set(jnp.nan)
    actual = jax.jit(lambda q: attention_products(q, block=16))(q)
    assert all(np.isnan(x).any() for x in actual)


def test_logits_whose_rounding_exceeds_the_range_of_exponentials():
    """Compiled, their last product is fused into the difference with the largest of them."""
    q = jnp.array([[12573.022], [-13210.486], [64042.266], [10490.012], [-53566.938]], jnp.float32)
    largest = np.argmax(np.outer(q, q), axis=1)

    @jax.jit
    def compiled(q, beta):
        ways = [attention_products(q, 1 * q, block=block)[0] for block in (5, 2)]
        weights = imr.attention_weights(beta * (q @ q.T))
        return [*ways, weights @ q, imr.cross_attention(q, q, beta=beta)]

    for actual in compiled(q, jnp.float32(1.7)):
        np.testing.assert_array_equal(actual, q[largest])


@pytest.mark.parametrize("scale", [21.07, 1e6])
def test_equal_rows_in_tiles(scale):
    """Their logits do not vary, however large: all weights are equal, those that fill up a tile 0."""
    q = jnp.full((5, 1), scale, jnp.float32)
    for actual in jax.jit(lambda q: attention_products(q, beta=1.7, block=2))(q):
        np.testing.assert_allclose(actual, q, rtol=1e-6)


def test_weights_normalised_twice_of_large_logits():
    for rise in (1.0, 2e3):  # e^-2000 underflows
        weights = imr.attention_weights(jnp.array([[0.0, 0.0], [rise, rise]]), "double")
        np.testing.assert_allclose(weights, 0.5, rtol=1e-14)


@pytest.mark.laws
def test_no_rows_no_attention():
    z, q = jnp.zeros((0, 3)), jnp.ones((3, 2))

    def everything():
        for normalise in ("row", "column", "double"):
            yield imr.self_attention(z, q, normalise=normalise)
            yield imr.reverse_attention(z, q, 2 * q, normalise=normalise)
        yield imr.cross_attention(z, q.T)
        yield imr.closed_field(imr.feature_loss(imr.Quadratic(q), imr.pointers(jnp.zeros(0, int))))(
            0.0, z
        )

    results = jax.jit(lambda: list(everything()))()
    assert {x.shape for x in results} == {(0, 3)}
    rows, columns = attention_products(z, jnp.ones((2, 3)), block=4)
    assert (rows.shape, columns.tolist()) == ((0, 3), [[0.0] * 3] * 2)
    assert attention_log_sums(z).shape == (0,)


@pytest.mark.usefixtures("unchecked")
def test_whatever_holds_numbers_is_an_array():
    z, theta = [[0.5, 1.0], [2.0, 0.0]], np.array([[1.0, 0.0], [0.0, 3.0]])
    arrays = jnp.asarray(z), jnp.asarray(theta)
    for function in (
        imr.cross_attention,
        imr.self_attention,
        imr.reverse_attention,
        lambda z, theta: attention_products(z, theta)[1],
        lambda z, theta: imr.attention_weights(z),
        lambda z, theta: imr.cross_entropy(z, [1, 0]),
    ):
        np.testing.assert_array_equal(function(z, theta), function(*arrays))
    for bad, words in (
        ("cat", "must be an array of numbers; found 'cat'"),
        (None, "must be an array of numbers; found None"),
        (2.0, r"must have shape .* found shape \(\)"),
        ([[1.0], [1.0, 2.0]], r"must be an array of numbers; found \[\[1.0\]"),
        (np.array([[1, 2]]), "must be a floating array; found dtype int"),
    ):
        for name, call in (
            ("z", lambda bad: imr.cross_attention(bad, theta)),
            ("theta", lambda bad: imr.cross_attention(arrays[0], bad)),
            ("z", lambda bad: imr.self_attention(bad, theta)),
            ("q", lambda bad: imr.self_attention(arrays[0], bad)),
            ("queries", attention_products),
            ("logits", imr.attention_weights),
            ("logits", lambda bad: imr.cross_entropy(bad, None)),
        ):
            with pytest.raises(imr.ImrError, match=f"{name} {words}"):
                call(bad)


@pytest.mark.parametrize("normalise", ["row", "column", "double"])
def test_the_field_without_its_column_term(normalise):
    z, phi = problem()[0], problem(1)[0][:R]
    loss = imr.feature_loss(imr.Quadratic(phi), None)

    @jax.jit
    def both(z):
        field = imr.closed_field(loss, normalise=normalise, column_term=False)
        return -field(0.0, z, None), imr.self_attention(z, phi, normalise=normalise)

    assert relative(*both(z)) < 1e-14


@pytest.mark.laws
def test_negative_and_wide_inverse_temperatures():
    q = 6 * problem()[0]
    for beta in (-1.0, np.float64(0.5)):
        whole, blocks = (attention_products(q, beta=beta, block=b) for b in (N, 16))
        assert relative(blocks, whole) < 1e-12
    narrow = q.astype(jnp.float32)
    assert attention_products(narrow, beta=1 / np.sqrt(R), block=16)[0].dtype == jnp.float32


def test_the_gradient_of_log_sums_holds_no_matrix():
    q = jax.ShapeDtypeStruct((2048, R), jnp.float32)
    slope = jax.grad(lambda q: jnp.sum(attention_log_sums(q, block=64)))
    memory: Any = jax.jit(slope).lower(q).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2048**2


@pytest.mark.parametrize("normalise", ["row", "column"])
def test_the_field_by_blocks(normalise):
    z, phi = problem()[0], problem(1)[0][:R]
    model = imr.Quadratic(jnp.stack([phi, 0.5 * phi]))
    loss = imr.feature_loss(model, imr.same_class_targets(jnp.arange(N) % 3))

    @jax.jit
    def fields(z):
        return [imr.closed_field(loss, normalise=normalise, block=b)(0.0, z) for b in (N, 16)]

    assert relative(*fields(z)) < 1e-13
    with pytest.raises(imr.ImrError, match="block and mesh are for normalise='row'"):
        attention_terms(z, phi, normalise="double", block=16)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    q = problem()[0]
    for bad in (0, True, 2.5):
        with pytest.raises(imr.ImrError, match="block must be an integer of at least 1"):
            attention_products(q, block=bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(imr.ImrError, match=r"mesh must be a jax\.sharding\.Mesh; found int"):
        attention_products(q, mesh=8)
    with pytest.raises(imr.ImrError, match="queries must be a floating array"):
        attention_products(jnp.ones((3, 2), int))
    with pytest.raises(imr.ImrError, match="keys has 3 columns, but queries has 4"):
        attention_products(q, q[:, :3])
    with pytest.raises(imr.ImrError, match=r"shape of the logits, \(45, 45\); found \(1, 45\)"):
        attention_products(q, where=jnp.ones((1, N), bool), block=16)
    with pytest.raises(imr.ImrError, match="beta must be positive"):
        random_feature_products(q, key=jax.random.key(0), beta=-1.0)
    square = jax.make_mesh((1, 1), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(imr.ImrError, match="mesh must have one axis"):
        attention_products(q, mesh=square)
    line = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    with pytest.raises(imr.ImrError, match="as many queries as keys; found 45 and 4"):
        attention_products(q, q[:4], mesh=line)


@pytest.mark.usefixtures("unchecked")
def test_a_block_that_no_memory_holds_is_refused_before_it_is_traced():
    """On the device of the arrays, on a mesh, and on a mesh of TPUs that are not at hand."""
    n = 2**21
    line = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    words = r"block=2097152 does not fit: 2097152 rows and 2097152 columns of P take .* GB"
    for function in (attention_products, attention_log_sums):
        with pytest.raises(imr.ImrError, match=words):
            function(np.zeros((n, 1), np.float32), block=n)
        with pytest.raises(imr.ImrError, match=words):
            jax.eval_shape(
                partial(function, block=n, mesh=line), jax.ShapeDtypeStruct((n, 1), jnp.float32)
            )
    tpus: Any = SimpleNamespace(
        size=4,
        devices=np.array(4 * [SimpleNamespace(device_kind="TPU v5 lite", platform="tpu")]),
    )
    x = jax.ShapeDtypeStruct((2**18, 16), jnp.float32)
    check_block(2**15, x, 2**18, tpus)
    with pytest.raises(imr.ImrError, match=r"17.2 GB, and the device, TPU v5 lite, has 16 GB"):
        check_block(2**16, x, 2**18, tpus)


@pytest.mark.laws
def test_random_features_and_what_they_say_of_themselves():
    q = 0.3 * problem()[0]
    exact = attention_products(q, block=N)
    keys = jax.random.split(jax.random.key(0), 16)
    errors = []
    for features in (64, 4096):
        actual = jax.vmap(
            lambda key, m=features: random_feature_products(q, key=key, num_features=m, checked=N)
        )(keys)
        apart = [
            jnp.linalg.norm(a - b[None], axis=(1, 2)) / jnp.linalg.norm(b)
            for a, b in zip(actual[:2], exact, strict=True)
        ]
        assert relative(actual.error, apart[0]) < 1e-12
        errors.append([float(x.mean()) for x in apart])
    # 64 times as many features: an eighth of the error, give or take.
    assert all(6 < few / many < 11 for few, many in zip(*errors, strict=True))
    assert max(errors[1]) < 0.06
    large = random_feature_products(10 * q, key=jax.random.key(0), num_features=64)
    assert large.error > 0.3
    # One query, not among those on which the error is measured, lies opposite to all keys.
    apart = (q - 40 * jnp.eye(1, q.shape[1])).astype(jnp.float32)
    far = q.at[1].set(40 * jnp.eye(q.shape[1])[0]).astype(jnp.float32)
    found = random_feature_products(far, apart, key=jax.random.key(0), num_features=64, checked=2)
    assert all(jnp.isfinite(x).all() for x in found)
    # What is not finite has no small error.
    overflown = random_feature_products(1e200 * q, key=jax.random.key(0), num_features=64)
    assert jnp.isnan(overflown.error)


@pytest.mark.acceptance
@pytest.mark.parametrize("check", ["rings", "flows"])
def test_on_eight_devices(check):
    """In a process of its own, which has them."""
    code = f"from tests.test_attention import {check}; {check}()"
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "32", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def rings():
    """Each device a share of the rows: 45 over 8 devices, and strips that do not divide a share."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    ways = [{"block": N}, {"mesh": mesh}, {"mesh": mesh, "block": 4}]
    check_all(ways, True, False, 1e-12)
    check_all(ways, False, True, 1e-12)
    q = split_over(mesh, jnp.ones((48, R)))
    text = jax.jit(lambda q: attention_products(q, mesh=mesh)).lower(q).compile().as_text() or ""
    assert "collective-permute" in text
    assert "all-gather" not in text
    lowers(lambda q: attention_products(q, mesh=mesh)[1], 48)
    # Keys go half round rings of even and odd length; in float32 by bfloat16 parts. Where the tiles have
    # no range, keys go all the way.
    narrow = problem()[0].astype(jnp.float32)
    q = narrow.astype(float)
    wanted, largest = attention_products(q, block=N), float(jnp.sum(q * q, axis=1).max())
    exact = [(count, q, CPU, 1e-13) for count in (1, 2, 3)]
    for count, x, on, tolerance in (*exact, (8, narrow, TPU, 1e-6 * largest)):
        found = ring_tiles(x.T, x.T, mesh=parallel.make_mesh(count), tile=4, columns=True, on=on)
        assert relative([x.T for x in found], wanted) < tolerance, count
    far = 20 * q
    assert relative(attention_products(far, mesh=mesh), attention_products(far, block=N)) < 1e-12
    # Devices that are linked in another order than that of the mesh: nothing else changes.
    order = (0, 3, 1, 2, 7, 5, 6, 4)
    jax.clear_caches()  # programs in the order of the mesh
    with mock.patch("imr.attention.tiles.ring_order", return_value=order):
        assert relative(attention_products(q, mesh=mesh), wanted) < 1e-12
    with mock.patch("imr.attention.ring.ring_order", return_value=order):
        check_all([{"mesh": mesh}], True, False, 1e-12)
        check_all([{"mesh": mesh}], False, True, 1e-12)


def lowers(function, n):
    """For every platform, with its gradient."""
    gradient = jax.jit(jax.grad(lambda q: jnp.sum(function(q) ** 2)))
    exported = jax.export.export(gradient, platforms=("tpu", "cuda", "cpu"))(
        jax.ShapeDtypeStruct((n, R), jnp.float32)
    )
    assert exported.platforms == ("tpu", "cuda", "cpu")


def test_blocks_lower_for_every_platform():
    lowers(lambda q: attention_products(q, block=16)[1], N)
    lowers(lambda q: attention_products(q, 2 * q, block=16)[1], N)


def flows():
    """Flows on a mesh that does not divide their rows: the same steps to the same end."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    z, phi, theta = problem()[0], problem(1)[0][:R], problem(2)[0][:3]
    labels = jnp.arange(N) % 3

    def solved(make_loss, parameters, mesh, norm: Any = "coordinates"):
        def run(parameters):
            flow: Any = imr.solve_reduced(
                make_loss(parameters), z, t1=1.0, norm=norm, mesh=mesh, rtol=1e-6, atol=1e-8,
                ts=jnp.array([0.3, 1.0]),
            )  # fmt: skip
            return jnp.sum(flow.z**2), flow

        return jax.value_and_grad(run, has_aux=True)(parameters)

    def linear_loss(theta):
        return imr.feature_loss(imr.Linear(theta), labels, anchor=(0.1, 0.5 * z))

    def quadratic_loss(phi):
        return imr.feature_loss(imr.Quadratic(phi), imr.same_class_targets(labels, 3))

    cases = (linear_loss, theta, "coordinates"), (linear_loss, theta, "features")
    for make_loss, parameters, norm in (*cases, (quadratic_loss, phi, "coordinates")):
        (_, alone), slope = solved(make_loss, parameters, None, norm)
        (_, spread), slopes = solved(make_loss, parameters, mesh, norm)
        assert int(alone.num_steps) == int(spread.num_steps)
        assert bool(spread.converged)
        assert spread.z.shape == (N, R)
        pairs = (spread.z, alone.z), (spread.zs, alone.zs), (spread.loss, alone.loss)
        for pair in (*pairs, (spread.grad_norm, alone.grad_norm), (slopes, slope)):
            assert relative(*pair) < 1e-10
