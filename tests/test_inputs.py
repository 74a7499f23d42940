"""What flows and models may be given: precisions, lists, times backwards, numbers that change."""

import os
import subprocess
import sys
from functools import partial

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import imr
from tests.problems import error, linear, projections

CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def loss_of(p, dtype=None, **options):
    return imr.feature_loss(imr.Linear(p.theta.astype(dtype or p.theta.dtype)), p.labels, **options)


def decay(t, z, args):
    return -z


# Precisions: the state has that of z0, float32 at least, and the result that of z0


@pytest.mark.parametrize(
    ("half", "other"),
    [
        pytest.param("bfloat16", "float64", marks=pytest.mark.laws),
        pytest.param("float16", "bfloat16", marks=pytest.mark.acceptance),
    ],
)
def test_half_precision_is_float32_on_the_way(half, other):
    p = linear()
    z, loss = p.z.astype(half), loss_of(p, other, anchor=(0.5, p.z.astype(half)))
    exact = imr.solve_reduced(loss, z.astype(float), t1=1.0, **CLOSE)
    flow = imr.solve(imr.closed_field(loss), z, t1=1.0, loss=loss, ts=[0.5, 1.0])
    reduced = imr.solve_reduced(loss, z, t1=1.0, ts=[0.5, 1.0])
    for found in (flow, reduced):
        assert (found.z.dtype, found.zs.dtype) == (half, half)
        assert (found.ts.dtype, found.loss.dtype, found.grad_norm.dtype) == (jnp.float32,) * 3
        # z is what float32 would give, rounded once; the loss is not rounded at all.
        assert error(found.z.astype(float), exact.z) <= 0.6 * float(jnp.finfo(half).eps)
        assert error(found.loss[1:], exact.loss) <= 1e-4


@pytest.mark.acceptance
def test_a_steady_state_of_half_precision():
    p = linear()
    z = p.z.astype(jnp.float16)
    field = imr.closed_field(loss_of(p, anchor=(0.5, z)))
    steady = imr.solve_to_steady_state(field, z)
    assert steady.z.dtype == jnp.float16
    exact = imr.solve_to_steady_state(field, z.astype(float), **CLOSE)
    assert error(steady.z.astype(float), exact.z) <= 1e-3


@pytest.mark.acceptance
@pytest.mark.parametrize(("of_z", "of_theta"), [("float32", "float64"), ("float64", "float32")])
def test_parameters_of_another_precision(of_z, of_theta):
    p = linear()
    z, loss = p.z.astype(of_z), loss_of(p, of_theta)
    exact = imr.solve_reduced(loss_of(p), p.z, t1=1.0, **CLOSE).z
    for flow in (
        imr.solve(imr.gradient_field(loss), z, t1=1.0),
        imr.solve_reduced(loss, z, t1=1.0),
    ):
        assert flow.z.dtype == of_z
        assert error(flow.z, exact) <= 1e-4


@pytest.mark.acceptance
def test_steps_keep_the_precision_of_z():
    p = linear()
    fields = imr.split_fields(loss_of(p))
    exact = imr.lie_step(fields, p.z, 0.1)
    for dtype in ("float32", "bfloat16"):
        for step in (imr.lie_step, imr.strang_step):
            assert step(fields, p.z.astype(dtype), jnp.asarray(0.1)).dtype == dtype
        z = imr.lie_step(fields, p.z.astype(dtype), 0.1)
        assert error(z.astype(float), exact) <= 2 * float(jnp.finfo(dtype).eps)


@pytest.mark.acceptance
def test_weak_and_mixed_states():
    """Python's numbers, and leaves of two precisions in one tree."""
    weak = jnp.full((1, 1), 1.0)
    assert weak.weak_type
    assert (
        abs(imr.solve(decay, weak, t1=1.0, rtol=1e-12, atol=1e-12).z.item() - np.exp(-1)) <= 1e-11
    )
    flow = imr.solve(decay, [[1.0, 2.0]], t1=1.0)
    np.testing.assert_allclose(flow.z, [[np.exp(-1), 2 * np.exp(-1)]], rtol=1e-4)

    def both(t, state, args):
        return {"a": -state["a"], "b": -state["b"].astype(jnp.float32)}

    state = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2)}
    flow = imr.solve(both, state, t1=1.0, **CLOSE)
    assert (flow.z["a"].dtype, flow.z["b"].dtype) == (jnp.float16, jnp.float64)
    np.testing.assert_allclose(flow.z["b"], np.exp(-1), rtol=1e-6)


@pytest.mark.acceptance
def test_what_a_half_cannot_hold_is_no_success():
    def grow(t, z, args):
        return z

    flow = imr.solve(grow, jnp.full((1, 1), 5e4, jnp.float16), t1=1.0, throw=False)
    assert flow.result == imr.Result.DIVERGED
    assert not flow.converged


@pytest.mark.acceptance
def test_a_loss_that_is_not_finite_is_no_success():
    flow = imr.solve(decay, jnp.ones((1, 1)), t1=1.0, loss=lambda z: jnp.log(-z).sum(), throw=False)
    assert flow.result == imr.Result.DIVERGED
    assert np.exp(-1) == pytest.approx(flow.z.item(), rel=1e-4)


@pytest.mark.acceptance
def test_labels_of_a_narrow_type_are_labels():
    """uint8 beside 256 columns or more, which it cannot count."""
    theta = jnp.asarray(np.random.default_rng(0).normal(size=(300, 5)))
    wide = jnp.arange(7) * 36
    losses = [
        imr.solve_reduced(imr.feature_loss(imr.Linear(theta), labels), linear().z, t1=1.0).loss
        for labels in (wide, wide.astype(jnp.uint8))
    ]
    assert jnp.isfinite(losses[0]).all()
    np.testing.assert_array_equal(*losses)


# Times


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param("coordinates", marks=pytest.mark.laws),
        pytest.param("features", marks=pytest.mark.acceptance),
    ],
)
def test_forward_and_backward_is_where_it_started(norm):
    p = linear()
    loss = loss_of(p, anchor=(0.3, p.z + 1))
    options = {"norm": norm, "rtol": 1e-10, "atol": 1e-10}
    there = imr.solve_reduced(loss, p.z, t1=2.0, ts=[0.5, 2.0], **options)
    back = imr.solve_reduced(loss, there.z, t0=2.0, t1=0.0, ts=[0.5, 0.0], **options)
    assert error(back.z, p.z) <= 1e-7
    assert error(back.zs[0], there.zs[0]) <= 1e-7
    assert back.ts.tolist() == [0.5, 0.0]


@pytest.mark.acceptance
def test_backward_by_adaptive_constant_and_split_steps():
    p = linear()
    loss = loss_of(p)
    field, parts = imr.closed_field(loss), imr.split_fields(loss)
    steps = {"dt0": 0.002}
    for fields, options in (
        (field, CLOSE),
        (field, {**steps, "solver": dfx.Dopri5()}),
        (parts, steps),
    ):
        there = imr.solve(fields, p.z, t1=1.0, **options)
        back = imr.solve(fields, there.z, t0=1.0, t1=0.0, **options)
        assert error(back.z, p.z) <= 1e-5
        assert error(back.z, there.z) > 1e-2  # the control
    assert abs(imr.depth_is_time(parts, p.z, t0=1.0, t1=0.5).order - 1) <= 0.1


@pytest.mark.laws
def test_times_that_a_rounding_has_moved():
    """The last of linspace(0, 0.1 * 3) lies after 0.3, and 0.3 of float32 after that of float64."""
    z = jnp.ones((1, 1))
    ts = np.linspace(0, 0.1 * 3, 4)
    assert ts[-1] > 0.3
    run = jax.jit(lambda z, t1, ts: imr.solve(decay, z, t1=t1, ts=ts))
    for times in (ts, ts.astype(np.float32)):
        assert imr.solve(decay, z, t1=0.3, ts=times).ts[-1] == 0.3
        assert run(z, 0.3, times).converged
    assert run(z, 0.3, ts + 1e-4).result == imr.Result.BAD_TIMES  # the control
    assert imr.solve(decay, z.astype(jnp.float32), t1=jnp.float32(0.3), ts=ts).converged


# Derivatives of the default adjoint


@pytest.mark.parametrize(
    "reduced",
    [
        pytest.param(False, marks=pytest.mark.laws),
        pytest.param(True, marks=pytest.mark.acceptance),
    ],
)
def test_derivatives_that_the_default_adjoint_has_not(reduced):
    p = linear()

    def end(theta):
        loss = imr.feature_loss(imr.Linear(theta), p.labels)
        if reduced:
            return imr.solve_reduced(loss, p.z, t1=1.0).z.sum()
        return imr.solve(imr.closed_field(loss), p.z, t1=1.0).z.sum()

    def twice(theta):
        return jax.grad(lambda x: jax.grad(end)(x).sum())(theta)

    def along(theta):
        return jax.jvp(end, (theta,), (theta,))

    words = r"once, in reverse mode.*adjoint=diffrax.ForwardMode\(\).*adjoint=diffrax.DirectAdjoint"
    for derivative in (along, jax.jacfwd(end), jax.hessian(end), twice):
        with pytest.raises(imr.ImrError, match=words):
            jax.jit(derivative).lower(p.theta)
    jax.eval_shape(jax.grad(lambda thetas: jax.vmap(end)(thetas).sum()), p.theta[None])
    jax.eval_shape(jax.vmap(jax.grad(end)), p.theta[None])


ADJOINTS = {
    "default": None,
    "backsolve": dfx.BacksolveAdjoint(),
    "forward": dfx.ForwardMode(),
    "direct": dfx.DirectAdjoint(),
}
AT, ALONG = jnp.array([0.7, 1.2, 0.1, 0.9, 0.5]), jnp.array([0.3, -0.2, 0.5, 0.7, -0.4])


def derivative(kind, function):
    def along(function):
        return lambda x: jax.jvp(function, (x,), (ALONG,))[1]

    def slope(x):
        return jax.grad(function)(x) @ ALONG

    return {
        "forward": along(function),
        "reverse": jax.grad(function),
        "forward over forward": along(along(function)),
        "reverse over reverse": jax.grad(slope),
        "forward over reverse": along(jax.grad(function)),
        "reverse over forward": jax.grad(along(function)),
    }[kind]


def ends(adjoint, x):
    """By a field that closes over its rate; start, times and the time asked for are traced too."""

    def field(t, z, args):
        return -x[0] * z**2 * (1 + t)

    flow = imr.solve(
        field, x[1:2], t0=x[2], t1=x[3], ts=x[4:5], adjoint=adjoint, max_steps=16, rtol=1e-7,
        atol=1e-9,
    )  # fmt: skip
    return flow.z.sum() + 2 * flow.zs.sum()


def ends_on_paper(x):
    """1 / z grows by the rate times the integral of 1 + t."""

    def end(t):
        return 1 / (1 / x[1] + x[0] * (t + t**2 / 2 - x[2] - x[2] ** 2 / 2))

    return end(x[3]) + 2 * end(x[4])


KINDS = (
    "forward", "reverse", "forward over forward", "reverse over reverse", "forward over reverse",
    "reverse over forward",
)  # fmt: skip
HAS = {
    "default": ["reverse"],
    "backsolve": ["reverse"],
    "forward": ["forward", "forward over forward"],
    "direct": KINDS,
}


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ADJOINTS)
def test_every_derivative_is_right_or_refused(name):
    end = partial(ends, ADJOINTS[name])
    for kind in KINDS:
        actual = jax.jit(derivative(kind, end))
        if kind in HAS[name]:
            assert error(actual(AT), derivative(kind, ends_on_paper)(AT)) < 1e-5
        else:
            with pytest.raises(imr.ImrError, match=r"can be differentiated.*diffrax.DirectAdjoint"):
                actual.lower(AT)


@pytest.mark.laws
def test_a_closure_is_differentiated_as_its_parameters_are():
    for kind in ("forward", "reverse over reverse", "forward over reverse"):
        with pytest.raises(imr.ImrError, match="once, in reverse mode"):
            jax.jit(derivative(kind, partial(ends, None))).lower(AT)


@pytest.mark.laws
def test_steady_states_are_differentiated_in_reverse_as_often_as_wished():
    """z + z^3 = a has dz/da = 1 / (1 + 3 z^2), and d^2z/da^2 = -6 z (dz/da)^3."""

    def limit(a):
        return imr.solve_to_steady_state(
            lambda t, z, a: a - z - z**3, jnp.zeros(()), args=a, rtol=1e-12, atol=1e-12
        ).z

    a = jnp.asarray(2.0)  # z = 1
    slope, curvature = jax.jit(lambda a: jax.value_and_grad(jax.grad(limit))(a))(a)
    assert abs(slope - 1 / 4) < 1e-11
    assert abs(curvature + 6 / 4**3) < 1e-11
    for derivative in (jax.jacfwd(limit), jax.hessian(limit)):
        with pytest.raises(imr.ImrError, match=r"jax.jacrev.*adjoint=diffrax.ForwardMode\(\)"):
            jax.jit(derivative).lower(a)


# Numbers are leaves


def compilations(run):
    """How many programs a call compiles."""
    count = 0

    def listen(name, seconds, **options):
        nonlocal count
        count += name == "/jax/core/compile/backend_compile_duration"

    monitoring.register_event_duration_secs_listener(listen)
    try:
        run()
    finally:
        monitoring.unregister_event_duration_listener(listen)
    return count


def total_square(z, theta):
    return 0.01 * jnp.sum(imr.Linear(theta)(z) ** 2)


def logits(z, theta):
    return imr.Linear(theta)(z)


def push(t, z, args):
    return args["pull"] - z


def flows_of(kind, p, x):
    """A flow with x in every number that it takes."""
    loss = imr.feature_loss(imr.Linear(p.theta, beta=x), p.labels.tolist(), anchor=(0.1 * x, p.z))
    if kind == "solve":
        return imr.solve(
            push, p.z, t0=0.1 * x, t1=x, args={"pull": x}, rtol=1e-4 * x, atol=1e-6 * x
        )
    if kind == "reduced":
        return imr.solve_reduced(loss, p.z, t0=0.1 * x, t1=x, rtol=1e-4 * x, ts=[0.5 * x])
    if kind == "steady":
        return imr.solve_to_steady_state(imr.closed_field(loss), p.z, rtol=1e-3 * x)
    if kind == "joint":
        field = imr.joint_field(total_square, decay=(0.1 * x, 0.2), rates=(x, 1.0))
        return imr.solve(field, (p.z, p.theta), t1=x)
    if kind == "path":
        path = imr.linear_path([0.0, x], jnp.stack([p.theta, -p.theta]))
        return imr.solve(imr.path_field(logits, path, p.labels, anchor=(0.1 * x, p.z)), p.z, t1=x)
    return imr.solve(imr.split_fields(loss), p.z, t1=x, dt0=0.3)


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["solve", "reduced", "steady", "joint", "path", "split"])
def test_other_numbers_compile_nothing(kind):
    p = linear()
    assert compilations(lambda: flows_of(kind, p, 1.0)) > 0  # the control
    assert compilations(lambda: [flows_of(kind, p, x) for x in (1.1, 1.2)]) == 0


_MANY = """
import gc, os
from tests.test_inputs import flows_of
from tests.problems import linear

def megabytes():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

p = linear()
for kind in ("solve", "reduced"):
    for i in range(100):
        flows_of(kind, p, 1 + i / 1e4)
    before = megabytes()
    for i in range(2000):
        flows_of(kind, p, 1 + i / 1e4)
    print(megabytes() - before)
"""

_SHAPES = (
    _MANY.partition("for kind")[0]
    + """
import sys
import jax

def mappings():
    return sum(1 for _ in open("/proc/self/maps"))

kind, count = sys.argv[1], int(sys.argv[2])
for n in range(3):
    flows_of(kind, linear(n=100 + n), 1.0)
before = megabytes(), mappings()
for n in range(count):
    flows_of(kind, linear(n=10 + n), 1.0)
print((megabytes() - before[0]) / count, (mappings() - before[1]) / count)
jax.clear_caches()
print(mappings() / before[1])
"""
)


@pytest.mark.acceptance
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_two_thousand_solves_of_one_shape_leave_no_memory_behind():
    done = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = [float(line) for line in done.stdout.split()]
    assert len(grown) == 2
    assert max(grown) < 5


@pytest.mark.acceptance
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["solve", "reduced"])
def test_each_shape_keeps_its_program_and_no_more(kind):
    """IMR_TEST_SHAPES=200 takes so many; what one weighs is told (-rP) and stands in the flows' README.

    Of reduced flows half as many: 200 come to what Linux allows a process. `jax.clear_caches` gives it
    back.
    """
    asked = int(os.environ.get("IMR_TEST_SHAPES", "0"))
    count = str(
        max(10, asked // (1 if kind == "solve" else 2))
    )  # over fewer, one arena weighs much
    command = [sys.executable, "-W", "ignore", "-c", _SHAPES, kind, count]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    megabytes, mappings, kept = map(float, done.stdout.split())
    print(f"{kind}, {count} shapes: {megabytes:.1f} MB and {mappings:.0f} mappings each")
    assert megabytes < 40
    assert mappings < 400
    assert kept < 1.1


# Scales


@pytest.mark.acceptance
@pytest.mark.parametrize("norm", ["coordinates", "features"])
def test_reduced_flows_at_all_scales_of_theta_are_those_of_solve(norm):
    """238 problems, theta of 1e-4 to 1e4: within 2 % of how far the features moved, and 10 tolerances."""
    n, f, k = 5, 4, 3

    def ends(theta, z, labels, t1):
        loss = imr.feature_loss(imr.Linear(theta), labels)
        exact = imr.solve(imr.closed_field(loss), z, t1=t1, rtol=1e-10, atol=1e-13, max_steps=2**17)
        return exact, imr.solve_reduced(loss, z, t1=t1, norm=norm, max_steps=2**15)

    compiled, random = jax.jit(ends), np.random.default_rng(1)
    for _ in range(238):
        of_theta, of_z, t1 = 10 ** random.uniform([-4, -2, -2], [4, 1, 1])
        theta, z = of_theta * random.normal(size=(k, f)), of_z * random.normal(size=(n, f))
        exact, flow = compiled(theta, z, jnp.asarray(random.integers(0, k, n)), t1)
        assert exact.converged
        assert flow.converged
        moved = np.linalg.norm(exact.z - z)
        tolerance = 1e-5 * np.linalg.norm(z) + 1e-7 * np.sqrt(z.size)
        assert np.linalg.norm(flow.z - exact.z) <= 0.02 * moved + 10 * tolerance, (
            of_theta,
            of_z,
            t1,
        )


@pytest.mark.acceptance
def test_equal_rows_of_theta_have_a_norm_of_zero_and_a_gradient():
    """All classes alike: the field is zero, and rounding must not make its norm a root of less."""
    p = linear()

    def norm(theta, targets):
        loss = imr.feature_loss(imr.Linear(theta), targets)
        return imr.solve_reduced(loss, p.z, t1=1.0).grad_norm[0]

    theta = jnp.tile(p.theta[:1], (3, 1))
    even = jnp.full((7, 3), 1 / 3)
    value, gradient = jax.value_and_grad(norm)(theta, even)
    assert value <= 1e-14
    assert jnp.isfinite(gradient).all()


@pytest.mark.acceptance
def test_the_empty_and_the_single():
    """No rows, one row, one class: the right result, not an error from inside."""
    theta = jnp.ones((1, 1))
    for n in (0, 1):
        z, labels = jnp.ones((n, 1)), jnp.zeros(n, int)
        loss = imr.feature_loss(imr.Linear(theta), labels)
        assert imr.closed_field(loss)(0.0, z).shape == (n, 1)
        np.testing.assert_array_equal(imr.lie_step([imr.closed_field(loss)], z, 0.1), z)


@pytest.mark.acceptance
def test_flows_of_no_rows():
    z, none = jnp.zeros((0, 3)), jnp.zeros(0, int)
    linear, square = imr.Linear(jnp.ones((2, 3))), imr.Quadratic(jnp.ones((3, 2)))
    for loss in (imr.feature_loss(linear, none), imr.feature_loss(square, imr.pointers(none))):
        for flow in (
            imr.solve(imr.closed_field(loss), z, t1=1.0, loss=loss),
            imr.solve_reduced(loss, z, t1=1.0),
        ):
            assert flow.converged
            assert flow.z.shape == (0, 3)
            assert (flow.loss.tolist(), flow.grad_norm.tolist()) == ([0.0], [0.0])


# Array-likes of numbers are taken, anything else is refused by name


@pytest.mark.acceptance
@pytest.mark.usefixtures("unchecked")
def test_lists_of_numbers_are_arrays():
    z, theta = [[1.0, 2.0]], [[1, 0], [0.0, 1.0]]
    array = jnp.array(z)
    models = (
        imr.Linear(theta, [0, 1], 2), imr.Latent(theta, [0, 1], [0.0, 1.0]),
        imr.Polynomial([[1, 2]], 2), imr.Quadratic([[1], [2]]), imr.Quadratic.full(theta),
    )  # fmt: skip
    for model in models:
        np.testing.assert_array_equal(model(z), model(array))
        loss = imr.feature_loss(model, None, anchor=(1, z))
        np.testing.assert_array_equal(loss(z), loss(array))
        np.testing.assert_array_equal(
            imr.closed_field(loss)(0.0, z), imr.closed_field(loss)(0.0, array)
        )
    assert imr.linear_path([0, 2], [1.0, 3.0])(0.5).item() == 1.5


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    @pytest.mark.parametrize(
        ("z0", "words"),
        [
            (np.ones((7, 5), int), "z0? must be a floating array; found dtype int"),
            ("features", "z0? must be an array of numbers; found 'features'"),
            ([["a"]], "z0? must be an array of numbers; found"),
            (None, "z0? must (hold one or more arrays|be an array of numbers); found None"),
            ({}, "z0? must (hold one or more arrays|be an array of numbers); found {}"),
            (np.ones((7, 5), complex), "z0? must hold real numbers; found dtype complex"),
        ],
    )
    def test_states(self, z0, words):
        for solve in (
            lambda: imr.solve(decay, z0, t1=1.0),
            lambda: imr.solve_to_steady_state(decay, z0),
            lambda: imr.depth_is_time([decay], z0, t1=1.0),
            lambda: imr.lie_step([decay], z0, 0.1),
            lambda: imr.solve_reduced(loss_of(self.p), z0, t1=1.0),
        ):
            with pytest.raises(imr.ImrError, match=words):
                solve()

    def test_slopes(self):
        with pytest.raises(imr.ImrError, match="field must return real numbers"):
            imr.solve(lambda t, z, args: 1j * z, jnp.ones(2), t1=1.0)

    def test_models(self):
        theta = self.p.theta
        for words, call in {
            "theta must be an array of numbers; found 'a'": lambda: imr.Linear("a"),
            r"theta must be an array of numbers; found \[\[1, 2\], \[3\]\]": lambda: imr.Linear(
                [[1, 2], [3]]
            ),
            r"theta must have shape \(k, f\); found shape \(\)": lambda: imr.Linear(2.0),
            r"theta must have one or more rows; found shape \(0, 5\)": lambda: imr.Linear(
                theta[:0]
            ),
            "theta must have one or more rows": lambda: imr.Latent(theta[:0], []),
            "theta must hold real numbers": lambda: imr.Polynomial(1j * theta, 2),
            "bias must be an array of numbers; found": lambda: imr.Linear(theta, ["a", "b", "c"]),
            "beta must be an array of numbers; found 'one'": lambda: imr.Linear(theta, beta="one"),
            r"beta must have shape \(\)": lambda: imr.Linear(theta, beta=[1.0, 2.0]),
            "group must be an array of numbers": lambda: imr.Latent(theta, "abc"),
            "q must be an array of numbers": lambda: imr.Quadratic("q"),
            "k must be a floating array": lambda: imr.Quadratic(theta.T, jnp.ones((5, 3), int)),
            "z must be an array of numbers; found 'z'": lambda: imr.Linear(theta)("z"),
        }.items():
            with pytest.raises(imr.ImrError, match=words):
                call()

    def test_anchors(self):
        p = self.p
        for words, anchor in {
            r"anchor's lam must have shape \(\); found shape \(2,\)": ([1.0, 2.0], p.z),
            "anchor's lam must be finite": (jnp.nan, p.z),
            "anchor's lam must be an array of numbers": ("a", p.z),
            "anchor's x must be an array of numbers": (1.0, "x"),
            "anchor's x must be finite": (1.0, p.z * jnp.inf),
        }.items():
            with pytest.raises(imr.ImrError, match=words):
                imr.feature_loss(imr.Linear(p.theta), p.labels, anchor=anchor)

    def test_moving_fields(self):
        for words, call in {
            "ts must be an array of numbers": lambda: imr.linear_path("ab", jnp.ones((2, 1))),
            "ts must hold one or more times": lambda: imr.linear_path(
                jnp.zeros(0), jnp.ones((0, 1))
            ),
            "ts must increase": lambda: imr.linear_path([1.0, 0.0], jnp.ones((2, 1))),
            "values must have a leading axis of knots": lambda: imr.linear_path([0.0], 1.0),
            "values must be an array of numbers": lambda: imr.linear_path([0.0], ["a"]),
            "values has 3 knots": lambda: imr.linear_path([0.0, 1.0], jnp.ones((3, 1))),
            "decay must be a pair of numbers": lambda: imr.joint_field(total_square, decay=0.1),
            "rates must be an array of numbers": lambda: imr.joint_field(
                total_square, rates=("a", 1)
            ),
            r"loss must be callable as loss\(z, theta\)": lambda: imr.joint_field(3),
        }.items():
            with pytest.raises(imr.ImrError, match=words):
                call()

    def test_both_parts_of_a_split_check_the_mask(self):
        where = jnp.ones((7, 4), bool)  # for four classes, of which there are three
        for field in imr.split_fields(loss_of(self.p, where=where)):
            with pytest.raises(imr.ImrError, match="where must have the shape of the logits"):
                field(0.0, self.p.z, None)

    def test_random_streams(self):
        for make in (
            lambda: imr.nn.MLP(3, 4, rngs=0),
            lambda: imr.nn.Block(3, 2, rngs=0),
            lambda: imr.nn.FlowBlock(3, 2, rngs=None),
            lambda: imr.nn.Transformer(3, 4, rngs=jax.random.key(0)),
            lambda: imr.nn.Classifier(num_features=3, num_classes=2, iterations=1, rngs=0),
        ):
            with pytest.raises(imr.ImrError, match=r"rngs must be made by flax.nnx.Rngs"):
                make()


def test_a_traced_group_out_of_range_is_nan():
    theta, z = jnp.eye(3), jnp.ones((2, 3))
    logits_of = jax.jit(lambda group: imr.Latent(theta, group, num_classes=2)(z))
    assert jnp.isfinite(logits_of(jnp.array([0, 0, 1]))).all()
    for bad in (-1, 2):
        assert jnp.isnan(logits_of(jnp.array([0, bad, 1]))).any()


def test_a_span_is_optional():
    """None on the protocol; a model that names one says what else it needs."""
    p, (q, _) = linear(), projections()

    class Named(imr.Model):
        def __call__(self, z):
            return z

        def span(self):
            return p.theta

    class Bare(imr.Model):
        def __call__(self, z):
            return z

    assert Bare().span() is None
    assert imr.Quadratic(q).span().shape == (2, 5)
    for model in (Bare(), Named()):
        with pytest.raises(
            imr.ImrError, match="span, logits and pullback, or of SpanModel: span, d"
        ):
            imr.solve_reduced(imr.feature_loss(model, None), p.z, t1=1.0)
