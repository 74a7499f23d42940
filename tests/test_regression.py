"""Multinomial regression at its optimum, against scikit-learn and against its own conditions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr.lab.data import load_digits, load_images
from imr.regression import fit_noisy_regression, fit_regression, objective
from tests.problems import images_folder, linear


def scikit_learn(x, y, l2, weights=None):
    from sklearn.linear_model import LogisticRegression

    total = len(y) if weights is None else weights.sum()
    peer = LogisticRegression(C=1 / (2 * l2 * total), tol=1e-8, max_iter=5000)
    return peer.fit(x, y, sample_weight=weights)


@pytest.mark.acceptance
@pytest.mark.parametrize("l2", [1e-4, 1e-2])
def test_digits_like_scikit_learn(l2):
    data = load_digits()
    x = data.train_images.astype(np.float64)
    fit = fit_regression(jnp.asarray(x), jnp.asarray(data.train_labels), 10, l2, tol=1e-8)
    assert fit.converged
    peer = scikit_learn(x, data.train_labels, l2)
    np.testing.assert_allclose(fit.theta, peer.coef_, atol=1e-4 * np.abs(peer.coef_).max())


@pytest.mark.acceptance
def test_fashion_mnist_within_half_a_point_of_scikit_learn():
    """Float32 pixels and scikit-learn's C = 0.1, on real images."""
    folder = images_folder("fashion_mnist_head")
    from sklearn.linear_model import LogisticRegression

    data = load_images("fashion_mnist", folder)
    l2 = 1 / (2 * 0.1 * 8000)
    x = jnp.asarray(data.train_images)
    fit = fit_regression(x, jnp.asarray(data.train_labels), 10, l2, tol=1e-4)
    assert fit.converged
    assert fit.theta.dtype == jnp.float32
    logits = imr.Linear(fit.theta, fit.bias)(jnp.asarray(data.test_images))
    ours = np.mean(np.argmax(logits, axis=1) == data.test_labels)
    peer = LogisticRegression(C=0.1, max_iter=150, tol=1e-3)
    peer.fit(data.train_images, data.train_labels)
    assert abs(ours - peer.score(data.test_images, data.test_labels)) <= 0.005


@pytest.fixture(scope="module")
def p():
    """One problem for all tests of few rows, so that each fit is compiled once."""
    return linear(50, 6, 4)


@pytest.mark.laws
def test_the_gradient_vanishes_at_the_optimum(p):
    fit = fit_regression(p.z, p.labels, 4, 0.01, tol=1e-9)
    gradient = jax.grad(objective, argnums=(0, 1))(fit.theta, fit.bias, p.z, p.labels, 0.01)
    largest = max(float(jnp.abs(g).max()) for g in gradient)
    assert fit.converged
    assert largest <= 2e-9
    assert float(fit.gradient) == pytest.approx(largest, rel=1e-3, abs=1e-12)


@pytest.mark.laws
def test_giving_up_is_said(p):
    fit = fit_regression(p.z, p.labels, 4, 1e-4, tol=1e-12, max_steps=3)
    assert not fit.converged
    assert fit.num_steps == 3


@pytest.mark.laws
def test_noisy_regression_minimises_the_expected_loss(p):
    """Its gradient under noise in feature space, many draws: zero within the error of the mean."""
    noise, l2 = 0.7, 0.01
    theta, bias, *_ = fit_noisy_regression(jax.random.key(0), p.z, p.labels, 4, l2, noise)

    def gradient(key, theta, bias):
        x = p.z + noise * jax.random.normal(key, p.z.shape)
        return jax.grad(objective, argnums=(0, 1))(theta, bias, x, p.labels, l2)

    keys = jax.random.split(jax.random.key(1), 2_000)
    gradients = jax.jit(jax.vmap(gradient, in_axes=(0, None, None)))
    at_fit, elsewhere = gradients(keys, theta, bias), gradients(keys, 1.2 * theta, bias)

    def deviations(draws):
        draws = [np.asarray(g) for g in draws]
        mean = [np.abs(g.mean(axis=0)) for g in draws]
        error = [g.std(axis=0) / np.sqrt(len(keys)) for g in draws]
        return max(float((m / e).max()) for m, e in zip(mean, error, strict=True))

    assert deviations(at_fit) <= 5
    assert deviations(elsewhere) > 10


@pytest.mark.laws
def test_without_noise_both_fits_agree(p):
    exact = fit_regression(p.z, p.labels, 4, 0.02, tol=1e-9)
    fit = fit_noisy_regression(jax.random.key(0), p.z, p.labels, 4, 0.02, 0.0)
    np.testing.assert_allclose(fit.theta, exact.theta, atol=1e-5)
    np.testing.assert_allclose(fit.bias, exact.bias, atol=1e-5)
    assert fit.converged


@pytest.mark.laws
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_a_mask_of_rows_is_the_fit_of_those_rows(p, noise):
    where = np.arange(50) % 3 > 0
    if noise:  # the rows left out draw noise too, which is as much that of others
        fit = partial(fit_noisy_regression, jax.random.key(0), noise=noise, num_classes=4, l2=0.02)
        tolerance = 0.02
    else:
        fit = partial(fit_regression, num_classes=4, l2=0.02, tol=1e-9)
        tolerance = 1e-7
    masked = fit(x=p.z, labels=p.labels, where=where)
    part = fit(x=p.z[where], labels=p.labels[where])
    assert masked.converged
    np.testing.assert_allclose(masked.theta, part.theta, atol=tolerance)
    np.testing.assert_allclose(masked.bias, part.bias, atol=tolerance)
    whole = fit(x=p.z, labels=p.labels, where=np.ones(50, bool))
    assert np.abs(whole.theta - part.theta).max() > 5 * tolerance


@pytest.mark.laws
def test_weights_of_rows_like_scikit_learn(p):
    fit = partial(fit_regression, p.z, p.labels, 4, 0.02, tol=1e-9)
    weights = np.random.default_rng(0).exponential(size=50)
    ours = fit(where=np.ones(50, bool), weights=weights)
    assert ours.converged
    peer = scikit_learn(np.asarray(p.z), np.asarray(p.labels), 0.02, weights)
    np.testing.assert_allclose(ours.theta, peer.coef_, atol=1e-6)
    # The mean of the biases is free.
    bias = peer.intercept_ - peer.intercept_.mean()
    np.testing.assert_allclose(ours.bias - ours.bias.mean(), bias, atol=1e-6)
    # Integers are repetitions; only the ratios count.
    where, counts = np.arange(50) % 3 > 0, np.arange(50) % 4
    ours = fit(where=where, weights=2.5 * counts)
    rows = np.repeat(np.arange(50), where * counts)
    gradient = jax.grad(objective)(ours.theta, ours.bias, p.z[rows], p.labels[rows], 0.02)
    assert ours.converged
    assert np.abs(gradient).max() < 1e-8


def plane(kind):
    """50 rows of two features in three classes, with an optimum at l2 = 0 or without."""
    x = np.random.default_rng(1).normal(size=(50, 2))
    labels = np.arange(50) % 3
    if kind == "separated":
        x += 10 * np.array([[0, 0], [1, 0], [0, 1]])[labels]
    elif kind == "touched":  # a feature that only one class has
        x[:, 1] = labels == 2
    elif kind == "missing":
        labels = np.arange(50) % 2
    return jnp.asarray(x), jnp.asarray(labels)


@pytest.mark.laws
@pytest.mark.parametrize(
    ("kind", "l2", "converged"),
    [
        ("overlapping", 0.0, True),
        ("separated", 0.0, False),
        ("separated", 1e-3, True),
        ("touched", 0.0, False),
        ("touched", 1e-3, True),
        ("missing", 0.0, False),
        ("missing", 1e-3, False),
    ],
)
def test_without_an_optimum_no_fit_converges(kind, l2, converged):
    x, labels = plane(kind)
    # A weight of zero is no row: this one alone would stand on the wrong side.
    weights = np.ones(50)
    weights[0] = 0
    x, labels = x.at[0].set(x[1]), labels.at[0].set(0)
    fit = fit_regression(x, labels, 3, l2, weights=weights)
    assert fit.gradient <= 1e-5
    assert fit.converged == converged
    assert fit.num_steps < 500


@pytest.mark.acceptance
def test_without_an_optimum_no_noisy_fit_converges():
    weights = np.random.default_rng(0).exponential(size=50)
    for kind, l2, noise, converged in (
        ("overlapping", 0.0, 0.0, True),
        ("separated", 0.0, 0.0, False),
        ("separated", 1e-3, 0.0, True),
        ("separated", 0.0, 0.5, True),
        ("missing", 1e-3, 0.5, False),
    ):
        x, labels = plane(kind)
        fit = fit_noisy_regression(
            jax.random.key(0), x, labels, 3, l2, noise, weights=weights, tol=5e-3, num_steps=500
        )
        assert fit.gradient <= 5e-3
        assert fit.converged == converged, (kind, l2, noise)
        if kind == "overlapping":
            exact = fit_regression(x, labels, 3, l2, weights=weights)
            np.testing.assert_allclose(fit.theta, exact.theta, atol=1e-4)


@pytest.mark.laws
def test_noisy_regression_knows_when_it_has_not_converged():
    data = load_digits()
    x, y = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    few, many = (
        fit_noisy_regression(jax.random.key(0), x, y, 10, 1e-4, 0.5, num_steps=steps)
        for steps in (20, 1000)
    )
    assert not few.converged
    assert many.converged
    assert many.gradient < few.gradient / 10


@pytest.mark.acceptance
def test_weights_of_any_scale_and_half_precision():
    """Weights that float32 cannot hold, or whose sum it cannot; bfloat16 on its way to eigenvectors."""
    p = linear(50, 6, 4)
    x = p.z.astype(jnp.float32)
    plain = fit_regression(x, p.labels, 4, 0.1)
    assert plain.converged
    for weight in (1e38, 1e300, 1e-50, 1e-300):
        fit = fit_regression(x, p.labels, 4, 0.1, weights=np.full(50, weight))
        for a, b in zip(fit, plain, strict=True):
            np.testing.assert_array_equal(a, b)
    some = np.arange(50) < 40  # what a row that takes no part weighs does not matter
    weights = np.where(some, 1e-30, 1e30)
    few, rows = (
        fit_regression(x, p.labels, 4, 0.1, where=some, weights=w) for w in (weights, None)
    )
    np.testing.assert_array_equal(few.theta, rows.theta)
    half = fit_regression(x.astype(jnp.bfloat16), p.labels, 4, 0.1)
    assert half.converged
    assert half.theta.dtype == half.bias.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.theta.astype(float), plain.theta, atol=0.02)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    p = linear(10, 4, 3)
    with pytest.raises(imr.ImrError, match="where must leave at least one row; found none"):
        fit_regression(p.z, p.labels, 3, 0.1, where=np.zeros(10, bool))
    with pytest.raises(imr.ImrError, match="l2 must be at least 0; found -1"):
        fit_regression(p.z, p.labels, 3, -1.0)
    with pytest.raises(imr.ImrError, match="l2 must be finite; found inf"):
        fit_regression(p.z, p.labels, 3, np.inf)
    with pytest.raises(imr.ImrError, match=r"noise must be at least 0; found -0\.5"):
        fit_noisy_regression(jax.random.key(0), p.z, p.labels, 3, 0.1, -0.5)
    with pytest.raises(imr.ImrError, match=r"0 to 1; found targets"):
        fit_regression(p.z, p.labels.at[0].set(2), 2, 0.1)
    for weights, message in (
        (np.full(10, -1.0), "weights must be at least 0; found"),
        (np.zeros(10), "weights must be positive in a row that takes part; found none"),
        (np.eye(10)[0], "weights must be positive in a row that takes part; found none"),
        (np.full(10, np.inf), r"weights must be finite; found 10 non-finite"),
        (np.ones(9), "weights has 9 rows, but x has 10"),
        (np.ones((10, 1)), r"weights must have shape \(n,\)"),
    ):
        with pytest.raises(imr.ImrError, match=message):
            fit_regression(p.z, p.labels, 3, 0.1, weights=weights, where=np.arange(10) > 0)
    for change, message in (
        ({"x": p.z[:0], "labels": p.labels[:0]}, r"x must have a row .* found shape \(0, 4\)"),
        ({"x": p.z[:, :0]}, r"x must have a row and a feature at least; found shape \(10, 0\)"),
        ({"x": p.z.at[3, 1].set(jnp.nan)}, r"x must be finite; found 1 .* at index \(3, 1\)"),
        ({"x": "abc"}, "x must be an array of numbers; found 'abc'"),
        ({"num_classes": 3.0}, r"num_classes must be an integer of at least 1; found 3\.0"),
        ({"l2": "a"}, "l2 must be a real number; found 'a'"),
        ({"tol": "a"}, "tol must be a real number; found 'a'"),
        ({"max_steps": 2.5}, "max_steps must be an integer"),
    ):
        with pytest.raises(imr.ImrError, match=message):
            fit_regression(**{"x": p.z, "labels": p.labels, "num_classes": 3, "l2": 0.1, **change})
    with pytest.raises(imr.ImrError, match=r"key must be made by jax\.random\.key"):
        fit_noisy_regression(0, p.z, p.labels, 3, 0.1, 0.5)
    with pytest.raises(imr.ImrError, match="labels has 9 rows, but x has 10"):
        fit_regression(p.z, p.labels[:9], 3, 0.1)
