"""In-context learning as functional gradient descent: each statement against its proof by numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problems import TIGHT, error

import imr
from imr.context import (
    attention_dynamics,
    context_field,
    curvature_filter,
    diffusion_kernel,
    exponential_kernel,
    gradient_step_weights,
    kernel_regression,
    linear_kernel,
    linear_self_attention,
    normalised_kernel,
    squared_flow,
)

N, P, D, K = 9, 3, 4, 3
GD_PLUS_PLUS = np.array([0.3, 0.4, 0.5]), np.array([0.1, 0.2, 0.05])  # steps and curvature
LABELLED = np.arange(N) < 6


class Context:
    """Covariates, latents, class embeddings; labels of unlabelled tokens are no labels."""

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        self.x, self.f, self.w = (random.normal(size=s) for s in ((N, P), (N, D), (K, D)))
        self.labels = np.where(LABELLED, random.integers(0, K, N), -1)
        self.values = random.normal(size=(N, 2))
        self.loss = imr.feature_loss(imr.Linear(jnp.asarray(self.w)), jnp.asarray(self.labels))

    def residual(self, f):
        """M (C - softmax(f W^T)), in numpy."""
        logits = f @ self.w.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return np.where(LABELLED[:, None], np.eye(K)[self.labels] - p, 0)


C = Context()
KERNELS = {
    "linear": (linear_kernel(jnp.asarray(C.x)), C.x @ C.x.T),
    "exponential": (
        exponential_kernel(jnp.asarray(C.x), 0.5, block=4),
        np.exp(0.5 * C.x @ C.x.T),
    ),
    "dense": (
        jnp.asarray(np.exp(-0.5 * ((C.x[:, None] - C.x[None]) ** 2).sum(axis=2))),
        np.exp(-0.5 * ((C.x[:, None] - C.x[None]) ** 2).sum(axis=2)),
    ),
}


@pytest.mark.laws
@pytest.mark.parametrize("name", KERNELS)
def test_the_field_is_the_gradient_in_function_space(name):
    """-K times the gradient of the labelled loss, and the loss falls by the gradient's norm there."""
    kernel, dense = KERNELS[name]
    field = context_field(C.loss, kernel, LABELLED, ridge=0.3)
    slope = field(0.0, jnp.asarray(C.f))
    assert error(slope, dense @ (C.residual(C.f) @ C.w) - 0.3 * C.f) < 1e-12

    def labelled_loss(f):
        losses = imr.cross_entropy(f @ C.w.T, np.where(LABELLED, C.labels, 0))
        return jnp.sum(jnp.where(LABELLED, losses, 0))

    loss, gradient = jax.value_and_grad(labelled_loss)(jnp.asarray(C.f))
    assert error(slope, -dense @ gradient - 0.3 * C.f) < 1e-12
    free = context_field(C.loss, kernel, LABELLED)(0.0, jnp.asarray(C.f))
    falls = jax.jvp(labelled_loss, (jnp.asarray(C.f),), (free,))[1]
    assert abs(falls + np.sum(gradient * (dense @ gradient))) < 1e-12 * abs(falls)
    assert loss > 0


@pytest.mark.laws
def test_the_kernel_of_one_is_the_flow_of_the_features():
    """Every token its own example: cross-attention and its label term."""
    everyone = np.full(N, True)
    labels = jnp.asarray(np.where(LABELLED, C.labels, 0))
    loss = imr.feature_loss(C.loss.model, labels)
    field = context_field(loss, jnp.eye(N), everyone)
    f = jnp.asarray(C.f)
    assert error(field(0.0, f), imr.closed_field(loss)(0.0, f)) < 1e-14


def test_one_step_from_zero_is_one_linear_attention_layer():
    """Values (C - 1/k) W, keys and queries the covariates."""
    field = context_field(C.loss, linear_kernel(jnp.asarray(C.x)), LABELLED)
    values = np.where(LABELLED[:, None], np.eye(K)[C.labels] - 1 / K, 0) @ C.w
    assert error(field(0.0, jnp.zeros((N, D))), C.x @ (C.x.T @ values)) < 1e-13


@pytest.mark.laws
def test_the_flow_of_theta_seen_at_the_query():
    """With W = 1 and the linear kernel, the latents of X theta^T move as theta's gradient flow does."""
    theta = np.random.default_rng(3).normal(size=(K, P))
    x, labels = jnp.asarray(C.x), jnp.asarray(C.labels)
    loss = imr.feature_loss(imr.Linear(jnp.eye(K)), labels)
    slope = context_field(loss, linear_kernel(x), LABELLED)(0.0, jnp.asarray(C.x @ theta.T))

    def of_theta(theta):
        losses = imr.cross_entropy(x[LABELLED] @ theta.T, labels[LABELLED])
        return jnp.sum(losses)

    assert error(slope, -x @ jax.grad(of_theta)(jnp.asarray(theta)).T) < 1e-13


@pytest.mark.laws
def test_softmax_attention_is_a_flow_of_the_weighted_loss():
    """Weights K / d; the plain loss may rise: a hub and fifty leaves of the other class."""
    kernel, weights = normalised_kernel(KERNELS["dense"][0], LABELLED)
    field = context_field(C.loss, kernel, LABELLED, weights=weights)
    dense = KERNELS["dense"][1]
    attention = dense * LABELLED / (dense * LABELLED).sum(axis=1, keepdims=True)
    f = jnp.asarray(C.f)
    assert error(field(0.0, f), attention @ (C.residual(C.f) @ C.w)) < 1e-13

    n, c = 51, 0.14  # the least eigenvalue of this star is 1 - c sqrt(50) > 0
    star = np.eye(n)
    star[0, 1:] = star[1:, 0] = c
    labels, everyone = jnp.asarray(np.minimum(np.arange(n), 1)), np.full(n, True)
    loss = imr.feature_loss(imr.Linear(jnp.eye(2)), labels)
    kernel, weights = normalised_kernel(jnp.asarray(star))
    field = context_field(loss, kernel, everyone, weights=weights)
    at = jnp.where(jnp.arange(n)[:, None] == 0, 0.0, jnp.array([[0.0, 3.0]]))

    def rate(weights):
        def weighted(f):
            return jnp.sum(weights * imr.cross_entropy(f, labels))

        return jax.jvp(weighted, (at,), (field(0.0, at),))[1]

    assert rate(weights) < 0
    assert rate(jnp.ones(n)) > 0.01


@pytest.mark.laws
@pytest.mark.parametrize("ridge", [0.0, 0.4])
def test_the_squared_flow_is_a_filter(ridge):
    """The closed form against diffrax, and its limit against kernel ridge regression."""
    kernel, dense = KERNELS["dense"]
    y = jnp.asarray(C.values)

    def field(t, f, args):
        return dense @ jnp.where(LABELLED[:, None], y - f, 0) - ridge * f

    flow = imr.solve(field, jnp.zeros_like(y), t1=2.0, **TIGHT)
    assert error(squared_flow(kernel, y, LABELLED, 2.0, ridge), flow.z) < 1e-9
    if ridge:
        among = dense[np.ix_(LABELLED, LABELLED)]
        fit = np.linalg.solve(among + ridge * np.eye(len(among)), C.values[LABELLED])
        late = squared_flow(kernel, y, LABELLED, jnp.inf, ridge)
        assert error(late, dense[:, LABELLED] @ fit) < 1e-12


@pytest.mark.laws
@pytest.mark.parametrize("labelled", [LABELLED, np.full(N, True)])
def test_derivatives_of_the_squared_flow_where_eigenvalues_coincide(labelled):
    """Against central differences; a kernel of rank 3, so that several eigenvalues are 0."""
    x, y = jnp.asarray(C.x[:, :3]), jnp.asarray(C.values)
    assert np.linalg.matrix_rank(C.x[:, :3]) == 3

    @jax.jit
    def value(scales, t):
        x_scale, y_scale, more, ridge = scales
        factor = linear_kernel(x + x_scale * jnp.cos(jnp.arange(x.size)).reshape(x.shape))
        return jnp.sin(squared_flow(factor, y + y_scale * y**2, labelled, t + more, ridge)).sum()

    slopes = jax.jit(jax.grad(value))
    for t in (1e-3, 2.0, jnp.inf):
        for ridge in (0.0, 0.4):
            at = np.array([0.0, 0.0, 0.0, ridge])
            found = slopes(jnp.asarray(at), t)
            for i in range(4):
                # Without a ridge one below 0 is none, and at infinity any above 0 is another rank.
                if i == 3 and ridge == 0:
                    continue
                near, far = (
                    value(jnp.asarray(at + h), t) - value(jnp.asarray(at - h), t)
                    for h in (1e-4 * np.eye(4)[i], 2e-4 * np.eye(4)[i])
                )
                central = (8 * near - far) / 12e-4  # of fourth order
                assert abs(found[i] - central) < 1e-8 * (1 + abs(central)), (t, ridge, i)
    k = x @ x.T
    slope = jax.grad(lambda k: squared_flow(k, y, labelled, 2.0).sum())(k)
    assert jnp.isfinite(slope).all()
    exact = jnp.linalg.pinv(k[np.ix_(labelled, labelled)], hermitian=True) @ y[labelled]
    assert error(squared_flow(k, y, labelled, jnp.inf), k[:, labelled] @ exact) < 1e-10


@pytest.mark.laws
def test_ridge_ends_in_kernel_multinomial_regression():
    """ridge B = C - softmax at the end, as scikit-learn's optimum on the factor of K."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    ridge, k = 0.5, KERNELS["dense"][1]
    loss = imr.feature_loss(imr.Linear(jnp.eye(K)), jnp.asarray(C.labels))
    field = context_field(loss, jnp.asarray(k), LABELLED, ridge)
    end = imr.solve_to_steady_state(field, jnp.zeros((N, K)), rtol=1e-12, atol=1e-12).z
    p = np.asarray(jax.nn.softmax(end, axis=1))
    b = np.where(LABELLED[:, None], np.eye(K)[C.labels] - p, 0) / ridge
    assert error(end, k @ b) < 1e-8
    root = np.linalg.cholesky(k[np.ix_(LABELLED, LABELLED)])
    found = linear_model.LogisticRegression(
        C=1 / ridge, fit_intercept=False, tol=1e-12, max_iter=10_000
    ).fit(root, C.labels[LABELLED])
    assert error(p[LABELLED], found.predict_proba(root)) < 1e-6
    fit = kernel_regression(loss, k, LABELLED, ridge, tol=1e-24)
    assert error(fit.z, end) < 1e-9
    assert error(fit.coefficients, b) < 1e-8


def test_layers_of_linear_attention_are_steps_of_gradient_descent():
    """Five layers and five steps; a query among its own keys is another function from layer 2 on."""
    x, y, eta, examples = C.x, C.values, 0.2, LABELLED.sum()
    tokens = jnp.asarray(np.hstack([x, np.where(LABELLED[:, None], y, 0)]))
    weights = gradient_step_weights(P, 2, eta)
    w, wrong = np.zeros((2, P)), tokens
    for _ in range(5):
        w += eta / examples * (y - x @ w.T)[LABELLED].T @ x[LABELLED]
        tokens = linear_self_attention(tokens, weights, jnp.asarray(LABELLED))
        wrong = linear_self_attention(wrong, weights, jnp.ones(N, bool))
    assert error(-tokens[~LABELLED, P:], x[~LABELLED] @ w.T) < 1e-13
    assert error(-wrong[~LABELLED, P:], x[~LABELLED] @ w.T) > 1e-2


def test_curvature_correction_filters_the_spectrum():
    """GD++ on the examples themselves, in the eigenbasis of X X^T / N."""
    x, (steps, curvature) = C.x[LABELLED], GD_PLUS_PLUS
    spectrum, vectors = np.linalg.eigh(x @ x.T / len(x))
    y = residual = C.values[LABELLED]
    for eta, gamma in zip(steps, curvature, strict=True):
        residual = residual - eta * x @ (x.T @ residual) / len(x)
        x = x - gamma * x @ (x.T @ x) / len(x)
    gain = curvature_filter(*map(jnp.asarray, (spectrum, steps, curvature)))
    assert error(vectors @ (gain[:, None] * (vectors.T @ y)), residual) < 1e-13


@nnx.jit
def predict(net, x, y, labelled, *choices):
    """Predictions of a net, with the exact weights if there are choices."""
    if choices:
        net.gradient_steps(*choices)
    return net(x, y, labelled)


@pytest.mark.laws
@pytest.mark.parametrize("rank", [None, P])
def test_a_linear_net_corrects_curvature(rank):
    """Three layers and the filter, merged or separate keys and queries; another function without it."""
    x, (steps, curvature) = C.x[LABELLED], GD_PLUS_PLUS
    spectrum, vectors = np.linalg.eigh(x @ x.T / len(x))
    y = C.values[LABELLED]
    gain = np.asarray(curvature_filter(*map(jnp.asarray, (spectrum, steps, curvature))))
    wanted = y - vectors @ (gain[:, None] * (vectors.T @ y))
    net = imr.nn.LinearSelfAttention(P, 2, layers=3, rank=rank, rngs=nnx.Rngs(0))
    given = jnp.asarray(C.x), jnp.asarray(C.values), LABELLED, jnp.asarray(steps)
    assert error(predict(net, *given, jnp.asarray(curvature))[LABELLED], wanted) < 1e-12
    assert error(predict(net, *given, jnp.zeros(3))[LABELLED], wanted) > 1e-2


@pytest.mark.laws
@pytest.mark.parametrize("rank", [None, P + 1])
def test_causal_layers_take_steps_on_the_examples_before_each_token(rank):
    """Merged or separate keys and queries, two heads, tied; labels that come later change nothing."""
    eta, x, y = 0.2, C.x, C.values
    net = imr.nn.LinearSelfAttention(
        P, 2, layers=3, heads=2, rank=rank, tied=True, causal=True, rngs=nnx.Rngs(0)
    )
    known = np.arange(N) % 4 != 1
    found = predict(net, jnp.asarray(x), np.where(known[:, None], y, np.nan), known, eta)
    wanted = np.zeros((N, 2))
    for i in range(1, N):
        before = known & (np.arange(N) < i)
        w = np.zeros((2, P))
        for _ in range(3):
            w += eta / before.sum() * (y - x @ w.T)[before].T @ x[before]
        wanted[i] = w @ x[i]
    assert error(found, wanted) < 1e-12
    other = np.where(np.arange(N)[:, None] < 5, y, 7.0)
    later = predict(net, jnp.asarray(x), other, known, eta)
    assert error(later[:6], wanted[:6]) < 1e-12
    assert error(later, wanted) > 1e-2


@pytest.mark.laws
def test_every_weight_of_a_linear_net_learns():
    """From random weights: a batch of contexts of different sizes under jit, vmap and grad."""
    net = imr.nn.LinearSelfAttention(
        P, 2, layers=2, rank=2, causal=True, scale=1.0, rngs=nnx.Rngs(1)
    )
    x, y = np.stack([C.x, C.x[::-1]]), np.stack([C.values] * 2)
    masks = np.stack([np.arange(N) < m for m in (3, 6)])

    def total(net):
        found = jax.vmap(net)(jnp.asarray(x), jnp.asarray(y), masks)
        return jnp.sum(jnp.sin(found)), found

    gradients, found = nnx.jit(nnx.grad(total, has_aux=True))(net)
    assert error(found[1], predict(net, jnp.asarray(x[1]), y[1], masks[1])) < 1e-13
    leaves = jax.tree.leaves(gradients)
    assert len(leaves) == 3
    assert all(np.abs(g).max() > 1e-6 for g in leaves)


@pytest.mark.laws
def test_modes_of_equal_weight_rise_as_a_logistic():
    """From balanced values u^2 is logistic, of rate 2 sqrt(d) s^2 and height s / (sqrt(d) q)."""
    d, s, examples, u0, t = 4, 0.7, 10, 0.01, 5.0
    field = attention_dynamics(jnp.full(d, s), examples)
    start = jnp.asarray(np.full(d, u0)), jnp.asarray(np.float64(d**0.5 * u0))
    u, v = imr.solve(field, start, t1=t, **TIGHT).z
    q = s**2 * (1 + 1 / examples) + s * d * s / examples
    height, rate = s / (d**0.5 * q), 2 * d**0.5 * s**2
    logistic = height / (1 + (height / u0**2 - 1) * np.exp(-rate * t))
    assert error(u**2, np.full(d, logistic)) < 1e-8
    assert abs(v**2 - np.sum(u**2)) < 1e-9


@pytest.mark.laws
def test_contexts_of_different_sizes_in_one_program():
    """A batch of masks, labels and kernels under jit and vmap, one by one, and its gradient."""
    masks = np.stack([np.arange(N) < m for m in (3, 6)])
    labels = np.where(masks, np.maximum(C.labels, 0), -1)
    x = jnp.asarray(np.stack([C.x, C.x[::-1]]))

    @jax.jit
    def all_of_them(x, labels, masks):
        def one(x, labels, mask):
            loss = imr.feature_loss(C.loss.model, labels)
            return context_field(loss, linear_kernel(x), mask, 0.1)(0.0, jnp.asarray(C.f))

        return jax.vmap(one)(x, labels, masks)

    found = all_of_them(x, labels, masks)
    for i in range(2):
        loss = imr.feature_loss(C.loss.model, jnp.asarray(labels[i]))
        one = context_field(loss, linear_kernel(x[i]), masks[i], 0.1)
        assert error(found[i], one(0.0, jnp.asarray(C.f))) < 1e-13

    def total(x):
        return jnp.sum(jnp.sin(all_of_them(x, labels, masks)))

    moved = np.random.default_rng(1).normal(size=x.shape)
    slope = np.sum(np.asarray(jax.grad(total)(x)) * moved)
    step = 1e-6 * moved
    assert abs(slope - (total(x + step) - total(x - step)) / 2e-6) < 1e-7 * abs(slope)


@pytest.mark.laws
@pytest.mark.parametrize("kind", ["softmax", "exponential", "linear"])
def test_a_context_block_is_steps_of_the_flow(kind):
    """Euler steps of the field in the kernel of projected covariates; every parameter has a gradient."""
    random = np.random.default_rng(5)
    block = imr.nn.ContextBlock(P, K, layers=3, rank=2, kernel=kind, tau=0.4, ridge=0.2)
    block.projection[...] = jnp.asarray(random.normal(size=(P, 2)))
    block.theta[...] = jnp.asarray(random.normal(size=(K, K)))
    x, labels = jnp.asarray(C.x), jnp.asarray(C.labels)
    y, weights = x @ block.projection[...], None
    if kind == "softmax":
        kernel, weights = normalised_kernel(exponential_kernel(y), LABELLED)
    elif kind == "exponential":
        kernel = exponential_kernel(y, distance=True)
    else:
        kernel = linear_kernel(y / LABELLED.sum() ** 0.5)
    loss = imr.feature_loss(imr.Linear(block.theta[...]), labels)
    field = context_field(loss, kernel, LABELLED, 0.2, weights=weights)
    f = jnp.zeros((N, K))
    for _ in range(3):
        f = f + 0.4 * field(0.0, f)
    assert error(block(x, labels, LABELLED), f @ block.theta[...].T) < 1e-13

    def total(block):
        return jnp.sum(jnp.sin(block(x, labels, LABELLED)))

    gradients = jax.tree.leaves(nnx.grad(total)(block))
    assert len(gradients) == 4
    assert all(jnp.abs(g).max() > 1e-6 for g in gradients)


def test_diffusion_spreads_along_paths():
    """Two clusters: the diffusion kernel reaches within, and hardly beyond."""
    chain = np.eye(6) + np.eye(6, k=1) * 0.5 + np.eye(6, k=-1) * 0.5
    chain[2, 3] = chain[3, 2] = 0.0
    spread = diffusion_kernel(jnp.asarray(chain), 0.9).matrix()
    assert error(spread, spread.T) == 0
    assert spread[0, 2] > 0.1
    assert abs(spread[0, 3]) < 1e-12
    chain[5] = chain[:, 5] = 0.0  # similar to nothing
    alone = diffusion_kernel(jnp.asarray(chain), 0.9).matrix()
    assert error(alone[5], np.eye(6)[5]) == 0
    assert error(alone[:3, :3], spread[:3, :3]) < 1e-12


@pytest.mark.laws
def test_labels_of_other_tokens_are_never_read():
    """Any integer, and of dense targets NaN: to the bit what other labels give."""
    f, kernel = jnp.asarray(C.f), KERNELS["dense"][0]
    block = imr.nn.ContextBlock(P, K, layers=2, kernel="exponential")

    def found(targets):
        loss = imr.feature_loss(C.loss.model, jnp.asarray(targets))
        yield context_field(loss, kernel, LABELLED)(0.0, f)
        if np.ndim(targets) == 1:
            yield block(jnp.asarray(C.x), targets, LABELLED)
            yield kernel_regression(loss, kernel, LABELLED, 0.5).z

    dense = np.where(LABELLED[:, None], np.eye(K)[C.labels], np.nan)
    for targets, other in ((C.labels, K), (C.labels, 2**31 - 1), (dense, 7.0)):
        known = LABELLED if np.ndim(targets) == 1 else LABELLED[:, None]
        changed = np.where(known, targets, other)
        for a, b in zip(found(targets), found(changed), strict=True):
            assert np.isfinite(a).all()
            assert (a == b).all()


@pytest.mark.laws
def test_a_class_without_an_example_only_falls():
    labels = jnp.asarray(np.where(LABELLED, C.labels % (K - 1), -1))
    loss, kernel = imr.feature_loss(C.loss.model, labels), KERNELS["dense"][0]
    slope = context_field(loss, kernel, LABELLED)(0.0, jnp.zeros((N, D)))
    toward = jnp.linalg.solve(C.w @ C.w.T, C.w @ slope.T)  # the share of each class
    assert (toward[-1] < 0).all()
    fit = kernel_regression(loss, kernel, LABELLED, 0.5)
    assert fit.converged
    assert (fit.coefficients[LABELLED, -1] < 0).all()
    block = imr.nn.ContextBlock(P, K, layers=2, kernel="exponential")
    assert (block(jnp.asarray(C.x), labels, LABELLED)[:, -1] < 0).all()


class TestErrors:
    @pytest.mark.laws
    def test_a_query_is_no_key(self):
        """It would have to be labelled, and has neither a label nor a value."""
        everyone, x = np.full(N, True), jnp.asarray(C.x)
        for call in (
            lambda: context_field(C.loss, jnp.eye(N), everyone)(0.0, jnp.asarray(C.f)),
            lambda: kernel_regression(C.loss, jnp.eye(N), everyone, 1.0),
            lambda: imr.nn.ContextBlock(P, K)(x, C.labels, everyone),
        ):
            with pytest.raises(imr.ImrError, match=r"targets\[6\] = -1"):
                call()
        net = imr.nn.LinearSelfAttention(P, 2, rngs=nnx.Rngs(0))
        y = jnp.where(LABELLED[:, None], C.values, jnp.nan)
        with pytest.raises(imr.ImrError, match=r"y of labelled tokens.*first at index \(6, 0\)"):
            net(x, y, everyone)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kernel": np.eye(N) + np.eye(N, k=1)}, "symmetric; found entries that differ by 1"),
            ({"kernel": np.diag([1.0] * (N - 1) + [-2.0])}, "found the eigenvalue -2"),
            ({"kernel": np.eye(N - 1)}, "kernel has 8 tokens, but the context has 9"),
            ({"labelled": np.full(N, False)}, "labelled must leave at least one token"),
            ({"ridge": -1.0}, "ridge must be at least 0"),
        ],
    )
    def test_arguments(self, change, message):
        right = {"loss": C.loss, "kernel": np.eye(N), "labelled": LABELLED}
        with pytest.raises(imr.ImrError, match=message):
            context_field(**{**right, **change})

    def test_a_kernel_that_overflows(self):
        large = exponential_kernel(30 * jnp.ones((2, 1)))
        with pytest.raises(imr.ImrError, match="must be finite; found inf in float64"):
            normalised_kernel(large)

    def test_a_traced_mask_may_be_empty(self):
        x, y = jnp.asarray(C.x), jnp.asarray(C.values)
        net = imr.nn.LinearSelfAttention(P, 2, rngs=nnx.Rngs(0))
        assert (jax.jit(net)(x, y, jnp.full(N, False)) == 0).all()
        block = imr.nn.ContextBlock(P, K, layers=1, kernel="linear")
        labels = jnp.zeros(N, jnp.int32)
        assert (jax.jit(block)(x, labels, jnp.full(N, False)) == 0).all()

    def test_losses(self):
        theta = jnp.asarray(C.w)
        anchored = imr.feature_loss(
            imr.Linear(theta), jnp.asarray(C.labels), anchor=(1.0, jnp.zeros((N, D)))
        )
        square = imr.feature_loss(imr.Quadratic(jnp.eye(D)), None)
        for loss, message in (
            (anchored, "no anchor"),
            (square, "model of rows"),
            (imr.feature_loss(imr.Linear(theta), None), "targets must be given"),
        ):
            with pytest.raises(imr.ImrError, match=message):
                context_field(loss, jnp.eye(N), LABELLED)

    def test_linear_nets(self):
        net = imr.nn.LinearSelfAttention(P, 2, rank=2, rngs=nnx.Rngs(0))
        with pytest.raises(imr.ImrError, match="rank must be at least 3, the length of x"):
            net.gradient_steps(0.1)
        with pytest.raises(imr.ImrError, match="y has 4 outputs, but the net has 2"):
            net(jnp.asarray(C.x), jnp.asarray(C.f), LABELLED)
        with pytest.raises(imr.ImrError, match="curvature changes the keys"):
            gradient_step_weights(P, 2, 0.1, 0.1, causal=True)

    def test_a_label_of_an_example_is_read(self):
        labels = jnp.asarray(np.where(np.arange(N) == 1, K, C.labels))
        field = context_field(imr.feature_loss(C.loss.model, labels), jnp.eye(N), LABELLED)
        with pytest.raises(imr.ImrError, match=r"targets\[1\] = 3"):
            field(0.0, jnp.asarray(C.f))
