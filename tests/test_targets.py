"""Targets as operators: every kind equals its dense matrix, and one door refuses what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import imr
from imr.targets import DenseTargets, LabelTargets, LowRankTargets, SparseTargets
from tests.problems import error

RANDOM = np.random.default_rng(0)
LABELS = np.array([0, 2, 2, 1])
SOFT = RANDOM.dirichlet(np.ones(3), 4)
SAME = imr.same_class_targets(LABELS)
CASES = {
    "labels": (LABELS, LabelTargets, np.eye(3)[LABELS]),
    "dense": (SOFT, DenseTargets, SOFT),
    "sparse": (BCOO.fromdense(jnp.asarray(SOFT)), SparseTargets, SOFT),
    "low rank": (SAME, LowRankTargets, np.asarray(SAME.left @ SAME.right.T)),
    "pointers": (imr.pointers(jnp.asarray(LABELS)), LabelTargets, np.eye(4)[LABELS]),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_equals_its_dense_matrix(kind):
    x, expected, dense = CASES[kind]
    targets = imr.as_targets(x)
    assert type(targets) is expected
    assert imr.as_targets(targets) is targets
    m = dense.shape[1]
    y, back, logits = (jnp.asarray(RANDOM.normal(size=s)) for s in ((m, 2), (4, 2), (4, m)))
    p = jax.nn.softmax(logits).T
    targets.check(dense.shape)

    @jax.jit
    def products(targets, y, back, logits, p):
        return (
            targets.mv(y), targets.rmv(back, m), targets.inner(logits), targets.minus(p),
            targets.transposed(m, p.dtype),
        )  # fmt: skip

    wanted = dense @ y, dense.T @ back, (dense * logits).sum(1), dense.T - p, dense.T
    for a, b in zip(products(targets, y, back, logits, p), wanted, strict=True):
        assert error(a, b) <= 1e-14


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_labels_of_any_integer_type_are_int32(dtype):
    """300 columns do not fit 8 bits: compared in the labels' own type they would wrap."""
    labels = np.array([3, 100], dtype)
    assert imr.as_targets(labels).columns.dtype == jnp.int32
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 300)))
    expected = imr.cross_entropy(logits, labels.astype(np.int32))
    assert error(imr.cross_entropy(logits, labels), expected) == 0
    assert error(jax.jit(imr.cross_entropy)(logits, labels), expected) <= 1e-15


@pytest.mark.parametrize("label", [2**31, 2**40, -(2**40)])
def test_labels_beyond_int32_stay_out_of_range(label):
    logits = jnp.zeros((1, 3))
    with pytest.raises(imr.ImrError, match="must be column indices of the logits, 0 to 2"):
        imr.cross_entropy(logits, np.array([label]))
    assert jnp.isnan(jax.jit(imr.cross_entropy)(logits, np.array([label]))).all()


def test_labels_out_of_range_under_a_trace_are_nan():
    logits, labels = jnp.zeros((2, 3)), jnp.array([3, 0])
    loss = jax.jit(imr.cross_entropy)(logits, labels)
    assert jnp.isnan(loss[0])
    assert jnp.isfinite(loss[1])
    model = imr.Linear(jnp.eye(3))
    field = jax.jit(lambda y: imr.closed_field(imr.feature_loss(model, y))(0.0, logits))(labels)
    assert jnp.isnan(field[0]).all()
    assert jnp.isfinite(field[1]).all()


def test_bare_integers_are_refused_by_a_square_model():
    model, z = imr.Quadratic(jnp.eye(2)), jnp.ones((4, 2))
    words = r"two things.*imr.same_class_targets\(labels\).*imr.pointers\(columns\)"
    with pytest.raises(imr.ImrError, match=words):
        imr.feature_loss(model, LABELS)
    for targets in (imr.pointers(jnp.asarray(LABELS)), SAME):
        assert jnp.isfinite(imr.feature_loss(model, targets)(z))


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    def test_what_is_no_target(self):
        for x, words in (
            ("cat", "found 'cat'"),
            (jnp.zeros((2, 3), int), r"shape \(2, 3\) and dtype int"),
            (jnp.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
            (jnp.zeros(3), "targets of shape .* must be integers"),
            (3, r"found shape \(\)"),
        ):
            with pytest.raises(imr.ImrError, match=words):
                imr.as_targets(x)

    def test_same_class_targets(self):
        with pytest.raises(imr.ImrError, match=r"labels must lie in 0 to 1; found labels\[1\] = 2"):
            imr.same_class_targets(jnp.array([0, 2]), 2)
        with pytest.raises(imr.ImrError, match="num_classes must be given if labels are traced"):
            jax.jit(imr.same_class_targets)(jnp.array([0, 1]))
        with pytest.raises(imr.ImrError, match=r"labels of shape .* must be integers"):
            imr.same_class_targets(jnp.array([0.0]))

    @pytest.mark.parametrize("kind", ["sparse", "low rank"])
    def test_shapes_and_rows(self, kind):
        targets = imr.as_targets(CASES[kind][0])
        with pytest.raises(imr.ImrError, match=r"found shape \(4, \d\)"):
            targets.check((5, 7))
        doubled = jax.tree.map(lambda x: 2 * x if x.dtype.kind == "f" else x, targets)
        with pytest.raises(imr.ImrError, match=r"must be distributions.*row 0"):
            doubled.check(CASES[kind][2].shape)


@pytest.mark.parametrize("kind", ["dense", "sparse", "low rank"])
def test_weight_on_masked_entries_is_refused(kind):
    x, _, dense = CASES[kind]
    where = np.ones(dense.shape, bool)
    where[1, np.argmax(dense[1])] = False
    with pytest.raises(imr.ImrError, match="weight on entries that where excludes in row 1"):
        imr.cross_entropy(jnp.zeros(dense.shape), x, jnp.asarray(where))


def test_concrete_targets_are_checked_inside_a_trace():
    with pytest.raises(imr.ImrError, match="must be distributions"):
        jax.jit(lambda z: imr.cross_entropy(z, np.ones((2, 3))))(jnp.zeros((2, 3)))
