"""Nulls of weights: heads of other groups, gauges, parts of theta, permutations within layers."""

import jax
import numpy as np
import pytest

import imr
from imr import lens
from imr.lens import HeadWeights
from tests.test_lens import minilm


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weights_of(l, h, d, r, seed=0, groups=None):
    groups = groups or h
    query, output = draw((seed, 0), l, h, d, r), draw((seed, 3), l, h, r, d)
    key, value = (np.repeat(draw((seed, i), l, groups, d, r), h // groups, axis=1) for i in (1, 2))
    return HeadWeights(
        query, key, value, output, *(np.zeros((l, h, r)) for _ in range(3)), np.zeros((l, d))
    )


def planted_weights(heads, share=1.0):
    """The same, leaning by a share towards descent."""
    mixed = -share * np.asarray(heads.query).mT / np.linalg.norm(heads.query)
    noise = (1 - share) * np.asarray(heads.output) / np.linalg.norm(heads.output)
    return heads._replace(value=heads.key, output=mixed + noise)


def fractions(heads, groups):
    """The share of heads within three deviations, by each null."""
    own = lens.weight_cosines(heads).whole
    null = lens.shifted_cosines(heads, jax.random.key(0), groups=groups)
    assert null.shape == (min(64, own.size - 2 * own.shape[1] // groups + 1), *own.shape)
    z = [
        lens.score(own, null).z,
        lens.layer_scores(heads, groups=groups).z,
        lens.gauge_scores(heads).z,
    ]
    return [np.mean(np.abs(each) < 3) for each in z]


@pytest.mark.laws
@pytest.mark.parametrize("groups", [48, 16])
def test_random_heads_lie_inside_every_null(groups):
    """960 heads; a null of few heads, or of low rank, has longer tails than three deviations."""
    assert min(fractions(weights_of(20, 48, 32, 6, groups=groups), groups)) >= 0.99


@pytest.mark.parametrize("groups", [12, 4])
def test_planted_heads_lie_outside_every_null(groups):
    planted = planted_weights(weights_of(4, 12, 48, 16, groups=groups))
    assert max(fractions(planted, groups)) <= 0.01
    np.testing.assert_allclose(lens.weight_cosines(planted).whole, -1, atol=1e-6)
    np.testing.assert_allclose(lens.gauge_scores(planted).opposition, -1, atol=1e-6)


def test_shifts_leave_out_the_own_key_group():
    """Heads of a group with one theta: their own is in no null."""
    heads = weights_of(3, 6, 40, 2, groups=2)
    query = np.repeat(np.asarray(heads.query)[:, ::3], 3, axis=1)
    heads = planted_weights(heads._replace(query=query))
    for draws in (2, None):
        null = lens.shifted_cosines(heads, jax.random.key(0), groups=2, draws=draws)
        assert null.shape == (draws or 13, 3, 6)
        assert np.abs(null).max() < 0.5
    assert np.abs(lens.shifted_cosines(heads, jax.random.key(0), draws=None)).max() > 0.99
    plain = lens.weight_cosines(lens.mismatched(heads, 3)).whole
    np.testing.assert_allclose(
        lens.shifted_cosines(heads, jax.random.key(0), groups=2, draws=None)[0], plain
    )
    cosines = lens.layer_cosines(heads)
    np.testing.assert_allclose(
        cosines[:, np.arange(6), np.arange(6)], lens.weight_cosines(heads).whole
    )
    rolled = lens.mismatched(
        heads._replace(**{n: np.asarray(x)[[1]] for n, x in heads._asdict().items()}), 1
    )
    np.testing.assert_allclose(
        cosines[1, np.arange(6), np.arange(6) - 1], lens.weight_cosines(rolled).whole[0]
    )


@pytest.mark.parametrize("groups", [6, 2])
def test_all_pairs_of_heads_are_what_each_measure_has(groups):
    heads = weights_of(3, 6, 40, 4, groups=groups)
    pairs, number = lens.pair_cosines(heads, groups=groups), np.arange(18)
    for shift in (0, 1, 5):
        met = lens.mismatched(heads, shift) if shift else heads
        for found, wanted in zip(pairs, lens.weight_cosines(met), strict=True):
            assert np.abs(found[number, number - shift] - wanted.ravel()).max() < 1e-6


def test_parts_of_theta_and_gauges_against_plain_matrices():
    heads = weights_of(1, 3, 10, 3, seed=4)
    q, k, v, o = (np.float64(w[0, 1]) for w in heads[:4])
    theta, circuit = q @ k.T, v @ o

    def cosine(a):
        return np.sum(a * circuit) / np.linalg.norm(a) / np.linalg.norm(circuit)

    parts = [theta, (theta + theta.T) / 2, (theta.T - theta) / 2]
    np.testing.assert_allclose(
        [x[0, 1] for x in lens.part_cosines(heads)], [cosine(a) for a in parts]
    )
    # Any two factors of the circuit have the same balanced ones.
    mixed = np.array([[2.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.3, 0.0, 3.0]])
    other = heads._replace(value=heads.value @ mixed, output=np.linalg.inv(mixed) @ heads.output)
    ours = lens.gauge_scores(heads)
    np.testing.assert_allclose(lens.gauge_scores(other).z, ours.z, atol=1e-5)
    u, s, w = np.linalg.svd(circuit)
    value, output = u[:, :3] * np.sqrt(s[:3]), np.sqrt(s[:3])[:, None] * w[:3]
    gauss = np.random.default_rng(0).normal(size=(20000, 3, 3))
    frames, upper = np.linalg.qr(gauss)
    frames = frames * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None]
    inner = np.einsum("ad,nde,eb,ab->n", value, frames, output, theta.T)
    assert abs(inner.mean() / inner.std()) < 0.03
    assert (
        abs(np.sum(circuit * theta.T) / inner.std() - ours.z[0, 1])
        < 0.02 * abs(ours.z[0, 1]) + 0.02
    )


def test_one_figure_for_a_model():
    heads = weights_of(4, 8, 24, 3, seed=5)
    by_chance = lens.permuted_layers(heads, jax.random.key(0), 999)
    assert 0.02 < by_chance.mean_p < 0.98
    assert by_chance.mean == pytest.approx(lens.weight_cosines(heads).whole.mean())
    leaning = lens.permuted_layers(planted_weights(heads, 0.2), jax.random.key(0), 999)
    assert leaning.mean_p == leaning.negative_p == 0.001
    assert leaning.mean_null.shape == (999,)
    # What all heads of a layer share is in the null too.
    shared = heads._replace(
        **{
            n: np.repeat(np.asarray(x)[:, :1], 8, axis=1)
            for n, x in planted_weights(heads)._asdict().items()
            if n != "output_bias"
        }
    )
    alike = lens.permuted_layers(shared, jax.random.key(0), 99)
    assert alike.mean == pytest.approx(-1)
    assert alike.mean_p == alike.negative_p == 1.0


def test_directions_that_all_weights_share_are_removed():
    heads = weights_of(2, 4, 16, 3, seed=6)
    strong = draw(60, 16) / 4
    moved = {}
    for name in ("query", "key", "value"):
        moved[name] = np.asarray(getattr(heads, name)) + 50 * strong[:, None]
    less = lens.without_shared(heads._replace(**moved), 1)
    for name in moved:
        left = np.einsum("d,lhdr->lhr", strong, getattr(less, name))
        assert np.abs(left).max() < 1
    # One direction is gone, up to roundings of what it was.
    *_, next_, last = np.linalg.svd(np.moveaxis(less.query, 2, 0).reshape(16, -1), compute_uv=False)
    assert last < 1e-12 * np.linalg.norm(moved["query"]) < 1e-3 * next_


@pytest.mark.usefixtures("unchecked")
def test_nulls_that_are_refused():
    heads, key = weights_of(2, 4, 8, 2), jax.random.key(0)
    with pytest.raises(imr.ImrError, match="groups must divide the 4 heads of a layer; found 3"):
        lens.shifted_cosines(heads, key, groups=3)
    with pytest.raises(imr.ImrError, match="groups must divide the 4 heads of a layer; found 3"):
        lens.pair_cosines(heads, groups=3)
    with pytest.raises(imr.ImrError, match="draws must be"):
        lens.shifted_cosines(heads, key, draws=1)
    with pytest.raises(
        imr.ImrError, match=r"three key groups or more.*found 8 heads, 4 in a group"
    ):
        lens.shifted_cosines(heads, key, groups=1)
    with pytest.raises(imr.ImrError, match="two heads or more outside of each key group; found 0"):
        lens.layer_scores(heads, groups=1)
    with pytest.raises(imr.ImrError, match="count must be below the 8 features; found 8"):
        lens.without_shared(heads, 8)


@pytest.mark.acceptance
def test_minilm_by_every_null():
    """A real checkpoint: counts of heads that lean towards descent, and away from it."""
    layers = lens.read_heads(minilm())
    heads, key = lens.head_weights(layers), jax.random.key(0)
    own, parts = lens.weight_cosines(heads).whole, lens.part_cosines(heads)
    assert own.mean() == pytest.approx(-0.070, abs=0.002)
    assert parts.untransposed.mean() == pytest.approx(0.002, abs=0.002)
    less = lens.weight_cosines(lens.without_shared(heads)).whole
    negative = [int((x < 0).sum()) for x in (own, less, parts.symmetric, parts.antisymmetric)]
    np.testing.assert_allclose(negative, [65, 66, 62, 66], atol=1)

    def beyond(z):
        return [int((z < -3).sum()), int((z > 3).sum())]

    null = lens.shifted_cosines(heads, key, draws=None)
    np.testing.assert_allclose(beyond(lens.score(own, null).z), [42, 3], atol=1)
    np.testing.assert_allclose(beyond(lens.layer_scores(heads).z), [38, 3], atol=1)
    gauge = lens.gauge_scores(heads)
    np.testing.assert_allclose(beyond(gauge.z), [59, 6], atol=1)
    assert gauge.opposition.mean() == pytest.approx(-0.40, abs=0.005)
    figure = lens.permuted_layers(heads, key)
    assert figure.mean_p == figure.negative_p == 1e-4
