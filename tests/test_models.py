"""Models as values: what each computes, the protocol, a model of one's own, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr.flow.fields import ClosedField
from imr.models import RowModel, SpanModel
from tests.problems import error, linear

GROUP = np.array([0, 0, 1, 2, 1, 2])


def projections(f=5, r=2, heads=None, seed=3):
    shape = (2, f, r) if heads is None else (2, heads, f, r)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def log_sum_exp(x, axis):
    return np.log(np.exp(x).sum(axis=axis))


# What each model computes, against numpy


def test_logits_are_their_definitions():
    p, (q, k) = linear(), projections()
    z, theta, bias = (np.asarray(x) for x in (p.z, p.theta, p.bias))
    prototypes = np.random.default_rng(1).normal(size=(6, 5))
    shift = np.random.default_rng(2).normal(size=6)
    sums = [log_sum_exp(0.7 * (z @ prototypes.T + shift)[:, c == GROUP], 1) for c in range(3)]
    pairs = {
        "linear": (imr.Linear(p.theta, p.bias, 0.7), 0.7 * (z @ theta.T + bias)),
        "polynomial": (imr.Polynomial(theta, 3, bias, 0.7), 0.7 * ((z @ theta.T) ** 3 + bias)),
        "latent": (imr.Latent(prototypes, GROUP, shift, 0.7), np.stack(sums, 1)),
        "symmetric": (imr.Quadratic(q, beta=0.7), 0.7 * z @ q @ q.T @ z.T),
        "query, key": (imr.Quadratic(q, k, 0.7), 0.7 * z @ q @ k.T @ z.T),
        "full": (imr.Quadratic.full(q @ k.T, 0.7), 0.7 * z @ q @ k.T @ z.T),
    }
    for name, (model, expected) in pairs.items():
        assert error(model(p.z), expected) <= 1e-14, name
        assert model.square == (expected.shape == (7, 7)), name
    heads = projections(heads=3)
    logits = imr.Quadratic(*heads)(p.z)
    for h in range(3):
        assert error(logits[h], z @ heads[0, h] @ heads[1, h].T @ z.T) <= 1e-14


def test_square_is_a_property_of_the_model_and_not_of_a_shape():
    p = linear(n=3, k=3)
    assert not imr.Linear(p.theta).square
    loss = imr.feature_loss(imr.Linear(p.theta), p.labels)  # as many rows as classes
    assert jnp.isfinite(loss(p.z))


def test_the_probability_of_a_latent_class_is_the_sum_of_its_prototypes():
    p = linear(6, 4, 6)
    labels = jnp.array([0, 1, 2, 2, 1, 0])
    model = imr.Latent(p.theta, GROUP)
    probability = jax.nn.softmax(imr.Linear(p.theta)(p.z))
    of_class = jnp.stack([probability[:, c == GROUP].sum(axis=1) for c in range(3)], axis=1)
    expected = -jnp.log(of_class[jnp.arange(6), labels])
    np.testing.assert_allclose(imr.cross_entropy(model(p.z), labels), expected, rtol=1e-12)
    alone = imr.Latent(p.theta, np.arange(6))
    np.testing.assert_allclose(alone(p.z), imr.Linear(p.theta)(p.z), rtol=1e-13)


@pytest.mark.laws
def test_latent_logits_survive_large_numbers():
    model = imr.Latent(jnp.array([[1.0], [2.0], [-3.0]]), [0, 0, 1])
    np.testing.assert_allclose(model(jnp.array([[1e4]])), [[2e4, -3e4]], rtol=1e-14)
    gradient = jax.grad(lambda z: model(z).sum())(jnp.array([[1e4]]))
    np.testing.assert_allclose(gradient, [[-1.0]], rtol=1e-14)


@pytest.mark.laws
def test_the_label_keeps_its_digits_where_its_probability_is_one():
    """1 - p of the label is the sum of the others: at a margin of 60 it is 9e-27, and not zero."""
    theta = jnp.eye(2)
    for model in (imr.Linear(theta), imr.Latent(theta, [0, 1]), imr.Polynomial(theta, 1)):
        field = imr.closed_field(imr.feature_loss(model, jnp.array([0])))
        slope = field(0.0, jnp.array([[60.0, 0.0]]), None)
        np.testing.assert_allclose(slope, [[np.exp(-60), -np.exp(-60)]], rtol=1e-12)
        plain = model.label_term(jnp.array([[60.0, 0.0]]), imr.as_targets([0]))
        assert (plain - model.attention(jnp.array([[60.0, 0.0]])))[0, 0] == 0  # the control


@pytest.mark.laws
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_precisions(dtype):
    p = linear(40, 16, 10)
    z, theta = p.z.astype(dtype), p.theta.astype(dtype)
    exact = imr.Linear(theta.astype(float)).attention(z.astype(float))
    for attention in (imr.cross_attention(z, theta), imr.Linear(theta).attention(z)):
        assert attention.dtype == dtype
        # Weights and sums of k rows are right to the dtype's precision; float32 inside loses no more.
        assert error(attention.astype(float), exact) <= 8 * float(jnp.finfo(dtype).eps)
    assert imr.Linear(theta, beta=0.5)(z).dtype == dtype


@pytest.mark.laws
def test_the_two_operators_add_up_to_the_flow():
    p, (q, k) = linear(), projections()
    where = jnp.ones((7, 7), bool)
    cases = [
        (imr.Linear(p.theta, p.bias), p.targets, None), (imr.Latent(p.theta, [0, 1, 1]), p.labels % 2, None),
        (imr.Quadratic(q, k), imr.same_class_targets(p.labels), where), (imr.Quadratic(q), None, None),
    ]  # fmt: skip
    for model, targets, mask in cases:
        loss = imr.feature_loss(model, targets, where=mask, anchor=(0.3, p.z + 1))
        attend, label = imr.split_fields(loss)
        both = attend(0.0, p.z, None) + label(0.0, p.z, None)
        assert error(both, imr.closed_field(loss)(0.0, p.z, None)) <= 1e-14


# A model of one's own


class Shifted(RowModel):
    """A polynomial with a bias for each row: N_ic = (theta_c z_i)^p + b_i theta_c0."""

    theta: jax.Array
    bias: jax.Array  # (n,)

    def span(self):
        return self.theta

    def logits(self, y):
        return y**3 + self.theta[:, :1] * self.bias[None]

    def pullback(self, y, a):
        return 3 * y**2 * a


class Distances(imr.Model):
    """Logits that fall with the squared distance from centres."""

    centres: jax.Array

    def __call__(self, z):
        return -0.5 * jnp.sum((z[:, None] - self.centres[None]) ** 2, axis=2)

    def attention(self, z):
        return jax.nn.softmax(self(z)) @ self.centres - z

    def label_term(self, z, targets):
        return targets.mv(self.centres) - z


@pytest.mark.laws
def test_a_model_of_ones_own_has_its_fields_and_its_reduced_flow():
    p = linear()
    shift = jnp.asarray(np.random.default_rng(4).normal(size=7))
    for model in (Shifted(p.theta, shift), Distances(p.theta)):
        loss = imr.feature_loss(model, p.targets)
        by_formula = imr.closed_field(loss)(0.0, p.z, None)
        assert error(by_formula, imr.gradient_field(loss)(0.0, p.z, None)) <= 1e-12
    loss = imr.feature_loss(Shifted(p.theta, shift), p.labels)
    reduced = imr.solve_reduced(loss, p.z, t1=0.2, rtol=1e-10, atol=1e-10)
    full = imr.solve(imr.gradient_field(loss), p.z, t1=0.2, rtol=1e-10, atol=1e-10)
    assert error(reduced.z, full.z) <= 1e-8
    with pytest.raises(imr.ImrError, match=r"Distances has no span.*RowModel"):
        imr.solve_reduced(imr.feature_loss(Distances(p.theta), p.labels), p.z, t1=1.0)


def test_a_bare_callable_works_until_a_closed_form_is_asked_for():
    p = linear()
    loss = imr.feature_loss(lambda z: jnp.tanh(z @ p.theta.T), p.labels)
    assert imr.gradient_field(loss)(0.0, p.z, None).shape == p.z.shape
    words = (
        r"has no closed form.*imr.Model.*attention\(self, z\) and label_term\(self, z, targets\)"
    )
    with pytest.raises(imr.ImrError, match=words):
        imr.closed_field(loss)

    class Half(imr.Model):
        def __call__(self, z):
            return z

    with pytest.raises(imr.ImrError, match=f"Half {words}"):
        imr.closed_field(imr.feature_loss(Half(), p.labels))
    for call in (
        lambda: Half().attention(p.z),
        lambda: Half().label_term(p.z, imr.as_targets(p.labels)),
    ):
        with pytest.raises(imr.ImrError, match="Half has no closed form; implement"):
            call()


# The way from a name to its field


PROTOCOL = (
    "__call__",
    "attention",
    "label_term",
    "descent",
    "span",
    "descent_at",
    "logits",
    "pullback",
)


@pytest.mark.parametrize("model", [imr.Linear, imr.Latent, imr.Polynomial, imr.Quadratic])
def test_the_way_from_a_model_to_its_field_is_short(model):
    methods = [getattr(model, name) for name in PROTOCOL if hasattr(model, name)]
    names = sorted({m.__module__ for m in (*methods, model.__init__, ClosedField.__call__)})
    print(f"\nimr.{model.__name__}: {', '.join(names)}")
    assert len(names) <= 3


# Bad input


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    def test_shapes_name_both(self):
        theta = self.p.theta
        cases = [
            (lambda: imr.Linear(theta[:, :4])(self.p.z), r"z has 5 .* theta has 4"),
            (lambda: imr.cross_attention(self.p.z, theta[:, :4]), r"z has 5 .* theta has 4"),
            (lambda: imr.Linear(theta, self.p.bias[:2]), r"bias has 2 .* theta has 3"),
            (lambda: imr.Linear(theta)(self.p.z[None]), r"z must have shape \(n, f\).*vmap"),
            (lambda: imr.Linear(theta[None]), r"theta must have shape \(k, f\).*vmap"),
            (lambda: imr.Quadratic(jnp.ones((4, 2)))(self.p.z), r"z has 5 features.* q has 4"),
            (lambda: imr.Quadratic.full(jnp.eye(4))(self.p.z), r"z has 5 features.* theta has 4"),
            (lambda: imr.Quadratic.full(jnp.ones((4, 3))), r"theta must have shape \(f, f\)"),
            (lambda: imr.Quadratic(jnp.ones((2, 3))), r"q has rank 3, more than the 2 features"),
            (lambda: imr.Quadratic(jnp.ones(3)), r"q must have shape \(f, r\), or \(h, f, r\)"),
            (
                lambda: imr.Quadratic(jnp.ones((3, 2)), jnp.ones((3, 1))),
                r"k must have the shape of q, \(3, 2\)",
            ),
            (
                lambda: imr.closed_field(imr.feature_loss(imr.Linear(theta), jnp.zeros(6, int)))(
                    0.0, self.p.z, None
                ),
                r"targets has 6 labels, but the logits have 7 rows",
            ),
            (
                lambda: imr.feature_loss(imr.Linear(theta), jnp.ones((7, 4)) / 4)(self.p.z),
                r"shape \(7, 3\) as the logits; found shape \(7, 4\)",
            ),
        ]
        for call, words in cases:
            with pytest.raises(imr.ImrError, match=words):
                call()

    def test_shapes_are_checked_under_a_trace_too(self):
        with pytest.raises(imr.ImrError, match="theta has 4"):
            jax.jit(lambda z, theta: imr.Linear(theta)(z))(self.p.z, self.p.theta[:, :4])

    def test_values(self):
        theta = self.p.theta
        bad = theta.at[1, 2].set(jnp.nan)
        cases = [
            (lambda: imr.Linear(bad), r"theta must be finite; found 1 .* \(1, 2\)"),
            (lambda: imr.Linear(theta, beta=-1), "beta must be positive; found -1"),
            (lambda: imr.Polynomial(theta, 0), "degree must be an integer of at least 1; found 0"),
            (lambda: imr.Polynomial(theta, True), "degree must be an integer"),
            (lambda: imr.Quadratic(theta.T, bad.T), "k must be finite"),
            (
                lambda: imr.Linear(jnp.ones((2, 5), int)),
                "theta must be a floating array; found .*int",
            ),
            (
                lambda: imr.Linear(theta)(jnp.ones((2, 5), int)),
                "z must be a floating array; found dtype int",
            ),
        ]
        for call, words in cases:
            with pytest.raises(imr.ImrError, match=words):
                call()

    def test_groups(self):
        theta = jnp.ones((3, 2))
        cases = [
            (lambda: imr.Latent(theta, [0, 1]), r"group has 2 prototypes.* theta has 3"),
            (lambda: imr.Latent(theta, [0, 0, 2]), "class 1 of 0 to 2 has none"),
            (lambda: imr.Latent(theta, [0, 0, 1], num_classes=3), "class 2 of 0 to 2 has none"),
            (lambda: imr.Latent(theta, [0, 0, 1], num_classes=1), "group must lie in 0 to 0"),
            (lambda: imr.Latent(theta, [-1, 0, 1]), "group must lie in 0 to 1; found -1"),
            (lambda: imr.Latent(theta, [0.0, 0.0, 1.0]), "group must hold integers"),
            (
                lambda: jax.jit(lambda g: imr.Latent(theta, g)(theta))(jnp.array([0, 0, 1])),
                "num_classes must be given if group is traced",
            ),
            (
                lambda: imr.feature_loss(imr.Latent(theta, [0, 0, 1]), jnp.array([2]))(theta[:1]),
                r"0 to 1; found targets\[0\] = 2",
            ),
        ]
        for call, words in cases:
            with pytest.raises(imr.ImrError, match=words):
                call()
        traced = jax.jit(lambda g: imr.Latent(theta, g, num_classes=2)(theta))
        assert error(traced(jnp.array([0, 0, 1])), imr.Latent(theta, [0, 0, 1])(theta)) == 0

    def test_losses(self):
        p, model = self.p, imr.Linear(self.p.theta)
        anchored = imr.feature_loss(model, p.labels, anchor=(1.0, p.z[:2]))
        words = r"anchor's x must have the shape of z, \(7, 5\)"
        for call in (
            lambda: anchored(p.z),
            lambda: imr.closed_field(anchored)(0.0, p.z, None),
            lambda: imr.solve_reduced(anchored, p.z, t1=1.0),
        ):
            with pytest.raises(imr.ImrError, match=words):
                call()
        with pytest.raises(imr.ImrError, match="anchor must be a pair"):
            imr.feature_loss(model, p.labels, anchor=1.0)
        with pytest.raises(imr.ImrError, match=r"model must be callable.*imr.Linear"):
            imr.feature_loss(p.theta, p.labels)
        with pytest.raises(imr.ImrError, match="model must be an instance; found the class Linear"):
            imr.feature_loss(imr.Linear, p.labels)
        with pytest.raises(imr.ImrError, match="loss must be callable"):
            imr.gradient_field(3)
        for door in (imr.closed_field, lambda loss: imr.solve_reduced(loss, p.z, t1=1.0)):
            with pytest.raises(
                imr.ImrError, match=r"must be made by imr.feature_loss; found function"
            ):
                door(lambda z: z.sum())

    def test_keywords_that_have_no_meaning(self):
        p = self.p
        loss = imr.feature_loss(imr.Linear(p.theta), p.labels)
        for name, value in (
            ("mesh", imr.parallel.make_mesh(1)), ("block", 4), ("normalise", "column"),
            ("column_term", False),
        ):  # fmt: skip
            with pytest.raises(imr.ImrError, match=f"{name} has no meaning for Linear"):
                imr.closed_field(loss, **{name: value})
        with pytest.raises(imr.ImrError, match="block has no meaning for Linear"):
            imr.solve_reduced(loss, p.z, t1=1.0, block=4)
        with pytest.raises(imr.ImrError, match="normalise must be one of row, column, double"):
            imr.closed_field(loss, normalise="rows")
        masked = imr.feature_loss(Distances(p.theta), p.labels, where=jnp.ones((7, 3), bool))
        with pytest.raises(imr.ImrError, match=r"Distances.attention takes no mask"):
            imr.closed_field(masked)

    def test_a_whole_theta_has_nothing_to_reduce(self):
        loss = imr.feature_loss(imr.Quadratic.full(jnp.eye(5)), None)
        with pytest.raises(imr.ImrError, match=r"has no span.*imr.solve"):
            imr.solve_reduced(loss, self.p.z, t1=1.0)

    @pytest.mark.parametrize("name", ["linear_flow", "quadratic_field", "linear_logits", "train"])
    def test_old_names_say_the_new_ones(self, name):
        with pytest.raises(AttributeError, match=rf"imr\.{name} is now imr\."):
            getattr(imr, name)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = imr.nothing


def test_the_base_classes_say_what_to_implement():
    with pytest.raises(TypeError, match="abstract"):
        imr.Model()  # pyright: ignore[reportAbstractUsage]
    assert issubclass(RowModel, SpanModel)
    assert issubclass(SpanModel, imr.Model)
