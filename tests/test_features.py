"""The features experiment: one small run in a process of its own, its predictions, its flags."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import imr
from experiments.features.__main__ import EXPERIMENT
from experiments.features.theory import bound_slack, late_times

ROOT = Path(__file__).resolve().parents[1]


def run(*flags):
    command = [sys.executable, "-m", "experiments.features", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run, as a user has it: one device, float32."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        result = run("--smoke", "--out", out)
    assert result.returncode == 0, result.stderr
    return out, result, json.loads((out / "summary.json").read_text())


def test_the_free_flow_keeps_the_laws_of_loss_and_margin(smoke):
    _, _, summary = smoke
    rows = {(row["flow"], row["decade"]): row for row in summary["law"]}
    assert set(rows) == {(f, d) for f in ("free", "anchored") for d in ("last", "before")}
    last, before = rows["free", "last"], rows["free", "before"]
    assert last["loss_slope"] == pytest.approx(-1, abs=0.03)
    assert abs(last["loss_slope"] + 1) < abs(before["loss_slope"] + 1)  # still on its way
    assert last["margin_slope"] == pytest.approx(1, abs=0.03)
    assert last["margin_slope_q05"] < 1 < last["margin_slope_q95"]


def test_each_class_comes_to_its_own_constant(smoke):
    _, _, summary = smoke
    assert [row["class"] for row in summary["classes"]] == list("0123456789")
    constants = np.array([row["loss_constant_predicted"] for row in summary["classes"]])
    assert constants.max() > 1.5 * constants.min(), "one constant would do for all: no test"
    for row in summary["classes"]:
        assert 0.9 < row["ratio"] < 1, row
        assert row["margin_constant"] == pytest.approx(row["margin_constant_predicted"], abs=0.5)
        assert row["margin_constant_one_rival"] < row["margin_constant_predicted"] - 0.2
        assert row["exponent_predicted"] > 0


def test_the_bound_on_log_odds_is_kept_by_every_row_at_every_time(smoke):
    (row,) = smoke[2]["bound"]
    assert row["rows"] == 600
    # The bound is exact; what may be missing are the tolerances of the solver, in float32.
    assert row["least_slack"] > -1e-4
    assert 0 < row["median_slack_end"] < 0.2, "far from the bound the loss is not near its law"


def test_the_anchored_flow_has_a_limit_and_the_free_one_has_none(smoke):
    ends = {row["flow"]: row for row in smoke[2]["ends"]}
    for row in ends.values():
        assert row["accuracy_end"] == 1 > row["accuracy_start"]
        assert row["nc1_end"] < 0.3 * row["nc1_start"]
        assert row["cosine_end"] > 0.9
    assert ends["anchored"]["field_end_over_start"] < 1e-5 < ends["free"]["field_end_over_start"]
    assert ends["anchored"]["loss_end"] > 10 * ends["free"]["loss_end"]
    assert ends["anchored"]["nc1_end"] > 2 * ends["free"]["nc1_end"]


def test_figures_and_what_they_show(smoke):
    out, result, _ = smoke
    for name in ("law", "classes", "projection", "pictures", "block"):
        assert str(out / "figures" / f"{name}.png") in result.stdout
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    pictures = np.load(out / "figures" / "pictures.npz")
    states = pictures["states"]
    moved = (states[:, 1:] - states[:, :1]).reshape(-1, states[0, 0].size)
    scale = np.linalg.svd(moved, compute_uv=False)
    assert len(scale) > 10
    assert scale[9:].max() < 1e-4 * scale[0], "images leave the span of theta's ten centred rows"
    assert (pictures["read"][:, -1] == pictures["labels"].astype(str)).all()
    start, attended, block, flow = np.moveaxis(
        np.load(out / "figures" / "block.npz")["states"], 1, 0
    )
    assert np.linalg.norm(block - flow) < 0.5 * np.linalg.norm(flow - start)  # its operators cancel
    assert np.linalg.norm(attended - flow) > np.linalg.norm(block - flow)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(next(iter(line)) == "step" for line in lines)
    free = [line["loss"] for line in lines if line["flow"] == "free"]
    assert free == sorted(free, reverse=True)


def test_the_same_again_prints_the_results(smoke, capsys):
    out, first, _ = smoke
    assert EXPERIMENT.main(["--smoke", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "already run" in captured.err
    assert captured.out == first.stdout


# Predictions


def test_the_simplex_frame_has_its_closed_form():
    k, a = 5, 3.0
    late = late_times(np.sqrt(a) * (np.eye(k) - 1 / k))
    np.testing.assert_allclose(late.distance**-2, (k - 1) / (a * k), rtol=1e-12)
    np.testing.assert_allclose(late.alpha, (1 - np.eye(k)) / (a * k), atol=1e-12)
    assert (late.support == k - 1).all()


def test_the_predictions_solve_the_hard_margin_problem():
    theta = np.random.default_rng(0).normal(size=(7, 4))
    late = late_times(theta)
    assert late.support.min() < 6, "every other class holds: no test of those that do not"
    for c in range(7):
        others = np.arange(7) != c
        margins = (theta[c] - theta[others]) @ late.direction[c]
        alpha = late.alpha[c, others]
        assert margins.min() >= 1 - 1e-9
        np.testing.assert_allclose(alpha * (margins - 1), 0, atol=1e-9)
        assert np.sum(late.direction[c] ** 2) == pytest.approx(late.distance[c] ** -2)


@pytest.mark.laws
def test_the_predictions_agree_with_the_flow():
    random, k, t1 = np.random.default_rng(29), 4, 1e5
    theta, labels = random.normal(size=(k, 6)), np.arange(3 * k) % k
    z0, ts = random.normal(size=(3 * k, 6)), np.array([0.0, 10.0, 1e3, t1])
    loss = imr.feature_loss(imr.Linear(jnp.asarray(theta)), jnp.asarray(labels))
    flow = imr.solve_reduced(
        loss, jnp.asarray(z0), t1=t1, ts=jnp.asarray(ts), rtol=1e-9, atol=1e-11
    )
    logits = np.asarray(flow.zs) @ theta.T
    behind = np.exp(logits - np.take_along_axis(logits, labels[None, :, None], axis=2))
    behind[:, np.arange(3 * k), labels] = 0
    late = late_times(theta)
    assert bound_slack(-np.log(behind.sum(axis=2)), ts, late.distance[labels]).min() > -1e-6
    # Far enough from their limits to tell apart the exponents, which differ widely here.
    wanted = late.alpha[labels]
    error = np.abs(t1 * behind[-1] - wanted).max(axis=1) / wanted.max(axis=1)
    rate = np.maximum(t1**-late.exponent, np.log(t1) / t1)
    assert rate.max() > 100 * rate.min()
    assert (error < 2 * rate[labels]).all()


def test_the_bound_is_the_law_of_two_classes():
    ts, distance = np.array([0.0, 1.0, 1e6]), np.array([0.5, 2.0])
    odds = np.array([[-20.0, 3.0], [1.0, 4.0], [12.0, 15.0]])
    gone = odds - bound_slack(odds, ts, distance)  # what the law makes of the start
    start = odds[0] + np.exp(odds[0])
    np.testing.assert_allclose(gone + np.exp(gone), start + distance**2 * ts[:, None], rtol=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--l2", "0"), "--l2 must be above 0 and finite; found 0.0"),
        (("--anchor", "-1"), "--anchor must be above 0 and finite; found -1.0"),
        (("--t1", "inf"), "--t1 must be at least 1 and finite"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--per-decade", "2"), "--per-decade must be at least 3"),
        (("--train-limit", "12"), "--train-limit must leave at least two images of each class"),
        (("--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert EXPERIMENT.main([*flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"
