"""jax's transformations of models, losses and fields, which are values: pytrees with an identity."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import imr
from tests.problems import central_difference, error, linear, projections


def linear_loss(p, beta=1.0, **options):
    return imr.feature_loss(imr.Linear(p.theta, p.bias, beta), p.targets, **options)


def quadratic_loss(p, beta=1.0):
    return imr.feature_loss(
        imr.Quadratic(*projections(), beta), imr.same_class_targets(p.labels, 3)
    )


# Identity


def test_models_losses_and_fields_are_told_apart_by_identity():
    p = linear()
    for build in (
        lambda: imr.Linear(p.theta),
        lambda: imr.Latent(p.theta, [0, 1, 1]),
        lambda: imr.Polynomial(p.theta, 2),
        lambda: imr.Quadratic(*projections()),
        lambda: imr.Quadratic.full(jnp.eye(5)),
        lambda: imr.pointers(p.labels),
        lambda: linear_loss(p),
        lambda: imr.gradient_field(linear_loss(p)),
        lambda: imr.closed_field(linear_loss(p)),
        lambda: imr.sphere_field(imr.closed_field(linear_loss(p))),
        lambda: imr.linear_path(jnp.arange(2.0), jnp.ones((2, 3))),
    ):
        one, other = build(), build()
        assert one == one
        assert one != other
        assert len({one, other, one}) == 2


def test_jit_of_a_model_a_loss_and_a_field():
    """As functions of z alone: they hash."""
    p = linear()
    loss = linear_loss(p)
    field = imr.closed_field(loss)
    assert error(jax.jit(loss.model)(p.z), loss.model(p.z)) <= 1e-14
    assert error(jax.jit(loss)(p.z), loss(p.z)) <= 1e-14
    assert error(jax.jit(field)(0.0, p.z), field(0.0, p.z)) <= 1e-14


def test_checkpoint_of_a_model_and_a_loss():
    p = linear()
    loss = linear_loss(p)
    again = imr.feature_loss(jax.checkpoint(loss.model), p.targets)

    @jax.jit
    def gradients(z):
        return [jax.grad(f)(z) for f in (loss, again, jax.checkpoint(loss))]

    plain, *others = gradients(p.z)
    for gradient in others:
        assert error(gradient, plain) <= 1e-14


# Many at once


def test_vmap_of_a_constructor():
    """jax.vmap(imr.Linear)(thetas) is a model whose leaves are stacked."""
    problems = [linear(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)

    @jax.jit
    def descents(p):
        models = jax.vmap(imr.Linear)(p.theta)
        return jax.vmap(lambda model, y, z: imr.closed_field(imr.feature_loss(model, y))(0.0, z))(
            models, p.labels, p.z
        )

    assert jax.vmap(imr.Linear)(stacked.theta).theta.shape == (3, 3, 5)
    assert jax.vmap(imr.Quadratic)(jnp.ones((4, 5, 2))).q.shape == (4, 5, 2)
    group = jnp.array([0, 1, 1])
    latent = jax.vmap(lambda theta: imr.Latent(theta, group, num_classes=2))(stacked.theta)
    assert latent.theta.shape == (3, 3, 5)
    for found, p in zip(descents(stacked), problems, strict=True):
        alone = imr.closed_field(imr.feature_loss(imr.Linear(p.theta), p.labels))(0.0, p.z)
        assert error(found, alone) <= 1e-13


def test_a_concrete_group_counts_its_classes_inside_a_trace():
    p = linear()

    @jax.jit
    def logits(theta):
        return imr.Latent(theta, np.array([0, 1, 1]))(p.z)

    assert logits(p.theta).shape == (7, 2)
    with pytest.raises(imr.ImrError, match="num_classes must be given if group is traced"):
        jax.jit(lambda group: imr.Latent(p.theta, group)(p.z))(jnp.array([0, 1, 1]))


# Pytrees are kept, plain functions are wrapped


def test_a_pytree_that_can_be_called_is_kept_as_it_is():
    p = linear()
    model = imr.Linear(p.theta)
    by_theta = Partial(lambda theta, z: z @ theta.T, p.theta)
    for given in (model, by_theta):
        loss = imr.feature_loss(given, p.labels)
        assert loss.model is given
        field = imr.gradient_field(loss)
        assert field.loss is loss
        assert imr.sphere_field(field).field is field
        for holder in (loss, field, imr.sphere_field(field)):
            assert any(leaf is p.theta for leaf in jax.tree.leaves(holder))
    closed = imr.closed_field(imr.feature_loss(model, p.labels))
    assert any(leaf is p.theta for leaf in jax.tree.leaves(closed))


def test_plain_functions_are_wrapped():
    p = linear()

    def model(z):
        return z @ p.theta.T

    loss = imr.feature_loss(model, p.labels)
    assert isinstance(loss.model, Partial)
    assert isinstance(imr.gradient_field(lambda z: jnp.sum(z**2)).loss, Partial)
    assert isinstance(imr.sphere_field(lambda t, z, args: z).field, Partial)
    # theta is a constant here: the leaves are those of the targets.
    assert len(jax.tree.leaves(loss)) == 1
    assert error(loss(p.z), imr.feature_loss(imr.Linear(p.theta), p.labels)(p.z)) <= 1e-14


# One program for a shape


def test_other_values_compile_nothing_new():
    """theta, bias, beta, targets, anchor and z are leaves; a Python number is no exception."""
    traces = []

    @jax.jit
    def apply(loss, z):
        traces.append(1)
        return loss(z), imr.closed_field(loss)(0.0, z), imr.gradient_field(loss)(0.0, z)

    for seed in range(4):
        p = linear(seed=seed)
        loss = linear_loss(p, 0.5 + seed, anchor=(0.1 * seed, p.z + 1))
        value, closed, gradient = apply(loss, p.z)
        assert error(value, loss(p.z)) <= 1e-13
        assert error(closed, gradient) <= 1e-12
    assert len(traces) == 1


@pytest.mark.parametrize("build", [linear_loss, quadratic_loss])
def test_beta_is_an_array_leaf(build):
    loss = build(linear(), 0.7)
    assert isinstance(loss.model.beta, jax.Array)
    assert loss.model.beta.dtype == jnp.float64
    assert any(leaf is loss.model.beta for leaf in jax.tree.leaves(loss))


# Gradients of a whole model and of a whole loss


def with_distributions(loss):
    """The loss with rows of targets that sum to 1 whatever their numbers are; others become NaN."""
    if isinstance(targets := loss.targets, imr.targets.LowRankTargets):
        sums = targets.left @ targets.right.sum(axis=0)
        targets = eqx.tree_at(lambda t: t.left, targets, targets.left / sums[:, None])
    else:
        targets = targets / targets.sum(axis=1, keepdims=True)
    return eqx.tree_at(lambda l: l.targets, loss, targets)


@pytest.mark.parametrize(
    "build", [linear_loss, pytest.param(quadratic_loss, marks=pytest.mark.laws)]
)
def test_filter_grad_of_a_whole_model_and_a_whole_loss(build):
    p = linear()
    loss = build(p, 0.7)
    away = jax.tree.map(lambda x: x + 0.1, loss.targets)  # from 0, below which no entry may be
    loss = eqx.tree_at(lambda l: l.targets, loss, away)
    flat, unravel = ravel_pytree(eqx.filter(loss, eqx.is_inexact_array))
    rest = eqx.filter(loss, eqx.is_inexact_array, inverse=True)

    def size(loss):
        return jnp.sum(imr.closed_field(with_distributions(loss))(0.0, p.z) ** 2)

    @jax.jit
    def witnesses(loss, flat):
        def of_leaves(x):
            return size(eqx.combine(unravel(x), rest))

        of_model = eqx.filter_grad(lambda m: size(eqx.tree_at(lambda l: l.model, loss, m)))
        return (
            eqx.filter_grad(size)(loss),
            of_model(loss.model),
            central_difference(of_leaves, flat),
        )

    of_loss, of_model, by_differences = witnesses(loss, flat)
    assert error(ravel_pytree(of_loss)[0], by_differences) <= 1e-6
    assert type(of_model) is type(loss.model)
    for a, b in zip(jax.tree.leaves(of_model), jax.tree.leaves(of_loss.model), strict=True):
        assert error(a, b) <= 1e-13


# flax modules: parameters in nnx.Param, the model built where it is called


class Head(nnx.Module):
    """One Euler step of the flow, with parameters of its own."""

    def __init__(self, theta, bias):
        self.theta, self.bias = nnx.Param(theta), nnx.Param(bias)

    def __call__(self, z):
        model = imr.Linear(self.theta[...], self.bias[...], beta=0.7)
        return z + 0.1 * imr.closed_field(imr.feature_loss(model, None))(0.0, z)


def test_a_module_of_flax_builds_its_model_where_it_is_called():
    p = linear()
    module = Head(p.theta, p.bias)

    def by_hand(theta, bias):
        moved = p.z - 0.1 * 0.7 * imr.cross_attention(p.z, theta, bias, beta=0.7)
        return jnp.sum(moved**2)

    @nnx.jit
    def gradient(module):
        return nnx.grad(lambda m: jnp.sum(m(p.z) ** 2))(module)

    found = gradient(module)
    theta, bias = jax.jit(jax.grad(by_hand, argnums=(0, 1)))(p.theta, p.bias)
    assert error(found.theta[...], theta) <= 1e-12
    assert error(found.bias[...], bias) <= 1e-12
    module.theta[...] = 2 * module.theta[...]
    assert np.abs(np.asarray(gradient(module).theta[...]) - np.asarray(theta)).max() > 1e-3
