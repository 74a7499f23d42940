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
    return (np.eye(k) - 1 / k) @ turn[:k]


def collapsed(k=4, f=6):
    """Unequal classes, every row at its mean, and a classifier dual to the means."""
    labels = np.array([0, 0, 1, 2, 2, 2, 3, 1])
    frame, offset = simplex(k, f), np.arange(f) / f
    z = (3 * frame)[labels] + offset[None, :]
    return z, 0.5 * frame + 1.0, labels, -(0.5 * frame + 1.0) @ offset


# Classification


@jax.jit
def classify(logits, labels):
    return metrics.margins(logits, labels), metrics.accuracy(logits, labels)


@few
@given(st.sampled_from(((1, 6), (9, 2))), seeds)
def test_accuracy_and_margins_against_numpy(shape, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=shape), rng.integers(0, shape[1], shape[0])
    margins, share = classify(logits, labels)
    expected = [row[y] - max(np.delete(row, y)) for row, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(margins, expected, rtol=1e-14)
    assert float(share) == pytest.approx(np.mean(logits.argmax(axis=1) == labels), abs=1e-15)
    assert float(share) == pytest.approx(np.mean(np.asarray(margins) > 0), abs=1e-15)


def test_a_row_with_a_nan_is_wrong():
    logits = np.array([[np.nan, 1.0], [2.0, 1.0], [np.inf, 1.0], [-np.inf, 1.0]])
    assert classify(logits, np.zeros(4, int))[1] == 0.5


# Class statistics and neural collapse


def test_class_statistics_against_numpy():
    z, labels = np.asarray(linear(9, 4).z) + 100, np.array([0, 0, 1, 3, 3, 3, 1, 0, 3])

    @jax.jit
    def both(z, labels):
        return metrics.class_means(z, labels, 4), metrics.class_scatter(z, labels, 4)

    means, scatter = both(z, labels)
    for c in (0, 1, 3):
        np.testing.assert_allclose(means[c], z[labels == c].mean(axis=0), rtol=1e-13)
    np.testing.assert_array_equal(means[2], 0)  # class 2 has no row

    within = sum((labels == c).mean() * np.cov(z[labels == c].T, bias=True) for c in (0, 1, 3))
    assert error(scatter.within, within) <= 1e-12
    assert error(scatter.between, np.cov(np.asarray(means)[labels].T, bias=True)) <= 1e-12
    total = np.asarray(scatter.within) + np.asarray(scatter.between)
    assert error(total, np.cov(z.T, bias=True)) <= 1e-12


neural_collapse = jax.jit(metrics.neural_collapse)


@pytest.mark.parametrize(
    ("n", "f", "k"),
    [
        (12, 6, 4),
        pytest.param(12, 2, 5, marks=pytest.mark.laws),
        pytest.param(8, 9, 2, marks=pytest.mark.laws),
        pytest.param(9, 3, 4, marks=pytest.mark.laws),
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
    expected = (
        np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / k,
        np.linalg.norm(m @ m.T / np.linalg.norm(m @ m.T) - frame),
        np.linalg.norm(w / np.linalg.norm(w) - m / np.linalg.norm(m)),
        np.mean((z @ theta.T + bias).argmax(axis=1) != nearest),
    )
    measured = neural_collapse(z, theta, labels, bias)
    np.testing.assert_allclose(measured, expected, rtol=1e-10, atol=1e-14)  # two means are a frame
    # Far from the origin nothing changes; without bias, theta's common part would.
    shifted = neural_collapse(z + 1e3, theta, labels, bias - 1e3 * theta.sum(axis=1))
    np.testing.assert_allclose(shifted, expected, rtol=1e-8, atol=1e-14)
    twice = 2 * (1 - jax.jit(metrics.simplex_alignment)(means))
    assert float(measured.nc2) ** 2 == pytest.approx(float(twice), rel=1e-10)


def test_all_four_are_zero_at_collapse_and_no_longer_near_it():
    z, theta, labels, bias = collapsed()
    measured = neural_collapse(z, theta, labels, bias)
    assert max(float(x) for x in measured) <= 1e-12
    noise = np.random.default_rng(0).normal(size=z.shape)
    near = neural_collapse(z + 0.1 * noise, theta, labels, bias)
    assert min(float(x) for x in near[:3]) > 1e-4
    swapped = neural_collapse(z, theta[::-1], labels, bias[::-1])
    assert swapped.nc4 == 1
    assert swapped.nc3 > 1
    # The same program: features that are not finite have no collapse.
    z[1, 1] = np.inf
    assert np.isnan(np.stack(neural_collapse(z, theta, labels, bias))).all()


def test_equal_class_means_are_no_collapse():
    z, labels = np.array([[1.0, 0.0], [-1.0, 0.0]] * 2), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(neural_collapse(z, np.eye(2), labels)[:3], (0, 1, 1), atol=1e-15)


@pytest.mark.laws
def test_the_flow_on_unconstrained_features_collapses():
    """Joint flow with weight decay: collapse is its minimum (THEORY A5)."""
    p, labels = linear(6, 4, 3), jnp.arange(6) % 3

    def loss(z, theta):
        return imr.cross_entropy(imr.Linear(theta)(z), labels).mean()

    field = imr.joint_field(loss, decay=(5e-3, 5e-3), rates=(6.0, 1.0))
    start = (p.z, p.theta)
    z, theta = imr.solve(field, start, t1=1500.0, max_steps=20_000).z
    before = neural_collapse(*start, labels)
    after = neural_collapse(z, theta, labels)
    for name in ("nc1", "nc2", "nc3"):
        assert getattr(after, name) <= 1e-2 * getattr(before, name), name
    assert after.nc4 == 0


# Frames and superposition


@jax.jit
def frames(vectors):
    return metrics.simplex_alignment(vectors), metrics.interference(vectors)


@few
@given(st.sampled_from(((2, 8), (7, 1), (7, 3))), seeds)
def test_bounds_of_frames(shape, seed):
    k, f = shape
    vectors = np.random.default_rng(seed).normal(size=(k, f))
    cosine, sums = frames(vectors)
    assert 1 / np.sqrt(k - 1) - 1e-12 <= float(cosine) <= min(1, np.sqrt(f / (k - 1))) + 1e-12
    cosines = np.corrcoef(np.c_[vectors, -vectors]) - np.eye(k)  # of mean zero: plain cosines
    np.testing.assert_allclose(sums, (cosines**2).sum(axis=1), rtol=1e-10, atol=1e-12)
    assert float(sums.mean()) >= metrics.welch_bound(k, f) - 1e-12


@pytest.mark.parametrize(("k", "f"), [(5, 2), (7, 4), (4, 4)])
def test_tight_frames_reach_the_welch_bound(k, f):
    """Harmonic frames: f rows of a real Fourier basis give columns of one length."""
    angles = 2 * np.pi * np.arange(k)[:, None] * np.arange(1, f // 2 + 1)[None, :] / k
    frame = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) if k > f else np.eye(k)
    scale = np.arange(1, k + 1)[:, None]  # lengths do not count
    sums = frames(scale * frame)[1]
    np.testing.assert_allclose(sums, metrics.welch_bound(k, f), atol=1e-12)
    assert metrics.welch_bound(k, f) == pytest.approx(k / f - 1)
    assert metrics.welch_bound(3, 5) == 0


def test_simplex_frames_are_aligned_and_zeros_are_finite():
    vectors = simplex(5, 7)
    assert float(frames(vectors + 2.0)[0]) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(frames(vectors)[1], 4 / 16, rtol=1e-12)
    assert frames(np.ones((5, 7)))[0] == 0
    np.testing.assert_array_equal(frames(np.zeros((5, 7)))[1], 0)


# Gradients and rotations


def linear_map(a):
    def field(t, z, args):
        return (a @ z.ravel()).reshape(z.shape)

    return field


@pytest.mark.laws
def test_antisymmetric_share_of_known_fields():
    z, key = linear(3, 2).z, jax.random.key(1)
    a = np.random.default_rng(1).normal(size=(6, 6))

    @jax.jit
    def share(a):
        return metrics.antisymmetric_share(linear_map(a), z, key)

    assert share(a + a.T) <= 1e-28
    assert share(0 * a) == 0
    assert float(share(a - a.T)) == pytest.approx(1, abs=1e-14)
    one = metrics.antisymmetric_share(linear_map(a - a.T), z, key, num_probes=1)
    assert float(one) == pytest.approx(1, abs=1e-14)
    constant = metrics.antisymmetric_share(lambda t, z, args: jnp.ones_like(z), z, key)
    assert constant == 0
    expected = np.linalg.norm((a - a.T) / 2) ** 2 / np.linalg.norm(a) ** 2
    many = metrics.antisymmetric_share(linear_map(a), z, key, num_probes=2000)
    assert float(many) == pytest.approx(expected, abs=0.02)

    @jax.jit
    def turning(t, args):
        def field(t, z, args):
            return t * linear_map(a + a.T)(t, z, args) + linear_map(args)(t, z, args)

        return metrics.antisymmetric_share(field, z, key, t=t, args=args)

    assert float(turning(0.0, a - a.T)) == pytest.approx(1, abs=1e-14)
    assert turning(1.0, 0 * a) <= 1e-28


def test_attention_is_a_gradient_with_its_column_term_only():
    p, key = linear(6, 4), jax.random.key(0)
    q, k = 0.6 * np.random.default_rng(3).normal(size=(2, 4, 2))
    loss = imr.feature_loss(imr.Quadratic(q, k), imr.same_class_targets(p.labels))
    ordinary = imr.closed_field(loss, column_term=False)

    @jax.jit
    def shares(z):
        whole = imr.closed_field(loss)
        both = (metrics.antisymmetric_share(field, z, key) for field in (whole, ordinary))
        return *both, jax.jacobian(lambda z: ordinary(0.0, z, None))(z)

    gradient, share, jacobian = shares(p.z)
    assert gradient <= 1e-12
    # Ordinary attention, against the whole Jacobian.
    jacobian = np.asarray(jacobian).reshape(24, 24)
    expected = np.sum((jacobian - jacobian.T) ** 2) / 4 / np.sum(jacobian**2)
    assert expected > 1e-2
    assert float(share) == pytest.approx(float(expected), rel=0.3)


@pytest.mark.laws
def test_antisymmetric_share_of_a_pytree():
    """A gradient of features and weights together is one, two parts that ignore that are not."""
    p, key = linear(), jax.random.key(0)

    def loss(z, theta):
        return imr.cross_entropy(imr.Linear(theta)(z), p.labels).sum()

    @jax.jit
    def shares(state):
        fields = imr.joint_field(loss), imr.joint_field(loss, rates=(1.0, -1.0))
        return [metrics.antisymmetric_share(field, state, key) for field in fields]

    even, uneven = shares((p.z, p.theta))
    assert even <= 1e-28
    assert uneven > 0.01


# Tokens


@jax.jit
def cosines_and_mean(z):
    return metrics.token_cosines(z), metrics.mean_cosine(z)


cluster_count = jax.jit(metrics.cluster_count)


@few
@given(st.sampled_from(((2, 5), (7, 1))), seeds)
def test_cosines_against_numpy(shape, seed):
    z = np.random.default_rng(seed).normal(size=shape)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosines, mean = cosines_and_mean(z)
    np.testing.assert_allclose(cosines, unit @ unit.T, atol=1e-13)
    expected = (unit @ unit.T)[np.triu_indices(len(z), 1)].mean()
    assert float(mean) == pytest.approx(expected, abs=1e-13)


def test_zero_and_tiny_rows():
    z = jnp.array([[1e-30, 0.0], [3e30, 0.0], [0.0, 0.0], [0.0, 0.0]], jnp.float32)
    expected = np.zeros((4, 4))
    expected[:2, :2] = 1
    np.testing.assert_array_equal(metrics.token_cosines(z), expected)
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
@given(st.sampled_from((1, 12)), st.floats(1e-3, 0.6), seeds)
def test_clusters_against_a_search(n, threshold, seed):
    z = np.random.default_rng(seed).normal(size=(n, 2))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    joined = unit @ unit.T > 1 - threshold
    assert cluster_count(z, threshold) == components(joined)


def test_clusters_of_a_long_chain_in_any_order():
    angles = np.concatenate([np.arange(100) * 0.01, 3 + np.arange(30) * 0.01])
    angles = np.random.default_rng(0).permutation(angles)
    z = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert cluster_count(z, 1e-4) == 2
    assert cluster_count(z, 1e-5) == 130


# Transformations and dtypes


def square_field(p):
    return imr.closed_field(imr.feature_loss(imr.Linear(p.theta @ p.theta.T @ p.theta), p.labels))


CALLS = {
    "accuracy": lambda p: metrics.accuracy(p.targets, p.labels),
    "margins": lambda p: metrics.margins(p.targets, p.labels),
    "class_means": lambda p: metrics.class_means(p.z, p.labels, 3),
    "class_scatter": lambda p: metrics.class_scatter(p.z, p.labels, 3),
    "neural_collapse": lambda p: metrics.neural_collapse(p.z, p.theta, p.labels, p.bias),
    "simplex_alignment": lambda p: metrics.simplex_alignment(p.theta),
    "interference": lambda p: metrics.interference(p.theta),
    "antisymmetric_share": lambda p: metrics.antisymmetric_share(
        square_field(p), p.z, jax.random.key(0), 4
    ),
    "token_cosines": lambda p: metrics.token_cosines(p.z),
    "mean_cosine": lambda p: metrics.mean_cosine(p.z),
    "cluster_count": lambda p: metrics.cluster_count(p.z, 0.3),
}
NARROW = sorted(set(CALLS) - {"antisymmetric_share"})


def every(p):
    """All diagnostics of a problem, for one program of them all."""
    return {name: call(p) for name, call in CALLS.items()}


every_compiled = jax.jit(every)


def narrow(p):
    return {name: CALLS[name](p) for name in NARROW}


def problem(seed=0, dtype=jnp.float64):
    """It has a row of every class."""
    return linear(n=9, seed=seed, dtype=dtype)._replace(labels=jnp.arange(9) % 3)


@pytest.fixture(scope="module")
def singles():
    return [every_compiled(problem(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def eager():
    return every(problem())


@pytest.fixture(scope="module")
def batched():
    both = jax.tree.map(lambda *x: jnp.stack(x), problem(0), problem(1))
    return jax.jit(jax.vmap(every))(both)


def agree(one, other, atol=1e-12):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.laws
@pytest.mark.parametrize("name", CALLS)
def test_jit(name, eager, singles):
    agree(singles[0][name], eager[name])


@pytest.mark.laws
@pytest.mark.parametrize("name", CALLS)
def test_vmap(name, singles, batched):
    agree(batched[name], jax.tree.map(lambda *x: np.stack(x), *(each[name] for each in singles)))


@pytest.fixture(scope="module", params=[jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def narrow_and_wide(request):
    p, dtype = problem(dtype=request.param), request.param
    wide = jax.tree.map(lambda x: x.astype(float) if x.dtype == dtype else x, p)
    return jax.jit(narrow)(p), every_compiled(wide)


@pytest.mark.laws
@pytest.mark.parametrize("name", NARROW)
def test_narrow_floats_are_computed_in_float32(name, narrow_and_wide):
    low, wide = (each[name] for each in narrow_and_wide)
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(wide), strict=True):
        assert a.dtype in (jnp.float32, jnp.int64)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.laws
@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("name", ["accuracy", "margins", "class_means", "class_scatter", "neural_collapse"])  # fmt: skip
def test_labels_out_of_range_under_a_trace_are_nan(name, label):
    p = problem()
    bad = every_compiled(p._replace(labels=p.labels.at[2].set(label)))[name]
    assert all(np.isnan(x if x.ndim != 1 else x[2]).all() for x in jax.tree.leaves(bad))


@pytest.mark.laws
def test_an_empty_class_under_a_trace_is_nan():
    p = problem()
    measured = every_compiled(p._replace(labels=p.labels // 2))["neural_collapse"]
    assert np.isnan(np.stack(measured)).all()


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
