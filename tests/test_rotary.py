"""Heads with rotary positions: spectra over distance, and the best circuit that knows no distance."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import imr
from imr import lens
from tests.problems import error
from tests.test_heads import D, H, R, draw, heads_of


def theta_at(heads, head, distance):
    """theta_D as a plain matrix."""
    f, rotation = len(heads.frequencies), np.eye(R)
    for m, w in enumerate(heads.frequencies):
        rotation[m, m] = rotation[m + f, m + f] = np.cos(w * distance)
        rotation[m, m + f] = np.sin(w * distance)
        rotation[m + f, m] = -np.sin(w * distance)
    return heads.scale * heads.query[head] @ rotation @ heads.key[head // heads.group_size].T


@pytest.mark.laws
def test_logits_are_those_of_theta_at_each_distance():
    heads = jax.tree.map(np.float64, heads_of(6, frequencies=np.array([1.0, 0.2])))
    x = np.float64(draw(61, 6, D))
    logits = jax.jit(partial(lens.head_logits, heads))(x)
    for head, i, j in ((0, 5, 4), (3, 1, 3), (2, 2, 2)):
        assert abs(logits[head, i, j] - x[i] @ theta_at(heads, head, i - j) @ x[j]) < 1e-10


def test_spectra_and_damped_heads_against_plain_matrices():
    heads = jax.tree.map(np.float64, heads_of(6, frequencies=np.array([1.0, 0.2])))
    spectra, head = lens.rotary_spectra(heads), 3
    circuit = heads.value[head // 2] @ heads.output[head]
    thetas = {d: theta_at(heads, head, d) for d in (-2, 0, 1, 5)}
    size = np.linalg.norm(circuit) * np.linalg.norm(thetas[0])
    for distance, theta in thetas.items():
        angle = distance * spectra.frequencies
        ours = spectra.constant + np.sum(
            spectra.cosine * np.cos(angle) + spectra.sine * np.sin(angle), axis=1
        )
        assert abs(ours[head] - np.sum(circuit * theta.T) / size) < 1e-6
        one = lens.weight_cosines(lens.damped_heads(heads, [distance])).whole[0, head]
        assert abs(one - ours[head] * np.linalg.norm(thetas[0]) / np.linalg.norm(theta)) < 1e-6
    whole = lens.weight_cosines(lens.head_weights(heads)).whole[0]
    np.testing.assert_allclose(spectra.constant + spectra.cosine.sum(axis=1), whole, atol=1e-6)
    weights = np.random.default_rng(0).dirichlet(np.ones(4), H)
    damped = lens.damped_heads(heads, list(thetas), weights)
    ours = R**-0.5 * np.float64(damped.query[0, head]) @ np.float64(damped.key[0, head]).T
    wanted = sum(p * theta for p, theta in zip(weights[head], thetas.values(), strict=True))
    assert error(ours, wanted) < 1e-6
    # A fast pair vanishes, a slow one stays.
    quick = replace(heads, frequencies=np.array([2.0, 1e-4]))
    damped = np.asarray(lens.damped_heads(quick, np.arange(400)).key)
    pairs = [np.linalg.norm(damped[..., [m, m + 2]]) for m in range(2)]
    still = [np.linalg.norm(lens.head_weights(quick).key[..., [m, m + 2]]) for m in range(2)]
    assert pairs[0] < 0.01 * still[0]
    assert pairs[1] > 0.99 * still[1]


def test_the_damped_prediction_is_the_best_constant_circuit():
    """For white inputs: least squares over many draws of them, of row terms by one matrix."""
    heads = jax.tree.map(np.float64, heads_of(7, frequencies=np.array([1.0, 0.3])))
    random, n = np.random.default_rng(1), 8
    attention = random.dirichlet(np.full(n, 0.5), n)
    thetas = {d: theta_at(heads, 0, d) for d in range(1 - n, n)}
    inputs = random.normal(size=(4000, n, D))
    read = np.einsum("ij,bjd->bid", attention, inputs).reshape(-1, D)
    terms = sum(
        np.einsum("bjd,ij->bid", inputs, np.where(distance_of(n) == d, attention, 0)) @ theta.T
        for d, theta in thetas.items()
    ).reshape(-1, D)
    best = np.linalg.lstsq(read, terms, rcond=None)[0]

    def cosine(power):
        distances, weights = lens.attended_distances(attention[None], power)
        damped = lens.damped_heads(heads, distances, weights[0])
        ours = np.float64(damped.key[0, 0]) @ np.float64(damped.query[0, 0]).T
        return np.sum(ours * best) / np.linalg.norm(ours) / np.linalg.norm(best)

    assert cosine(2) > 0.999
    assert 1 - cosine(1) > 3 * (1 - cosine(2))
    one_hot = np.eye(n)[random.integers(0, n, n)]
    both = [lens.attended_distances(one_hot[None], power).probabilities for power in (1, 2)]
    np.testing.assert_array_equal(*both)


def distance_of(n):
    return np.arange(n)[:, None] - np.arange(n)


@pytest.mark.parametrize("frequencies", [0.3 ** np.arange(3), np.ones(1)], ids=["all", "partial"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_planted_heads_at_a_distance_are_recovered(frequencies, sign):
    """W_V W_O = sign theta_D^T, as W_V = W_K R^T: a head that looks back by D tokens."""
    heads = jax.tree.map(np.float64, heads_of(8, groups=H, frequencies=frequencies))
    for distance in (0, 3):
        thetas = np.stack([theta_at(heads, head, distance) for head in range(H)])
        value = thetas.mT @ np.linalg.pinv(heads.query.mT)  # theta_D^T = W_V W_Q^T
        pure = replace(heads, value=value, output=sign * heads.query.mT)
        ours = lens.weight_cosines(lens.damped_heads(pure, [distance])).whole
        np.testing.assert_allclose(ours, sign, atol=1e-6)
        other = lens.weight_cosines(lens.damped_heads(pure, [3 - distance])).whole
        assert np.abs(other).max() < 0.999


@pytest.mark.usefixtures("unchecked")
def test_heads_and_distances_that_do_not_fit():
    for function in (lens.rotary_spectra, partial(lens.damped_heads, distances=[1])):
        with pytest.raises(imr.ImrError, match="these have no rotary positions"):
            function(heads_of())
    turning = heads_of(frequencies=np.ones(2))
    for bad in ([0.5, 0.4], [1.5, -0.5], [1.0]):
        with pytest.raises(imr.ImrError, match="probabilities must have shape"):
            lens.damped_heads(turning, [0, 1], np.array(bad))
    with pytest.raises(imr.ImrError, match="power must be"):
        lens.attended_distances(np.ones((1, 2, 2)), 3)
