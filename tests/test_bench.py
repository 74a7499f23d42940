"""The benchmark runs, small, and its ways agree. How fast they are is no test's business."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import imr
from experiments.bench.__main__ import EXPERIMENT
from experiments.bench.config import Config
from experiments.bench.measures import MODULES, measure
from experiments.bench.programs import cycles
from experiments.bench.rounds import in_process
from experiments.bench.topologies import cuda_environment
from experiments.bench.tpu import compiled

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.acceptance
def test_smoke_times_every_way_to_the_same_end(tmp_path):
    command = [
        sys.executable,
        "-P",
        "-m",
        "experiments.bench",
        "--smoke",
        "--out",
        tmp_path / "run",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {row["way"]: row for row in summary["linear"]}
    ours = {"linear_flow", "solve(linear_field)", "solve(gradient_field)"}
    assert ours <= set(rows) <= ours | {"torchdiffeq dopri5"}
    for name, row in rows.items():
        assert name not in ours or row["converged"]
        assert row["difference"] <= 1e-4
        assert len(row["seconds"]) == 2
        assert 0 < row["least s"] <= row["median s"] <= row["most s"]
    assert "linear_flow" in result.stdout
    assert all(row["difference"] <= 1e-4 for row in summary["beliefs"])
    assert {row["problem"] for row in summary["beliefs"]} == {
        "all 3^4 words", "10,000 sequences of 100", "one of 100,000"
    }  # fmt: skip
    (dense,) = [row for row in summary["attention"] if "difference" in row]
    assert dense["difference"] < 2e-5
    assert all(0 < row["peak GB"] < 4 for row in summary["attention"])
    assert {row["way"]: len(row["seconds"]) for row in summary["training"]} == {
        "1 seed": 2, "5 seeds": 2
    }  # fmt: skip
    gaps = {row["way"]: row["gap"] for row in summary["context"]}
    assert 0 < gaps["kernel_regression"] < 1e-3
    assert 0 < gaps["scikit-learn, 0.0001"] < 1e-3
    for row in summary["devices"]:
        assert row["difference"] < 2e-5
        assert row["gradient's"] < 2e-5
        if row["devices"] > 1:
            assert 0.99 < row["MB sent, compiled"] / row["MB sent, model"] < 1.01
    assert {row["what"].split(":")[0] for row in summary["rates"]} == {"peak", "here", "model"}
    assert (tmp_path / "run" / "figures" / "attention.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--n", "0"), "--n must be at least 1; found 0."),
        (("--rtol", "0"), "--rtol must be above 0 and finite; found 0.0."),
        (("--parts", "nothing"), "--parts must be among linear, attention"),
        (("--scales",), "--scales must hold at least one number; found ()."),
        (
            ("--topologies", "v9z"),
            "--topologies must be among v4, v5e, v5p, v6e, tpu7x, v5e-256; found",
        ),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert EXPERIMENT.main([*flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cycles_of_loops_and_branches():
    """Of a compiled program as the compiler writes it: loops by their lengths, the last of branches."""
    text = """
%condition (p: s32[]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[] compare(%p, %constant.1), direction=LT
}

%body (p: s32[]) -> s32[] {
  %a = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"7"}
}

%rare (p: s32[]) -> s32[] {
  %b = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"1000"}
}

%usual (p: s32[]) -> s32[] {
  %while.1 = s32[] while(%p), condition=%condition, body=%body
}

ENTRY %main (p: s32[]) -> s32[] {
  %c = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"3"}
  %d = s32[] conditional(%p, %p, %p), branch_computations={%rare, %usual}
}
"""
    assert cycles(text) == 3 + 10 * 7
    with pytest.raises(imr.ImrError, match="the length of a loop must be a constant"):
        cycles(text.replace("constant(10)", "parameter(0)"))


def test_parts_whose_packages_are_missing_are_skipped_by_name(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(MODULES, "rates", SimpleNamespace(measure=lambda config: ("rates", [])))
    run: Any = None  # which no part reads
    assert measure(Config(parts=("tpu", "rates", "cuda")), run) == {"rates": ("rates", [])}
    words = capsys.readouterr().err
    for name, package, extra in (("tpu", "libtpu", "tpu"), ("cuda", "jax-cuda13-plugin", "cuda")):
        assert f"{name}: skipped. {package} is needed" in words
        assert f"pip install 'imr[{extra}]'" in words
    with pytest.raises(imr.MissingPackageError, match="libtpu"):
        measure(Config(parts=("tpu",)), run)


def test_topologies_and_packages_are_checked_before_anything_is_compiled(monkeypatch):
    with pytest.raises(imr.ImrError, match=r"one of v4, v5e, .*v5e-256; found 'v9z'"):
        compiled(["v5e", "v9z"])
    there = {"jax_cuda13_plugin", "jax_plugins"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    with pytest.raises(imr.MissingPackageError, match=r"jax-cuda13-pjrt .*imr\[cuda\]"):
        cuda_environment()
    there.add("jax_plugins.xla_cuda13")
    with pytest.raises(imr.MissingPackageError, match=r"nvidia-cuda-nvcc .*imr\[cuda\]"):
        cuda_environment()


@pytest.mark.acceptance
def test_a_process_that_fails_says_why():
    with pytest.raises(imr.ImrError, match=r"bench.tpu v9z has failed: error: a topology must be"):
        in_process("tpu", "v9z", JAX_PLATFORMS="cpu")
