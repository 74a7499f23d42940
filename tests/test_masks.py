"""One rule for masks in every function that takes one: what is a mask, and what a row without entries gives."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import imr
from imr import context, lens
from imr.attention import attention_log_sums, attention_products, residual_products
from imr.regression import fit_noisy_regression, fit_regression, objective
from tests.problems import error

RANDOM = np.random.default_rng(5)
N, F, R = 4, 3, 2
Z, THETA = RANDOM.normal(size=(2, N, F))  # as many classes as rows: every mask is (n, n)
Q = RANDOM.normal(size=(F, R))
G = RANDOM.normal(size=(N, F))  # what gradients are taken of: a weight of each entry of a result
COLUMNS = np.array([1, 2, 0, 3])
WHERE = (RANDOM.random((N, N)) < 0.6) | np.eye(N)[COLUMNS].astype(bool)
EMPTY = 2
MASKED = WHERE & (np.arange(N) != EMPTY)[:, None]
SOFT = RANDOM.uniform(0.1, 1, (N, N)) * WHERE
SOFT = SOFT / SOFT.sum(axis=1, keepdims=True)
POINTERS = imr.pointers(jnp.asarray(COLUMNS))


# What is meant, in numpy


def softmax(logits, where):
    e = np.exp(logits) * where
    sums = e.sum(axis=1, keepdims=True)
    return e / np.where(sums > 0, sums, 1)


def double(logits, where):
    columns = softmax(logits.T, where.T).T
    sums = columns.sum(axis=1, keepdims=True)
    return columns / np.where(sums > 0, sums, 1)


def log_sums(logits, where):
    sums = (np.exp(logits) * where).sum(axis=1)
    return np.log(np.where(sums > 0, sums, 1))


def residual(logits, where, targets=None):
    seen = where.any(axis=1, keepdims=True)
    return (0 if targets is None else targets) * seen - softmax(logits, where)


def loss(logits, where, targets=None):
    inner = 0 if targets is None else (targets * logits).sum(axis=1) * where.any(axis=1)
    return log_sums(logits, where) - inner


def linear(z):
    return z @ THETA.T


def square(z):
    return z @ Q @ Q.T @ z.T


def both_sides(a, z):
    return (a + a.T) @ z @ Q @ Q.T


def feature_loss(model, targets):
    return lambda z, where: imr.feature_loss(model, targets, where=where)(z)


def field(model, targets, **options):
    return lambda z, where: imr.closed_field(
        imr.feature_loss(model, targets, where=where), **options
    )(0.0, z)


def split(model, targets):
    def both(z, where):
        fields = imr.split_fields(imr.feature_loss(model, targets, where=where))
        return sum(f(0.0, z) for f in fields)

    return both


LINEAR, SQUARE = imr.Linear(jnp.asarray(THETA)), imr.Quadratic(jnp.asarray(Q))
LATENT = imr.Latent(jnp.asarray(THETA), np.arange(N))  # a prototype each: the linear model
HOT = np.eye(N)[COLUMNS]

# Name: (function of z and the mask, the same in numpy)
TABLE = {
    "self_attention": (
        lambda z, where: imr.self_attention(z, Q, where=where),
        lambda z, where: softmax(square(z), where) @ z @ Q @ Q.T,
    ),
    "reverse_attention": (
        lambda z, where: imr.reverse_attention(z, Q, where=where),
        lambda z, where: softmax(square(z), where).T @ z @ Q @ Q.T,
    ),
    "attention_weights": (
        lambda z, where: imr.attention_weights(z @ THETA.T, where=where),
        lambda z, where: softmax(linear(z), where),
    ),
    "attention_weights, column": (
        lambda z, where: imr.attention_weights(z @ THETA.T, "column", where),
        lambda z, where: softmax(linear(z).T, where.T).T,
    ),
    "attention_weights, double": (
        lambda z, where: imr.attention_weights(z @ THETA.T, "double", where),
        lambda z, where: double(linear(z), where),
    ),
    "attention_products": (
        lambda z, where: sum(attention_products(z, THETA, where=where)),
        lambda z, where: softmax(linear(z), where) @ THETA + softmax(linear(z), where).T @ z,
    ),
    "attention_products, blocks": (
        lambda z, where: sum(attention_products(z, THETA, where=where, block=3)),
        lambda z, where: softmax(linear(z), where) @ THETA + softmax(linear(z), where).T @ z,
    ),
    "attention_log_sums": (
        lambda z, where: attention_log_sums(z, THETA, where=where),
        lambda z, where: log_sums(linear(z), where),
    ),
    "cross_entropy": (
        lambda z, where: imr.cross_entropy(z @ THETA.T, None, where),
        lambda z, where: loss(linear(z), where),
    ),
    "cross_entropy, labels": (
        lambda z, where: imr.cross_entropy(z @ THETA.T, COLUMNS, where),
        lambda z, where: loss(linear(z), where, HOT),
    ),
    "cross_entropy, soft": (
        lambda z, where: imr.cross_entropy(z @ THETA.T, SOFT, where),
        lambda z, where: loss(linear(z), where, SOFT),
    ),
    "feature_loss": (
        feature_loss(SQUARE, SOFT),
        lambda z, where: loss(square(z), where, SOFT).sum(),
    ),
    "closed_field, rows": (
        field(LINEAR, COLUMNS),
        lambda z, where: residual(linear(z), where, HOT) @ THETA,
    ),
    "closed_field, latent": (
        field(LATENT, SOFT),
        lambda z, where: residual(linear(z), where, SOFT) @ THETA,
    ),
    "closed_field, pointers": (
        field(SQUARE, POINTERS),
        lambda z, where: both_sides(residual(square(z), where, HOT), z),
    ),
    "closed_field, soft": (
        field(SQUARE, SOFT, block=3),
        lambda z, where: both_sides(residual(square(z), where, SOFT), z),
    ),
    "split_fields": (
        split(SQUARE, POINTERS),
        lambda z, where: both_sides(residual(square(z), where, HOT), z),
    ),
}


@cache
def results():
    """Values and gradients of the whole table, for both masks: one program."""

    @jax.jit
    def everything(z, where):
        def one(function):
            def weighted(z):
                value = function(z, where)
                return jnp.sum(value * jnp.asarray(weights(value))), value

            return jax.value_and_grad(weighted, has_aux=True)(z)

        return {name: one(function) for name, (function, _) in TABLE.items()}

    return [everything(Z, where) for where in (WHERE, MASKED)]


def weights(value):
    return np.resize(G, np.shape(value))


@pytest.mark.laws
@pytest.mark.parametrize("name", TABLE)
def test_masks_are_what_numpy_makes_of_them(name):
    """With a row that has no entry too: its value and its gradients are zero, those of others right."""
    reference = TABLE[name][1]
    for where, result in zip((WHERE, MASKED), results(), strict=True):
        (_, value), gradient = result[name]
        assert error(value, reference(Z, where)) <= 1e-13

        def weighted(z, where=where):
            value = reference(z, where)
            return np.sum(value * weights(value))

        steps = 1e-5 * np.eye(Z.size).reshape(-1, *Z.shape)
        slopes = [(weighted(Z + e) - weighted(Z - e)) / 2e-5 for e in steps]
        assert error(gradient, np.reshape(slopes, Z.shape)) <= 1e-8


@pytest.mark.laws
def test_a_row_without_entries_is_zero_and_so_are_its_gradients():
    """Whether the mask is traced or not, and whatever stands in the row."""
    targets = np.array([1, 2, -100, 3])  # a row that takes no part has no label to be read

    @jax.jit
    def traced(logits, where, targets):
        def losses(logits):
            return jnp.sum(imr.cross_entropy(logits, targets, where) + 1)

        return jax.value_and_grad(losses)(logits), imr.attention_weights(logits, where=where)

    logits = jnp.asarray(Z @ THETA.T).at[EMPTY, 0].set(jnp.nan)
    (total, gradient), p = traced(logits, MASKED, targets)
    assert jnp.isfinite(total)
    for x in (gradient, p):
        assert jnp.isfinite(x).all()
        assert not x[EMPTY].any()
        assert x[0].any()
    assert imr.cross_entropy(logits, targets, MASKED)[EMPTY] == 0
    assert not imr.self_attention(Z, Q, where=MASKED)[EMPTY].any()
    # All rows: nothing is seen at all.
    assert not imr.self_attention(Z, Q, where=np.zeros((N, N), bool)).any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", TABLE)
def test_what_is_no_mask_is_refused(name):
    function = TABLE[name][0]
    additive = np.where(WHERE, 0.0, -1e9)
    for where, words in (
        (additive, r"where must be boolean; found dtype float64.*added.*where=mask == 0"),
        (
            additive.astype(int),
            r"where must hold 0 and 1; found values from -1000000000 to 0.*mask == 0",
        ),
        (WHERE[:1], r"where must have the shape of the logits, \(4, 4\); found \(1, 4\)"),
        ("causal", "where must be an array of numbers; found 'causal'"),
    ):
        with pytest.raises(imr.ImrError, match=words):
            function(jnp.asarray(Z), where)
    with pytest.raises(imr.ImrError, match=r"where must be boolean if it is traced.*int64"):
        jax.jit(function)(jnp.asarray(Z), WHERE.astype(int))


W = jnp.asarray(RANDOM.normal(size=(2, F, R)))
HEADS = lens.Heads(query=W, key=W, value=W, output=W.mT, scale=0.5)
BIASES = jnp.zeros((2, R))
LAYER = lens.HeadWeights(W, W, W, W.mT, BIASES, BIASES, BIASES, jnp.zeros(F))
CONTEXT = imr.feature_loss(imr.Linear(jnp.asarray(THETA)), COLUMNS)
KERNEL, FEW = np.eye(N) + 0.1, jnp.asarray(Z)
LINEAR_NET = imr.nn.LinearSelfAttention(F, F, rngs=nnx.Rngs(0))


# Name: (the argument, whether it is of rows, a function of it). None is refused but for those in OPTIONAL.
OTHERS = {
    "head_updates": ("seen", False, lambda m: lens.head_updates(HEADS, FEW, m).updates),
    "head_gradient": ("seen", False, lambda m: lens.head_gradient(HEADS, FEW, m)),
    "energy_gradient": ("seen", False, lambda m: lens.energy_gradient(LAYER, FEW, m)),
    "measure_inputs": ("seen", False, lambda m: lens.measure_inputs(HEADS, FEW, m, draws=1).cosines),
    "context_field": (
        "labelled", True, lambda m: context.context_field(CONTEXT, KERNEL, m)(0.0, jnp.zeros((N, F))),
    ),
    "kernel_regression": (
        "labelled", True, lambda m: context.kernel_regression(CONTEXT, KERNEL, m, 0.5).z,
    ),
    "solve_reduced": (
        "labelled", True, lambda m: imr.solve_reduced(CONTEXT, 0 * FEW, t1=0.1, kernel=KERNEL, labelled=m).z,
    ),
    "squared_flow": ("labelled", True, lambda m: context.squared_flow(KERNEL, FEW, m, 1.0)),
    "normalised_kernel": ("labelled", True, lambda m: context.normalised_kernel(KERNEL, m).weights),
    "linear_self_attention": (
        "labelled", True,
        lambda m: context.linear_self_attention(
            FEW, context.LinearAttention(jnp.eye(F), jnp.eye(F)), m
        ),
    ),
    "LinearSelfAttention": ("labelled", True, lambda m: LINEAR_NET(FEW, FEW, m)),
    "ContextBlock": (
        "labelled", True, lambda m: imr.nn.ContextBlock(F, N, layers=1)(FEW, jnp.asarray(COLUMNS), m),
    ),
    "ContextBlock.weights": (
        "labelled", True, lambda m: imr.nn.ContextBlock(F, N, layers=1).weights(FEW, m),
    ),
    "objective": (
        "where", True, lambda m: objective(jnp.asarray(THETA), jnp.zeros(N), FEW, COLUMNS, 0.1, m),
    ),
    "fit_regression": ("where", True, lambda m: fit_regression(FEW, COLUMNS, N, 0.1, where=m).theta),
    "fit_noisy_regression": (
        "where", True,
        lambda m: fit_noisy_regression(
            jax.random.key(0), FEW, COLUMNS, N, 0.1, 0.1, where=m, num_steps=2
        ).theta,
    ),
    "fit_process": (
        "fixed.initial", True,
        lambda m: imr.fit_process(
            [0, 1], start=imr.Process(np.full((2, N, N), 0.5 / N)), max_steps=1,
            fixed=imr.beliefs.Fixed(initial=m),
        ).log_likelihood,
    ),
}  # fmt: skip
OPTIONAL = (
    "normalised_kernel",
    "objective",
    "fit_regression",
    "fit_noisy_regression",
    "solve_reduced",
)
ROWS = np.arange(N) != 1


@pytest.mark.laws
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", OTHERS)
def test_every_mask_is_refused_by_the_same_words(name):
    argument, of_rows, function = OTHERS[name]
    mask = ROWS if of_rows else WHERE
    for wrong, words in (
        (np.where(mask, 0.0, -1e9), r"must be boolean; found dtype float.*pass .*=mask == 0"),
        (
            np.where(mask, 0, -(10**9)),
            r"must hold 0 and 1; found values from -1000000000 to 0.*mask == 0",
        ),
        (mask[1:], argument),
        ("causal", "must be an array of numbers; found 'causal'"),
        *[(None, f"{argument} must")] * (name not in OPTIONAL),
        *[(0 * ROWS, "must leave at least one (token|row); found none")]
        * (of_rows and name != "fit_process"),
    ):
        with pytest.raises(imr.ImrError, match=words):
            function(wrong)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", OTHERS)
def test_zeros_and_ones_are_any_mask(name):
    _, of_rows, function = OTHERS[name]
    mask = ROWS if of_rows else WHERE
    for a, b in zip(
        *map(jax.tree.leaves, (function(mask.astype(int)), function(mask))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.laws
def test_heads_of_a_token_that_sees_none():
    updates = lens.head_updates(HEADS, FEW, MASKED).updates
    assert not updates[:, EMPTY].any()
    assert updates[:, 0].any()
    for gradient in (
        lens.head_gradient(HEADS, FEW, MASKED),
        lens.energy_gradient(LAYER, FEW, MASKED),
    ):
        assert not gradient.rows[:, EMPTY].any()
        assert all(jnp.isfinite(x).all() for x in gradient)


def test_zeros_and_ones_are_a_mask():
    for where in (WHERE.astype(int), WHERE.astype(np.uint8)):
        for function in (
            lambda where: imr.self_attention(Z, Q, where=where),
            lambda where: imr.cross_entropy(Z @ THETA.T, COLUMNS, where),
        ):
            assert error(function(where), function(WHERE)) == 0


@pytest.mark.laws
@pytest.mark.parametrize("masked", [False, True])
def test_residual_products_in_blocks(masked):
    """Against the difference of the two terms; every other column is a label's."""
    z, where = jnp.asarray(Z), jnp.asarray(WHERE) if masked else None

    @jax.jit
    def everything(z):
        def one(block):
            def scalar(z):
                rows, columns = residual_products(
                    z, None, POINTERS, beta=0.7, where=where, block=block
                )
                return jnp.sum(rows * G) + jnp.sum(columns**2), (rows, columns)

            return jax.value_and_grad(scalar, has_aux=True)(z)

        def plain(z):
            rows, columns = attention_products(z, None, beta=0.7, where=where)
            pair = POINTERS.mv(z) - rows, POINTERS.rmv(z, N) - columns
            return jnp.sum(pair[0] * G) + jnp.sum(pair[1] ** 2), pair

        return [jax.value_and_grad(plain, has_aux=True)(z), *map(one, (None, 1, 3))]

    expected, *actual = everything(z)
    for each in actual:
        pairs = zip(jax.tree.leaves(each), jax.tree.leaves(expected), strict=True)
        assert max(error(a, b) for a, b in pairs) <= 1e-13
