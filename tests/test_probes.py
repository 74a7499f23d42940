"""Probes, gains, shares and edits: against numpy, planted truths, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr import metrics, nn, processes
from imr.beliefs import all_words, belief_level, unique_prefixes
from imr.constrained import constrained_level, token_vectors
from tests.problems import error


def problem(n=60, d=5, s=3, seed=0):
    random = np.random.default_rng(seed)
    x, w = random.normal(size=(n, d)), random.uniform(0.1, 1, n)
    y = x @ random.normal(size=(d, s)) + 0.3 * random.normal(size=(n, s)) + 2
    return x, y, w


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_probe_is_weighted_ridge_regression(ridge):
    x, y, w = problem()
    p = w / w.sum()
    xc, yc = x - p @ x, y - p @ y
    c = xc.T @ (p[:, None] * xc)
    weight = np.linalg.solve(
        c + ridge * np.linalg.eigvalsh(c)[-1] * np.eye(5), xc.T @ (p[:, None] * yc)
    )
    probe = metrics.fit_probe(jnp.asarray(x), jnp.asarray(y), jnp.asarray(w), ridge=ridge)
    assert error(probe.weight, weight) < 1e-12
    fitted = xc @ weight + p @ y
    assert error(probe(jnp.asarray(x)), fitted) < 1e-12
    wanted = 1 - (p[:, None] * (y - fitted) ** 2).sum() / (p[:, None] * yc**2).sum()
    assert float(probe.r_squared) == pytest.approx(wanted, abs=1e-13)
    assert float(metrics.residual_ratio(probe.r_squared, 0.5)) == pytest.approx(2 * (1 - wanted))


def test_rows_without_weight_take_no_part():
    x, y, w = problem()
    spoiled = (
        np.concatenate([x, np.full((2, 5), np.nan)]),
        np.concatenate([y, np.full((2, 3), np.inf)]),
    )
    found = metrics.fit_probe(*spoiled, np.append(w, [0.0, 0.0]))
    plain = metrics.fit_probe(x, y, w)
    assert error(found.weight, plain.weight) < 1e-14
    assert float(found.r_squared) == pytest.approx(float(plain.r_squared), abs=1e-14)


def test_constant_targets_have_no_r_squared_and_noise_has_none():
    x, y, w = problem(4000, 5)
    for constant in (1.0, 1 / 3, -1e9):
        assert np.isnan(metrics.fit_probe(x, np.full((4000, 1), constant), w).r_squared)
    shuffled = np.random.default_rng(1).permutation(y)
    assert metrics.fit_probe(x, shuffled, w).r_squared < 0.02


def test_gains_of_constrained_beliefs_are_powers_of_the_eigenvalue():
    for x in (0.15, 0.5):
        process = processes.mess3(x, 0.6)
        words = all_words(3, 5)
        p = belief_level(process, 5).probabilities
        found = metrics.lag_gains(constrained_level(process, 5), token_vectors(process), words, p)
        np.testing.assert_allclose(found, (1 - 3 * x) ** np.arange(5.0), atol=1e-12)
        # The exact belief is no such sum, but its gains fall off.
        bayes = metrics.lag_gains(
            belief_level(process, 5).beliefs, token_vectors(process), words, p
        )
        assert abs(np.asarray(bayes)[1:] / np.asarray(bayes)[:-1]).max() < 1


def test_encoding_finds_planted_directions():
    random = np.random.default_rng(3)
    beliefs, w = random.dirichlet(np.ones(3), 200), random.uniform(0.1, 1, 200)
    directions = random.normal(size=(3, 8))
    x = beliefs @ directions + 5
    found = np.asarray(metrics.encoding(x, beliefs, w))
    # Beliefs sum to one: their mean direction is no direction of theirs.
    assert error(found, directions - directions.mean(axis=0)) < 1e-9
    inside, outside = random.normal(size=(4, 3)) @ found, np.linalg.svd(found)[2][2:]
    assert float(metrics.energy_share(inside, found)) == pytest.approx(1, abs=1e-9)
    assert float(metrics.energy_share(outside, found)) == pytest.approx(0, abs=1e-9)
    many = random.normal(size=(5, 4000, 8))
    assert float(metrics.energy_share(many, found)) == pytest.approx(2 / 8, abs=0.01)


def test_unique_prefixes_are_each_once():
    word, position = unique_prefixes(3, 4, 2)
    words = np.asarray(all_words(3, 4))
    seen = [tuple(words[w, : p + 1]) for w, p in zip(word, position, strict=True)]
    assert len(seen) == len(set(seen)) == 9 + 27 + 81
    level = np.asarray(all_words(3, 3))
    assert (np.array([s for s in seen if len(s) == 3]) == level).all()


def test_parity_shares_of_many_heads():
    attention = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3, 5))
    found = metrics.parity_share(jnp.asarray(attention))
    even, odd = attention[..., -1, [0, 2]].sum(-1), attention[..., -1, [1, 3]].sum(-1)
    np.testing.assert_allclose(found, np.stack([even, odd], -1) / (even + odd)[..., None])


def test_edits_against_projections():
    random = np.random.default_rng(0)
    x, d = jnp.asarray(random.normal(size=(2, 4, 6))), jnp.asarray(random.normal(size=(2, 6)))
    q, _ = np.linalg.qr(np.asarray(d).T)
    ablated = nn.ablate_along(x, d)
    assert error(ablated, np.asarray(x) - np.asarray(x) @ q @ q.T) < 1e-12
    values = jnp.asarray(random.normal(size=(2, 4, 2)))
    replaced = nn.replace_along(x, d, values)
    assert error(nn.coordinates(replaced, d), values) < 1e-12
    assert error(nn.ablate_along(replaced, d), ablated) < 1e-12
    assert (
        error(nn.add_along(x, d, values), np.asarray(x) + np.asarray(values) @ np.asarray(d))
        < 1e-13
    )
    origin = jnp.asarray(random.normal(size=6))
    held = nn.ablate_along(x, d, origin)
    same = nn.coordinates(jnp.broadcast_to(origin, x.shape), d)
    assert error(nn.coordinates(held, d), same) < 1e-12
    batched = jax.jit(jax.vmap(nn.replace_along, (0, None, 0)))(x, d, values)
    assert error(batched, replaced) < 1e-13


@pytest.mark.usefixtures("unchecked")
def test_errors():
    x, y, w = problem()
    with pytest.raises(imr.ImrError, match="residual must be a floating array"):
        nn.ablate_along(jnp.array([3, 4]), jnp.array([[2.0, 0.0]]))
    with pytest.raises(imr.ImrError, match="weights must have a positive entry"):
        metrics.fit_probe(x, y, 0 * w)
    with pytest.raises(imr.ImrError, match="words must lie in 0 to 1"):
        metrics.lag_gains(y, jnp.ones((2, 3)), jnp.full((60, 2), 5), w)
    with pytest.raises(imr.ImrError, match="targets has 59 rows, but features has 60"):
        metrics.fit_probe(x, y[1:], w)
    with pytest.raises(imr.ImrError, match="weights must be at least 0"):
        metrics.fit_probe(x, y, -w)
    with pytest.raises(imr.ImrError, match="ridge must be at least 0"):
        metrics.fit_probe(x, y, w, ridge=-1.0)
    with pytest.raises(imr.ImrError, match="first must be at most length, 3; found 4"):
        unique_prefixes(2, 3, 4)
    with pytest.raises(imr.ImrError, match="vectors has 2 columns, but decoded has 3"):
        metrics.lag_gains(y, jnp.ones((3, 2)), jnp.zeros((60, 4), int), w)
    with pytest.raises(imr.ImrError, match="at least 2 positions; found 1"):
        metrics.parity_share(jnp.ones((1, 1)))
    with pytest.raises(imr.ImrError, match=r"values must have shape \(2,\)"):
        nn.add_along(jnp.ones(4), jnp.ones((2, 4)), jnp.ones(3))
    with pytest.raises(imr.ImrError, match="directions has 5 columns, but residual has 4"):
        nn.ablate_along(jnp.ones(4), jnp.ones((2, 5)))
