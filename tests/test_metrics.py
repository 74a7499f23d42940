"""Diagnostics: against numpy, exact cases, bounds that hold for any input, jit and vmap, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imr
from imr import metrics
from tests.problems import error, linear

few = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10**6)


def simplex(k, f, seed=0):
    """k vectors of a simplex frame in f >= k dimensions, turned at random."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(f, f)))
    return jnp.asarray((np.eye(k) - 1 / k) @ turn[:k])


def collapsed(k=4, f=6):
    """Unequal classes, every row at its mean, and a classifier dual to the means."""
    labels = jnp.array([0, 0, 1, 2, 2, 2, 3, 1])
    frame, offset = simplex(k, f), jnp.arange(f) / f
    z = (3 * frame)[labels] + offset[None, :]
    return z, 0.5 * frame + 1.0, labels, -(0.5 * frame + 1.0) @ offset


# Classification


@few
@given(st.sampled_from((1, 9)), st.sampled_from((2, 6)), seeds)
def test_accuracy_and_margins_against_numpy(n, k, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, k)), rng.integers(0, k, n)
    found = metrics.margins(jnp.asarray(logits), jnp.asarray(labels))
    wanted = [row[y] - max(np.delete(row, y)) for row, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    share = metrics.accuracy(jnp.asarray(logits), jnp.asarray(labels))
    assert float(share) == pytest.approx(np.mean(logits.argmax(axis=1) == labels), abs=1e-15)
    assert float(share) == pytest.approx(np.mean(np.asarray(found) > 0), abs=1e-15)


def test_a_row_with_a_nan_is_wrong():
    logits = jnp.array([[jnp.nan, 1.0], [2.0, 1.0], [jnp.inf, 1.0], [-jnp.inf, 1.0]])
    assert metrics.accuracy(logits, jnp.zeros(4, int)) == 0.5


# Class statistics and neural collapse


def test_class_statistics_against_numpy():
    z, labels = np.asarray(linear(9, 4).z) + 100, np.array([0, 0, 1, 3, 3, 3, 1, 0, 3])
    means = metrics.class_means(jnp.asarray(z), jnp.asarray(labels), 4)
    for c in (0, 1, 3):
        np.testing.assert_allclose(means[c], z[labels == c].mean(axis=0), rtol=1e-13)
    np.testing.assert_array_equal(means[2], 0)  # class 2 has no row

    scatter = metrics.class_scatter(jnp.asarray(z), jnp.asarray(labels), 4)
    within = sum((labels == c).mean() * np.cov(z[labels == c].T, bias=True) for c in (0, 1, 3))
    assert error(scatter.within, within) <= 1e-12
    assert error(scatter.between, np.cov(np.asarray(means)[labels].T, bias=True)) <= 1e-12
    assert error(scatter.within + scatter.between, np.cov(z.T, bias=True)) <= 1e-12


@pytest.mark.parametrize(
    ("n", "f", "k"),
    [
        (12, 6, 4),
        (12, 2, 5),
        pytest.param(8, 9, 2, marks=pytest.mark.slow),
        pytest.param(9, 3, 4, marks=pytest.mark.slow),
    ],
)
def test_neural_collapse_against_numpy(n, f, k):
    p = linear(n, f, k)
    labels = np.arange(n) % k
    z, theta, bias = (np.asarray(x) for x in (p.z, p.theta, p.bias))
    means = np.stack([z[labels == c].mean(axis=0) for c in range(k)])
    within = (z - means[labels]).T @ (z - means[labels]) / n
    between = np.cov(means[labels].T, bias=True)
    m, w = means - means.mean(axis=0), theta - theta.mean(axis=0)
    nearest = ((z[:, None, :] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    frame = (np.eye(k) - 1 / k) / np.sqrt(k - 1)
    wanted = (
        np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / k,
        np.linalg.norm(m @ m.T / np.linalg.norm(m @ m.T) - frame),
        np.linalg.norm(w / np.linalg.norm(w) - m / np.linalg.norm(m)),
        np.mean((z @ theta.T + bias).argmax(axis=1) != nearest),
    )
    found = metrics.neural_collapse(p.z, p.theta, jnp.asarray(labels), p.bias)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-14)  # two means are a frame
    # Far from the origin nothing changes; without bias, theta's common part would.
    shifted = metrics.neural_collapse(
        p.z + 1e3, p.theta, jnp.asarray(labels), p.bias - 1e3 * p.theta.sum(axis=1)
    )
    np.testing.assert_allclose(shifted, wanted, rtol=1e-8, atol=1e-14)
    twice = 2 * (1 - metrics.simplex_alignment(jnp.asarray(means)))
    assert float(found.nc2) ** 2 == pytest.approx(float(twice), rel=1e-10)


def test_all_four_are_zero_at_collapse_and_no_longer_near_it():
    z, theta, labels, bias = collapsed()
    found = metrics.neural_collapse(z, theta, labels, bias)
    assert max(float(x) for x in found) <= 1e-12
    noise = jax.random.normal(jax.random.key(0), z.shape)
    near = metrics.neural_collapse(z + 0.1 * noise, theta, labels, bias)
    assert min(float(x) for x in near[:3]) > 1e-4
    swapped = metrics.neural_collapse(z, theta[::-1], labels, bias[::-1])
    assert swapped.nc4 == 1
    assert swapped.nc3 > 1


def test_equal_class_means_are_no_collapse():
    z, labels = jnp.array([[1.0, 0.0], [-1.0, 0.0]] * 2), jnp.array([0, 0, 1, 1])
    found = metrics.neural_collapse(z, jnp.eye(2), labels)
    np.testing.assert_allclose(found[:3], (0, 1, 1), atol=1e-15)


def test_features_that_are_not_finite_have_no_collapse():
    z, theta, labels, bias = collapsed()
    found = metrics.neural_collapse(z.at[1, 1].set(jnp.inf), theta, labels, bias)
    assert jnp.isnan(jnp.stack(found)).all()


@pytest.mark.slow
def test_the_flow_on_unconstrained_features_collapses():
    """Joint flow with weight decay: collapse is its minimum (THEORY A5)."""
    p, labels = linear(6, 4, 3), jnp.arange(6) % 3

    def loss(z, theta):
        return imr.cross_entropy(imr.linear_logits(z, theta), labels).mean()

    field = imr.joint_field(loss, decay=(5e-3, 5e-3), rates=(6.0, 1.0))
    start = (p.z, p.theta)
    z, theta = imr.solve(field, start, t1=1500.0, max_steps=20_000).z
    before = metrics.neural_collapse(*start, labels)
    after = metrics.neural_collapse(z, theta, labels)
    for name in ("nc1", "nc2", "nc3"):
        assert getattr(after, name) <= 1e-2 * getattr(before, name), name
    assert after.nc4 == 0


# Frames and superposition


@few
@given(st.sampled_from((2, 7)), st.sampled_from((1, 3, 8)), seeds)
@pytest.mark.slow
def test_bounds_of_frames(k, f, seed):
    vectors = jnp.asarray(np.random.default_rng(seed).normal(size=(k, f)))
    cosine = float(metrics.simplex_alignment(vectors))
    assert 1 / np.sqrt(k - 1) - 1e-12 <= cosine <= min(1, np.sqrt(f / (k - 1))) + 1e-12
    sums = metrics.interference(vectors)
    cosines = np.corrcoef(np.c_[vectors, -vectors]) - np.eye(k)  # of mean zero: plain cosines
    np.testing.assert_allclose(sums, (cosines**2).sum(axis=1), rtol=1e-10, atol=1e-12)
    assert float(sums.mean()) >= metrics.welch_bound(k, f) - 1e-12


@pytest.mark.parametrize(("k", "f"), [(5, 2), (7, 4), (4, 4)])
def test_tight_frames_reach_the_welch_bound(k, f):
    """Harmonic frames: f rows of a real Fourier basis give columns of one length."""
    angles = 2 * np.pi * np.arange(k)[:, None] * np.arange(1, f // 2 + 1)[None, :] / k
    frame = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) if k > f else np.eye(k)
    scale = np.arange(1, k + 1)[:, None]  # lengths do not count
    found = metrics.interference(jnp.asarray(scale * frame))
    np.testing.assert_allclose(found, metrics.welch_bound(k, f), atol=1e-12)
    assert metrics.welch_bound(k, f) == pytest.approx(k / f - 1)
    assert metrics.welch_bound(3, 5) == 0


def test_simplex_frames_are_aligned_and_zeros_are_finite():
    assert float(metrics.simplex_alignment(simplex(5, 7) + 2.0)) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(metrics.interference(simplex(5, 7)), 4 / 16, rtol=1e-12)
    assert metrics.simplex_alignment(jnp.ones((3, 2))) == 0
    np.testing.assert_array_equal(metrics.interference(jnp.zeros((3, 2))), 0)


# Gradients and rotations


def linear_map(a):
    return lambda t, z, args: (a @ z.ravel()).reshape(z.shape)


@pytest.mark.slow
def test_antisymmetric_share_of_known_fields():
    z, key = linear(3, 2).z, jax.random.key(1)
    a = jax.random.normal(key, (6, 6))
    share = lambda field, **options: float(metrics.antisymmetric_share(field, z, key, **options))  # noqa: E731
    assert share(linear_map(a + a.T)) <= 1e-28
    assert share(linear_map(a - a.T), num_probes=1) == pytest.approx(1, abs=1e-14)
    assert share(linear_map(0 * a)) == 0
    assert share(lambda t, z, args: jnp.ones_like(z)) == 0
    wanted = np.linalg.norm((a - a.T) / 2) ** 2 / np.linalg.norm(a) ** 2
    assert share(linear_map(a), num_probes=2000) == pytest.approx(wanted, abs=0.02)

    turning = lambda t, z, args: t * linear_map(a + a.T)(t, z, args) + linear_map(args)(t, z, args)  # noqa: E731
    assert share(turning, t=0.0, args=a - a.T) == pytest.approx(1, abs=1e-14)
    assert share(turning, t=1.0, args=0 * a) <= 1e-28


def test_attention_is_a_gradient_with_its_column_term_only():
    p, key = linear(6, 4), jax.random.key(0)
    q, k = 0.6 * jax.random.normal(jax.random.key(3), (2, 4, 2))
    targets = imr.same_class_targets(p.labels)
    share = lambda field: float(metrics.antisymmetric_share(field, p.z, key))  # noqa: E731
    assert share(imr.quadratic_field(q, k, targets)) <= 1e-12
    # Ordinary attention, against the whole Jacobian.
    ordinary = imr.quadratic_field(q, k, targets, column_term=False)
    jacobian = jax.jit(jax.jacobian(lambda z: ordinary(0.0, z, None)))(p.z).reshape(24, 24)
    jacobian = np.asarray(jacobian)
    wanted = np.sum((jacobian - jacobian.T) ** 2) / 4 / np.sum(jacobian**2)
    assert wanted > 1e-2
    assert share(ordinary) == pytest.approx(float(wanted), rel=0.3)


@pytest.mark.slow
def test_antisymmetric_share_of_a_pytree():
    """A gradient of features and weights together is one, two parts that ignore that are not."""
    p, key = linear(), jax.random.key(0)
    loss = lambda z, theta: imr.cross_entropy(imr.linear_logits(z, theta), p.labels).sum()  # noqa: E731
    state = (p.z, p.theta)
    assert metrics.antisymmetric_share(imr.joint_field(loss), state, key) <= 1e-28
    uneven = imr.joint_field(loss, rates=(1.0, -1.0))
    assert metrics.antisymmetric_share(uneven, state, key) > 0.01


# Tokens


@few
@given(st.sampled_from((2, 7)), st.sampled_from((1, 5)), seeds)
def test_cosines_against_numpy(n, f, seed):
    z = np.random.default_rng(seed).normal(size=(n, f))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    found = metrics.token_cosines(jnp.asarray(z))
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-13)
    mean = (unit @ unit.T)[np.triu_indices(n, 1)].mean()
    assert float(metrics.mean_cosine(jnp.asarray(z))) == pytest.approx(mean, abs=1e-13)


def test_zero_and_tiny_rows():
    z = jnp.array([[1e-30, 0.0], [3e30, 0.0], [0.0, 0.0], [0.0, 0.0]], jnp.float32)
    wanted = np.zeros((4, 4))
    wanted[:2, :2] = 1
    np.testing.assert_array_equal(metrics.token_cosines(z), wanted)
    assert float(metrics.mean_cosine(z)) == pytest.approx(1 / 6)
    assert metrics.cluster_count(z) == 3


def components(joined):
    """Depth-first search."""
    left, count = set(range(len(joined))), 0
    while left:
        count, stack = count + 1, [left.pop()]
        while stack:
            near = {j for j in left if joined[stack[-1], j]}
            stack.pop()
            left -= near
            stack.extend(near)
    return count


@few
@given(st.sampled_from((1, 5, 12)), st.floats(1e-3, 0.6), seeds)
def test_clusters_against_a_search(n, threshold, seed):
    z = np.random.default_rng(seed).normal(size=(n, 2))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    wanted = components(unit @ unit.T > 1 - threshold)
    assert metrics.cluster_count(jnp.asarray(z), threshold) == wanted


def test_clusters_of_a_long_chain_in_any_order():
    angles = jnp.concatenate([jnp.arange(100) * 0.01, 3 + jnp.arange(30) * 0.01])
    angles = jax.random.permutation(jax.random.key(0), angles)
    z = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    assert metrics.cluster_count(z, 1e-4) == 2
    assert metrics.cluster_count(z, 1e-5) == 130


# Transformations and dtypes


CALLS = {
    "accuracy": lambda p: metrics.accuracy(p.targets, p.labels),
    "margins": lambda p: metrics.margins(p.targets, p.labels),
    "class_means": lambda p: metrics.class_means(p.z, p.labels, 3),
    "class_scatter": lambda p: metrics.class_scatter(p.z, p.labels, 3),
    "neural_collapse": lambda p: metrics.neural_collapse(p.z, p.theta, p.labels, p.bias),
    "simplex_alignment": lambda p: metrics.simplex_alignment(p.theta),
    "interference": lambda p: metrics.interference(p.theta),
    "antisymmetric_share": lambda p: metrics.antisymmetric_share(
        imr.linear_field(p.theta @ p.theta.T @ p.theta, p.labels), p.z, jax.random.key(0), 4
    ),
    "token_cosines": lambda p: metrics.token_cosines(p.z),
    "mean_cosine": lambda p: metrics.mean_cosine(p.z),
    "cluster_count": lambda p: metrics.cluster_count(p.z, 0.3),
}


def problems(dtype=jnp.float64):
    """Two problems; each has a row of every class."""
    found = [linear(n=9, seed=seed, dtype=dtype) for seed in (0, 1)]
    return [p._replace(labels=jnp.arange(9) % 3) for p in found]


@pytest.mark.parametrize("name", CALLS)
def test_jit_and_vmap(name):
    singles = [CALLS[name](p) for p in problems()]
    compiled = jax.jit(CALLS[name])(problems()[0])
    batched = jax.jit(jax.vmap(CALLS[name]))(jax.tree.map(lambda *x: jnp.stack(x), *problems()))
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(singles[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *singles)
    for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(stacked), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"antisymmetric_share"}))
def test_narrow_floats_are_computed_in_float32(name, dtype):
    p = problems(dtype)[0]
    found = CALLS[name](p)
    wide = CALLS[name](jax.tree.map(lambda x: x.astype(float) if x.dtype == dtype else x, p))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wide), strict=True):
        assert a.dtype in (jnp.float32, jnp.int64)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["accuracy", "margins", "class_means", "class_scatter", "neural_collapse"])  # fmt: skip
def test_labels_out_of_range_under_a_trace_are_nan(name):
    p = problems()[0]
    for label in (-1, 3):
        bad = p._replace(labels=p.labels.at[2].set(label))
        found = jax.tree.leaves(jax.jit(CALLS[name])(bad))
        assert all(jnp.isnan(x if x.ndim != 1 else x[2]).all() for x in found)


def test_an_empty_class_under_a_trace_is_nan():
    p = problems()[0]
    found = jax.jit(CALLS["neural_collapse"])(p._replace(labels=p.labels // 2))
    assert jnp.isnan(jnp.stack(found)).all()


# Bad input


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    def test_labels(self):
        p = self.p
        with pytest.raises(imr.ImrError, match=r"labels must lie in 0 to 2; found labels\[1\] = 3"):
            metrics.accuracy(p.targets, p.labels.at[1].set(3))
        with pytest.raises(
            imr.ImrError, match=r"labels must lie in 0 to 2; found labels\[0\] = -1"
        ):
            metrics.class_means(p.z, p.labels.at[0].set(-1), 3)
        with pytest.raises(imr.ImrError, match="labels has 6 rows, but logits has 7"):
            metrics.margins(p.targets, p.labels[:6])
        with pytest.raises(imr.ImrError, match="labels must be integers; found dtype float64"):
            metrics.class_scatter(p.z, p.labels.astype(float), 3)
        with pytest.raises(imr.ImrError, match=r"labels must have shape \(n,\)"):
            metrics.accuracy(p.targets, p.targets)
        with pytest.raises(imr.ImrError, match=r"labels must hold every class, 0 to 2; .* class 1"):
            metrics.neural_collapse(p.z, p.theta, jnp.array([0, 0, 2, 2, 0, 2, 2]))

    def test_shapes(self):
        p = self.p
        with pytest.raises(imr.ImrError, match=r"logits must have shape \(n, m\).*vmap"):
            metrics.accuracy(p.targets[None], p.labels)
        with pytest.raises(imr.ImrError, match="columns of logits must be at least 2; found 1"):
            metrics.margins(p.targets[:, :1], jnp.zeros(7, int))
        with pytest.raises(imr.ImrError, match=r"z has 5 .* theta has 4"):
            metrics.neural_collapse(p.z, p.theta[:, :4], p.labels)
        with pytest.raises(imr.ImrError, match="rows of theta must be at least 2; found 1"):
            metrics.neural_collapse(p.z, p.theta[:1], jnp.zeros(7, int))
        with pytest.raises(imr.ImrError, match="rows of vectors must be at least 2; found 1"):
            metrics.simplex_alignment(p.theta[:1])
        with pytest.raises(imr.ImrError, match="rows of z must be at least 2; found 1"):
            metrics.mean_cosine(p.z[:1])
        with pytest.raises(imr.ImrError, match="rows of z must be at least 1; found 0"):
            metrics.cluster_count(p.z[:0])
        with pytest.raises(imr.ImrError, match="vectors must be a floating array; found dtype int"):
            metrics.interference(jnp.ones((2, 2), int))

    def test_numbers(self):
        p, key = self.p, jax.random.key(0)
        with pytest.raises(
            imr.ImrError, match="num_classes must be an integer of at least 1; found 0"
        ):
            metrics.class_means(p.z, p.labels, 0)
        with pytest.raises(imr.ImrError, match="f must be an integer of at least 1; found 0"):
            metrics.welch_bound(3, 0)
        with pytest.raises(imr.ImrError, match=r"threshold must be positive; found 0\.0"):
            metrics.cluster_count(p.z, 0.0)
        with pytest.raises(imr.ImrError, match=r"num_probes must be .* found 0"):
            metrics.antisymmetric_share(lambda t, z, args: z, p.z, key, num_probes=0)
        with pytest.raises(imr.ImrError, match=r"field must return the shapes of z, .*\(7, 5\)"):
            metrics.antisymmetric_share(lambda t, z, args: z[:2], p.z, key)
        with pytest.raises(imr.ImrError, match="z must be a floating array"):
            metrics.antisymmetric_share(lambda t, z, args: z, p.labels, key)
