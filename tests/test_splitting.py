"""Splitting: orders of your own, exact sub-flows, a solver of diffrax, and depth as time."""

from functools import partial

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr.splitting import (
    Splitting,
    euler,
    exact,
    lie_stages,
    midpoint,
    rk4,
    split_step,
    strang_stages,
    triple_jump,
)
from tests.problems import TIGHT, error, linear

SIXTH = triple_jump(triple_jump(strang_stages(3), 2), 4)


def three_fields():
    """Label term with a clock, attention and a spring: their sum has no closed form."""
    p = linear(4, 3)

    def label(t, z, args):
        return jnp.cos(t) * p.targets @ p.theta

    def attend(t, z, args):
        return -imr.cross_attention(z, p.theta)

    return p, (label, attend, spring)


def spring(t, z, args):
    return -0.5 * z


def decay(t, z, args):
    return -z


@pytest.mark.laws
@pytest.mark.parametrize(
    ("stages", "substep", "order", "depths"),
    [
        pytest.param(lie_stages(3), euler, 1, (64, 128, 256), marks=pytest.mark.laws),
        pytest.param(lie_stages(3), rk4, 1, (64, 128, 256), marks=pytest.mark.laws),
        (strang_stages(3), midpoint, 2, (64, 128, 256)),
        pytest.param(
            ((2, 0.25), (0, 1.0), (1, 1.0), (2, 0.75)),
            rk4,
            1,
            (64, 128, 256),
            marks=pytest.mark.laws,
        ),
        pytest.param(
            triple_jump(strang_stages(3), 2), rk4, 4, (16, 24, 32), marks=pytest.mark.laws
        ),
    ],
    ids=["lie", "lie of exact parts", "strang", "of one's own", "triple jump"],
)
def test_measured_order(stages, substep, order, depths):
    p, fields = three_fields()
    step = partial(split_step, stages=stages, substep=substep)
    found = imr.depth_is_time(fields, p.z, t1=1.0, depths=depths, step=step)
    assert abs(found.order - order) <= 0.1


@pytest.mark.laws
@pytest.mark.parametrize(
    ("step", "order"),
    [(imr.lie_step, 1), (imr.strang_step, 2)],
    ids=["lie", "strang"],
)
def test_measured_order_of_the_named_steps(step, order):
    """Time-dependent label term, against diffrax alone: the times of the substeps matter too."""
    p = linear()

    def attend(t, z, args):
        return -imr.cross_attention(z, p.theta)

    def label(t, z, args):
        return p.targets @ p.theta * (1 + jnp.sin(3 * t))

    def whole(t, z, args):
        return attend(t, z, args) + label(t, z, args)

    @jax.jit
    def ends(z, counts):
        tight = dfx.diffeqsolve(
            dfx.ODETerm(whole), dfx.Dopri8(), 0.0, 1.0, 0.01, z,
            stepsize_controller=dfx.PIDController(rtol=1e-12, atol=1e-12),
        )  # fmt: skip

        def stack(count):
            tau = 1.0 / count
            return jax.lax.fori_loop(
                0, count, lambda i, z: step((label, attend), z, tau, i * tau), z
            )

        return tight.ys[0], jax.lax.map(stack, counts)

    counts = np.array([64, 128, 256])
    exactly, stacks = ends(p.z, jnp.asarray(counts))
    errors = [error(stack, exactly) for stack in stacks]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) <= 0.1


def test_lie_of_one_field_is_euler_and_strang_of_three_is_symmetric():
    z = linear().z
    np.testing.assert_array_equal(imr.lie_step([spring], z, 0.1), z + 0.1 * spring(0.0, z, None))
    calls = []

    def recorder(name):
        def field(t, z, args):
            calls.append((name, float(t)))
            return 0 * z

        return field

    imr.strang_step([recorder("a"), recorder("b"), recorder("c")], z, 1.0, 2.0)
    assert [name for name, _ in calls[::2]] == ["a", "b", "c", "b", "a"]
    # The second of each pair is the middle of the substep.
    assert [t for _, t in calls] == [2.0, 2.25, 2.0, 2.25, 2.0, 2.5, 2.5, 2.75, 2.5, 2.75]


@pytest.mark.laws
def test_exact_sub_flows():
    """Label term and spring have known flows; by them only the splitting itself errs."""
    p, _ = three_fields()

    def push(t, z, args):
        return p.targets @ p.theta

    by_hand = (
        exact(lambda z, tau, t, args: z + tau * p.targets @ p.theta),
        exact(lambda z, tau, t, args: jnp.exp(-0.5 * tau) * z),
    )
    z = split_step((push, spring), p.z, 0.3, stages=lie_stages(2), substep=by_hand)
    assert error(z, jnp.exp(-0.15) * (p.z + 0.3 * p.targets @ p.theta)) <= 1e-14
    step = partial(split_step, stages=strang_stages(2), substep=by_hand)
    assert abs(imr.depth_is_time((push, spring), p.z, t1=1.0, step=step).order - 2) <= 0.1


def test_triple_jumps_are_symmetric_and_whole():
    assert SIXTH[::-1] == SIXTH
    for index in range(3):
        assert abs(sum(share for i, share in SIXTH if i == index) - 1) <= 1e-12
    shares = np.array([share for _, share in triple_jump(((0, 1.0),), 2)])
    assert abs(np.sum(shares**3)) <= 1e-12  # the error of order 3 cancels


@pytest.mark.laws
def test_a_solver_of_diffrax():
    p, fields = three_fields()
    stages = strang_stages(3)
    terms = dfx.MultiTerm(*map(dfx.ODETerm, fields))
    solver = Splitting(stages, midpoint)
    end = dfx.diffeqsolve(terms, solver, 0.0, 1.0, 0.125, p.z).ys[0]
    z = p.z
    for step in range(8):
        z = split_step(fields, z, 0.125, step * 0.125, stages=stages, substep=midpoint)
    assert error(end, z) <= 1e-14
    flow = imr.solve(fields, p.z, t1=1.0, dt0=0.125, ts=jnp.array([0.5, 1.0]))
    assert flow.num_steps == 8
    assert error(flow.z, z) <= 1e-14
    whole = sum(field(1.0, z, None) for field in fields)
    assert error(flow.grad_norm[1], jnp.linalg.norm(whole)) <= 1e-12
    lie = imr.solve(fields, p.z, t1=1.0, dt0=0.5, solver=Splitting(lie_stages(3), euler))
    assert error(lie.z, imr.lie_step(fields, imr.lie_step(fields, p.z, 0.5), 0.5, 0.5)) <= 1e-14


def test_backwards_in_time():
    """diffrax turns the sign of the control, not of the field."""
    terms = dfx.MultiTerm(dfx.ODETerm(lambda t, z, a: -z), dfx.ODETerm(lambda t, z, a: z / 2))
    end = dfx.diffeqsolve(terms, Splitting(strang_stages(2)), 1.0, 0.0, -0.05, jnp.array(1.0))
    assert abs(end.ys[0] - jnp.exp(0.5)) <= 1e-8


@pytest.mark.laws
def test_the_tied_transformer_is_the_flow():
    """Blocks of attention and label term, tau = T / n: the difference goes as 1 / n."""
    p = linear()

    def attend(t, z, args):
        return -imr.cross_attention(z, p.theta)

    def know(t, z, args):
        return p.theta[p.labels]

    found = imr.depth_is_time([attend, know], p.z, t1=2.0, depths=(32, 64, 128, 256))
    assert abs(found.order - 1) <= 0.1
    assert error(found.taus * found.depths, jnp.full(4, 2.0)) <= 1e-14
    flow = imr.solve_reduced(imr.feature_loss(imr.Linear(p.theta), p.labels), p.z, t1=2.0, **TIGHT)
    assert error(found.z, flow.z) <= 1e-9
    z = jax.lax.fori_loop(0, 32, lambda l, z: imr.lie_step([attend, know], z, 2.0 / 32), p.z)
    assert abs(found.errors[0] - error(z, flow.z)) <= 1e-9


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    field = staticmethod(decay)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"stages": ((1, 1.0),)}, "by their index, 0 to 0; found 1"),
            ({"stages": ((0, 0.5),)}, "shares of field 0 add up to 0.5"),
            ({"stages": lie_stages(1), "substep": (euler, euler)}, "one for each of the 1 fields"),
            ({"stages": lie_stages(1), "substep": 5}, "must be one function, or one for each"),
            ({"stages": ((0,),)}, "stages must be pairs"),
            ({"stages": 3}, "stages must be pairs"),
        ],
    )
    def test_steps(self, options, words):
        with pytest.raises(imr.ImrError, match=words):
            split_step([self.field], jnp.ones(2), 0.1, **options)

    def test_jumps(self):
        with pytest.raises(imr.ImrError, match="the same read backwards"):
            triple_jump(lie_stages(2), 2)
        with pytest.raises(imr.ImrError, match="even and at least 2; found 3"):
            triple_jump(strang_stages(2), 3)

    def test_several_fields_need_a_step(self):
        with pytest.raises(imr.ImrError, match=r"several fields .* dt0"):
            imr.solve([self.field, self.field], jnp.ones(2), t1=1.0)
        with pytest.raises(imr.ImrError, match="fields must be a sequence"):
            imr.solve([], jnp.ones(2), t1=1.0, dt0=0.1)

    def test_solvers_and_fields_that_do_not_fit(self):
        z, step = jnp.ones(2), {"t1": 1.0, "dt0": 0.1}
        with pytest.raises(imr.ImrError, match="give them as a list; found one field"):
            imr.solve(self.field, z, solver=Splitting(lie_stages(1)), **step)
        with pytest.raises(imr.ImrError, match="BacksolveAdjoint"):
            imr.solve([self.field, self.field], z, adjoint=dfx.BacksolveAdjoint(), **step)
        with pytest.raises(imr.ImrError, match="fields must be a sequence"):
            imr.solve(5, z, **step)
        with pytest.raises(imr.ImrError, match="field must be one function"):
            imr.solve_to_steady_state([self.field], z)
        with pytest.raises(imr.ImrError, match=r"scalars; found shapes \(\) and \(2,\)"):
            imr.solve(self.field, z, t1=jnp.array([1.0, 2.0]))

    def test_steps_of_no_fields(self):
        with pytest.raises(imr.ImrError, match="fields must be a sequence"):
            imr.lie_step([], jnp.ones(2), 0.1)
        with pytest.raises(imr.ImrError, match="fields must be a sequence"):
            imr.strang_step(decay, jnp.ones(2), 0.1)

    def test_depths(self):
        with pytest.raises(imr.ImrError, match="a list of integers; found 5"):
            imr.depth_is_time([self.field], jnp.ones(2), t1=1.0, depths=5)
        with pytest.raises(imr.ImrError, match=r"increasing numbers from 1; found \(4, 2\)"):
            imr.depth_is_time([self.field], jnp.ones(2), t1=1.0, depths=(4, 2))
