"""The collapse experiment: one small run in a process of its own, its closed forms, its flags."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from experiments.collapse import theory
from experiments.collapse.__main__ import EXPERIMENT
from experiments.collapse.config import Config
from experiments.collapse.flows import starts

ROOT = Path(__file__).resolve().parents[1]


def run(*flags):
    command = [sys.executable, "-m", "experiments.collapse", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run, as a user has it: four classes in two to five dimensions, float32."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        result = run("--smoke", "--out", out)
    assert result.returncode == 0, result.stderr
    rows = json.loads((out / "summary.json").read_text())["table"]
    return out, result, {(row["f"], row["decay"]): row for row in rows}


def test_every_kind_of_run_is_there(smoke):
    out, result, rows = smoke
    assert set(rows) == {(f, decay) for f in (2, 3, 4, 5) for decay in ("off", "on")}
    assert all(row["seeds"] == 3 for row in rows.values())
    for name in ("collapse", "frames", "plane"):
        assert str(out / "figures" / f"{name}.png") in result.stdout
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
        assert np.load(out / "figures" / f"{name}.npz").files
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(next(iter(line)) == "step" for line in lines)
    assert {(line["f"], line["decay"]) for line in lines} == set(rows)


@pytest.mark.parametrize("f", [3, 4, 5])
def test_with_room_and_decay_all_collapse_to_the_simplex_frame(smoke, f):
    row = smoke[2][f, "on"]
    for name in ("settled", "collapsed", "self_dual", "simplex", "at_welch_bound", "softmax_code"):
        assert row[name] == 3, name
    assert row["nc2"] < 1e-4
    assert row["margin"] == pytest.approx(row["margin_predicted"], abs=1e-3)
    assert row["angle"] == pytest.approx(np.degrees(np.arccos(-1 / 3)), abs=0.01)
    # log(1 + 3 exp(-m)): the loss of that frame.
    assert row["loss"] == pytest.approx(np.log1p(3 * np.exp(-row["margin_predicted"])), rel=1e-3)


def test_without_room_there_is_a_square_and_no_simplex_frame(smoke):
    row = smoke[2][2, "on"]
    assert row["simplex"] == 0
    assert row["collapsed"] == row["self_dual"] == row["softmax_code"] == 3
    assert row["alignment"] == pytest.approx((2 / 3) ** 0.5, abs=1e-3)
    assert row["angle"] == pytest.approx(90, abs=0.1)
    assert (row["blocks"], row["blocks_seeds"]) == ("2+2", 3)
    assert row["interference"] == pytest.approx(1, abs=1e-3)


def test_without_decay_directions_are_on_their_way(smoke):
    rows = smoke[2]
    for f in (2, 3, 4, 5):
        off, on = rows[f, "off"], rows[f, "on"]
        assert off["settled"] == 0
        assert off["balance_drift"] < 1e-4 < on["balance_drift"], "Z^T Z - n theta^T theta is kept"
        assert off["margin"] > on["margin"]
        assert off["nc2"] > on["nc2"] - 1e-6
        # Bounds hold wherever the runs are.
        for row in (off, on):
            assert row["alignment"] <= row["alignment_bound"] + 1e-5
            assert row["interference"] >= row["welch_bound"] - 1e-5
            assert row["distance"] <= row["code_distance"] + 1e-5
    for f in (4, 5):
        assert rows[f, "off"]["loss_pace"] == pytest.approx(1, abs=0.2)


def test_the_same_again_prints_the_results(smoke, capsys):
    out, first, _ = smoke
    assert EXPERIMENT.main(["--smoke", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "already run" in captured.err
    assert captured.out == first.stdout


@pytest.mark.laws
def test_columns_of_zeros_stay_zero_and_change_nothing():
    config = Config(classes=3, dimensions=(2, 4), rows=2, seeds=1)
    z, theta = (a[0, 0] for a in starts(config))
    labels = jnp.repeat(jnp.arange(3), 2)
    field = jax.jit(imr.joint_field(lambda z, theta: imr.cross_entropy(z @ theta.T, labels).sum()))
    padded, plain = field(0.0, (z, theta), None), field(0.0, (z[:, :2], theta[:, :2]), None)
    for a, b in zip(padded, plain, strict=True):
        assert a.shape[1] == 4
        assert not a[:, 2:].any()
        np.testing.assert_allclose(a[:, :2], b, rtol=1e-12)


# What is known of frames


def polygon(k):
    angle = 2 * np.pi * np.arange(k) / k
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize(
    ("vectors", "groups"),
    [
        (polygon(7), "7"),
        (np.eye(5) - 1 / 5, "5"),
        (np.concatenate([np.eye(3), -np.eye(3)]), "2+2+2"),
    ],
    ids=["polygon", "simplex", "orthoplex"],
)
def test_known_codes_have_their_distances_and_angles(vectors, groups):
    k, f = len(vectors), np.linalg.matrix_rank(vectors)
    units = theory.unit_rows(vectors)
    assert theory.one_against_rest(units) == pytest.approx(theory.code_distance(k, f))
    assert theory.least_angle(units) == pytest.approx(theory.code_angle(k, f))
    assert theory.blocks(units) == groups


def test_a_direction_within_the_hull_of_the_others_is_at_distance_zero():
    units = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.6, 0.8], [0.6, 0.8]])
    assert theory.one_against_rest(units) == pytest.approx(0, abs=1e-6)
    assert theory.code_distance(9, 4) is None
    assert theory.code_angle(9, 4) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--classes", "2"), "--classes must be at least 3; found 2"),
        (("--dimensions", "2", "2"), "--dimensions must hold each number once; found (2, 2)"),
        (("--dimensions", "1"), "--dimensions must be at least 2; found (1,)"),
        (("--decay", "1.5"), "--decay must be above 0 and below 1; found 1.5"),
        (("--scale", "0"), "--scale must be above 0 and finite; found 0.0"),
        (("--t1", "nan"), "--t1 must be at least 1 and finite; found nan"),
        (("--decay-times", "0"), "--decay-times must be at least 1"),
        (("--seeds", "0"), "--seeds must be at least 1"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert EXPERIMENT.main([*flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"
