"""Flows: closed forms, the reduced against the full, gradients, failure as a code, lowering."""

from itertools import product

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.nnx.nn.attention import dot_product_attention_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.sparse import BCOO

import imr
from tests.problems import central_difference, error, linear

TIGHT = {"rtol": 1e-11, "atol": 1e-11}
TIMES = jnp.array([0.3, 1.0, 1.7])


def projections(kind, f=5, r=2, seed=3):
    shape = (2, 3, f, r) if kind == "heads" else (2, f, r)
    q, k = jnp.asarray(0.6 * np.random.default_rng(seed).normal(size=shape))
    return q, None if kind == "symmetric" else k


def low_rank(z, theta):
    return imr.low_rank_logits(z, *theta)


KINDS = ("symmetric", "query_key", "heads")


# Fields against autodiff


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from((2, 5)), st.sampled_from((2, 4)), st.sampled_from(KINDS), st.integers(0, 10**6),
    st.floats(0.3, 2.0), st.booleans(),
)  # fmt: skip
def test_quadratic_field_is_the_gradient(n, f, kind, seed, beta, causal):
    """Theorem 2 and its corollary; masks too."""
    p = linear(n, f, 2, seed)
    q, k = projections(kind, f, min(2, f), seed)
    where = jnp.tril(jnp.ones((n, n), bool)) if causal else None
    targets = jnp.eye(n) if causal else imr.same_class_targets(p.labels, 2)

    @jax.jit
    def witnesses(z):
        loss = imr.feature_loss(low_rank, (q, k), targets, beta=beta, where=where)
        field = imr.quadratic_field(q, k, targets, beta=beta, where=where)
        gradient = imr.gradient_field(loss)(0.0, z, None)
        return gradient, field(0.0, z, None), -central_difference(loss, z)

    wanted, found, by_differences = map(np.asarray, witnesses(p.z))
    scale = max(1.0, abs(wanted).max())
    assert abs(found - wanted).max() <= 1e-12 * scale
    assert abs(found - by_differences).max() <= 1e-6 * scale


def test_full_theta_and_polynomials_by_autodiff_are_the_lemma():
    """d LSE/dZ = sum_j softmax_ij dN_ij/dZ, for any model."""
    p = linear(6, 4, 3)
    theta = jax.random.normal(jax.random.key(9), (4, 4))
    a = jnp.eye(6) - jax.nn.softmax(imr.quadratic_logits(p.z, theta))
    wanted = a @ p.z @ theta.T + a.T @ p.z @ theta
    loss = imr.feature_loss(imr.quadratic_logits, theta, jnp.eye(6))
    assert error(imr.gradient_field(loss)(0.0, p.z, None), wanted) <= 1e-12

    cubic = lambda z, theta: imr.polynomial_logits(z, theta, 3)  # noqa: E731
    c = jax.nn.one_hot(p.labels, 3) - jax.nn.softmax(cubic(p.z, p.theta))
    wanted = (c * 3 * (p.z @ p.theta.T) ** 2) @ p.theta
    loss = imr.feature_loss(cubic, p.theta, p.labels)
    assert error(imr.gradient_field(loss)(0.0, p.z, None), wanted) <= 1e-12


def test_latent_field_is_the_gradient():
    p = linear(6, 4, 6)
    group, labels = jnp.array([0, 0, 1, 1, 2, 2]), jnp.array([0, 1, 2, 2, 1, 0])

    def loss(z):
        return imr.latent_cross_entropy(0.7 * imr.linear_logits(z, p.theta), labels, group).sum()

    field = imr.latent_field(p.theta, labels, group, beta=0.7)
    assert error(field(0.0, p.z, None), imr.gradient_field(loss)(0.0, p.z, None)) <= 1e-12


@pytest.mark.slow
def test_column_normalised_attention_is_a_gradient_and_double_is_not():
    p = linear(6, 4)
    q, _ = projections("symmetric", 4)

    def energy(z):
        return jax.nn.logsumexp(imr.low_rank_logits(z, q), axis=0).sum()

    field = imr.quadratic_field(q, None, None, normalise="column")
    assert error(field(0.0, p.z, None), imr.gradient_field(energy)(0.0, p.z, None)) <= 1e-12

    def asymmetry(field):
        jacobian = jax.jit(jax.jacobian(lambda z: field(0.0, z, None)))(p.z)
        jacobian = np.asarray(jacobian).reshape(24, 24)
        return abs(jacobian - jacobian.T).max() / abs(jacobian).max()

    assert asymmetry(field) <= 1e-12
    assert asymmetry(imr.quadratic_field(q, None, None)) <= 1e-12
    assert asymmetry(imr.quadratic_field(q, None, None, normalise="double")) > 1e-3
    assert asymmetry(imr.quadratic_field(q, None, None, column_term=False)) > 1e-3


def test_self_attention_is_the_standard_layer():
    """flax's and jax's attention with tied weights: queries Z Q, keys Z K, values Z K Q^T."""
    p = linear(7, 5)
    q, k = projections("query_key")
    where = jnp.tril(jnp.ones((7, 7), bool))
    ours = imr.self_attention(p.z, q, k, beta=0.7, where=where)
    queries, keys = (p.z @ w for w in (q, k))
    heads = [a[None, :, None, :] for a in (queries, keys)]
    scaled = heads[0] * 0.7 * np.sqrt(2)  # flax divides by the square root of the rank
    weights = dot_product_attention_weights(scaled, heads[1], mask=where[None, None])
    assert error(ours, weights[0, 0] @ keys @ q.T) <= 1e-12
    # The fused one works in float32 inside.
    layer = jax.nn.dot_product_attention(*heads, heads[1], scale=0.7, is_causal=True)
    assert error(ours, layer[0, :, 0] @ q.T) <= 1e-6


def test_compiled_attention_of_huge_logits_is_finite():
    """A product fused into the softmax's difference once made it overflow."""
    z = 1e6 * jax.random.normal(jax.random.key(0), (12, 2), jnp.float32)
    attend = jax.jit(lambda z: imr.self_attention(z, jnp.eye(2, dtype=jnp.float32), beta=0.1))
    assert jnp.isfinite(attend(z)).all()


def test_double_normalisation_explains_nothing_away():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 6))
    where = jnp.tril(jnp.ones((6, 6), bool))
    for mask in (None, where):
        columns = imr.attention_weights(logits, "column", mask)
        np.testing.assert_allclose(columns.sum(axis=0), 1, rtol=1e-12)
        double = imr.attention_weights(logits, "double", mask)
        np.testing.assert_allclose(double.sum(axis=1), 1, rtol=1e-12)


def test_sphere_field_keeps_norms():
    p = linear()
    field = imr.sphere_field(imr.linear_field(p.theta, p.labels))
    flow = imr.solve(field, p.z, t1=2.0, **TIGHT)
    norms = lambda z: jnp.linalg.norm(z, axis=1)  # noqa: E731
    assert error(norms(flow.z), norms(p.z)) <= 1e-9


def test_a_row_of_zeros_stays_on_its_sphere():
    field = imr.sphere_field(lambda t, z, args: jnp.ones_like(z))
    z = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_array_equal(field(0.0, z, None), [[0.0, 0.0], [0.0, 1.0]])


@pytest.mark.slow
def test_joint_field_and_paths():
    p = linear()

    def loss(z, theta):
        return imr.cross_entropy(imr.linear_logits(z, theta), p.labels).mean()

    field = imr.joint_field(loss, decay=(0.1, 0.2), rates=(1.0, 3.0))
    dz, dtheta = field(0.0, (p.z, p.theta), None)
    gz, gtheta = jax.jit(jax.grad(loss, argnums=(0, 1)))(p.z, p.theta)
    assert error(dz, -(gz + 0.1 * p.z)) <= 1e-14
    assert error(dtheta, -3 * (gtheta + 0.2 * p.theta)) <= 1e-14

    path = imr.linear_path(jnp.array([0.0, 1.0, 3.0]), jnp.stack([p.theta, 2 * p.theta, -p.theta]))
    for t, factor in ((-1.0, 1.0), (0.25, 1.25), (1.0, 2.0), (2.0, 0.5), (9.0, -1.0)):
        np.testing.assert_allclose(path(t), factor * p.theta, rtol=1e-12)
    moving = imr.path_field(imr.linear_logits, path, p.labels)
    fixed = imr.linear_field(1.25 * p.theta, p.labels)
    assert error(moving(0.25, p.z, None), fixed(0.0, p.z, None)) <= 1e-12


# Targets that are never built


@pytest.mark.parametrize("kind", ["labels", "low_rank", "sparse"])
def test_targets_equal_their_dense_form(kind):
    p = linear(6, 4)
    labels = jnp.array([0, 1, 0, 2, 2, 1])
    targets = {
        "labels": labels,
        "low_rank": imr.same_class_targets(labels),
        "sparse": BCOO.fromdense(imr.same_class_targets(labels).left @ imr.same_class_targets(labels).right.T),
    }[kind]  # fmt: skip
    dense = jax.nn.one_hot(labels, 6) if kind == "labels" else None
    if dense is None:
        dense = (labels[:, None] == labels[None, :]) / jnp.bincount(labels)[labels][:, None]
    q, k = projections("query_key", 4)
    logits = imr.low_rank_logits(p.z, q, k)
    assert error(imr.cross_entropy(logits, targets), imr.cross_entropy(logits, dense)) <= 1e-12
    field = imr.quadratic_field(q, k, targets)(0.0, p.z, None)
    assert error(field, imr.quadratic_field(q, k, dense)(0.0, p.z, None)) <= 1e-12


# Closed forms


def test_two_classes_follow_the_closed_form():
    """u + e^u = u_0 + e^u_0 + |theta_c - theta_other|^2 t, row by row."""
    p = linear(6, 4, 2)
    difference = p.theta[p.labels] - p.theta[1 - p.labels]
    margin = lambda z: jnp.einsum("nf,...nf->...n", difference, z)  # noqa: E731
    flow = imr.linear_flow(p.z, p.theta, p.labels, t1=2.0, ts=TIMES, **TIGHT)
    left = margin(flow.zs) + jnp.exp(margin(flow.zs))
    u0 = margin(p.z)
    rate = jnp.sum(difference**2, axis=1)
    right = (u0 + jnp.exp(u0))[None, :] + rate[None, :] * TIMES[:, None]
    assert error(left, right) <= 1e-9


@pytest.mark.slow
def test_simplex_frame_follows_the_closed_form():
    """e^m + (k - 1) m = 1 + a k t from z_0 = 0."""
    k, a = 5, 1.7
    theta = jnp.sqrt(a) * (jnp.eye(k) - 1 / k)
    flow = imr.linear_flow(jnp.zeros((k, k)), theta, jnp.arange(k), t1=3.0, ts=TIMES, **TIGHT)
    logits = flow.zs @ theta.T
    m = logits[:, jnp.arange(k), jnp.arange(k)] - logits[:, jnp.arange(k), (jnp.arange(k) + 1) % k]
    right = jnp.broadcast_to((1 + a * k * TIMES)[:, None], m.shape)
    assert error(jnp.exp(m) + (k - 1) * m, right) <= 1e-9


# Reduced against full

DEFAULT = (("query_key", False, "coordinates"),)


@pytest.mark.parametrize(
    ("kind", "anchored", "norm"),
    [
        pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.slow)
        for case in product(("linear", *KINDS), (False, True), ("coordinates", "features"))
    ],
)
def test_reduced_equals_full(kind, anchored, norm):
    p = linear()
    anchor = (0.4, p.z[::-1]) if anchored else None
    common = {"t1": 2.0, "ts": TIMES, **TIGHT}
    if kind == "linear":
        model = lambda z, theta: imr.linear_logits(z, theta, p.bias)  # noqa: E731
        loss = imr.feature_loss(model, p.theta, p.targets, beta=0.8, anchor=anchor)
        reduced = imr.linear_flow(
            p.z, p.theta, p.targets, bias=p.bias, beta=0.8, anchor=anchor, norm=norm, **common
        )
    else:
        q, k = projections(kind)
        targets = imr.same_class_targets(p.labels)
        loss = imr.feature_loss(low_rank, (q, k), targets, beta=0.8, anchor=anchor)
        reduced = imr.quadratic_flow(
            p.z, q, k, targets, beta=0.8, anchor=anchor, norm=norm, block=3, **common
        )
    full = imr.solve(imr.gradient_field(loss), p.z, loss=loss, **common)
    assert full.converged
    assert reduced.converged
    for name in ("z", "zs", "loss", "grad_norm"):
        assert error(getattr(reduced, name), getattr(full, name)) <= 1e-9, name
    assert (jnp.diff(full.loss) < 0).all()
    assert (jnp.diff(reduced.loss) < 0).all()


@pytest.mark.slow
def test_latent_classes_reduce_too():
    p = linear(6, 8, 6)
    group, labels = jnp.array([0, 0, 1, 1, 2, 2]), jnp.array([0, 1, 2, 2, 1, 0])
    field = imr.latent_field(p.theta, labels, group)
    full = imr.solve(field, p.z, t1=2.0, **TIGHT)
    reduced = imr.linear_flow(p.z, p.theta, labels, group=group, t1=2.0, **TIGHT)
    assert error(reduced.z, full.z) <= 1e-9


@pytest.mark.parametrize(
    "kind",
    [
        "linear",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("symmetric", "query_key")),
    ],
)
@pytest.mark.slow
def test_gradients_of_reduced_equal_those_of_full(kind):
    p = linear(5, 4)
    if kind == "linear":
        theta = p.theta
        full = lambda th, z: imr.solve(imr.linear_field(th, p.labels), z, t1=1.0, **TIGHT)  # noqa: E731
        reduced = lambda th, z: imr.linear_flow(z, th, p.labels, t1=1.0, **TIGHT)  # noqa: E731
    else:
        theta = projections(kind, 4)
        targets = imr.same_class_targets(p.labels)
        full = lambda th, z: imr.solve(  # noqa: E731
            imr.quadratic_field(*th, targets), z, t1=1.0, **TIGHT
        )
        reduced = lambda th, z: imr.quadratic_flow(  # noqa: E731
            z, *th, targets, t1=1.0, block=2, **TIGHT
        )
    weights = jax.random.normal(jax.random.key(5), p.z.shape)
    of = lambda flow: jax.jit(  # noqa: E731
        jax.grad(lambda th, z: jnp.sum(weights * flow(th, z).z ** 2), argnums=(0, 1))
    )(theta, p.z)
    for a, b in zip(jax.tree.leaves(of(reduced)), jax.tree.leaves(of(full)), strict=True):
        assert error(a, b) <= 1e-9


# Adjoints


@pytest.mark.parametrize(
    "adjoint",
    [
        None,
        pytest.param("steady", marks=pytest.mark.slow),
        pytest.param(dfx.BacksolveAdjoint(), marks=pytest.mark.slow),
        pytest.param(dfx.DirectAdjoint(), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_adjoints_agree_with_central_differences(adjoint):
    p = linear(5, 4)

    def objective(theta):
        field = imr.linear_field(theta, p.labels, anchor=(0.5, p.z))
        if adjoint == "steady":
            z = imr.solve_to_steady_state(field, p.z, rtol=1e-12, atol=1e-12).z
        else:
            z = imr.solve(field, p.z, t1=1.0, adjoint=adjoint, **TIGHT).z
        return jnp.sum(z**3)

    differences = jax.jit(lambda theta: central_difference(objective, theta))(p.theta)
    assert error(jax.jit(jax.grad(objective))(p.theta), differences) <= 1e-6


@pytest.mark.slow
def test_gradients_to_start_and_targets():
    p = linear(5, 4)

    def objective(z, targets):
        return jnp.sum(imr.linear_flow(z, p.theta, targets, t1=1.0, **TIGHT).z ** 2)

    by_z, by_targets = jax.jit(jax.grad(objective, argnums=(0, 1)))(p.z, p.targets)

    @jax.jit
    def differences(z, targets):
        return (
            central_difference(lambda z: objective(z, targets), z),
            central_difference(lambda c: objective(z, c), targets),
        )

    for found, wanted in zip((by_z, by_targets), differences(p.z, p.targets), strict=True):
        assert error(found, wanted) <= 1e-6


@pytest.mark.slow
def test_the_steady_state_is_where_the_anchored_loss_is_least():
    p = linear()
    loss = imr.feature_loss(imr.linear_logits, p.theta, p.labels, anchor=(0.5, p.z))
    flow = imr.solve_to_steady_state(
        imr.gradient_field(loss), p.z, loss=loss, rtol=1e-11, atol=1e-11
    )
    assert flow.converged
    assert flow.grad_norm[0] <= 1e-9
    elsewhere = jax.vmap(lambda key: loss(flow.z + 0.01 * jax.random.normal(key, p.z.shape)))
    assert (elsewhere(jax.random.split(jax.random.key(0), 20)) > flow.loss[0]).all()
    other = imr.solve_to_steady_state(imr.gradient_field(loss), -p.z, rtol=1e-11, atol=1e-11)
    assert error(other.z, flow.z) <= 1e-8


@pytest.mark.slow
def test_the_steady_state_is_found_whatever_the_problem():
    """At loose and tight tolerances, where a solver held to its limit of stability may hover."""
    p = jax.tree.map(lambda *a: jnp.stack(a), *(linear(seed=seed) for seed in range(40)))

    def steady(p, tol):
        field = imr.linear_field(p.theta, p.labels, anchor=(0.4, p.z))
        return imr.solve_to_steady_state(field, p.z, rtol=tol, atol=tol)

    flows = jax.jit(jax.vmap(jax.vmap(steady, (0, None)), (None, 0)))(p, jnp.array([1e-5, 1e-10]))
    assert flows.converged.all()
    assert flows.grad_norm[1].max() <= 1e-8


@pytest.mark.slow
def test_implicit_solvers_take_the_same_tolerances():
    p = linear()
    field = imr.linear_field(p.theta, p.labels)
    flow = imr.solve(field, p.z, t1=1.0, solver=dfx.Kvaerno5(), rtol=1e-8, atol=1e-8)
    assert flow.converged
    assert error(flow.z, imr.solve(field, p.z, t1=1.0, **TIGHT).z) <= 1e-6


def test_without_an_anchor_there_is_no_steady_state():
    p = linear()
    flow = imr.solve_to_steady_state(
        imr.linear_field(p.theta, p.labels), p.z, rtol=1e-9, atol=1e-9, max_steps=30
    )
    assert not flow.converged
    assert flow.result == imr.Result.STEP_LIMIT
    assert jnp.isfinite(flow.z).all()


# Results as codes


def test_the_step_limit_leaves_the_last_good_state():
    p = linear()
    field = imr.linear_field(p.theta, p.labels)
    flow = imr.solve(field, p.z, t1=50.0, ts=jnp.array([0.0, 1e-3, 50.0]), max_steps=3)
    assert not flow.converged
    assert flow.result == imr.Result.STEP_LIMIT
    assert jnp.isfinite(flow.z).all()
    assert jnp.isfinite(flow.ts).tolist() == [True, True, False]
    assert jnp.isinf(flow.zs[2]).all()
    assert jnp.isinf(flow.grad_norm[2])
    with pytest.raises(imr.FlowError, match="STEP_LIMIT"):
        imr.solve(field, p.z, t1=50.0, max_steps=3, throw=True)


@pytest.mark.parametrize("options", [{}, {"dt0": 0.25, "solver": dfx.Euler()}], ids=str)
def test_divergence_is_a_code(options):
    """dz/dt = e^z from 1 is infinite at t = 1/e."""
    rise = lambda t, z, args: jnp.exp(z)  # noqa: E731
    flow = imr.solve(rise, jnp.ones((1, 1)), t1=20.0, ts=jnp.array([0.2, 10.0]), **options)
    assert not flow.converged
    assert flow.result == (imr.Result.DIVERGED if options else imr.Result.STEP_TOO_SMALL)
    assert jnp.isfinite(flow.z).all()
    assert jnp.isfinite(flow.ts).tolist() == [True, False]


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.slow
def test_a_time_not_reached_leaves_the_gradients_of_the_others(reduced):
    p = linear()
    ts, times = jnp.array([1e-3, 50.0]), {"t1": 50.0, "max_steps": 3}

    def reached(theta, times=times, ts=ts):
        if reduced:
            return imr.linear_flow(p.z, theta, p.labels, ts=ts, **times)
        loss = imr.feature_loss(imr.linear_logits, theta, p.labels)
        return imr.solve(imr.gradient_field(loss), p.z, ts=ts, loss=loss, **times)

    first = lambda theta, *more: reached(theta, *more).loss[0]  # noqa: E731
    assert not reached(p.theta).converged
    wanted = jax.jit(lambda theta: jax.grad(first)(theta, {"t1": 1e-3}, ts[:1]))(p.theta)
    assert error(jax.jit(jax.grad(first))(p.theta), wanted) <= 1e-6


@pytest.mark.slow
def test_bad_values_under_a_trace_are_codes():
    p = linear()
    field = imr.linear_field(p.theta, p.labels)
    run = jax.jit(lambda z, t1, ts: imr.solve(field, z, t1=t1, ts=ts))
    good = run(p.z, 1.0, jnp.array([0.1, 0.5]))
    assert good.converged
    for z, t1, ts, code in (
        (p.z, -1.0, jnp.array([0.1, 0.5]), imr.Result.BAD_TIMES),
        (p.z, 1.0, jnp.array([0.5, 0.1]), imr.Result.BAD_TIMES),
        (p.z, 1.0, jnp.array([0.5, 1.1]), imr.Result.BAD_TIMES),
        (p.z.at[0, 0].set(jnp.nan), 1.0, jnp.array([0.1, 0.5]), imr.Result.DIVERGED),
    ):
        flow = run(z, t1, ts)
        assert flow.result == code
        assert not flow.converged
        assert not jnp.isfinite(flow.zs).any()
    with pytest.raises(imr.ImrError, match="throw=True needs concrete values"):
        jax.jit(lambda z: imr.solve(field, z, t1=1.0, throw=True))(p.z)


@pytest.mark.slow
def test_vmap_over_problems_and_solvers():
    problems = [linear(seed=seed) for seed in range(3)]
    z, theta = (jnp.stack([p[i] for p in problems]) for i in (0, 1))
    labels = jnp.stack([p.labels for p in problems])
    solver = lambda z, theta, y: imr.linear_flow(z, theta, y, t1=1.0, solver=dfx.Dopri8(), **TIGHT)  # noqa: E731
    flows = jax.vmap(solver)(z, theta, labels)
    assert flows.converged.all()
    for i, p in enumerate(problems):
        alone = imr.linear_flow(p.z, p.theta, p.labels, t1=1.0, **TIGHT)
        assert error(flows.z[i], alone.z) <= 1e-9


def test_constant_euler_steps_are_gradient_descent():
    p = linear()
    field = imr.linear_field(p.theta, p.labels)
    flow = imr.solve(field, p.z, t1=1.0, dt0=0.1, solver=dfx.Euler())
    z = p.z
    for _ in range(10):
        z = imr.lie_step([field], z, 0.1)
    assert flow.num_steps == 10
    assert error(flow.z, z) <= 1e-14


def test_late_times_in_float32():
    """z = log(1 + t) at a million: each stretch goes on with steps of the size that went before."""
    ts = jnp.geomspace(0.1, 1e6, 30, dtype=jnp.float32).at[-1].set(1e6)
    field = lambda t, z, args: jnp.exp(-z)  # noqa: E731
    flow = imr.solve(field, jnp.zeros((1, 1), jnp.float32), t1=1e6, ts=ts)
    assert flow.converged
    assert flow.num_steps <= 70
    assert error(flow.zs[:, 0, 0], jnp.log1p(ts)) <= 1e-5


@pytest.mark.slow
def test_noise_has_the_right_spread():
    """dz = -z dt + sigma dW: the variance tends to sigma^2 / 2."""
    decay = lambda t, z, args: -z  # noqa: E731
    flow = imr.solve(decay, jnp.zeros((4000, 1)), t1=6.0, dt0=0.02, noise=(0.5, jax.random.key(0)))
    wanted = 0.125 * (1 - np.exp(-12)) / (1 - 0.01)  # of Euler's steps
    assert abs(float(jnp.var(flow.z)) - wanted) <= 4 * wanted * np.sqrt(2 / 4000)


@pytest.mark.slow
def test_noise_between_times_closer_than_the_step():
    """Increments of a Brownian motion: variance dt, one independent of the next."""
    still = lambda t, z, args: jnp.zeros_like(z)  # noqa: E731
    ts = jnp.linspace(0.05, 1.0, 20)
    noise = (1.0, jax.random.key(0))
    flow = imr.solve(still, jnp.zeros((2000, 1)), t1=1.0, ts=ts, dt0=0.1, noise=noise)
    steps = jnp.diff(flow.zs[:, :, 0], axis=0)
    assert abs(float(jnp.mean(steps**2)) / 0.05 - 1) <= 4 * np.sqrt(2 / steps.size)
    assert abs(float(jnp.mean(steps[1:] * steps[:-1])) / 0.05) <= 4 / np.sqrt(steps.size)


def test_constant_steps_are_even():
    flow = imr.solve(lambda t, z, args: z, jnp.ones(1), t1=1.0, dt0=0.3, solver=dfx.Euler())
    assert flow.num_steps == 4
    assert abs(flow.z[0] - 1.25**4) <= 1e-12


# Compilation and other platforms


def attend(t, z, theta):
    return -imr.cross_attention(z, theta)


def decay(t, z, theta):
    return -z


FLOWS = {
    "solve": lambda z, th, y: imr.solve(
        imr.gradient_field(imr.feature_loss(imr.linear_logits, th, y)), z, t1=1.0, ts=TIMES / 2
    ),
    "solve of a split field": lambda z, th, y: imr.solve(
        (attend, decay), z, t1=1.0, dt0=0.25, args=th
    ),
    "linear_flow": lambda z, th, y: imr.linear_flow(z, th, y, t1=1.0, ts=TIMES / 2),
    "anchored": lambda z, th, y: imr.linear_flow(
        z, th, y, t1=1.0, anchor=(0.1, z), norm="features"
    ),
    "quadratic_flow": lambda z, th, y: imr.quadratic_flow(
        z, th.T, None, imr.same_class_targets(y, 3), t1=1.0, block=3
    ),
    "steady": lambda z, th, y: imr.solve_to_steady_state(
        imr.linear_field(th, y, anchor=(0.5, jnp.ones_like(z))), z
    ),
}


def slow_but(*names):
    """The names of all flows; by default only these run."""
    return [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in FLOWS]


@pytest.mark.parametrize("name", slow_but("linear_flow"))
def test_other_values_compile_nothing(name):
    """Nothing at all: neither the solve, nor what is measured after it, nor the checks before."""
    compiled = []
    count = lambda event, *rest, **more: compiled.append(event) if "backend_compile" in event else 0  # noqa: E731
    counts = []
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for seed in range(3):
            p = linear(seed=seed)
            before = len(compiled)
            jax.block_until_ready(FLOWS[name](p.z, p.theta, p.labels))
            counts.append(len(compiled) - before)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert counts[0] > 0
    assert counts[2] == 0


@pytest.mark.parametrize("name", slow_but("solve", "linear_flow"))
def test_every_flow_and_its_gradient_lower_for_tpu_cuda_and_cpu(name):
    p = linear()
    flow = FLOWS[name]
    value = lambda z, th, y: flow(z, th, y).z  # noqa: E731
    gradient = jax.grad(lambda z, th, y: jnp.sum(flow(z, th, y).z ** 2), argnums=1)
    for function in (value, gradient):
        exported = jax.export.export(jax.jit(function), platforms=["tpu", "cuda", "cpu"])(
            p.z, p.theta, p.labels
        )
        assert exported.platforms == ("tpu", "cuda", "cpu")


# Bad input


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    def test_times(self):
        flow = lambda **times: imr.linear_flow(self.p.z, self.p.theta, self.p.labels, **times)  # noqa: E731
        with pytest.raises(imr.ImrError, match=r"t1 must be after t0 = 0\.0; found t1 = -1"):
            flow(t1=-1.0)
        with pytest.raises(imr.ImrError, match="ts must increase; found"):
            flow(t1=1.0, ts=jnp.array([0.5, 0.4]))
        with pytest.raises(imr.ImrError, match=r"ts must lie within \[t0, t1\]"):
            flow(t1=1.0, ts=jnp.array([0.5, 1.4]))
        with pytest.raises(imr.ImrError, match="ts must hold one or more times"):
            flow(t1=1.0, ts=jnp.zeros((0,)))

    def test_values(self):
        z = self.p.z.at[1, 1].set(jnp.inf)
        with pytest.raises(imr.ImrError, match=r"z0 must be finite; found 1 .* \(1, 1\)"):
            imr.linear_flow(z, self.p.theta, self.p.labels, t1=1.0)
        with pytest.raises(imr.ImrError, match="theta or phi must be finite"):
            imr.linear_flow(self.p.z, self.p.theta * jnp.nan, self.p.labels, t1=1.0)
        with pytest.raises(imr.ImrError, match="0 to 2; found targets"):
            imr.linear_flow(self.p.z, self.p.theta, self.p.labels + 3, t1=1.0)
        with pytest.raises(imr.ImrError, match="rtol must be positive"):
            imr.linear_flow(self.p.z, self.p.theta, self.p.labels, t1=1.0, rtol=0.0)
        with pytest.raises(imr.ImrError, match="norm must be one of coordinates, features"):
            imr.linear_flow(self.p.z, self.p.theta, self.p.labels, t1=1.0, norm="max")
        with pytest.raises(imr.ImrError, match="max_steps must be an integer"):
            imr.solve(lambda t, z, a: z, self.p.z, t1=1.0, max_steps=0)
        with pytest.raises(imr.ImrError, match="noise needs dt0"):
            imr.solve(lambda t, z, a: z, self.p.z, t1=1.0, noise=(0.1, jax.random.key(0)))

    def test_what_is_no_field_or_loss(self):
        loss = imr.feature_loss(imr.linear_logits, self.p.theta, self.p.labels)
        field = imr.gradient_field(loss)
        solve = lambda field, z=self.p.z, **more: imr.solve(field, z, t1=1.0, **more)  # noqa: E731
        with pytest.raises(imr.ImrError, match=r"field cannot be called as field\(t, z, args\)"):
            solve(loss)
        with pytest.raises(imr.ImrError, match=r"field must return the shapes of z0, \[\(7, 5\)\]"):
            solve(lambda t, z, args: z[:2])
        with pytest.raises(imr.ImrError, match=r"z -> scalar; found a result of shape \(7,\)"):
            solve(field, loss=lambda z: z.sum(axis=1))
        with pytest.raises(imr.ImrError, match="z0 must be a floating array; found dtype int"):
            solve(field, jnp.ones((7, 5), int))
        with pytest.raises(imr.ImrError, match="t1 must be finite"):
            imr.solve(field, self.p.z, t1=jnp.inf)
        wrong = imr.feature_loss(imr.linear_logits, self.p.theta, self.p.labels + 3)
        with pytest.raises(imr.ImrError, match=r"column indices of the logits, 0 to 2; found"):
            solve(imr.gradient_field(wrong))
        with pytest.raises(imr.ImrError, match="a further keyword must be one of solver, rtol"):
            imr.linear_flow(self.p.z, self.p.theta, self.p.labels, t1=1.0, tol=1e-3)
        with pytest.raises(imr.ImrError, match=r"classes that group has; found targets\[0\] = 9"):
            imr.linear_flow(
                self.p.z,
                self.p.theta,
                self.p.labels.at[0].set(9),
                group=jnp.array([0, 1, 2]),
                t1=1.0,
            )
        with pytest.raises(imr.ImrError, match="targets must be given; found None"):
            imr.quadratic_flow(self.p.z, jnp.eye(5), None, None, t1=1.0)

    @pytest.mark.slow
    def test_labels_out_of_range_under_a_trace_diverge(self):
        loss = lambda y: imr.feature_loss(imr.linear_logits, self.p.theta, y)  # noqa: E731
        flows = (
            lambda y: imr.solve(imr.gradient_field(loss(y)), self.p.z, t1=1.0),
            lambda y: imr.solve(imr.linear_field(self.p.theta, y), self.p.z, t1=1.0),
            lambda y: imr.linear_flow(self.p.z, self.p.theta, y, t1=1.0),
        )
        for flow in flows:
            run = jax.jit(flow)
            assert run(self.p.labels).converged
            for bad in (-1, 3):
                assert not run(self.p.labels.at[0].set(bad)).converged

    def test_shapes(self):
        q, k = projections("query_key")
        with pytest.raises(imr.ImrError, match=r"z has 5 .* phi has 4"):
            imr.quadratic_flow(self.p.z, q[:4], None, self.p.labels, t1=1.0)
        with pytest.raises(imr.ImrError, match="phi has rank 6, more than the 5 features"):
            imr.quadratic_flow(self.p.z, jnp.ones((5, 6)), None, self.p.labels, t1=1.0)
        with pytest.raises(imr.ImrError, match=r"k must have the shape of phi, \(5, 2\)"):
            imr.quadratic_flow(self.p.z, q, k[:, :1], self.p.labels, t1=1.0)
        with pytest.raises(imr.ImrError, match="targets must be labels"):
            imr.quadratic_flow(self.p.z, q, None, jnp.ones((7, 3)) / 3, t1=1.0)
        with pytest.raises(imr.ImrError, match="anchor's x must have the shape of z0"):
            imr.linear_flow(
                self.p.z, self.p.theta, self.p.labels, t1=1.0, anchor=(1.0, self.p.z[:2])
            )
        with pytest.raises(imr.ImrError, match="degree must be an integer of at least 1; found 0"):
            imr.polynomial_logits(self.p.z, self.p.theta, 0)
        with pytest.raises(imr.ImrError, match="normalise must be one of row, column, double"):
            imr.attention_weights(jnp.zeros((2, 2)), "both")
