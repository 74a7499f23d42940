"""The benchmark runs, small, and its ways agree. How fast they are is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_smoke_times_every_way_to_the_same_end(tmp_path):
    command = [sys.executable, "-m", "experiments.bench", "--smoke", "--out", tmp_path / "run"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {row["way"]: row for row in summary["linear"]}
    assert set(rows) == {"linear_flow", "solve(linear_field)", "solve(gradient_field)"}
    for row in rows.values():
        assert row["converged"]
        assert row["difference"] <= 1e-4
        assert len(row["seconds"]) == 2
        assert 0 < row["least s"] <= row["median s"] <= row["most s"]
    assert "linear_flow" in result.stdout
    assert all(row["difference"] <= 1e-4 for row in summary["beliefs"])
    assert {row["problem"] for row in summary["beliefs"]} == {
        "all 3^4 words", "10,000 sequences of 100", "one of 100,000"
    }  # fmt: skip


def test_bad_flags_are_one_clear_line(tmp_path):
    command = [sys.executable, "-m", "experiments.bench", "--n", "0", "--out", tmp_path / "run"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--n must be positive; found 0." in result.stderr
    assert not (tmp_path / "run").exists()
