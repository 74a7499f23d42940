"""Losses, attention and fields: each gradient has three witnesses, and errors say what is wrong."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imr
from tests.problems import central_difference, error, linear

sizes = st.sampled_from((1, 2, 5))  # a new shape is compiled anew


@settings(max_examples=6, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 10**6), st.booleans(), st.floats(0.2, 3.0))
def test_linear_flow_is_cross_attention(n, f, k, seed, with_bias, beta):
    """Theorem 1, for random shapes: autodiff, formula and central differences."""
    p = linear(n, f, k, seed)
    bias = p.bias if with_bias else None
    model = lambda z, theta: imr.linear_logits(z, theta, bias)  # noqa: E731

    @jax.jit
    def witnesses(z):
        loss = imr.feature_loss(model, p.theta, p.targets, beta=beta)
        formula = p.targets @ p.theta - imr.cross_attention(z, p.theta, bias, beta=beta)
        gradient = imr.gradient_field(loss)(0.0, z, None)
        return gradient, beta * formula, -central_difference(loss, z)

    by_autodiff, by_formula, by_differences = map(np.asarray, witnesses(p.z))
    scale = abs(np.asarray(p.targets) @ np.asarray(p.theta)).max()
    assert abs(by_autodiff - by_formula).max() <= 1e-12 * scale
    assert abs(by_autodiff - by_differences).max() <= 1e-6 * max(scale, 1.0)


@settings(max_examples=6, deadline=None)
@given(sizes, sizes, st.integers(0, 10**6))
def test_cross_entropy_against_the_definition(n, m, seed):
    p = linear(n, 2, m, seed)
    logits = imr.linear_logits(p.z, p.theta, p.bias)
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        imr.cross_entropy(logits, p.labels), -log_p[np.arange(n), p.labels], rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        imr.cross_entropy(logits, p.targets),
        -(p.targets * log_p).sum(axis=1),
        rtol=1e-12,
        atol=1e-12,
    )
    one_hot = jax.nn.one_hot(p.labels, m)
    np.testing.assert_allclose(
        imr.cross_entropy(logits, one_hot),
        imr.cross_entropy(logits, p.labels),
        rtol=1e-12,
        atol=1e-12,
    )


def test_cross_entropy_is_the_entropy_gap_and_survives_large_logits():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert imr.cross_entropy(logits, jnp.array([0]))[0] == 0
    assert imr.cross_entropy(logits, jnp.array([2]))[0] == 2e4
    gradient = jax.grad(lambda x: imr.cross_entropy(x, jnp.array([2]))[0])(logits)
    np.testing.assert_array_equal(gradient, [[1.0, 0.0, -1.0]])


def test_masked_entries_take_no_part():
    p = linear(6, 4, 5)
    logits = imr.linear_logits(p.z, p.theta)
    where = jnp.array([True, True, False, True, False])[None, :] & jnp.ones((6, 1), bool)
    kept = jnp.array([0, 1, 3])
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    masked = imr.cross_entropy(logits, kept[labels], where)
    np.testing.assert_allclose(masked, imr.cross_entropy(logits[:, kept], labels), rtol=1e-14)
    gradient = jax.jit(jax.grad(lambda x: imr.cross_entropy(x, kept[labels], where).sum()))(logits)
    assert not gradient[:, jnp.array([2, 4])].any()
    assert jnp.isfinite(gradient).all()


def test_latent_cross_entropy():
    p = linear(6, 4, 6)
    logits = imr.linear_logits(p.z, p.theta)
    group, labels = jnp.array([0, 0, 1, 2, 1, 2]), jnp.array([0, 1, 2, 2, 1, 0])
    probability = jax.nn.softmax(logits)
    of_class = jnp.stack([probability[:, group == c].sum(axis=1) for c in range(3)], axis=1)
    expected = -jnp.log(of_class[jnp.arange(6), labels])
    np.testing.assert_allclose(
        imr.latent_cross_entropy(logits, labels, group), expected, rtol=1e-12
    )
    alone = imr.latent_cross_entropy(logits, p.labels, jnp.arange(6))
    np.testing.assert_allclose(alone, imr.cross_entropy(logits, p.labels), rtol=1e-13)


def test_anchor_adds_a_spring():
    p = linear()
    x = p.z + 1
    plain = imr.gradient_field(imr.feature_loss(imr.linear_logits, p.theta, p.labels))
    held = imr.gradient_field(
        imr.feature_loss(imr.linear_logits, p.theta, p.labels, anchor=(0.3, x))
    )
    difference = held(0.0, p.z, None) - plain(0.0, p.z, None)
    np.testing.assert_allclose(difference, -0.3 * (p.z - x), atol=1e-14)


def test_a_second_loss_of_other_values_compiles_nothing():
    traces = []

    @jax.jit
    def apply(field, z):
        traces.append(1)
        return field(0.0, z, None)

    for seed in range(3):
        p = linear(seed=seed)
        apply(imr.gradient_field(imr.feature_loss(imr.linear_logits, p.theta, p.labels)), p.z)
    assert len(traces) == 1


def test_a_field_carries_theta_as_a_leaf():
    p = linear()

    def drift(theta):
        field = imr.gradient_field(imr.feature_loss(imr.linear_logits, theta, p.labels))
        return jnp.sum(field(0.0, p.z, None) ** 2)

    gradient = jax.grad(drift)(p.theta)
    assert error(gradient, central_difference(drift, p.theta)) <= 1e-6
    field = imr.gradient_field(imr.feature_loss(imr.linear_logits, p.theta, p.labels))
    assert any(leaf is p.theta for leaf in jax.tree.leaves(field))


def test_leading_batch_axes_by_vmap():
    problems = [linear(seed=seed) for seed in range(3)]
    z, theta = (jnp.stack([p[i] for p in problems]) for i in (0, 1))
    batched = jax.vmap(imr.cross_attention)(z, theta)
    for i, p in enumerate(problems):
        np.testing.assert_allclose(batched[i], imr.cross_attention(p.z, p.theta), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_precisions(dtype):
    p = linear(40, 16, 10)
    low = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, p)
    attention = imr.cross_attention(low.z, low.theta)
    assert attention.dtype == dtype
    # Weights and sums of k rows are right to the dtype's precision; float32 inside loses no more.
    exact = imr.cross_attention(*(x.astype(jnp.float64) for x in low[:2]))
    assert error(attention.astype(jnp.float64), exact) <= 8 * float(jnp.finfo(dtype).eps)
    loss = imr.cross_entropy(jnp.zeros((3, 10), dtype), jnp.array([0, 1, 2]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)


# Splitting


def _halves(p):
    """The two operators of the flow, and their sum."""
    minus_attention = lambda t, z, args: -imr.cross_attention(z, p.theta)  # noqa: E731
    label_term = lambda t, z, args: p.targets @ p.theta * (1 + jnp.sin(3 * t))  # noqa: E731
    whole = lambda t, z, args: minus_attention(t, z, args) + label_term(t, z, args)  # noqa: E731
    return minus_attention, label_term, whole


def _tight(field, z0, t1):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(),
        0.0,
        t1,
        0.01,
        z0,
        stepsize_controller=diffrax.PIDController(rtol=1e-12, atol=1e-12),
    )
    return solution.ys[0]


@pytest.mark.parametrize(("step", "order"), [(imr.lie_step, 1), (imr.strang_step, 2)])
def test_measured_order_of_the_splittings(step, order):
    """Time-dependent label term, so that the times handed to the substeps matter too."""
    p = linear()
    minus_attention, label_term, whole = _halves(p)
    exact = _tight(whole, p.z, 1.0)
    fields = (label_term, minus_attention)
    errors = []
    counts = np.array([64, 128, 256])
    for count in counts:
        tau = 1.0 / count
        body = lambda i, z, tau=tau: step(fields, z, tau, i * tau)  # noqa: E731
        errors.append(error(jax.lax.fori_loop(0, count, body, p.z), exact))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) <= 0.1


def test_lie_of_one_field_is_euler_and_strang_of_three_is_symmetric():
    p = linear()
    minus_attention, _, _ = _halves(p)
    np.testing.assert_array_equal(
        imr.lie_step([minus_attention], p.z, 0.1), p.z + 0.1 * minus_attention(0.0, p.z, None)
    )
    calls = []
    recorder = lambda name: lambda t, z, args: (calls.append((name, float(t))), 0 * z)[1]  # noqa: E731
    imr.strang_step([recorder("a"), recorder("b"), recorder("c")], p.z, 1.0, 2.0)
    assert [name for name, _ in calls[::2]] == ["a", "b", "c", "b", "a"]
    # The second of each pair is the middle of the substep.
    assert [t for _, t in calls] == [2.0, 2.25, 2.0, 2.25, 2.0, 2.5, 2.5, 2.75, 2.5, 2.75]


# Bad input


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    def test_shapes_name_both(self):
        with pytest.raises(imr.ImrError, match=r"z has 5 .* theta has 4"):
            imr.linear_logits(self.p.z, self.p.theta[:, :4])
        with pytest.raises(imr.ImrError, match=r"bias has 2 .* theta has 3"):
            imr.linear_logits(self.p.z, self.p.theta, self.p.bias[:2])
        with pytest.raises(imr.ImrError, match=r"z must have shape \(n, f\).*vmap"):
            imr.linear_logits(self.p.z[None], self.p.theta)
        with pytest.raises(imr.ImrError, match=r"7 rows"):
            imr.cross_entropy(jnp.zeros((7, 3)), jnp.zeros(6, int))
        with pytest.raises(imr.ImrError, match=r"targets must be labels"):
            imr.cross_entropy(jnp.zeros((7, 3)), jnp.ones((7, 4)) / 4)

    def test_shapes_are_checked_under_a_trace_too(self):
        with pytest.raises(imr.ImrError, match="theta has 4"):
            jax.jit(imr.linear_logits)(self.p.z, self.p.theta[:, :4])

    def test_integers_are_no_features(self):
        with pytest.raises(imr.ImrError, match="z must be a floating array; found dtype int"):
            imr.linear_logits(jnp.ones((2, 5), int), self.p.theta)

    @pytest.mark.parametrize("label", [-1, 3])
    def test_labels_out_of_range(self, label):
        labels = self.p.labels.at[2].set(label)
        with pytest.raises(imr.ImrError, match=rf"0 to 2; found targets\[2\] = {label}"):
            imr.cross_entropy(jnp.zeros((7, 3)), labels)

    def test_targets_that_are_no_distributions(self):
        with pytest.raises(imr.ImrError, match=r"row 0 has least entry 0.5 and sum 1.5"):
            imr.cross_entropy(jnp.zeros((2, 3)), jnp.full((2, 3), 0.5))
        with pytest.raises(imr.ImrError, match=r"least entry -1"):
            imr.cross_entropy(jnp.zeros((1, 3)), jnp.array([[2.0, -1.0, 0.0]]))
        with pytest.raises(imr.ImrError, match="sum nan"):
            imr.cross_entropy(jnp.zeros((1, 2)), jnp.array([[jnp.nan, 1.0]]))
        with pytest.raises(imr.ImrError, match="must be integer labels"):
            imr.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2))

    def test_masks(self):
        logits = jnp.zeros((2, 3))
        where = jnp.array([[True, True, False], [False, False, False]])
        with pytest.raises(imr.ImrError, match="row 1 is fully masked"):
            imr.cross_entropy(logits, jnp.array([0, 0]), where)
        where = where.at[1].set(True)
        with pytest.raises(imr.ImrError, match=r"targets\[0\] = 2 is an entry that where excludes"):
            imr.cross_entropy(logits, jnp.array([2, 0]), where)
        with pytest.raises(
            imr.ImrError, match="puts weight on entries that where excludes in row 0"
        ):
            imr.cross_entropy(logits, jnp.full((2, 3), 1 / 3), where)
        with pytest.raises(imr.ImrError, match="where must be boolean"):
            imr.cross_entropy(logits, jnp.array([2, 0]), jnp.ones((2, 3)))

    def test_losses(self):
        theta = self.p.theta.at[1, 2].set(jnp.nan)
        with pytest.raises(imr.ImrError, match=r"theta must be finite; found 1 .* \(1, 2\)"):
            imr.feature_loss(imr.linear_logits, theta, self.p.labels)
        with pytest.raises(imr.ImrError, match="beta must be positive; found -1"):
            imr.feature_loss(imr.linear_logits, self.p.theta, self.p.labels, beta=-1)
        loss = imr.feature_loss(
            imr.linear_logits, self.p.theta, self.p.labels, anchor=(1.0, self.p.z[:2])
        )
        with pytest.raises(imr.ImrError, match=r"anchor's x must have the shape of z, \(7, 5\)"):
            loss(self.p.z)
        with pytest.raises(imr.ImrError, match="anchor must be a pair"):
            imr.feature_loss(imr.linear_logits, self.p.theta, self.p.labels, anchor=1.0)
        with pytest.raises(imr.ImrError, match="logits_fn must be callable"):
            imr.feature_loss(None, self.p.theta, self.p.labels)
        with pytest.raises(imr.ImrError, match="loss must be callable"):
            imr.gradient_field(3)

    def test_latent_classes(self):
        logits = jnp.zeros((2, 3))
        with pytest.raises(imr.ImrError, match=r"labels\[1\] = 2 has none"):
            imr.latent_cross_entropy(logits, jnp.array([0, 2]), jnp.array([0, 0, 1]))
        with pytest.raises(imr.ImrError, match=r"group has 2 prototypes.* logits has 3"):
            imr.latent_cross_entropy(logits, jnp.array([0, 1]), jnp.array([0, 1]))

    def test_fields(self):
        with pytest.raises(imr.ImrError, match="fields must be a sequence"):
            imr.lie_step([], self.p.z, 0.1)
        with pytest.raises(imr.ImrError, match="fields must be a sequence"):
            imr.strang_step(lambda t, z, args: z, self.p.z, 0.1)
