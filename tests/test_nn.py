"""The nnx modules are the pure functions, composed."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import imr
import imr.lab.train
from tests.problems import central_difference, error, linear


def randomised(model, seed=1):
    """The model with parameters of order one, so that every term counts."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(seed)
    leaves = [jnp.asarray(0.5 * random.normal(size=leaf.shape) + 0.1) for leaf in leaves]
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


@pytest.mark.laws
def test_a_solve_of_a_blocks_fields_sees_its_later_parameters():
    """Compiled once, and not with the numbers that the block had then."""
    z = linear(6, 4).z
    block = randomised(imr.nn.Block(4, 2, mlp_width=3, rngs=nnx.Rngs(0)))

    def solve():
        return imr.solve(block.fields(), z, t1=1.0, dt0=0.5).z

    solve()
    block.theta[...] = 2 * block.theta[...]
    wanted = imr.strang_step(block.fields(), imr.strang_step(block.fields(), z, 0.5), 0.5)
    assert error(solve(), wanted) <= 1e-12


def test_a_step_is_positive_unless_its_sign_is_free():
    positive = randomised(imr.nn.Block(5, 3, tau=0.3, rngs=nnx.Rngs(0)))
    assert float(imr.nn.Block(5, 3, tau=0.3, rngs=nnx.Rngs(0)).tau) == pytest.approx(0.3)
    positive.step[...] = jnp.asarray(-5.0)
    assert float(positive.tau) == pytest.approx(np.exp(-5.0))
    signed = imr.nn.Block(5, 3, tau=-0.3, signed_step=True, rngs=nnx.Rngs(0))
    assert float(signed.tau) == pytest.approx(-0.3)


@pytest.mark.laws
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
    logits = imr.Linear(last.theta[...], last.bias[...])(expected)
    assert error(model(z), logits) <= 1e-12
    trajectory = model.trajectory(z)
    assert trajectory.shape == (5, 9, 5)
    assert error(trajectory[-1], expected) <= 1e-12
    assert error(model.read_out(trajectory[-1]), model(z)) <= 1e-12
    if tied:
        assert model.trajectory(z, 7).shape == (8, 9, 5)
        assert error(model.trajectory(z, 7)[:5], trajectory) <= 1e-12


@pytest.mark.laws
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


@pytest.mark.laws
def test_latent_classes_are_mixtures():
    p = linear(9, 5)
    model = randomised(
        imr.nn.Classifier(5, 3, iterations=2, prototypes=4, mlp_width=None, rngs=nnx.Rngs(0))
    )
    theta, bias = model.blocks[0].theta[...], model.blocks[0].bias[...]
    assert theta.shape == (12, 5)
    logits = imr.Linear(theta, bias)(model.trajectory(p.z)[-1])
    probability = np.asarray(jax.nn.softmax(logits)).reshape(9, 3, 4).sum(axis=2)
    own = -np.log(probability[np.arange(9), p.labels])
    np.testing.assert_allclose(imr.cross_entropy(model(p.z), p.labels), own, rtol=1e-12)
    latent = imr.Latent(theta, np.repeat(np.arange(3), 4), bias)
    assert error(latent(model.trajectory(p.z)[-1]), model(p.z)) <= 1e-14


def test_gradients_reach_every_parameter():
    p = linear(9, 5)
    model = randomised(imr.nn.Classifier(5, 3, iterations=3, mlp_width=6, rngs=nnx.Rngs(0)))

    def loss(m):
        return imr.cross_entropy(m(p.z), p.labels).sum()

    gradients = nnx.jit(nnx.grad(loss))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(imr.ImrError, match="iterations must be an integer of at least 0; found -1"):
        imr.nn.Classifier(5, 3, iterations=-1, rngs=nnx.Rngs(0))
    with pytest.raises(imr.ImrError, match="tau must be positive; found 0"):
        imr.nn.Block(5, 3, tau=0.0, rngs=nnx.Rngs(0))
    with pytest.raises(imr.ImrError, match="width must be an integer of at least 1; found 0"):
        imr.nn.Block(5, 3, mlp_width=0, rngs=nnx.Rngs(0))
    model = imr.nn.Classifier(5, 3, iterations=2, tied=False, rngs=nnx.Rngs(0))
    with pytest.raises(
        imr.ImrError, match="at most 2, the depth of this untied classifier; found 3"
    ):
        model.trajectory(jnp.ones((1, 5)), 3)
    with pytest.raises(imr.ImrError, match=r"z has 4 .* theta has 5"):
        model(jnp.ones((1, 4)))


# The flow in the place of a block


@pytest.mark.laws
def test_a_flow_block_is_the_limit_of_its_lie_steps():
    """Depth is time, for a learned block too: the same parameters, ever shorter steps."""
    z = linear(6, 5).z
    flow = randomised(imr.nn.FlowBlock(5, 3, mlp_width=6, rtol=1e-10, atol=1e-10, rngs=nnx.Rngs(0)))

    def attend(t, z, args):
        return -imr.cross_attention(z, flow.theta, flow.bias[...])

    def label(t, z, args):
        return flow.mlp(z)

    found = imr.depth_is_time([attend, label], z, t1=flow.tau, depths=(64, 128, 256))
    assert error(flow(z), found.z) <= 1e-8
    assert abs(found.order - 1) <= 0.1


@pytest.mark.parametrize(
    ("adjoint", "knots"),
    [
        (None, 1),
        pytest.param(dfx.BacksolveAdjoint(), 3, marks=pytest.mark.laws),
        pytest.param(None, 3, marks=pytest.mark.laws),
        pytest.param(dfx.BacksolveAdjoint(), 1, marks=pytest.mark.laws),
    ],
    ids=["checkpoints-1", "backsolve-3", "checkpoints-3", "backsolve-1"],
)
@pytest.mark.laws
def test_gradients_through_the_flow(adjoint, knots):
    """To theta (or its knots), bias, MLP and the duration T, against central differences."""
    p = linear(4, 3)
    block = imr.nn.FlowBlock(
        3, 3, mlp_width=2, knots=knots, rtol=1e-10, atol=1e-10, adjoint=adjoint, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(randomised(block), nnx.Param)
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        model = nnx.merge(graph, unravel(flat))
        return imr.cross_entropy(imr.Linear(model.theta)(model(p.z)), p.labels).sum()

    differences = jax.jit(lambda flat: central_difference(loss, flat))(flat)
    assert error(jax.jit(jax.grad(loss))(flat), differences) <= 1e-6


@pytest.mark.laws
def test_constant_steps_are_those_of_diffrax():
    """The midpoint rule in a plain scan: the same features and the same gradients."""
    p = linear(4, 3)
    block = imr.nn.FlowBlock(3, 3, mlp_width=2, knots=3, steps=4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(randomised(block), nnx.Param)

    def plain(params):
        return nnx.merge(graph, params)(p.z)

    def field(t, z, params):
        return nnx.merge(graph, params).slope(t, z)

    def solved(params):
        return imr.solve(field, p.z, args=params, t1=1.0, dt0=0.25, solver=dfx.Midpoint()).z

    assert error(plain(params), solved(params)) <= 1e-12
    found, wanted = (
        jax.jit(jax.grad(lambda params, f=f: jnp.sum(f(params) ** 3)))(params)
        for f in (plain, solved)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert error(a, b) <= 1e-10


@pytest.mark.laws
def test_a_path_of_theta_moves_the_flow():
    """Three knots are theta(0), theta(T/2), theta(T); equal ones are the autonomous flow."""
    z = linear(6, 5).z
    tied = randomised(
        imr.nn.FlowBlock(5, 3, mlp_width=None, rtol=1e-10, atol=1e-10, rngs=nnx.Rngs(0))
    )
    path = imr.nn.FlowBlock(5, 3, mlp_width=None, knots=3, rtol=1e-10, atol=1e-10, rngs=nnx.Rngs(0))
    path.bias, path.step = tied.bias, tied.step
    path.thetas[...] = jnp.stack([tied.theta] * 3)
    assert error(path(z), tied(z)) <= 1e-8
    path.thetas[...] = jnp.stack([tied.theta, 2 * tied.theta, -tied.theta])
    now = 1.5 * tied.theta
    wanted = -path.tau * imr.cross_attention(z, now, path.bias[...])
    assert error(path.slope(0.25, z), wanted) <= 1e-12
    assert error(path.theta, -tied.theta) == 0


@pytest.mark.laws
def test_a_flow_that_fails_is_nan_and_says_so():
    z = 10 * linear(6, 5).z
    block = randomised(imr.nn.FlowBlock(5, 3, mlp_width=6, max_steps=1, rngs=nnx.Rngs(0)))
    assert block.solve(z).result == imr.Result.STEP_LIMIT
    assert jnp.isnan(block(z)).all()


@pytest.mark.laws
def test_a_flow_block_trains_in_one_compilation():
    p = linear(8, 5)
    optimizer = optax.adam(0.05)

    def make(key):
        return imr.nn.Classifier(
            5, 3, iterations=1, block=imr.nn.FlowBlock, mlp_width=6, steps=3, rngs=nnx.Rngs(key)
        )

    graph = nnx.split(make(0), nnx.Param)[0]
    traces = []

    def loss(params, hyper, data, batch, key):
        traces.append(1)
        return imr.cross_entropy(nnx.merge(graph, params)(data[0]), data[1]).mean()

    states = imr.lab.train.init_states(
        lambda key: nnx.state(make(key), nnx.Param),
        optimizer,
        jax.random.split(jax.random.key(0), 2),
    )
    chunk = imr.lab.train.make_chunk(loss, optimizer, lambda data, key, step: jnp.zeros((20, 1)))
    states, first = chunk(states, jnp.zeros(2), (p.z, p.labels))
    before = len(traces)
    for _ in range(2):
        states, losses = chunk(states, jnp.zeros(2), (p.z, p.labels))
    assert len(traces) == before
    assert (losses[:, -1] < 0.5 * first[:, 0]).all()
    durations = jax.vmap(lambda params: nnx.merge(graph, params).blocks[0].tau)(states.params)
    assert (jnp.abs(durations - 0.25) > 1e-3).all(), "T is learned"


# Patches as tokens


def patch_block(**options):
    return randomised(
        imr.nn.PatchBlock(24, 3, image_shape=(4, 6), grid=2, rank=2, rngs=nnx.Rngs(0), **options)
    )


@pytest.mark.laws
def test_patches_are_the_patches_of_the_image():
    image = jnp.arange(24.0).reshape(4, 6)
    block = patch_block()
    tokens = block.tokens(image.reshape(1, 24))
    np.testing.assert_array_equal(tokens[0, 1], image[:2, 3:].ravel())
    np.testing.assert_array_equal(tokens[0, 2], image[2:, :3].ravel())
    np.testing.assert_array_equal(block.pixels(tokens)[0], image.ravel())


@pytest.mark.laws
@pytest.mark.parametrize("column_term", [True, False])
def test_a_patch_block_is_a_lie_step_of_the_quadratic_model(column_term):
    """Each image by itself: the gradient of its log-sum-exp, or ordinary attention."""
    z = linear(3, 24).z
    block = patch_block(mlp_width=5, column_term=column_term)
    phi, position = block.phi[...], block.position[...]
    loss = imr.feature_loss(imr.Quadratic(phi, None, 2**-0.5), None)
    field = imr.closed_field(loss, column_term=column_term)

    @nnx.jit
    def step(block, image):
        moved = image + block.tau * 2**0.5 * field(0.0, image + position, None)
        return moved + block.tau * block.mlp(moved)

    for image, wanted in zip(block.tokens(z), block.tokens(block(z)), strict=True):
        assert error(step(block, image), wanted) <= 1e-12
    assert error(block(z)[1:2], block(z[1:2])) <= 1e-12


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    def test_patches(self):
        with pytest.raises(imr.ImrError, match=r"grid 3, image_shape \(4, 6\), num_features 24"):
            imr.nn.PatchBlock(24, 3, image_shape=(4, 6), grid=3, rngs=nnx.Rngs(0))
        with pytest.raises(imr.ImrError, match=r"rank must be at most the 6 pixels .* found 8"):
            imr.nn.PatchBlock(24, 3, image_shape=(4, 6), grid=2, rngs=nnx.Rngs(0))

        with pytest.raises(imr.ImrError, match=r"image_shape must be \(height, width\); found 4"):
            imr.nn.PatchBlock(24, 3, image_shape=4, grid=2, rngs=nnx.Rngs(0))
        with pytest.raises(imr.ImrError, match="z has 15 pixels"):
            patch_block()(jnp.ones((5, 15)))

    def test_steps_of_flows(self):
        with pytest.raises(
            imr.ImrError, match=r"steps must be an integer of at least 1; found 2\.5"
        ):
            imr.nn.FlowBlock(5, 3, steps=2.5, rngs=nnx.Rngs(0))
        with pytest.raises(imr.ImrError, match="steps must be a multiple of knots - 1 = 2"):
            imr.nn.FlowBlock(5, 3, steps=3, knots=3, rngs=nnx.Rngs(0))

    def test_flows(self):
        with pytest.raises(imr.ImrError, match="tau must be positive"):
            imr.nn.FlowBlock(5, 3, tau=0.0, rngs=nnx.Rngs(0))
        with pytest.raises(imr.ImrError, match="knots must be an integer of at least 1"):
            imr.nn.FlowBlock(5, 3, knots=0, rngs=nnx.Rngs(0))
