"""The nnx modules are the pure functions, composed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import imr
from tests.problems import error, linear


def randomised(model, seed=1):
    """The model with parameters of order one, so that every term counts."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        0.5 * jax.random.normal(key, leaf.shape) + 0.1
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("mlp_width", [None, 6])
def test_block_is_a_lie_step(attention, mlp_width):
    z = linear(9, 5).z
    block = randomised(
        imr.nn.Block(5, 3, attention=attention, mlp_width=mlp_width, rngs=nnx.Rngs(0))
    )
    tau, expected = block.tau, z
    if attention:
        expected = expected - tau * imr.cross_attention(expected, block.theta[...], block.bias[...])
    if mlp_width is not None:
        m = block.mlp
        hidden = jax.nn.gelu(expected @ m.w1[...] + m.b1[...][None, :])
        expected = expected + tau * (hidden @ m.w2[...] + m.b2[...][None, :])
    assert error(block(z), expected) <= 1e-12
    if block.fields():
        assert error(imr.lie_step(block.fields(), z, tau), expected) <= 1e-12


def test_a_step_is_positive_unless_its_sign_is_free():
    positive = randomised(imr.nn.Block(5, 3, tau=0.3, rngs=nnx.Rngs(0)))
    assert float(imr.nn.Block(5, 3, tau=0.3, rngs=nnx.Rngs(0)).tau) == pytest.approx(0.3)
    positive.step[...] = jnp.asarray(-5.0)
    assert float(positive.tau) == pytest.approx(np.exp(-5.0))
    signed = imr.nn.Block(5, 3, tau=-0.3, signed_step=True, rngs=nnx.Rngs(0))
    assert float(signed.tau) == pytest.approx(-0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_classifier_reads_out_with_the_theta_of_its_block(tied):
    z = linear(9, 5).z
    model = randomised(
        imr.nn.Classifier(5, 3, iterations=4, mlp_width=6, tied=tied, rngs=nnx.Rngs(0))
    )
    assert len(model.blocks) == (1 if tied else 4)
    expected = z
    for l in range(4):
        expected = model.blocks[0 if tied else l](expected)
    last = model.blocks[-1]
    logits = imr.linear_logits(expected, last.theta[...], last.bias[...])
    assert error(model(z), logits) <= 1e-12
    trajectory = model.trajectory(z)
    assert trajectory.shape == (5, 9, 5)
    assert error(trajectory[-1], expected) <= 1e-12
    assert error(model.read_out(trajectory[-1]), model(z)) <= 1e-12
    if tied:
        assert model.trajectory(z, 7).shape == (8, 9, 5)
        assert error(model.trajectory(z, 7)[:5], trajectory) <= 1e-12


def test_attention_alone_depends_on_the_logits_alone():
    """Depth without an MLP reaches nothing that the first logits do not hold."""
    p = linear(9, 6, 3)
    model = randomised(imr.nn.Classifier(6, 3, iterations=5, mlp_width=None, rngs=nnx.Rngs(0)))
    theta = model.blocks[0].theta[...]
    _, _, rows = jnp.linalg.svd(theta)
    unseen = rows[3:]  # directions orthogonal to every class weight
    assert error(model(p.z + 7 * unseen[:1]), model(p.z)) <= 1e-12
    with_mlp = randomised(imr.nn.Classifier(6, 3, iterations=5, mlp_width=4, rngs=nnx.Rngs(0)))
    _, _, rows = jnp.linalg.svd(with_mlp.blocks[0].theta[...])
    assert error(with_mlp(p.z + 7 * rows[3:4]), with_mlp(p.z)) > 1e-3


def test_latent_classes_are_mixtures():
    p = linear(9, 5)
    model = randomised(
        imr.nn.Classifier(5, 3, iterations=2, prototypes=4, mlp_width=None, rngs=nnx.Rngs(0))
    )
    theta, bias = model.blocks[0].theta[...], model.blocks[0].bias[...]
    assert theta.shape == (12, 5)
    logits = imr.linear_logits(model.trajectory(p.z)[-1], theta, bias)
    group = jnp.repeat(jnp.arange(3), 4)
    np.testing.assert_allclose(
        imr.cross_entropy(model(p.z), p.labels),
        imr.latent_cross_entropy(logits, p.labels, group),
        rtol=1e-12,
    )


def test_gradients_reach_every_parameter():
    p = linear(9, 5)
    model = randomised(imr.nn.Classifier(5, 3, iterations=3, mlp_width=6, rngs=nnx.Rngs(0)))
    gradients = nnx.grad(lambda m: imr.cross_entropy(m(p.z), p.labels).sum())(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(imr.ImrError, match="iterations must be at least 0; found -1"):
        imr.nn.Classifier(5, 3, iterations=-1, rngs=nnx.Rngs(0))
    with pytest.raises(imr.ImrError, match="tau must be positive; found 0"):
        imr.nn.Block(5, 3, tau=0.0, rngs=nnx.Rngs(0))
    with pytest.raises(imr.ImrError, match="width must be at least 1; found 0"):
        imr.nn.Block(5, 3, mlp_width=0, rngs=nnx.Rngs(0))
    model = imr.nn.Classifier(5, 3, iterations=2, tied=False, rngs=nnx.Rngs(0))
    with pytest.raises(
        imr.ImrError, match="at most 2, the depth of this untied classifier; found 3"
    ):
        model.trajectory(jnp.ones((1, 5)), 3)
    with pytest.raises(imr.ImrError, match=r"z has 4 .* theta has 5"):
        model(jnp.ones((1, 4)))
