"""The incontext experiment: its claims and predictors, the lens on its nets, and one smoke run."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import imr
from experiments.incontext import baselines, claims, recurrences, regression
from experiments.incontext.__main__ import EXPERIMENT
from experiments.incontext.config import FULL, PARTS, SMOKE
from experiments.incontext.dynamics import half_times, points
from experiments.incontext.images import Tried
from experiments.incontext.models import best_rate, by_rate
from experiments.incontext.readings import Part, at_edge, cosines, off_identity
from experiments.incontext.theory import one_step
from imr import lens
from imr.lab import train
from imr.lab.nets import read_nets
from imr.nn import ContextBlock, LinearSelfAttention

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run, as a user has it, one device and float32: every part, too few steps for the claims."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    command = [sys.executable, "-m", "experiments.incontext", "--smoke", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # half the time is compilation
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out, json.loads((out / "summary.json").read_text())


def test_the_theory_holds_and_its_controls_fail(smoke):
    rows = smoke[1]["theory"]
    assert [row for row in rows if not row["passed"]] == []
    assert {row["id"] for row in rows} == {f"C{i}" for i in range(1, 10)}
    assert sum(row["role"] == "control" for row in rows) >= 8


def test_every_part_is_measured_and_drawn(smoke):
    out, summary = smoke
    assert {row["part"] for row in summary["table"]} == set(PARTS)
    assert all(row["seeds"] == 2 for row in summary["table"])
    assert all(np.isfinite([row["least"], row["most"]]).all() for row in summary["table"])
    # What needs no training holds even here.
    rows = {(row["check"], row["role"]): row for row in summary["table"]}
    assert rows["prototypes, uniform attention: CE less ln 5", "claim"]["passed"]
    assert rows["2 layers, 10 examples: GD over GD++", "claim"]["passed"]
    assert rows["1 layers, 10 examples: cosine of untrained", "control"]["passed"]
    assert {row["statement"] for row in summary["retested"]} >= {
        "depth always helps",
        "early stopping helps",
    }
    for name in (
        "regression",
        "dynamics",
        "depth",
        "geometry",
        "shots",
        "transduction",
        "recurrences",
    ):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
        assert np.load(out / "figures" / f"{name}.npz").files
    # Whatever is trained says how it was tuned.
    for row in summary["classification"]:
        assert row["tuned"] >= 1
        if row["steps"]:
            assert row["tuned"] == 2
            assert row["rate"] in (0.02, 0.005)


def test_the_lens_reads_the_checkpoints(smoke):
    out, summary = smoke
    nets = read_nets(out / "checkpoints" / "linear-2_layers-10_examples")
    assert isinstance(nets.net(0), LinearSelfAttention)
    assert [run["seed"] for run in nets.runs] == [0, 1, 0, 1]
    assert isinstance(
        read_nets(out / "checkpoints" / "prototypes-softmax-1_layers").net(0), ContextBlock
    )
    heads = summary["heads"]
    for words in ("", ", separate keys and queries"):
        linear = [row for row in heads if row["net"] == f"linear, 2 layers, 10 examples{words}"]
        assert [(row["layer"], row["circuit"]) for row in linear] == [
            (0, "key-query"), (1, "key-query"), (0, "value"), (1, "value"),
        ]  # fmt: skip


# The lens, on nets of which the truth is known.


@pytest.mark.laws
def test_the_lens_tells_a_planted_construction_from_random_weights():
    net = LinearSelfAttention(4, 2, layers=2, rngs=nnx.Rngs(0))
    rows = lens.construction_rows([net], jax.random.key(0))
    assert max(abs(row[z]) for row in rows for z in ("z (p)", "z (r)")) < 4
    net.gradient_steps(0.3, 0.1)
    planted = net.value[...] + 0.01 * jax.random.normal(jax.random.key(1), net.value.shape)
    net.value[...] = planted
    rows = lens.construction_rows([net], jax.random.key(0))
    assert min(row["cosine"] for row in rows) > 0.95
    assert min(row[z] for row in rows for z in ("z (p)", "z (r)")) > 3
    # What nothing reads does not count: the last layer's covariates.
    net.value[...] = planted.at[-1, :, :4].set(9.0)
    assert lens.construction_rows([net], jax.random.key(0))[3]["cosine"] > 0.95


@pytest.mark.laws
def test_the_lens_reads_metric_and_classes():
    block = ContextBlock(6, 4)
    block.theta[...] = block.theta[...] + jnp.arange(4.0)[None, :]  # the same for all classes
    assert (
        min(lens.construction_cosines(each)[0, 0] for each in lens.context_circuits(block))
        > 1 - 1e-12
    )
    block.projection[...] = block.projection[...].at[0, 0].set(4.0)
    metric, classes = lens.context_circuits(block)
    assert lens.construction_cosines(metric)[0, 0] == pytest.approx(21 / (6 * 261) ** 0.5)
    assert lens.construction_cosines(classes)[0, 0] > 1 - 1e-12
    block.projection[...] = block.projection[...].at[0, 0].set(jnp.nan)
    metric, classes = lens.context_circuits(block)
    assert np.isnan(lens.construction_cosines(metric)[0, 0])
    silent = metric._replace(matrices=np.zeros_like(metric.matrices))
    assert lens.construction_cosines(silent)[0, 0] == 0


# Training


@pytest.mark.laws
def test_runs_differ_in_their_rates_and_know_their_losses():
    """And steps without a finite gradient move nothing, and are counted."""

    def loss(params, hyper, data, batch, key):
        del data, batch, key
        return hyper["scale"] * jnp.sum((params - 3.0) ** 2)

    def schedule(data, key, step):
        del data, key, step
        return jnp.zeros(200)

    optimizer = by_rate(200)
    states = train.init_states(
        lambda key: jnp.zeros(2), optimizer, jax.random.split(jax.random.key(0), 3)
    )
    chunk = train.make_chunk(loss, optimizer, schedule)
    hyper = {"rate": jnp.array([0.0, 0.1, 0.1]), "scale": jnp.array([1.0, 1.0, jnp.nan])}
    states, losses = chunk(states, hyper, None)
    assert (states.params[0] == 0).all()
    np.testing.assert_allclose(states.params[1], 3.0, atol=0.01)
    assert (losses[0] == 18).all()
    found = states.opt_state.inner_state[-1].loss
    assert found[0] == pytest.approx(np.log(18) * (1 - 0.99**200))
    assert found[1] < 0.3 * found[0]
    assert (states.params[2] == 0).all()
    assert states.opt_state.total_notfinite.tolist() == [0, 0, 200]


def test_a_rate_at_which_more_seeds_end_is_better():
    nan, inf = np.nan, np.inf
    assert best_rate(np.array([[3.0, 2.0], [1.0, 2.0]])) == (1, 2)
    assert best_rate(np.array([[1.0, nan], [3.0, 2.0]])) == (1, 2)
    assert best_rate(np.array([[nan, inf], [nan, 2.0]])) == (1, 1)
    assert best_rate(np.array([[nan, inf], [inf, nan]])) == (0, 0)


@pytest.mark.laws
def test_a_block_starts_from_noise_about_the_construction():
    options = {"num_features": 6, "num_classes": 4, "noise": 0.3}
    one, same, other = (ContextBlock(**options, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    assert (one.projection[...] == same.projection[...]).all()
    assert (one.theta[...] != other.theta[...]).any()
    assert 0.1 < jnp.std(one.projection[...] - jnp.eye(6)) < 0.5
    with pytest.raises(imr.ImrError, match="rngs must be made by"):
        ContextBlock(**options)


# Claims


def part(**values):
    """Two seeds of a part."""
    return Part(
        [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)],
        [],
        {},
        {},
    )


def test_one_seed_that_fails_is_a_claim_that_fails():
    claim = claims._claim("regression", "I0", "value", claims.at_most(1.0), "control")
    parts = {"regression": part(value=(0.5, 1.5), control=(2.0, 3.0))}
    claimed, control = claims.rows([claim], parts)
    assert (claimed["passed"], claimed["holds"]) == (False, 1)
    assert control["passed"]
    assert not claims.rows([claim], {"regression": part(value=(0, 0), control=(0.5, 3))})[1][
        "passed"
    ]
    assert claims.rows([claim], {}) == []


@pytest.mark.parametrize("sizes", [FULL, SMOKE])
def test_every_group_of_claims_has_a_control(sizes):
    lines = [(claim.id, line) for claim in claims.claims(sizes) for line in claim.lines()]
    ids = {role: {id for id, line in lines if line.role == role} for role in ("claim", "control")}
    assert ids["claim"] == ids["control"] == {f"I{i}" for i in range(1, 12)}
    assert {line.subject for _, line in lines} == set(PARTS)


# Predictors and measures


def test_the_best_step_of_one_layer():
    step, loss = one_step(10, 10)
    assert step == pytest.approx(1.5152, abs=1e-4)
    assert loss == pytest.approx(1.6498, abs=1e-4)


def test_predictors_of_affine_recurrences():
    s = np.array([[1.0, 0.5, 0.25, 0.125], [0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_allclose(recurrences.least_squares(s, 2), s[:, 3], atol=1e-12)
    np.testing.assert_allclose(recurrences.of_differences(s, 2, 0.0), s[:, 3], atol=1e-12)
    near = recurrences.smoothed(s, 2, 1e3, negative=False)
    np.testing.assert_allclose(near, [0.25, 2.0], atol=1e-3)
    far = recurrences.smoothed(s, 2, 1e3, negative=True)
    np.testing.assert_allclose(far, [0.25, 1.0], atol=1e-3)


@pytest.mark.laws
def test_votes_of_so_many_neighbours():
    x, targets = jnp.array([[0.0], [1.0], [1.2], [0.1]]), jnp.eye(2)[jnp.array([0, 1, 1])]
    for count, label in ((1, 0), (2, 0), (3, 1)):  # the nearer of two decides
        votes = baselines.nearest(x, targets, count)
        assert votes.argmax(axis=1)[3] == label
        assert votes[3].sum() == pytest.approx(count, rel=2e-3)


@pytest.mark.laws
def test_kernel_regression_without_its_optimum_is_nan():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    kernel, targets = jnp.exp(x @ x.T), jnp.eye(2)[jnp.array([0, 1, 0, 1])]
    z, none = (baselines.kernel_regression(kernel, targets, 0.1, tol) for tol in (1e-6, 1e-40))
    assert jnp.isnan(none).all()
    rest = targets - jax.nn.softmax(z[:4])
    assert jnp.abs(kernel[:, :4] @ rest / 0.1 - z).max() < 1e-2


def test_points_of_a_course_are_whole_steps():
    for sizes in (FULL, SMOKE):
        times = points(sizes.time)
        assert (times[0], times[-1]) == (0, sizes.time)
        steps = np.diff(times)[:, None] / np.array(sizes.rates)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
        assert (steps > 0.5).all()


def test_a_best_setting_at_an_edge_is_told():
    known = np.array([[0.5, 0.6, 0.5], [0.6, 0.7, 0.7], [0.5, 0.6, 0.5]])
    assert Tried(known, known).edges == ()
    known[2, 1] = 0.8
    assert Tried(known, known).edges == ("width",)
    assert Tried(known[:1], known[:1]).edges == ()


def test_measures():
    ts, limits = np.linspace(0, 4, 5), np.array([1.0, 1.0])
    modes = np.stack([ts / 4, 0.1 * ts], axis=1)
    assert half_times(ts, modes, limits)[0] == pytest.approx(2)
    assert np.isnan(half_times(ts, modes, limits)[1])
    assert off_identity(np.diag([1.0, 1.0]), np.eye(2)) == 0
    assert off_identity(np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(2)) == 1
    assert cosines(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])) == pytest.approx(0.5**0.5)


def test_a_choice_at_the_edge_of_its_grid_is_told():
    settings = np.array([[a, b] for a in (1.0, 2.0, 4.0) for b in (0.1, 0.2, 0.3)])
    scores = (settings[:, 0] - 4) ** 2 + (settings[:, 1] - 0.2) ** 2
    assert at_edge(settings, scores, int(scores.argmin())) == "4"
    scores = (settings[:, 0] - 2) ** 2  # the second entry moves nothing
    assert at_edge(settings, scores, int(scores.argmin())) == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds", "0"), "--seeds must be at least 1; found 0"),
        (("--theory-only", "--smoke"), "--theory-only trains nothing"),
        (("--parts", "poetry"), "--parts must be among regression, dynamics"),
        (("--dataset", "cats"), "--dataset must be among digits"),
        (("--rates", "0.1", "0.1"), "--rates must hold each value once"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert EXPERIMENT.main([*flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"


@pytest.mark.acceptance
def test_tuned_steps_are_found_in_their_narrow_valley():
    """The best second step is ten times the first, and a curvature above one comes before it."""
    net = regression.Net(2, 20)
    spectrum = regression.spectra(0, net.examples, 1000)
    left = {}
    for curved in (True, False):
        steps = jax.tree.map(jnp.asarray, regression.tuned_steps(spectrum, net, curved))
        filtered = jax.vmap(lambda s: imr.context.curvature_filter(s, *steps))(spectrum)  # noqa: B023
        left[curved] = float(jnp.mean(jnp.sum(filtered**2, axis=1)))
    assert left[True] < 0.33 * left[False]  # from few starts 0.39
