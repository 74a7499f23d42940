"""Solves: closed forms, codes and `throw`, times, noise, constant steps, steady states, bad input.

Fields here are pytrees of one structure, so that tests share their programs.
"""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr.flow import integrate as integration
from tests.problems import TIGHT, TIMES, error, linear, projections


def loss_of(p, targets=None, **options):
    return imr.feature_loss(
        imr.Linear(p.theta), p.labels if targets is None else targets, **options
    )


def field_of(p, targets=None, **options):
    return imr.closed_field(loss_of(p, targets, **options))


def decay(t, z, args):
    return -z


def rise(t, z, args):
    """Infinite at t = 1/e from z = 1."""
    return jnp.exp(z)


def identity(t, z, args):
    return z


# Closed forms


@pytest.mark.acceptance
@pytest.mark.parametrize("ts", [None, TIMES])
def test_stages_that_are_written_out_are_those_of_tsit5(ts, monkeypatch):
    """As states of a million entries have them; gradients and rejected steps too."""
    p = linear()
    monkeypatch.setattr(integration, "LARGE", p.z.size)

    def end(z, **options):
        flow = imr.solve(field_of(p), z, t1=2.0, ts=ts, **options)
        states = flow.z if ts is None else flow.zs
        return jnp.sum(states * jnp.cos(states)), (states, flow.num_steps)

    for options in ({}, {"atol": 1e-12, "rtol": 1e-11}):
        found, wanted = (
            jax.value_and_grad(lambda z, o=o: end(z, **o), has_aux=True)(100 * p.z)
            for o in (options, {**options, "solver": dfx.Tsit5()})
        )
        assert found[0][1][1] == wanted[0][1][1]
        assert error(found[0][1][0], wanted[0][1][0]) < 1e-12
        assert error(found[1], wanted[1]) < 1e-10
    large = jnp.zeros(integration.LARGE)
    text = str(jax.make_jaxpr(lambda z: imr.solve(decay, z, t1=1.0).z)(large))
    assert f"[7,{large.size}]" not in text
    control = str(jax.make_jaxpr(lambda z: imr.solve(decay, z[1:], t1=1.0).z)(large))
    assert f"[7,{large.size - 1}]" in control


def test_two_classes_follow_the_closed_form():
    """u + e^u = u_0 + e^u_0 + |theta_c - theta_other|^2 t, row by row."""
    p = linear(6, 4, 2)
    flow = imr.solve_reduced(loss_of(p), p.z, t1=2.0, ts=TIMES, **TIGHT)
    difference = np.asarray(p.theta[p.labels] - p.theta[1 - p.labels])

    def margin(z):
        return np.einsum("nf,...nf->...n", difference, np.asarray(z))

    left = margin(flow.zs) + np.exp(margin(flow.zs))
    u0, rate = margin(p.z), (difference**2).sum(axis=1)
    right = (u0 + np.exp(u0))[None, :] + rate[None, :] * np.asarray(TIMES)[:, None]
    assert error(left, right) <= 1e-9


def slower(t, z, args):
    """z = z0 exp(t0 - t + (t0^2 - t^2) / 2)."""
    return -(1 + t) * z


def at_times(times):
    """States at ts and at t1, weighed."""
    t0, t1, *ts = times
    flow = imr.solve(
        slower, jnp.ones(1), t0=t0, t1=t1, ts=jnp.stack(ts), adjoint=dfx.DirectAdjoint(), max_steps=64,
        rtol=1e-8, atol=1e-10,
    )  # fmt: skip
    return 2 * flow.z[0] + 3 * flow.zs[0, 0] + 5 * flow.zs[1, 0]


def at_times_exactly(times):
    t0 = times[0]
    return sum(
        weight * jnp.exp(t0 - t + (t0**2 - t**2) / 2)
        for weight, t in zip((2, 3, 5), times[1:], strict=True)
    )


@pytest.mark.acceptance
def test_derivatives_by_times():
    """First and second ones, by times between the ends, at them, and backwards."""
    derivatives, exactly = (
        jax.jit(lambda times, f=f: (jax.grad(f)(times), jax.hessian(f)(times)))
        for f in (at_times, at_times_exactly)
    )
    for times in (
        [0.0, 1.0, 0.2, 0.7], [0.0, 1.0, 0.0, 0.7], [0.0, 1.0, 0.2, 1.0], [0.0, 1.0, 0.0, 1.0],
        [1.0, 0.2, 1.0, 0.2],
    ):  # fmt: skip
        found, wanted = (f(jnp.asarray(times)) for f in (derivatives, exactly))
        assert error(found[0], wanted[0]) < 1e-6, times
        assert error(found[1], wanted[1]) < 1e-6, times
    # The times that are most often asked for, by the length of the whole, and concrete ones.
    last = jax.grad(lambda t1: at_times(jnp.stack([0.0 * t1, t1, t1 / 2, t1])))(1.0)
    np.testing.assert_allclose(
        last, jax.grad(lambda t1: at_times_exactly([0.0, t1, t1 / 2, t1]))(1.0), rtol=1e-6
    )

    def end(t1):
        return imr.solve(decay, jnp.ones(1), t1=t1, ts=np.array([0.5, 1.0]), **TIGHT).z[0]

    np.testing.assert_allclose(jax.grad(end)(1.0), -np.exp(-1), rtol=1e-6)


@pytest.mark.laws
def test_a_simplex_frame_follows_the_closed_form():
    """e^m + (k - 1) m = 1 + a k t from z_0 = 0."""
    k, a = 5, 1.7
    theta = jnp.sqrt(a) * (jnp.eye(k) - 1 / k)
    loss = imr.feature_loss(imr.Linear(theta), jnp.arange(k))
    flow = imr.solve_reduced(loss, jnp.zeros((k, k)), t1=3.0, ts=TIMES, **TIGHT)
    logits, own = np.asarray(flow.zs @ theta.T), np.arange(k)
    m = logits[:, own, own] - logits[:, own, (own + 1) % k]
    right = np.broadcast_to((1 + a * k * np.asarray(TIMES))[:, None], m.shape)
    assert error(np.exp(m) + (k - 1) * m, right) <= 1e-9


# Results as codes


def test_the_step_limit_leaves_the_last_good_state():
    p = linear()
    options = {"t1": 50.0, "ts": jnp.array([0.0, 1e-3, 50.0]), "max_steps": 3}
    flow = imr.solve(field_of(p), p.z, **options, throw=False)
    assert not flow.converged
    assert flow.result == imr.Result.STEP_LIMIT
    assert jnp.isfinite(flow.z).all()
    assert jnp.isfinite(flow.ts).tolist() == [True, True, False]
    assert jnp.isinf(flow.zs[2]).all()
    assert jnp.isinf(flow.grad_norm[2])
    for throw in (None, True):  # the result is concrete
        with pytest.raises(imr.FlowError, match=r"STEP_LIMIT after \d+ steps.*throw=False"):
            imr.solve(field_of(p), p.z, **options, throw=throw)


def short_flow(kind, z, throw=None):
    """The code of a flow that is stopped by its limit of steps."""
    p, options = linear(), {"max_steps": 3, "throw": throw}
    if kind == "steady":
        return imr.solve_to_steady_state(field_of(p), z, **options).result
    if kind == "reduced":
        return imr.solve_reduced(loss_of(p), z, t1=50.0, **options).result
    return imr.solve(field_of(p), z, t1=50.0, **options).result


@pytest.mark.parametrize(
    "kind",
    ["solve", *(pytest.param(kind, marks=pytest.mark.laws) for kind in ("reduced", "steady"))],
)
@pytest.mark.parametrize("traced", [jax.jit, pytest.param(jax.vmap, marks=pytest.mark.laws)])
def test_throw_cannot_be_kept_under_a_trace(kind, traced):
    """None leaves the code alone, and so does False; True is refused."""
    z = linear().z if traced is jax.jit else jnp.stack([linear().z, 2 * linear().z])
    with pytest.raises(imr.ImrError, match="throw=True needs concrete values"):
        jax.eval_shape(traced(lambda z: short_flow(kind, z, throw=True)), z)
    if traced is jax.vmap:  # under jax.jit see the next test
        for throw in (None, False):
            codes = traced(lambda z, throw=throw: short_flow(kind, z, throw))(z)
            assert (codes == imr.Result.STEP_LIMIT).all()


@pytest.mark.laws
def test_bad_values_under_a_trace_are_codes():
    p = linear()
    run = jax.jit(lambda z, t1, ts: imr.solve(field_of(p), z, t1=t1, ts=ts, max_steps=12))
    good = run(p.z, 1.0, jnp.array([0.1, 0.5]))
    assert good.converged
    for z, t1, ts, code in (
        (p.z, -1.0, jnp.array([0.1, 0.5]), imr.Result.BAD_TIMES),
        (p.z, 0.0, jnp.array([0.0, 0.0]), imr.Result.BAD_TIMES),
        (p.z, jnp.inf, jnp.array([0.1, 0.5]), imr.Result.BAD_TIMES),
        (p.z, 1.0, jnp.array([0.5, 0.1]), imr.Result.BAD_TIMES),
        (p.z, 1.0, jnp.array([0.5, 1.1]), imr.Result.BAD_TIMES),
        (p.z.at[0, 0].set(jnp.nan), 1.0, jnp.array([0.1, 0.5]), imr.Result.DIVERGED),
        (p.z, 1e9, jnp.array([1e8, 5e8]), imr.Result.STEP_LIMIT),
    ):
        flow = run(z, t1, ts)
        assert flow.result == code
        assert not flow.converged
        assert not jnp.isfinite(flow.zs).any()


@pytest.mark.laws
def test_every_solve_raises_where_its_end_is_not_reached():
    p = linear()
    solves = (
        lambda **options: imr.solve_reduced(loss_of(p), p.z, t1=50.0, max_steps=3, **options),
        lambda **options: imr.solve_to_steady_state(field_of(p), p.z, max_steps=3, **options),
    )
    for run in solves:
        assert run(throw=False).result == imr.Result.STEP_LIMIT
        for throw in (None, True):
            with pytest.raises(imr.FlowError, match="STEP_LIMIT"):
                run(throw=throw)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, imr.Result.STEP_TOO_SMALL),
        pytest.param(
            {"dt0": 0.25, "solver": dfx.Euler()}, imr.Result.DIVERGED, marks=pytest.mark.laws
        ),
    ],
    ids=["adaptive", "constant"],
)
def test_divergence_is_a_code(options, code):
    ts = jnp.array([0.2, 10.0])
    flow = imr.solve(rise, jnp.ones((1, 1)), t1=20.0, ts=ts, throw=False, **options)
    assert not flow.converged
    assert flow.result == code
    assert jnp.isfinite(flow.z).all()
    assert jnp.isfinite(flow.ts).tolist() == [True, False]


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.laws
def test_a_time_not_reached_leaves_the_gradients_of_the_others(reduced):
    p = linear()

    def reached(theta, t1, ts):
        loss = imr.feature_loss(imr.Linear(theta), p.labels)
        options = {"t1": t1, "ts": ts, "max_steps": 3, "throw": False}
        if reduced:
            return imr.solve_reduced(loss, p.z, **options)
        return imr.solve(imr.closed_field(loss), p.z, loss=loss, **options)

    def first(theta, t1, ts):
        flow = reached(theta, t1, ts)
        return flow.loss[0], flow.converged

    gradient = jax.jit(jax.grad(first, has_aux=True))
    found, converged = gradient(p.theta, 50.0, jnp.array([1e-3, 50.0]))
    assert not converged
    # Both times are reached here; the first is the same.
    expected, converged = gradient(p.theta, 2e-3, jnp.array([1e-3, 2e-3]))
    assert converged
    assert error(found, expected) <= 1e-6


@pytest.mark.laws
@pytest.mark.parametrize("kind", ["autodiff", "closed", "coordinates", "features"])
def test_labels_out_of_range_under_a_trace_diverge(kind):
    """And so do features that are not finite; what was handed in is the last good state."""
    p = linear()

    @jax.jit
    def run(labels, z):
        loss = loss_of(p, labels)
        if kind in ("coordinates", "features"):
            return imr.solve_reduced(loss, z, t1=1.0, norm=kind)
        make = imr.gradient_field if kind == "autodiff" else imr.closed_field
        return imr.solve(make(loss), z, t1=1.0, loss=loss)

    assert run(p.labels, p.z).converged
    for labels, z in (
        (p.labels.at[0].set(-1), p.z),
        (p.labels.at[0].set(3), p.z),
        (p.labels, p.z.at[0, 0].set(jnp.nan)),
    ):
        flow = run(labels, z)
        assert flow.result == imr.Result.DIVERGED
        assert not flow.converged
        assert jnp.isnan(flow.loss).all()
        np.testing.assert_array_equal(flow.z[1:], z[1:])
        assert bool(jnp.isfinite(flow.z).all()) == bool(jnp.isfinite(z).all())


# Steps


def test_constant_euler_steps_are_gradient_descent_and_even():
    """Steps of 0.1 are ten; steps of 0.3 are four, of 0.25."""
    p = linear()
    field = field_of(p)
    for dt0, count in ((0.1, 10), (0.3, 4)):
        flow = imr.solve(field, p.z, t1=1.0, dt0=dt0, solver=dfx.Euler())
        z = p.z
        for _ in range(count):
            z = imr.lie_step([field], z, 1 / count)
        assert flow.num_steps == count
        assert error(flow.z, z) <= 1e-14


@pytest.mark.laws
def test_constant_steps_of_a_known_flow():
    flow = imr.solve(identity, jnp.ones(1), t1=1.0, dt0=0.3, solver=dfx.Euler())
    assert flow.num_steps == 4
    assert abs(flow.z[0] - 1.25**4) <= 1e-12


@pytest.mark.laws
def test_late_times_in_float32():
    """z = log(1 + t) at a million: each stretch goes on with steps of the size that went before."""
    ts = np.geomspace(0.1, 1e6, 30).astype(np.float32)
    ts[-1] = 1e6

    def slowing(t, z, args):
        return jnp.exp(-z)

    flow = imr.solve(slowing, jnp.zeros((1, 1), jnp.float32), t1=1e6, ts=jnp.asarray(ts))
    assert flow.converged
    assert flow.num_steps <= 70
    assert error(flow.zs[:, 0, 0], np.log1p(ts)) <= 1e-5


@pytest.mark.laws
def test_implicit_solvers_take_the_same_tolerances():
    p = linear()
    flow = imr.solve(field_of(p), p.z, t1=1.0, solver=dfx.Kvaerno5(), rtol=1e-8, atol=1e-8)
    assert flow.converged
    assert error(flow.z, imr.solve(field_of(p), p.z, t1=1.0, **TIGHT).z) <= 1e-6


# Noise


@pytest.mark.laws
def test_noise_has_the_right_spread():
    """dz = -z dt + sigma dW: the variance tends to sigma^2 / 2."""
    flow = imr.solve(decay, jnp.zeros((4000, 1)), t1=6.0, dt0=0.02, noise=(0.5, jax.random.key(0)))
    variance = 0.125 * (1 - np.exp(-12)) / (1 - 0.01)  # of Euler's steps
    assert abs(float(jnp.var(flow.z)) - variance) <= 4 * variance * np.sqrt(2 / 4000)


@pytest.mark.laws
def test_noise_between_times_closer_than_the_step():
    """Increments of a Brownian motion: variance dt, one independent of the next."""

    def still(t, z, args):
        return jnp.zeros_like(z)

    ts, noise = jnp.linspace(0.05, 1.0, 20), (1.0, jax.random.key(0))
    flow = imr.solve(still, jnp.zeros((2000, 1)), t1=1.0, ts=ts, dt0=0.1, noise=noise)
    steps = np.diff(np.asarray(flow.zs)[:, :, 0], axis=0)
    assert abs(np.mean(steps**2) / 0.05 - 1) <= 4 * np.sqrt(2 / steps.size)
    assert abs(np.mean(steps[1:] * steps[:-1]) / 0.05) <= 4 / np.sqrt(steps.size)


@pytest.mark.acceptance
def test_noise_and_bad_times_under_a_trace():
    noise = (0.1, jax.random.key(0))

    @jax.jit
    @jax.vmap
    def codes(t0, t1):
        return imr.solve(decay, jnp.ones(2), t0=t0, t1=t1, dt0=0.1, noise=noise).result

    t0, t1 = [0, 2, 2, 0, 0, np.nan, -np.inf], [1, 0, 2, np.nan, np.inf, 1, 1]
    assert codes(jnp.array(t0, float), jnp.array(t1, float)).tolist() == [0] + 6 * [4]


# Steady states


@pytest.mark.laws
def test_the_steady_state_is_where_the_anchored_loss_is_least():
    p = linear()
    loss = loss_of(p, anchor=(0.5, p.z))

    @jax.jit
    def steady(z):
        field = imr.gradient_field(loss)
        return imr.solve_to_steady_state(field, z, loss=loss, rtol=1e-11, atol=1e-11)

    flow = steady(p.z)
    assert flow.converged
    assert flow.grad_norm[0] <= 1e-9
    moved = flow.z[None] + 0.01 * jnp.asarray(np.random.default_rng(0).normal(size=(20, 7, 5)))
    assert (jax.jit(jax.vmap(loss))(moved) > flow.loss[0]).all()
    assert error(steady(-p.z).z, flow.z) <= 1e-8


@pytest.mark.laws
def test_the_steady_state_is_found_whatever_the_problem():
    """At loose and tight tolerances, where a solver held to its limit of stability may hover."""
    p = jax.tree.map(lambda *a: jnp.stack(a), *(linear(seed=seed) for seed in range(40)))

    def steady(p, tol):
        return imr.solve_to_steady_state(field_of(p, anchor=(0.4, p.z)), p.z, rtol=tol, atol=tol)

    flows = jax.jit(jax.vmap(jax.vmap(steady, (0, None)), (None, 0)))(p, jnp.array([1e-5, 1e-10]))
    assert flows.converged.all()
    assert flows.grad_norm[1].max() <= 1e-8


@pytest.mark.laws
def test_without_an_anchor_there_is_no_steady_state():
    p = linear()
    options = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 30}
    flow = imr.solve_to_steady_state(field_of(p), p.z, **options, throw=False)
    assert not flow.converged
    assert flow.result == imr.Result.STEP_LIMIT
    assert jnp.isfinite(flow.z).all()


# Bad input


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    p = linear()

    def reduced(self, labels=None, z=None, **options):
        return imr.solve_reduced(
            loss_of(self.p, labels), self.p.z if z is None else z, **{"t1": 1.0, **options}
        )

    @pytest.mark.parametrize(
        ("times", "words"),
        [
            ({"t1": 0.0}, r"t1 must differ from t0.*found 0\.0 for both"),
            ({"t1": jnp.nan}, "t0 and t1 must be finite; found 0.0 and nan"),
            ({"ts": jnp.array([0.5, 0.4])}, r"ts must increase from t0 to t1; found ts\[0\] = 0.5"),
            ({"t1": -1.0, "ts": [-0.5, -0.4]}, "ts must decrease from t0 to t1; found"),
            ({"ts": jnp.array([0.5, 1.4])}, r"ts must lie within \[t0, t1\]"),
            ({"ts": np.array([0.5, 1.001])}, r"ts must lie within \[t0, t1\]"),
            ({"ts": jnp.zeros((0,))}, "ts must hold one or more times"),
            ({"ts": ["a"]}, r"ts must be an array of numbers; found \['a'\]"),
            ({"t1": "late"}, "t1 must be an array of numbers; found 'late'"),
            ({"t1": -1.0, "dt0": -0.1}, "dt0 is the size of the steps, positive also where"),
        ],
    )
    def test_times(self, times, words):
        with pytest.raises(imr.ImrError, match=words):
            self.reduced(**times)

    def test_noise_goes_forward(self):
        noise = (0.1, jax.random.key(0))
        with pytest.raises(imr.ImrError, match=r"noise goes forward in time; found t1 = -1"):
            imr.solve(identity, self.p.z, t1=-1.0, dt0=0.1, noise=noise)

    def test_values(self):
        p = self.p
        with pytest.raises(imr.ImrError, match=r"z0 must be finite; found 1 .* \(1, 1\)"):
            self.reduced(z=p.z.at[1, 1].set(jnp.inf))
        with pytest.raises(imr.ImrError, match="theta must be finite"):
            imr.Linear(p.theta * jnp.nan)
        with pytest.raises(imr.ImrError, match="0 to 2; found targets"):
            self.reduced(p.labels + 3)
        with pytest.raises(imr.ImrError, match="rtol must be positive"):
            self.reduced(rtol=0.0)
        with pytest.raises(imr.ImrError, match="norm must be one of coordinates, features"):
            self.reduced(norm="max")
        with pytest.raises(imr.ImrError, match="block has no meaning for Linear"):
            self.reduced(block=3)
        with pytest.raises(imr.ImrError, match="max_steps must be an integer"):
            imr.solve(identity, p.z, t1=1.0, max_steps=0)
        with pytest.raises(imr.ImrError, match=r"ImplicitAdjoint.*solve_to_steady_state"):
            imr.solve(identity, p.z, t1=1.0, adjoint=dfx.ImplicitAdjoint())
        with pytest.raises(imr.ImrError, match="noise needs dt0"):
            imr.solve(identity, p.z, t1=1.0, noise=(0.1, jax.random.key(0)))

    def test_what_is_no_field_or_loss(self):
        p, loss = self.p, loss_of(self.p)

        def solve(field, z=p.z, **options):
            return imr.solve(field, z, t1=1.0, **options)

        def half(t, z, args):
            return z[:2]

        field = imr.gradient_field(loss)
        with pytest.raises(imr.ImrError, match=r"field cannot be called as field\(t, z, args\)"):
            solve(loss)
        with pytest.raises(imr.ImrError, match=r"field must return the shapes of z0, \[\(7, 5\)\]"):
            solve(half)
        with pytest.raises(
            imr.ImrError, match=r"loss must return one real .* float64 of shape \(7,\)"
        ):
            solve(field, loss=lambda z: z.sum(axis=1))
        with pytest.raises(imr.ImrError, match=r"loss must return one real number.*complex128"):
            solve(field, loss=lambda z: 1j * z.sum())
        with pytest.raises(imr.ImrError, match=r"loss must return one real number.*found None"):
            solve(field, loss=lambda z: None)
        with pytest.raises(imr.ImrError, match=r"loss cannot be called as loss\(z\)"):
            solve(field, loss=lambda z, theta: z.sum())
        with pytest.raises(imr.ImrError, match="args must hold arrays of numbers; found dtype <U1"):
            solve(field, args=np.array(["a"]))
        with pytest.raises(imr.ImrError, match=r"field .* fails on z0: IndexError"):
            solve(lambda t, z, args: z[0, 0, 0])
        with pytest.raises(imr.ImrError, match="z0 must be a floating array; found dtype int"):
            solve(field, jnp.ones((7, 5), int))
        with pytest.raises(imr.ImrError, match="t1 must be finite"):
            imr.solve(field, p.z, t1=jnp.inf)
        with pytest.raises(imr.ImrError, match=r"column indices of the logits, 0 to 2; found"):
            solve(imr.gradient_field(loss_of(p, p.labels + 3)))
        with pytest.raises(TypeError, match="tol"):
            self.reduced(tol=1e-3)
        latent = imr.feature_loss(imr.Latent(p.theta, [0, 1, 2]), p.labels.at[0].set(9))
        with pytest.raises(imr.ImrError, match=r"0 to 2; found targets\[0\] = 9"):
            imr.solve_reduced(latent, p.z, t1=1.0)
        with pytest.raises(imr.ImrError, match=r"loss must be made by imr\.feature_loss"):
            imr.solve_reduced(lambda z: jnp.sum(z), p.z, t1=1.0)

    def test_shapes(self):
        p, (q, k) = self.p, projections()
        with pytest.raises(imr.ImrError, match=r"z has 5 .* q has 4"):
            imr.solve_reduced(imr.feature_loss(imr.Quadratic(q[:4]), None), p.z, t1=1.0)
        with pytest.raises(imr.ImrError, match="q has rank 6, more than the 5 features"):
            imr.Quadratic(jnp.ones((5, 6)))
        with pytest.raises(imr.ImrError, match=r"k must have the shape of q, \(5, 2\)"):
            imr.Quadratic(q, k[:, :1])
        three = imr.feature_loss(imr.Quadratic(q), jnp.ones((7, 3)) / 3)
        with pytest.raises(imr.ImrError, match="targets must be labels"):
            imr.solve_reduced(three, p.z, t1=1.0)
        with pytest.raises(imr.ImrError, match="anchor's x must have the shape of z"):
            imr.solve_reduced(loss_of(p, anchor=(1.0, p.z[:2])), p.z, t1=1.0)
        with pytest.raises(imr.ImrError, match="degree must be an integer of at least 1; found 0"):
            imr.Polynomial(p.theta, 0)


def test_a_steady_state_checks_what_a_solve_does():
    field = imr.closed_field(imr.feature_loss(imr.Linear(jnp.eye(2)), jnp.array([5])))
    with pytest.raises(imr.ImrError, match=r"0 to 1; found targets\[0\] = 5"):
        imr.solve_to_steady_state(field, jnp.zeros((1, 2)))
    with pytest.raises(imr.ImrError, match="field must return the shapes of z0"):
        imr.solve_to_steady_state(lambda t, z, args: -z.sum(), jnp.zeros((2, 2)))
