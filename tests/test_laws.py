"""Models x laws: each row of the table is a model with its targets, each test a law of all rows.

A loss is a pytree, so that one jitted function serves every row, and a program is compiled once for
a row: seeds and beta are values.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import export
from jax.experimental.sparse import BCOO
from jax.flatten_util import ravel_pytree

import imr
from tests.problems import TIGHT, TIMES, central_difference, error, linear

# Targets: (random, n, m, where) -> what imr takes, and the dense matrix that it stands for


def labels(random, n, m, where):
    columns = np.argmax(random.uniform(0.1, 1, (n, m)) * where, axis=1)
    return jnp.asarray(columns), np.eye(m)[columns]


def pointers(random, n, m, where):
    columns, dense = labels(random, n, m, where)
    return imr.pointers(columns), dense


def soft(random, n, m, where):
    dense = random.uniform(0.1, 1, (n, m)) * where
    dense /= dense.sum(axis=1, keepdims=True)
    return jnp.asarray(dense), dense


def low_rank(random, n, m, where):
    left, right = random.dirichlet(np.ones(2), n), random.dirichlet(np.ones(m), 2).T
    return imr.LowRankTargets(jnp.asarray(left), jnp.asarray(right)), left @ right.T


def same_class(random, n, m, where):
    y = random.permutation(np.arange(n) % 2)
    dense = (y[:, None] == y[None, :]) / np.bincount(y)[y][:, None]
    return imr.same_class_targets(jnp.asarray(y), 2), dense


def sparse(random, n, m, where):
    """Two entries a row."""
    columns = np.stack([random.permutation(m)[:2] for _ in range(n)])
    weights = random.dirichlet(np.ones(2), n)
    dense = np.zeros((n, m))
    np.put_along_axis(dense, columns, weights, axis=1)
    indices = np.stack([np.repeat(np.arange(n), 2), columns.ravel()], axis=1)
    return BCOO((jnp.asarray(weights.ravel()), jnp.asarray(indices)), shape=(n, m)), dense


def nothing(random, n, m, where):
    return None, None


# Models: (random, f, k, beta) -> a model


def normal(random, *shape, scale=1.0):
    return jnp.asarray(scale * random.normal(size=shape))


def plain(random, f, k, beta):
    return imr.Linear(normal(random, k, f), None, beta)


def biased(random, f, k, beta):
    return imr.Linear(normal(random, k, f), normal(random, k), beta)


def latent(random, f, k, beta, biased=False):
    """Three prototypes of the first class, one of each other."""
    bias = normal(random, k + 2) if biased else None
    return imr.Latent(normal(random, k + 2, f), np.array([0, 0, *range(k)]), bias, beta)


def latent_biased(random, f, k, beta):
    return latent(random, f, k, beta, biased=True)


def cubic(random, f, k, beta):
    return imr.Polynomial(normal(random, k, f, scale=0.5), 3, None, beta)


def parabola(random, f, k, beta):
    return imr.Polynomial(normal(random, k, f, scale=0.5), 2, normal(random, k), beta)


def symmetric(random, f, k, beta):
    return imr.Quadratic(normal(random, f, min(2, f), scale=0.6), None, beta)


def query_key(random, f, k, beta):
    return imr.Quadratic(*normal(random, 2, f, min(2, f), scale=0.6), beta)


def heads(random, f, k, beta):
    return imr.Quadratic(*normal(random, 2, 3, f, 2, scale=0.6), beta)


def symmetric_heads(random, f, k, beta):
    return imr.Quadratic(normal(random, 3, f, 2, scale=0.6), None, beta)


def full(random, f, k, beta):
    return imr.Quadratic.full(normal(random, f, f, scale=0.4), beta)


class Case(NamedTuple):
    """A row of the table."""

    model: Callable[..., imr.Model]
    targets: Callable[..., Any]
    masked: bool = False
    anchored: bool = False
    sizes: tuple[int, int, int] = (6, 4, 3)  # n, f, k

    def build(self, seed: int, beta: float = 0.8):
        """The loss, features to take it at, and C and the mask as dense matrices."""
        random = np.random.default_rng(seed)
        n, f, k = self.sizes
        z = jnp.asarray(random.normal(size=(n, f)))
        model = self.model(random, f, k, beta)
        m = n if model.square else k
        where = np.ones((n, m), bool)
        if self.masked:
            # Causal for tokens; for classes one is hidden from every second row.
            where = (
                np.tril(where)
                if model.square
                else (np.add.outer(np.arange(n), np.arange(m)) % 4 > 0)
            )
        targets, dense = self.targets(random, n, m, where)
        anchor = (0.4, z[::-1] + 1) if self.anchored else None
        mask = jnp.asarray(where) if self.masked else None
        loss = imr.feature_loss(model, targets, where=mask, anchor=anchor)
        return loss, z, dense, where


CASES = {
    "linear": Case(plain, labels),
    "linear, bias": Case(biased, soft),
    "linear, low rank": Case(biased, low_rank),
    "linear, sparse": Case(plain, sparse),
    "linear, no targets": Case(biased, nothing),
    "linear, mask": Case(biased, soft, masked=True),
    "linear, masked labels": Case(plain, labels, masked=True),
    "linear, anchor": Case(plain, labels, anchored=True),
    "linear, sizes of one": Case(biased, soft, sizes=(1, 1, 1)),
    "linear, one feature": Case(plain, soft, sizes=(2, 1, 5)),
    "linear, one class": Case(biased, soft, sizes=(5, 2, 1)),
    "latent": Case(latent, labels),
    "latent, bias": Case(latent_biased, soft, masked=True),
    "latent, no targets": Case(latent_biased, nothing),
    "polynomial": Case(cubic, labels),
    "polynomial, bias": Case(parabola, soft),
    "polynomial, mask": Case(parabola, low_rank, anchored=True),
    "symmetric": Case(symmetric, same_class),
    "symmetric, causal": Case(symmetric, soft, masked=True),
    "symmetric, two tokens": Case(symmetric, same_class, sizes=(2, 2, 2)),
    "query and key": Case(query_key, same_class),
    "query and key, pointers": Case(query_key, pointers),
    "query and key, sparse": Case(query_key, sparse),
    "query and key, causal": Case(query_key, soft, masked=True),
    "query and key, no targets": Case(query_key, nothing, anchored=True),
    "heads": Case(heads, same_class),
    "heads, causal": Case(heads, pointers, masked=True),
    "heads, symmetric": Case(symmetric_heads, low_rank),
    "full": Case(full, soft),
    "full, causal": Case(full, pointers, masked=True),
    "full, no targets": Case(full, nothing),
}  # fmt: skip


def rows(*by_default, of=CASES):
    """The names of the rows as parameters; all but a few have the mark `laws`."""
    assert set(by_default) <= set(of)
    return [n if n in by_default else pytest.param(n, marks=pytest.mark.laws) for n in of]


# A smaller seed is no simpler: failures are not shrunk.
drawn = settings(
    max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
seeds, betas = st.integers(0, 10**6), st.floats(0.2, 3.0)


# The formulas on paper, in numpy: losses and descents of Theorems 1 and 2 and of the Lemma


def on_paper(model, z, dense, where):
    """The cross-entropy and minus its gradient, written out with whole matrices."""
    beta = float(model.beta)
    if isinstance(model, imr.Quadratic):
        q = np.asarray(model.q)
        k = np.eye(z.shape[1]) if model.whole else q if model.k is None else np.asarray(model.k)
        losses, slopes = zip(*(on_paper_head(*qk, z, beta, dense, where) for qk in _by_head(q, k)))  # noqa: B905
        return sum(losses), sum(slopes)
    theta = np.asarray(model.theta)
    bias = 0 if model.bias is None else np.asarray(model.bias)
    products = z @ theta.T
    if isinstance(model, imr.Polynomial):
        loss, a = residual(beta * (products**model.degree + bias), dense, where)
        return loss, beta * (a * model.degree * products ** (model.degree - 1)) @ theta
    logits = beta * (products + bias)
    if isinstance(model, imr.Latent):
        group = np.asarray(model.group)
        member = group[:, None] == np.arange(model.num_classes)
        sums = np.exp(logits) @ member
        loss, a = residual(np.log(sums), dense, where)
        return loss, beta * (a[:, group] * np.exp(logits) / sums[:, group]) @ theta
    loss, a = residual(logits, dense, where)
    return loss, beta * a @ theta


def _by_head(q, k):
    return [(q, k)] if q.ndim == 2 else zip(q, k, strict=True)


def on_paper_head(q, k, z, beta, dense, where):
    loss, a = residual(beta * z @ q @ k.T @ z.T, dense, where)
    return loss, beta * (a @ z @ k @ q.T + a.T @ z @ q @ k.T)


def residual(logits, dense, where):
    """The loss, and A = C - softmax(N)."""
    e = np.where(where, np.exp(logits), 0)
    lse, p = np.log(e.sum(axis=1)), e / e.sum(axis=1, keepdims=True)
    if dense is None:
        return lse.sum(), -p
    return (lse - (dense * logits).sum(axis=1)).sum(), dense - p


# Gradients


@jax.jit
def witnesses(loss, z):
    """The loss; minus its gradient in closed form and by autodiff; central differences."""
    step = 1e-5
    moves = step * jnp.eye(z.size).reshape(-1, *z.shape)
    differences = jax.vmap(lambda e: (loss(z + e) - loss(z - e)) / (2 * step))(moves)
    closed = imr.closed_field(loss)(0.0, z, None)
    return loss(z), closed, imr.gradient_field(loss)(0.0, z, None), -differences.reshape(z.shape)


@pytest.mark.parametrize(
    "name", rows("linear, bias", "latent", "polynomial, bias", "query and key", "heads, causal", "full")
)  # fmt: skip
@drawn
@given(seeds, betas)
def test_the_closed_field_is_the_gradient(name, seed, beta):
    """Closed form, autodiff, the formula on paper and central differences agree."""
    loss, z, dense, where = CASES[name].build(seed, beta)
    value, closed, autodiff, differences = map(np.asarray, witnesses(loss, z))
    loss_on_paper, slope = on_paper(loss.model, np.asarray(z), dense, where)
    if loss.anchor is not None:
        lam, offset = loss.anchor[0], np.asarray(z - loss.anchor[1])
        loss_on_paper, slope = loss_on_paper + 0.5 * lam * (offset**2).sum(), slope - lam * offset
    scale = max(1.0, abs(slope).max())
    assert abs(value - loss_on_paper) <= 1e-12 * max(1.0, abs(loss_on_paper))
    exact = scale
    if isinstance(loss.model, imr.Linear) and loss.anchor is None and dense is not None:
        exact = abs(np.asarray(dense) @ np.asarray(loss.model.theta)).max()  # the label term
    assert abs(closed - autodiff).max() <= 1e-12 * exact
    assert abs(closed - slope).max() <= 1e-12 * exact
    assert abs(closed - differences).max() <= 1e-6 * scale


# Reduced flows

MODELS = {
    "linear": Case(biased, soft, sizes=(7, 5, 3)),
    "latent": Case(latent, labels, sizes=(6, 8, 3)),
    "polynomial": Case(parabola, labels, sizes=(7, 5, 3)),
    "symmetric": Case(symmetric, same_class, sizes=(7, 5, 3)),
    "query and key": Case(query_key, same_class, sizes=(7, 5, 3)),
    "heads": Case(heads, same_class, sizes=(7, 8, 3)),
}
REDUCED = {
    f"{name}, {spring}{norm}": (name, spring == "anchor, ", norm)
    for name in MODELS
    for spring in ("", "anchor, ")
    for norm in ("coordinates", "features")
    # Of models of rows the linear one has all four, the others two that cover both.
    if name not in ("latent", "polynomial") or (spring == "") == (norm == "coordinates")
}


def block_of(loss):
    """Rows of a square model's softmax at a time, so that tiles and strips take part in the laws."""
    return 3 if loss.model.square and loss.model.q.ndim == 2 else None


@jax.jit
def solved(loss, z):
    return imr.solve(imr.gradient_field(loss), z, loss=loss, t1=2.0, ts=TIMES, **TIGHT)


@jax.jit(static_argnames="norm")
def solved_reduced(loss, z, norm):
    block = block_of(loss)
    return imr.solve_reduced(loss, z, t1=2.0, ts=TIMES, norm=norm, block=block, **TIGHT)


@pytest.mark.parametrize("name", rows(of=REDUCED))
@settings(drawn, max_examples=2)
@given(seeds, st.floats(0.5, 1.0))
def test_the_reduced_flow_is_the_full_one(name, seed, beta):
    model, anchored, norm = REDUCED[name]
    loss, z, *_ = MODELS[model]._replace(anchored=anchored).build(seed, beta)
    full, reduced = solved(loss, z), solved_reduced(loss, z, norm)
    assert full.converged
    assert reduced.converged
    for field in ("z", "zs", "loss", "grad_norm"):
        assert error(getattr(reduced, field), getattr(full, field)) <= 1e-9, field
    assert (np.diff(full.loss) < 0).all()
    assert (np.diff(reduced.loss) < 0).all()


# Gradients of flows: to every leaf of the loss and to the start


def pulled_back(flow):
    """The gradient of a weighted sum of the end's squares to all floating leaves of loss and z."""

    @jax.jit
    def gradient(loss, z, weights):
        def end(parameters):
            return jnp.sum(weights * flow(*parameters) ** 2)

        return eqx.filter_grad(end)((loss, z))

    return gradient


@pulled_back
def full_gradient(loss, z):
    return imr.solve(imr.closed_field(loss), z, t1=1.0, **TIGHT).z


@pulled_back
def reduced_gradient(loss, z):
    return imr.solve_reduced(loss, z, t1=1.0, block=block_of(loss), **TIGHT).z


@pulled_back
def reduced_gradient_in_features(loss, z):
    return imr.solve_reduced(loss, z, t1=1.0, norm="features", **TIGHT).z


@pytest.mark.laws
@pytest.mark.parametrize("name", [name for name in MODELS if name != "heads"])
def test_the_gradients_of_the_reduced_flow_are_those_of_the_full_one(name):
    """To theta, bias, beta, targets and z0 where they are there."""
    loss, z, *_ = MODELS[name].build(5)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=z.shape))
    full, reduced = full_gradient(loss, z, weights), reduced_gradient(loss, z, weights)
    pairs = list(zip(jax.tree.leaves(reduced), jax.tree.leaves(full), strict=True))
    assert len(pairs) >= 3
    for a, b in pairs:
        assert error(a, b) <= 1e-9


@pytest.mark.laws
def test_the_gradients_of_the_anchored_flow_in_the_norm_of_features():
    loss, z, *_ = MODELS["linear"]._replace(anchored=True).build(5)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=z.shape))
    full, reduced = full_gradient(loss, z, weights), reduced_gradient_in_features(loss, z, weights)
    for a, b in zip(jax.tree.leaves(reduced), jax.tree.leaves(full), strict=True):
        assert error(a, b) <= 1e-9


@pytest.mark.laws
def test_gradients_of_the_reduced_flow_to_start_and_targets():
    loss, z, *_ = Case(plain, soft, sizes=(5, 4, 3)).build(0, 1.0)

    def objective(parameters):
        weights, z = parameters
        targets = weights / weights.sum(axis=1, keepdims=True)  # other rows become NaN
        replaced = imr.feature_loss(loss.model, targets)
        return jnp.sum(imr.solve_reduced(replaced, z, t1=1.0, **TIGHT).z ** 2)

    at = (2 * loss.targets, z)
    for found, wanted in zip(
        jax.jit(jax.grad(objective))(at), differences(objective, at), strict=True
    ):
        assert error(found, wanted) <= 1e-6


def differences(function, at):
    """Central differences of a function of a pytree, in one program."""
    flat, unravel = ravel_pytree(at)
    return unravel(jax.jit(lambda x: central_difference(lambda x: function(unravel(x)), x))(flat))


# Adjoints

ADJOINTS = {
    "checkpoints": None,
    "direct": dfx.DirectAdjoint(),
    "backsolve": dfx.BacksolveAdjoint(),
    "steady": "steady",
}


class Relaxed(nnx.Module):
    """Holds theta as a parameter and builds the model where it is called."""

    def __init__(self, theta):
        self.theta = nnx.Param(theta)

    def __call__(self, p, adjoint):
        return end_of_flow(self.theta[...], p, adjoint)


def end_of_flow(theta, p, adjoint):
    """The end of an anchored flow, whose theta is a leaf of the field."""
    loss = imr.feature_loss(imr.Linear(theta), p.labels, anchor=(0.5, p.z))
    field = imr.closed_field(loss)
    if adjoint == "steady":
        return imr.solve_to_steady_state(field, p.z, rtol=1e-12, atol=1e-12).z
    return imr.solve(field, p.z, t1=1.0, adjoint=adjoint, **TIGHT).z


@pytest.fixture(scope="module")
def end_differences():
    """By central differences, at t = 1 or at the steady state: what all adjoints must find."""
    p = linear(5, 4)

    @cache
    def of(adjoint):
        return differences(lambda theta: jnp.sum(end_of_flow(theta, p, adjoint) ** 3), p.theta)

    return of


@pytest.mark.laws
@pytest.mark.parametrize("through", ["leaf", "nnx"])
@pytest.mark.parametrize("name", ADJOINTS)
def test_every_adjoint_delivers_the_gradient_of_theta(name, through, end_differences):
    p, adjoint = linear(5, 4), ADJOINTS[name]

    def by_leaf(theta):
        return jnp.sum(end_of_flow(theta, p, adjoint) ** 3)

    def by_module(module):
        return jnp.sum(module(p, adjoint) ** 3)

    if through == "leaf":
        gradient = jax.jit(jax.grad(by_leaf))(p.theta)
    else:
        gradient = nnx.jit(nnx.grad(by_module))(Relaxed(p.theta)).theta[...]
    assert error(gradient, end_differences("steady" if name == "steady" else None)) <= 1e-6


# Lowering and compilation

SIZES = (7, 5, 3)


def attend(t, z, theta):
    return -imr.cross_attention(z, theta)


def decay(t, z, theta):
    return -z


def autodiff_flow(p):
    loss = imr.feature_loss(imr.Linear(p.theta, None, p.beta), p.labels)
    return imr.solve(imr.gradient_field(loss), p.z, t1=1.0, ts=TIMES / 2)


def split_flow(p):
    return imr.solve((attend, decay), p.z, t1=1.0, dt0=0.25, args=p.theta)


def reduced_flow(p):
    loss = imr.feature_loss(imr.Linear(p.theta, None, p.beta), p.labels)
    return imr.solve_reduced(loss, p.z, t1=1.0, ts=TIMES / 2)


def latent_flow(p):
    model = imr.Latent(p.theta, np.array([0, 0, 1]), None, p.beta)
    return imr.solve_reduced(imr.feature_loss(model, p.labels % 2), p.z, t1=1.0)


def anchored_flow(p):
    model = imr.Polynomial(p.theta, 2, None, p.beta)
    loss = imr.feature_loss(model, p.labels, anchor=(0.1, p.z))
    return imr.solve_reduced(loss, p.z, t1=1.0, norm="features")


def quadratic_flow(p):
    loss = imr.feature_loss(
        imr.Quadratic(p.theta.T, None, p.beta), imr.same_class_targets(p.labels, 3)
    )
    return imr.solve_reduced(loss, p.z, t1=1.0, block=3)


def steady_state(p):
    model = imr.Linear(p.theta, None, p.beta)
    loss = imr.feature_loss(model, p.labels, anchor=(0.5, jnp.ones_like(p.z)))
    return imr.solve_to_steady_state(imr.closed_field(loss), p.z)


FLOWS = {
    "solve": autodiff_flow,
    "solve of a split field": split_flow,
    "reduced, linear": reduced_flow,
    "reduced, latent": latent_flow,
    "reduced, polynomial with anchor": anchored_flow,
    "reduced, quadratic": quadratic_flow,
    "steady": steady_state,
}


class Values(NamedTuple):
    """What differs from call to call."""

    z: Any
    theta: Any
    labels: Any
    beta: Any

    @classmethod
    def drawn(cls, seed):
        p = linear(*SIZES, seed=seed)
        return cls(p.z, 0.5 * p.theta, p.labels, 0.5 + 0.1 * seed)


@pytest.mark.parametrize("name", rows("reduced, linear", of=FLOWS))
def test_other_values_compile_nothing(name):
    """Nothing at all: neither the solve, nor what is measured after it, nor the checks before."""
    compiled, counts = [], []

    def count(event, *rest, **more):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for seed in range(3):
            values = Values.drawn(seed)
            before = len(compiled)
            jax.block_until_ready(FLOWS[name](values))
            counts.append(len(compiled) - before)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert counts[0] > 0
    assert counts[2] == 0


def lowered(function, *args):
    exported = export.export(jax.jit(function), platforms=["tpu", "cuda", "cpu"])(*args)
    return exported.platforms


@pytest.mark.laws
@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_and_its_gradient_lower_for_tpu_cuda_and_cpu(name):
    def value_and_gradient(z, theta, labels, beta):
        def end(theta):
            return FLOWS[name](Values(z, theta, labels, beta)).z

        return end(theta), jax.grad(lambda theta: jnp.sum(end(theta) ** 2))(theta)

    values = Values.drawn(0)._replace(beta=jnp.asarray(0.5))
    assert lowered(value_and_gradient, *values) == ("tpu", "cuda", "cpu")


@pytest.mark.parametrize("name", rows("query and key", of=CASES))
def test_every_loss_and_its_fields_lower_for_tpu_cuda_and_cpu(name):
    loss, z, *_ = CASES[name].build(0)
    leaves, tree = jax.tree.flatten(loss)

    def values(leaves, z):
        loss = jax.tree.unflatten(tree, leaves)
        return loss(z), imr.closed_field(loss)(0.0, z), imr.gradient_field(loss)(0.0, z)

    assert lowered(values, leaves, z) == ("tpu", "cuda", "cpu")


# Many models at once


@pytest.mark.laws
@pytest.mark.parametrize("name", MODELS)
def test_vmap_over_models_is_one_by_one(name):
    """Models, targets, starts and betas stacked leaf by leaf; steps are those of each alone."""
    built = [MODELS[name].build(seed, 0.6 + 0.1 * seed)[:2] for seed in range(3)]
    losses, starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *built)

    def solve(loss, z):
        options = {**TIGHT, "solver": dfx.Dopri8()} if name == "linear" else TIGHT
        return imr.solve_reduced(loss, z, t1=1.0, **options)

    flows = jax.jit(jax.vmap(solve))(losses, starts)
    assert flows.converged.all()
    alone = jax.jit(lambda loss, z: imr.solve_reduced(loss, z, t1=1.0, **TIGHT))
    for i, (loss, z) in enumerate(built):
        assert error(flows.z[i], alone(loss, z).z) <= 1e-9
