"""Fields: spheres, features and parameters together, paths, normalisations, standard attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.nnx.nn.attention import dot_product_attention_weights

import imr
from tests.problems import TIGHT, error, linear, projections


def closed(theta, targets, **options):
    return imr.closed_field(imr.feature_loss(imr.Linear(theta), targets, **options))


def row_norms(z):
    return jnp.linalg.norm(z, axis=1)


def ones(t, z, args):
    return jnp.ones_like(z)


# Spheres


@pytest.mark.laws
def test_a_sphere_field_keeps_norms():
    p = linear()
    flow = imr.solve(imr.sphere_field(closed(p.theta, p.labels)), p.z, t1=2.0, **TIGHT)
    assert error(row_norms(flow.z), row_norms(p.z)) <= 1e-9


def test_a_row_of_zeros_stays_on_its_sphere():
    z = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    slope = imr.sphere_field(ones)(0.0, z, None)
    np.testing.assert_array_equal(slope, [[0.0, 0.0], [0.0, 1.0]])


# Features and parameters together, and parameters that move


def test_joint_field():
    p = linear()

    def loss(z, theta):
        return imr.cross_entropy(imr.Linear(theta)(z), p.labels).mean()

    @jax.jit
    def both(z, theta):
        field = imr.joint_field(loss, decay=(0.1, 0.2), rates=(1.0, 3.0))
        return field(0.0, (z, theta), None), jax.grad(loss, argnums=(0, 1))(z, theta)

    (dz, dtheta), (gz, gtheta) = both(p.z, p.theta)
    assert error(dz, -(gz + 0.1 * p.z)) <= 1e-14
    assert error(dtheta, -3 * (gtheta + 0.2 * p.theta)) <= 1e-14


def test_a_path_of_theta_moves_the_field():
    p = linear()
    path = imr.linear_path(jnp.array([0.0, 1.0, 3.0]), jnp.stack([p.theta, 2 * p.theta, -p.theta]))
    at = jax.jit(path)
    for t, factor in ((-1.0, 1.0), (0.25, 1.25), (1.0, 2.0), (2.0, 0.5), (9.0, -1.0)):
        np.testing.assert_allclose(at(t), factor * p.theta, rtol=1e-12)

    def logits(z, theta):
        return imr.Linear(theta)(z)

    moving = jax.jit(imr.path_field(logits, path, p.labels))(0.25, p.z)
    assert error(moving, closed(1.25 * p.theta, p.labels)(0.0, p.z)) <= 1e-12


# Normalisations of attention


@pytest.mark.laws
def test_column_normalised_attention_is_a_gradient_and_double_is_not():
    p = linear(6, 4)
    model = imr.Quadratic(projections(f=4)[0])
    loss = imr.feature_loss(model, None)
    choices = {
        "column": {"normalise": "column"},
        "row": {},
        "double": {"normalise": "double"},
        "row term alone": {"column_term": False},
    }
    fields = {name: imr.closed_field(loss, **options) for name, options in choices.items()}

    def energy(z):
        return jax.nn.logsumexp(model(z), axis=0).sum()

    @jax.jit
    def derivatives(z):
        jacobians = {name: jax.jacfwd(lambda z, f=f: f(0.0, z))(z) for name, f in fields.items()}
        return fields["column"](0.0, z), imr.gradient_field(energy)(0.0, z), jacobians

    by_formula, by_autodiff, jacobians = derivatives(p.z)
    assert error(by_formula, by_autodiff) <= 1e-12

    def asymmetry(name):
        jacobian = np.asarray(jacobians[name]).reshape(24, 24)
        return abs(jacobian - jacobian.T).max() / abs(jacobian).max()

    assert asymmetry("column") <= 1e-12
    assert asymmetry("row") <= 1e-12
    assert asymmetry("double") > 1e-3
    assert asymmetry("row term alone") > 1e-3


def test_double_normalisation_explains_nothing_away():
    logits = jnp.asarray(3 * np.random.default_rng(0).normal(size=(6, 6)))

    @jax.jit
    def sums(where):
        columns = imr.attention_weights(logits, "column", where)
        double = imr.attention_weights(logits, "double", where)
        return columns.sum(axis=0), double.sum(axis=1)

    for mask in (None, jnp.tril(jnp.ones((6, 6), bool))):
        for total in sums(mask):
            np.testing.assert_allclose(total, 1, rtol=1e-12)


# Attention as others have it


def test_self_attention_is_the_standard_layer():
    """flax's and jax's attention with tied weights: queries Z Q, keys Z K, values Z K Q^T."""
    p = linear(7, 5)
    q, k = projections()
    where = jnp.tril(jnp.ones((7, 7), bool))

    @jax.jit
    def layers(z):
        ours = imr.self_attention(z, q, k, beta=0.7, where=where)
        queries, keys = z @ q, z @ k
        heads = [a[None, :, None, :] for a in (queries, keys)]
        scaled = heads[0] * 0.7 * np.sqrt(2)  # flax divides by the square root of the rank
        weights = dot_product_attention_weights(scaled, heads[1], mask=where[None, None])
        fused = jax.nn.dot_product_attention(*heads, heads[1], scale=0.7, is_causal=True)
        return ours, weights[0, 0] @ keys @ q.T, fused[0, :, 0] @ q.T

    ours, flax, fused = layers(p.z)
    assert error(ours, flax) <= 1e-12
    assert error(ours, fused) <= 1e-6  # it works in float32 inside


def test_compiled_attention_of_huge_logits_is_finite():
    """A product fused into the softmax's difference once made it overflow."""
    z = jnp.asarray(1e6 * np.random.default_rng(0).normal(size=(12, 2)), jnp.float32)
    eye = jnp.eye(2, dtype=jnp.float32)

    @jax.jit
    def attend(z):
        return imr.self_attention(z, eye, beta=0.1)

    assert jnp.isfinite(attend(z)).all()


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(imr.ImrError, match="normalise must be one of row, column, double"):
        imr.attention_weights(jnp.zeros((2, 2)), "both")
    with pytest.raises(imr.ImrError, match="loss must be callable"):
        imr.gradient_field(3)
