"""The transformer against plain numpy, what it learns from, and how far it came, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import imr
from imr import processes
from imr.beliefs import all_words, belief_level, next_token_probabilities
from imr.lab import train
from imr.nn import Transformer, exact_kl, next_token_loss
from tests.problems import error

MESS3 = processes.mess3(0.15, 0.6)
SMALL = {"features": 8, "head_features": 4, "mlp_width": 16}


@pytest.fixture(scope="module")
def model():
    """Two layers of two heads, weights of order one."""
    shapes = nnx.eval_shape(lambda: Transformer(3, 6, layers=2, heads=2, **SMALL, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(shapes, nnx.Param)
    random = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(0.5 * random.normal(size=leaf.shape) + 0.1, leaf.dtype)

    return nnx.merge(graph, jax.tree.map(draw, params))


@pytest.fixture(scope="module")
def words():
    return np.random.default_rng(1).integers(0, 3, (4, 6))


def get(parameter):
    return np.asarray(parameter[...], float)


def norm(layer, x):
    scale, bias = get(layer.scale), get(layer.bias)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def test_the_record_is_what_numpy_computes(model, words):
    record = jax.tree.map(np.asarray, nnx.jit(lambda m, w: m.record(w))(model, words))
    x = get(model.embedding.embedding)[words] + get(model.position)[None]
    for l, layer in enumerate(model.layers):
        assert error(record.before[l], x) < 1e-5
        y = norm(layer.attention_norm, x)
        middle = x.copy()
        for h in range(2):
            q, k, v = (y @ get(w)[h] for w in (layer.query, layer.key, layer.value))
            scores = np.where(np.tri(6), q @ np.swapaxes(k, -1, -2) / 2, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            assert error(record.attention[l, :, h], weights) < 1e-5
            values = v @ get(layer.output)[h]
            assert error(record.values[l, :, h], values) < 1e-5
            middle += weights @ values
        assert error(record.middle[l], middle) < 1e-5
        hidden = norm(layer.mlp_norm, middle) @ get(layer.widen.kernel) + get(layer.widen.bias)
        x = middle + np.maximum(hidden, 0) @ get(layer.narrow.kernel) + get(layer.narrow.bias)
        assert error(record.after[l], x) < 1e-5
    assert error(record.normed, norm(model.norm, x)) < 1e-5
    assert error(record.logits, record.normed @ get(model.unembedding.kernel)) < 1e-5
    assert record.logits.dtype == np.float32


def test_no_position_sees_a_later_one(model, words):
    run = nnx.jit(lambda m, w: m(w))
    changed = words.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % 3
    before, after = np.asarray(run(model, words)), np.asarray(run(model, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (abs(before - after)[:, 3:].max(axis=(0, 2)) > 1e-3).all()
    np.testing.assert_allclose(run(model, words[:, :3]), before[:, :3], atol=1e-5)


@pytest.mark.laws
def test_edits_take_the_place_of_the_residual(model, words):
    """Replaced by another word's middle, the rest of the model runs on that word."""
    run = nnx.jit(lambda m, w, x: m.record(w, lambda site, layer, r: x if (site, layer) == ("middle", 1) else r))  # fmt: skip
    plain = nnx.jit(lambda m, w: m.record(w))
    other = plain(model, words[::-1])
    edited = run(model, words, other.middle[1])
    np.testing.assert_array_equal(edited.logits, other.logits)
    np.testing.assert_array_equal(edited.middle[0], plain(model, words).middle[0])


def bayes(process, length):
    """A model that predicts as Bayes does: its KL is zero."""

    def logits(tokens):
        beliefs = imr.bayes_filter(process, tokens).beliefs
        return jnp.log(next_token_probabilities(process, beliefs))

    return logits


@pytest.mark.laws
def test_exact_kl_of_the_optimum_is_zero_and_of_others_is_known():
    assert abs(exact_kl(bayes(MESS3, 5), MESS3, 5)).max() < 1e-14
    actual = exact_kl(lambda tokens: jnp.zeros((*tokens.shape, 3)), MESS3, 5, block=7)
    entropies = np.asarray(imr.conditional_entropies(MESS3, 5))[1:]
    np.testing.assert_allclose(actual, np.log(3) - entropies, atol=1e-13)


@pytest.mark.laws
def test_words_of_probability_zero_weigh_nothing():
    """Whatever a model makes of what cannot be."""
    z1r = processes.z1r(0.5)
    assert abs(exact_kl(bayes(z1r, 4), z1r, 4)).max() < 1e-14
    actual = exact_kl(lambda tokens: jnp.zeros((*tokens.shape, 2)), z1r, 4)
    entropies = np.asarray(imr.conditional_entropies(z1r, 4))[1:]
    np.testing.assert_allclose(actual, np.log(2) - entropies, atol=1e-13)


@pytest.mark.laws
def test_both_losses_have_the_same_mean_and_soft_ones_less_spread():

    def logits(tokens):
        return jnp.stack([0.3 * tokens, 0.1 * tokens**2, 0.2 - tokens], -1)

    keys = jax.random.split(jax.random.key(0), 400)

    @jax.jit
    def losses(keys):
        def loss(key, soft):
            return next_token_loss(logits, MESS3, key, batch_size=16, length=4, soft=soft)

        return jnp.stack([jax.vmap(lambda key, s=s: loss(key, s))(keys) for s in (False, True)])

    hard, soft = np.asarray(losses(keys))
    level = belief_level(MESS3, 4)
    words, p = np.asarray(all_words(3, 4)), np.asarray(level.probabilities)
    log_q = np.asarray(jax.nn.log_softmax(logits(jnp.asarray(words)), axis=-1))
    predicted = np.asarray(next_token_probabilities(MESS3, imr.bayes_filter(MESS3, words).beliefs))
    expected = -np.sum(p[:, None] * (predicted * log_q).sum(-1)) / 4
    for actual in (hard, soft):
        assert abs(actual.mean() - expected) < 5 * actual.std() / np.sqrt(len(actual))
    assert soft.std() < 0.9 * hard.std()


@pytest.mark.laws
def test_positions_beyond_a_length_weigh_nothing():
    """Loss and gradient of both kinds are those of the other positions, in numpy."""
    table, lengths = np.random.default_rng(0).normal(size=(3, 3)), np.array([4, 1, 0, 2])
    key = jax.random.key(4)

    def loss(table, soft, lengths):
        options = {"batch_size": 4, "length": 4, "soft": soft, "lengths": lengths}
        return next_token_loss(lambda tokens: table[tokens], MESS3, key, **options)

    @jax.jit
    def both(table, lengths):
        return [jax.value_and_grad(loss)(table, soft, lengths) for soft in (False, True)]

    tokens = np.asarray(processes.sample(MESS3, jax.random.split(key, 4), 5).tokens)
    beliefs = imr.bayes_filter(MESS3, tokens[:, :-1]).beliefs
    q = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    at = np.arange(4) < lengths[:, None]
    read = tokens[:, :-1][at]
    targets = np.eye(3)[tokens[:, 1:][at]], np.asarray(next_token_probabilities(MESS3, beliefs))[at]
    for (value, slope), p in zip(both(jnp.asarray(table), lengths), targets, strict=True):
        assert abs(value + (p * np.log(q[read])).sum() / 7) < 1e-14
        expected = np.zeros((3, 3))
        np.add.at(expected, read, (q[read] - p) / 7)
        np.testing.assert_allclose(slope, expected, atol=1e-14)
    with pytest.raises(imr.ImrError, match="lengths must leave a position"):
        loss(jnp.asarray(table), False, np.zeros(4, int))


@pytest.mark.acceptance
def test_a_small_net_learns_towards_bayes():
    """Two seeds in one program: from the unigram's KL to a hundredth of it."""

    def make(key):
        return Transformer(3, 6, rngs=nnx.Rngs(key))

    graph = nnx.split(nnx.eval_shape(lambda: make(0)), nnx.Param)[0]
    process = jax.tree.map(lambda x: x.astype(jnp.float32), MESS3)

    def loss(params, hyper, data, batch, key):
        return next_token_loss(nnx.merge(graph, params), data, key, length=6, soft=True)

    def init(key):
        return nnx.state(make(key), nnx.Param)

    states = train.init_states(init, optax.adam(1e-3), jax.random.split(jax.random.key(0), 2))
    chunk = train.make_chunk(loss, optax.adam(1e-3), lambda data, key, step: jnp.zeros(300))
    kl = jax.jit(jax.vmap(lambda params: exact_kl(nnx.merge(graph, params), MESS3, 6).mean()))
    before = kl(states.params)
    states = train.fit(chunk, states, jnp.zeros(2), process, num_steps=600)
    assert (np.asarray(kl(states.params)) < 0.01 * np.asarray(before)).all()


def test_lowering_for_other_platforms(model, words):
    graph, params = nnx.split(model, nnx.Param)

    def loss(params, transitions, key):
        process = processes.Process(transitions, jnp.full(3, 1 / 3))
        return next_token_loss(nnx.merge(graph, params), process, key, length=4, soft=True)

    key = jax.random.key_data(jax.random.key(0))

    def function(p, t, k):
        return jax.grad(loss)(p, t, jax.random.wrap_key_data(k))

    exported = jax.export.export(jax.jit(function), platforms=["tpu", "cuda", "cpu"])(
        params, MESS3.transitions, key
    )
    assert exported.platforms == ("tpu", "cuda", "cpu")


@pytest.mark.usefixtures("unchecked")
def test_errors(model):
    with pytest.raises(imr.ImrError, match="heads must be an integer of at least 1; found 0"):
        Transformer(3, 6, heads=0, rngs=nnx.Rngs(0))
    with pytest.raises(imr.ImrError, match="1 to 6 positions; found 7"):
        model(jnp.zeros((1, 7), int))
    with pytest.raises(imr.ImrError, match="0 to 2; found 0 to 3"):
        model(jnp.array([0, 3]))
    with pytest.raises(imr.ImrError, match="tokens must be integers"):
        model(jnp.zeros(3))
    with pytest.raises(imr.ImrError, match="length must be an integer of at least 1; found 0"):
        next_token_loss(model, MESS3, jax.random.key(0), length=0)
    with pytest.raises(imr.ImrError, match="generalised"):
        exact_kl(model, processes.tom_quantum(1.0, 4.0), 3)
    with pytest.raises(imr.ImrError, match="length must keep"):
        exact_kl(model, MESS3, 20)


@pytest.mark.usefixtures("unchecked")
def test_vocabularies_and_edits_that_do_not_fit(model):
    begun = processes.with_begin_token(MESS3)
    for soft in (False, True):
        with pytest.raises(imr.ImrError, match=r"logits of shape \(2, 3, 4\).*begin or end"):
            next_token_loss(
                lambda tokens: jnp.zeros((*tokens.shape, 3)), begun, jax.random.key(0),
                batch_size=2, length=3, soft=soft,
            )  # fmt: skip
    with pytest.raises(imr.ImrError, match="model must give logits"):
        exact_kl(lambda tokens: jnp.zeros((*tokens.shape, 1)), MESS3, 2)
    with pytest.raises(imr.ImrError, match="key must be made by"):
        next_token_loss(model, MESS3, 0)
    with pytest.raises(imr.ImrError, match=r"edit must return the residual's shape.*found None"):
        model.record(jnp.array([0, 1]), lambda site, layer, residual: None)


def test_tokens_out_of_range_make_nan_under_a_trace(model):
    logits = nnx.jit(lambda model, tokens: model(tokens))(model, jnp.array([[0, 1], [-1, 1]]))
    assert np.isnan(logits[1]).all()
    assert np.isfinite(logits[0]).all()
