"""Cross-entropy and the loss of the features: definitions, masks, anchors, bad targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imr
from tests.problems import central_difference, error, linear


@jax.jit
def _losses(logits, labels, targets):
    one_hot = jax.nn.one_hot(labels, logits.shape[1])
    return [imr.cross_entropy(logits, c) for c in (labels, targets, one_hot)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_cross_entropy_against_the_definition(seed):
    p = linear(5, 2, 4, seed)
    logits = np.asarray(p.z @ p.theta.T + p.bias[None])
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    by_label, soft, one_hot = _losses(logits, p.labels, p.targets)
    own = -log_p[np.arange(5), p.labels]
    np.testing.assert_allclose(by_label, own, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(soft, -(p.targets * log_p).sum(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one_hot, own, rtol=1e-12, atol=1e-12)


def test_one_row_one_class():
    assert imr.cross_entropy(jnp.full((1, 1), 3.0), jnp.array([0])).tolist() == [0.0]


def test_without_targets_the_loss_is_the_log_sum_exp():
    p = linear()
    logits = imr.Linear(p.theta)(p.z)
    lse = jax.nn.logsumexp(logits, axis=1)
    np.testing.assert_allclose(imr.cross_entropy(logits, None), lse, rtol=1e-14)
    np.testing.assert_allclose(imr.feature_loss(imr.Linear(p.theta), None)(p.z), lse.sum())


@pytest.mark.laws
def test_cross_entropy_survives_large_logits():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert imr.cross_entropy(logits, jnp.array([0]))[0] == 0
    assert imr.cross_entropy(logits, jnp.array([2]))[0] == 2e4
    gradient = jax.grad(lambda x: imr.cross_entropy(x, jnp.array([2]))[0])(logits)
    np.testing.assert_array_equal(gradient, [[1.0, 0.0, -1.0]])


@pytest.mark.laws
def test_masked_entries_take_no_part():
    p = linear(6, 4, 5)
    logits = imr.Linear(p.theta)(p.z)
    where = jnp.array([True, True, False, True, False])[None, :] & jnp.ones((6, 1), bool)
    kept = jnp.array([0, 1, 3])
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    masked = imr.cross_entropy(logits, kept[labels], where)
    np.testing.assert_allclose(masked, imr.cross_entropy(logits[:, kept], labels), rtol=1e-14)
    gradient = jax.jit(jax.grad(lambda x: imr.cross_entropy(x, kept[labels], where).sum()))(logits)
    assert not gradient[:, jnp.array([2, 4])].any()
    assert jnp.isfinite(gradient).all()
    loss = imr.feature_loss(imr.Linear(p.theta), kept[labels], where=where)
    fewer = imr.feature_loss(imr.Linear(p.theta[kept]), labels)
    assert error(imr.closed_field(loss)(0.0, p.z), imr.closed_field(fewer)(0.0, p.z)) <= 1e-14


@pytest.mark.laws
def test_an_anchor_adds_a_spring():
    p = linear()
    x, model = p.z + 1, imr.Linear(p.theta)
    plain = imr.gradient_field(imr.feature_loss(model, p.labels))
    held = imr.gradient_field(imr.feature_loss(model, p.labels, anchor=(0.3, x)))
    difference = held(0.0, p.z, None) - plain(0.0, p.z, None)
    np.testing.assert_allclose(difference, -0.3 * (p.z - x), atol=1e-14)


@pytest.mark.laws
def test_a_field_carries_theta_as_a_leaf():
    p = linear()

    def drift(theta):
        field = imr.gradient_field(imr.feature_loss(imr.Linear(theta), p.labels))
        return jnp.sum(field(0.0, p.z, None) ** 2)

    gradient = jax.grad(drift)(p.theta)
    assert error(gradient, central_difference(drift, p.theta)) <= 1e-6
    field = imr.gradient_field(imr.feature_loss(imr.Linear(p.theta), p.labels))
    assert any(leaf is p.theta for leaf in jax.tree.leaves(field))


def test_leading_batch_axes_by_vmap():
    problems = [linear(seed=seed) for seed in range(3)]
    z, theta = (jnp.stack([p[i] for p in problems]) for i in (0, 1))
    batched = jax.vmap(imr.cross_attention)(z, theta)
    for i, p in enumerate(problems):
        np.testing.assert_allclose(batched[i], imr.cross_attention(p.z, p.theta), rtol=1e-13)


@pytest.mark.laws
def test_losses_of_narrow_logits_are_float32():
    loss = imr.cross_entropy(jnp.zeros((3, 10), jnp.bfloat16), jnp.array([0, 1, 2]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    def test_shapes(self):
        with pytest.raises(imr.ImrError, match=r"7 rows"):
            imr.cross_entropy(jnp.zeros((7, 3)), jnp.zeros(6, int))
        with pytest.raises(imr.ImrError, match=r"targets must be labels"):
            imr.cross_entropy(jnp.zeros((7, 3)), jnp.ones((7, 4)) / 4)
        with pytest.raises(imr.ImrError, match=r"logits must have shape \(n, m\).*vmap"):
            imr.cross_entropy(jnp.zeros((2, 7, 3)), jnp.zeros(7, int))

    @pytest.mark.parametrize("label", [-1, 3])
    def test_labels_out_of_range(self, label):
        labels = self.p.labels.at[2].set(label)
        for call in (
            lambda: imr.cross_entropy(jnp.zeros((7, 3)), labels),
            lambda: imr.closed_field(imr.feature_loss(imr.Linear(self.p.theta), labels))(
                0, self.p.z
            ),
        ):
            with pytest.raises(imr.ImrError, match=rf"0 to 2; found targets\[2\] = {label}"):
                call()

    def test_targets_that_are_no_distributions(self):
        with pytest.raises(imr.ImrError, match=r"row 0 has least entry 0.5 and sum 1.5"):
            imr.cross_entropy(jnp.zeros((2, 3)), jnp.full((2, 3), 0.5))
        with pytest.raises(imr.ImrError, match=r"least entry -1"):
            imr.cross_entropy(jnp.zeros((1, 3)), jnp.array([[2.0, -1.0, 0.0]]))
        with pytest.raises(imr.ImrError, match="sum nan"):
            imr.cross_entropy(jnp.zeros((1, 2)), jnp.array([[jnp.nan, 1.0]]))
        with pytest.raises(imr.ImrError, match="must be integers; found dtype float"):
            imr.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2))

    def test_masks(self):
        logits = jnp.zeros((2, 3))
        where = jnp.array([[True, True, False], [False, False, False]])
        # A row without an entry takes no part, and its target is not read.
        assert imr.cross_entropy(logits, jnp.array([0, -100]), where).round(4).tolist() == [
            0.6931,
            0,
        ]
        where = where.at[1].set(True)
        with pytest.raises(imr.ImrError, match=r"targets\[0\] = 2 is an entry that where excludes"):
            imr.cross_entropy(logits, jnp.array([2, 0]), where)
        with pytest.raises(
            imr.ImrError, match="puts weight on entries that where excludes in row 0"
        ):
            imr.cross_entropy(logits, jnp.full((2, 3), 1 / 3), where)
        with pytest.raises(imr.ImrError, match="where must be boolean"):
            imr.cross_entropy(logits, jnp.array([2, 0]), jnp.ones((2, 3)))
