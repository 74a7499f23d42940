"""Reduced coordinates of a context, kernels that are not held, and kernel regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import TIGHT, error
from test_context import KERNELS, LABELLED, C, D, K, N

import imr
from imr.context import (
    context_field,
    exponential_kernel,
    kernel_regression,
    linear_kernel,
    normalised_kernel,
)

DENSE = KERNELS["dense"][1]
LATENT = imr.Latent(
    jnp.asarray(np.random.default_rng(1).normal(size=(5, D))), np.array([0, 1, 2, 0, 1])
)
CASES = {
    "dense, linear": (C.loss.model, jnp.asarray(DENSE)),
    "factor, latent": (LATENT, jnp.asarray(C.x)),
    "wide factor": (C.loss.model, jnp.asarray(np.random.default_rng(2).normal(size=(N, N - 1)))),
    "not held": (C.loss.model, normalised_kernel(KERNELS["exponential"][0]).kernel),
}
ONE, *OTHERS = CASES
TIMES = jnp.array([0.3, 1.0])


def loss_of(model, labels=C.labels):
    return imr.feature_loss(model, jnp.asarray(labels))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(ONE, marks=pytest.mark.laws),
        *(pytest.param(name, marks=pytest.mark.acceptance) for name in OTHERS),
    ],
)
def test_labelled_rows_alone_are_integrated(name):
    """The same features, norms and losses; unlabelled rows follow by K_US K_SS^-1."""
    model, kernel = CASES[name]
    loss, z0, ridge = loss_of(model), jnp.asarray(C.f), 0.3
    flow = imr.solve_reduced(
        loss, z0, t1=1.0, ts=TIMES, kernel=kernel, labelled=LABELLED, ridge=ridge, **TIGHT
    )

    def labelled_loss(z):
        return jnp.sum(imr.cross_entropy(model(z)[:6], C.labels[:6]))

    field = context_field(loss, kernel, LABELLED, ridge)
    full = imr.solve(field, z0, t1=1.0, ts=TIMES, loss=labelled_loss, **TIGHT)
    for found, wanted in (
        (flow.zs, full.zs),
        (flow.loss, full.loss),
        (flow.grad_norm, full.grad_norm),
    ):
        assert error(found, wanted) < 1e-9
    if name == ONE:
        moved = np.asarray(flow.z) - np.exp(-ridge) * C.f
        known = np.linalg.solve(DENSE[:6, :6], moved[:6])
        assert error(moved[6:], DENSE[6:, :6] @ known) < 1e-10


@pytest.mark.acceptance
def test_contexts_of_different_sizes_and_their_gradients():
    """A batch of traced masks; gradients in kernel, start, class weights and ridge are the full flow's."""
    model, kernel = CASES[ONE]
    masks = jnp.asarray(np.stack([np.arange(N) < m for m in (3, 6)]))
    weights = np.random.default_rng(4).normal(size=(N, D))

    def end(solve):
        def one(kernel, z0, theta, ridge, mask):
            loss = loss_of(imr.Linear(theta), jnp.where(mask, np.maximum(C.labels, 0), -1))
            z = solve(loss, kernel, z0, ridge, mask).z
            return jnp.sum(weights * z), z

        each = jax.value_and_grad(one, argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(jax.vmap(each, in_axes=(None, None, None, None, 0)))

    def reduced(loss, kernel, z0, ridge, mask):
        return imr.solve_reduced(
            loss, z0, t1=1.0, kernel=kernel, labelled=mask, ridge=ridge, **TIGHT
        )

    def full(loss, kernel, z0, ridge, mask):
        return imr.solve(context_field(loss, kernel, mask, ridge), z0, t1=1.0, **TIGHT)

    given = kernel, jnp.asarray(C.f), model.theta, jnp.asarray(0.3), masks
    found, wanted = end(reduced)(*given), end(full)(*given)
    assert error(found[0][1], wanted[0][1]) < 1e-9
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        assert error(mine, theirs) < 1e-8
    # A mask that is known gathers: another program, the same numbers.
    gathered = reduced(loss_of(model), kernel, jnp.asarray(C.f), 0.3, LABELLED)
    assert error(gathered.z, found[0][1][1]) < 1e-9


@pytest.mark.acceptance
def test_the_identity_is_the_linear_flow():
    """K = 1, every token its own example; the ridge is an anchor at zero."""
    labels, z0, ridge = np.maximum(C.labels, 0), jnp.asarray(C.f), 0.4
    loss = imr.feature_loss(C.loss.model, jnp.asarray(labels), anchor=(ridge, jnp.zeros_like(z0)))
    linear = imr.solve_reduced(loss, z0, t1=2.0, **TIGHT)
    flow = imr.solve_reduced(
        loss_of(C.loss.model, labels), z0, t1=2.0,
        kernel=jnp.eye(N), labelled=np.full(N, True), ridge=ridge, **TIGHT,
    )  # fmt: skip
    assert error(flow.z, linear.z) < 1e-10
    assert error(flow.grad_norm, linear.grad_norm) < 1e-9


@pytest.mark.acceptance
def test_a_large_kernel_is_never_held():
    """4,096 tokens in blocks of 32 rows: value and gradient of the field take far less than n x n."""
    n = 4096
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 4)))
    labels, labelled = jnp.zeros(n, int), jnp.arange(n) < n // 2

    def total(x, kernel):
        field = context_field(loss_of(imr.Linear(jnp.eye(3)), labels), kernel(x), labelled)
        return jnp.sum(jnp.sin(field(0.0, jnp.zeros((n, 3)))))

    def memory(kernel):
        lowered = jax.jit(jax.grad(lambda x: total(x, kernel))).lower(x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    blocks = memory(lambda x: normalised_kernel(exponential_kernel(x, block=32)).kernel)
    assert blocks < 8 * n * n / 10
    held = memory(lambda x: jnp.exp(x @ x.T))
    assert held > 8 * n * n


@pytest.mark.acceptance
def test_kernel_regression_is_where_the_flow_ends():
    """Theta not square, a bias, a linear kernel, a traced mask; gradients by the implicit function."""
    labels, bias = jnp.asarray(C.labels), np.array([0.3, -0.2, 0.1])
    weights = np.random.default_rng(3).normal(size=(N, D))

    def end(solve, kernel, theta, ridge, mask):
        loss = imr.feature_loss(imr.Linear(theta, jnp.asarray(bias), 1.5), labels)
        z = solve(loss, kernel, mask, ridge).z
        return jnp.sum(weights * z), z

    def by_flow(*context):
        start = jnp.zeros((N, D))
        return imr.solve_to_steady_state(context_field(*context), start, rtol=1e-12, atol=1e-12)

    def directly(*context):
        return kernel_regression(*context, tol=1e-24)

    # Of rank 3: what it does not see of B counts in the derivative all the same.
    given = jnp.asarray(C.x), jnp.asarray(C.w), jnp.asarray(0.3), jnp.asarray(LABELLED)
    (_, wanted), slopes = jax.value_and_grad(end, (1, 2, 3), has_aux=True)(by_flow, *given)
    mine = jax.jit(jax.value_and_grad(lambda *a: end(directly, *a), (0, 1, 2), has_aux=True))
    (_, found), gradients = mine(*given)
    assert error(found, wanted) < 1e-9
    for a, b in zip(gradients, slopes, strict=True):
        assert error(a, b) < 1e-8


@pytest.mark.acceptance
def test_the_gap_of_kernel_regression_is_a_bound():
    """At any tolerance, and over a batch; a ridge near zero takes longer, and still arrives."""
    for ridge in (1.0, 1e-3):
        fits = [
            kernel_regression(loss_of(imr.Linear(jnp.eye(K))), DENSE, LABELLED, ridge, tol=tol)
            for tol in (0.3, 1e-2, 1e-20)
        ]
        best = fits[-1].objective
        assert all(bool(fit.converged) for fit in fits)
        for fit in fits:
            assert fit.objective <= best * (1 + fit.gap) + 1e-12
        assert fits[0].num_steps < fits[-1].num_steps
    stopped = kernel_regression(
        loss_of(imr.Linear(jnp.eye(K))), KERNELS["exponential"][0], LABELLED, 1e-3,
        tol=1e-20, max_steps=2,
    )  # fmt: skip
    assert not stopped.converged
    assert stopped.gap > 1e-20


GIVEN = {"t1": 1.0, "kernel": jnp.eye(N), "labelled": LABELLED}


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"norm": "features"}, "norm does not go with kernel"),
            ({"block": 8}, "block does not go with kernel"),
            ({"mesh": object()}, "mesh does not go with kernel"),
            ({"ridge": -1.0}, "ridge must be at least 0"),
            ({"labelled": None}, "labelled must say which tokens are examples"),
            ({"labelled": np.full(N, False)}, "labelled must leave at least one token"),
            ({"kernel": None}, "labelled and ridge go with kernel"),
            ({"kernel": np.eye(N) + np.eye(N, k=1)}, "found entries that differ by 1"),
            ({"kernel": np.diag([1.0] * (N - 1) + [-2.0])}, "found the eigenvalue -2"),
            ({"kernel": np.ones((N - 1, 2))}, "kernel has 8 tokens, but the context has 9"),
            ({"kernel": linear_kernel(jnp.ones((N - 1, 2)))}, "kernel has 8 tokens"),
        ],
    )
    def test_arguments(self, change, message):
        with pytest.raises(imr.ImrError, match=message):
            imr.solve_reduced(C.loss, jnp.asarray(C.f), **{**GIVEN, **change})

    def test_losses(self):
        z0, labels = jnp.asarray(C.f), jnp.asarray(C.labels)
        anchored = imr.feature_loss(C.loss.model, labels, anchor=(1.0, z0))
        outside = jnp.asarray(np.where(np.arange(N) == 1, K, C.labels))
        for loss, message in (
            (anchored, "no anchor"),
            (imr.feature_loss(imr.Quadratic(jnp.eye(D)), None), "model of rows"),
            (loss_of(C.loss.model, outside), r"targets\[1\] = 3"),
        ):
            with pytest.raises(imr.ImrError, match=message):
                imr.solve_reduced(loss, z0, **GIVEN)

    def test_a_start_of_other_tokens(self, unchecked):
        with pytest.raises(imr.ImrError, match="z0 has 8 tokens, but kernel has 9"):
            imr.solve_reduced(C.loss, jnp.asarray(C.f)[1:], **GIVEN)

    def test_kernel_regression(self):
        for model, ridge, message in (
            (LATENT, 0.1, "must be of an imr.Linear"),
            (C.loss.model, 0.0, "ridge must be positive"),
        ):
            with pytest.raises(imr.ImrError, match=message):
                kernel_regression(loss_of(model), jnp.eye(N), LABELLED, ridge)
