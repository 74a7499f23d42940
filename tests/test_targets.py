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


@pytest.mark.laws
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


@pytest.mark.laws
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_labels_of_any_integer_type_are_int32(dtype):
    """300 columns do not fit 8 bits: compared in the labels' own type they would wrap."""
    labels = np.array([3, 100], dtype)
    assert imr.as_targets(labels).columns.dtype == jnp.int32
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 300)))
    expected = imr.cross_entropy(logits, labels.astype(np.int32))
    assert error(imr.cross_entropy(logits, labels), expected) == 0
    assert error(jax.jit(imr.cross_entropy)(logits, labels), expected) <= 1e-15


@pytest.mark.laws
@pytest.mark.parametrize(("dtype", "count"), [(np.int8, 130), (np.uint8, 300), (np.uint16, 70_000)])
def test_classes_that_do_not_fit_the_type_of_labels(dtype, count):
    """Every function that takes labels, with more classes than their type can count."""
    narrow, wide = (jnp.asarray([3, 100], t) for t in (dtype, np.int32))
    logits = jnp.zeros((2, count)).at[0, 3].set(1.0)
    z = jnp.eye(2)
    for function in (
        lambda y: imr.metrics.accuracy(logits, y),
        lambda y: imr.metrics.margins(logits, y),
        lambda y: imr.metrics.class_means(z, y, count),
        lambda y: imr.same_class_targets(y, count).left,
        lambda y: imr.pointers(y).inner(logits),
    ):
        np.testing.assert_array_equal(function(narrow), function(wide))


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


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["labels", "dense", "sparse", "low rank"])
def test_what_cannot_be_refused_under_a_trace_is_nan(kind):
    """Rows that are no distribution, or have weight where the mask has none; unread rows are no matter."""
    x, _, dense = CASES[kind]
    n, m = dense.shape
    model = imr.Linear(jnp.eye(m))
    logits = jnp.asarray(RANDOM.normal(size=(n, m)))
    targets, seen = imr.as_targets(x), np.ones((n, m), bool)
    hidden, unread = seen.copy(), seen.copy()
    hidden[1, np.argmax(dense[1])] = False
    unread[1] = False

    worse = {
        "labels": lambda: LabelTargets(targets.columns.at[1].set(m)),
        "dense": lambda: DenseTargets(targets.matrix.at[1].multiply(-1)),
        "sparse": lambda: SparseTargets(BCOO.fromdense(jnp.asarray(dense).at[1].multiply(2))),
        "low rank": lambda: LowRankTargets(targets.left.at[1].multiply(2), targets.right),
    }[kind]()

    @jax.jit
    def losses(targets, where):
        loss = imr.feature_loss(model, targets, where=where)
        each = imr.cross_entropy(logits, targets, where)
        return each, imr.closed_field(loss)(0.0, logits), imr.gradient_field(loss)(0.0, logits)

    right = losses(targets, seen)
    assert all(np.isfinite(part).all() for part in right)
    np.testing.assert_allclose(right[1], right[2], atol=1e-14)
    np.testing.assert_allclose(right[0], imr.cross_entropy(logits, targets), rtol=1e-14)
    for result in (losses(worse, seen), losses(targets, hidden)):
        for part in result:
            assert np.isnan(part[1]).all()
            assert kind == "sparse" or np.isfinite(np.delete(part, 1, 0)).all()
    for part, expected in zip(losses(worse, unread), right, strict=True):
        assert not part[1].any()
        np.testing.assert_array_equal(np.delete(part, 1, 0), np.delete(expected, 1, 0))


@pytest.mark.laws
def test_a_flow_to_rows_that_do_not_sum_to_one_diverges_under_a_trace():
    z, model = jnp.zeros((4, 3)), imr.Linear(jnp.eye(3))

    @jax.jit
    def results(targets):
        loss = imr.feature_loss(model, targets)
        flow = imr.solve(imr.closed_field(loss), z, t1=1.0)
        return jnp.stack([flow.result, imr.solve_reduced(loss, z, t1=1.0).result])

    assert (results(jnp.asarray(SOFT)) == imr.Result.SUCCESS).all()
    assert (results(jnp.ones((4, 3))) == imr.Result.DIVERGED).all()


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
            (jnp.zeros(3), "targets must be integers; found dtype float64"),
            (3, r"found shape \(\)"),
        ):
            with pytest.raises(imr.ImrError, match=words):
                imr.as_targets(x)

    def test_same_class_targets(self):
        with pytest.raises(imr.ImrError, match=r"labels must lie in 0 to 1; found labels\[1\] = 2"):
            imr.same_class_targets(jnp.array([0, 2]), 2)
        with pytest.raises(imr.ImrError, match="num_classes must be given if labels are traced"):
            jax.jit(imr.same_class_targets)(jnp.array([0, 1]))
        with pytest.raises(imr.ImrError, match="labels must be integers; found dtype float64"):
            imr.same_class_targets(jnp.array([0.0]))

    @pytest.mark.parametrize("kind", ["sparse", "low rank"])
    def test_shapes_and_rows(self, kind):
        targets = imr.as_targets(CASES[kind][0])
        with pytest.raises(imr.ImrError, match=r"found shape \(4, \d\)"):
            targets.check((5, 7))
        doubled = jax.tree.map(lambda x: 2 * x if x.dtype.kind == "f" else x, targets)
        with pytest.raises(imr.ImrError, match=r"must be distributions.*row 0"):
            doubled.check(CASES[kind][2].shape)

    def test_factors_of_mixed_signs(self):
        turn = jnp.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])  # the product stays the same
        with pytest.raises(
            imr.ImrError, match=r"left of low-rank .* negative.*pass left @ right.T"
        ):
            imr.LowRankTargets(SAME.left @ turn, SAME.right @ turn).check((4, 4))

    def test_sparse_layouts(self):
        rows = np.arange(4)
        for data, indices, words in (
            (
                np.ones((4, 1)),
                np.zeros((4, 1, 1), int),
                "found dtype float64, n_batch 1 and n_dense 0",
            ),
            (SOFT, rows[:, None], "n_batch 0 and n_dense 1"),
            (np.ones(4, int), np.stack([rows, LABELS], 1), "found dtype int64"),
        ):
            x = BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=(4, 3))
            with pytest.raises(imr.ImrError, match=rf"sparse targets must be .* {words}"):
                imr.as_targets(x)

    def test_entries_that_fill_up_a_sparse_matrix(self):
        """They lie beyond its end."""
        indices = np.concatenate([np.argwhere(SOFT > 0), [[4, 3]] * 8])
        data = np.concatenate([SOFT.ravel(), np.zeros(8)])
        more = BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=(4, 3))
        imr.as_targets(more).check((4, 3), np.ones((4, 3), bool))
        with pytest.raises(imr.ImrError, match="row 0 has least entry"):
            imr.as_targets(more * 2.0).check((4, 3))

    @pytest.mark.parametrize(
        ("targets", "words"),
        [
            (LABELS + 1, r"0 to 2; found targets\[1\] = 3"),
            (np.where(LABELS == 1, -100, LABELS), r"0 to 2; found targets\[3\] = -100"),
            (LABELS.astype(float), "must be integers; found dtype float64"),
            (0.9 * SOFT, "row 0 has least entry .* and sum 0.9"),
        ],
    )
    def test_closed_fields_and_reduced_flows_check_targets(self, targets, words):
        loss = imr.feature_loss(imr.Linear(jnp.eye(3)), targets)
        z = jnp.zeros((4, 3))
        for call in (
            lambda: imr.closed_field(loss)(0.0, z),
            lambda: imr.split_fields(loss)[1](0.0, z),
            lambda: imr.gradient_field(loss)(0.0, z),
            lambda: imr.solve_reduced(loss, z, t1=1.0),
            lambda: jax.jit(imr.closed_field(loss))(0.0, z),
        ):
            with pytest.raises(imr.ImrError, match=words):
                call()

    def test_logits_that_are_none(self):
        with pytest.raises(imr.ImrError, match="logits must be a floating array; found dtype int"):
            imr.cross_entropy(jnp.zeros((2, 3), int), np.array([0, 1]))
        with pytest.raises(imr.ImrError, match="logits must have a column"):
            imr.cross_entropy(jnp.zeros((2, 0)), None)


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


# Late in a flow, where the probability p of a label is 1 to all digits of float32


def late(kind):
    """A field, as a function of z, at features for which 1 - p is about 1e-12."""
    eye, y = np.eye(4), np.arange(4)
    model = imr.Quadratic(eye) if kind.startswith("quadratic") else imr.Linear(eye)
    targets = {
        "labels": y, "one-hot": eye, "sparse": BCOO.fromdense(jnp.asarray(eye)),
        "low rank": imr.same_class_targets(y), "by autodiff": y, "reduced": y,
        "quadratic": imr.pointers(y), "quadratic by autodiff": imr.pointers(y),
        "quadratic in blocks": imr.pointers(y),
    }[kind]  # fmt: skip

    def field(z):
        loss = imr.feature_loss(jax.tree.map(lambda x: x.astype(z.dtype), model), targets)
        if "autodiff" in kind:
            return imr.gradient_field(loss)(0.0, z)
        if kind == "reduced":
            return loss.model.descent_at(z.T, imr.as_targets(targets), where=None)
        return imr.closed_field(loss, **({"block": 3} if "blocks" in kind else {}))(0.0, z)

    gap = 27.6 + np.log(3)  # of logits: 1 - p = 3 exp(-gap)
    random = np.random.default_rng(0).uniform(0.99, 1.01, 4)
    return field, np.diag(random * (gap**0.5 if model.square else gap))


LATE = (
    "labels", "one-hot", "sparse", "low rank", "by autodiff", "reduced", "quadratic",
    "quadratic in blocks", "quadratic by autodiff",
)  # fmt: skip


@pytest.mark.laws
@pytest.mark.parametrize("kind", LATE)
def test_what_is_left_of_a_label_keeps_its_digits(kind):
    field, z = late(kind)
    exact = np.asarray(jax.jit(field)(jnp.asarray(z)))
    assert 1e-13 < np.abs(exact).max() < 1e-10
    # Logits of 28 are rounded to 2e-6 in float32.
    assert error(jax.jit(field)(jnp.asarray(z, jnp.float32)), exact) < 1e-5


@pytest.mark.laws
def test_a_small_loss_keeps_its_digits():
    logits = jnp.array([[28.0, 0, -1], [0, 1e4, -jnp.inf], [0, -1e4, 0]], jnp.float32)
    # A label without rivals has probability one; what is not a number stays visible.
    alone = jnp.array([[-jnp.inf, 0.5, -jnp.inf], [0, jnp.nan, 0], [0, 0, jnp.nan]], jnp.float32)

    @jax.jit
    def losses(logits, labels):
        def summed(logits):
            each = imr.cross_entropy(logits, labels)
            return jnp.sum(each), each

        return jax.value_and_grad(summed, has_aux=True)(logits)

    (_, each), gradient = losses(logits, np.array([0, 1, 1]))
    left = np.exp(-28) + np.exp(-29)
    np.testing.assert_allclose(each, [left, 0, 1e4 + np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(
        gradient, [[-left, np.exp(-28), np.exp(-29)], [0, 0, 0], [0.5, -1, 0.5]], rtol=1e-6
    )
    (_, each), gradient = losses(alone, np.array([1, 1, 1]))
    assert each[0] == 0
    assert not gradient[0].any()
    assert jnp.isnan(each[1:]).all()
