"""The theorems experiment: every section holds, and a broken formula is found."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import imr
from experiments.theorems import formulas, splitting
from experiments.theorems.__main__ import EXPERIMENT
from experiments.theorems.config import Config
from experiments.theorems.measures import chosen

ROOT = Path(__file__).resolve().parents[1]
# Of rows that are alike, and of the costly adaptive solves, one of a kind.
SECTIONS = (
    "A1.loss", "A2.theorem1", "A3.symmetric", "A3.mask", "A3.latent", "A3.gradient",
    "A4.span.linear", "A5.two_class", "A5.frame", "A6.layer.self", "A6.order.lie", "A7",
)  # fmt: skip
KEYS = {
    "id", "statement", "check", "worst", "median", "seeds", "kind", "expected", "limit", "passed"
}  # fmt: skip


def run(*flags):
    return EXPERIMENT.main([str(flag) for flag in flags])


def table(out):
    return json.loads((out / "summary.json").read_text())["table"]


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """One smoke run of some rows of every section."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    return run("--smoke", "--only", *SECTIONS, "--out", out), out


@pytest.mark.laws
def test_every_statement_holds(sections):
    code, out = sections
    rows = table(out)
    assert [row for row in rows if not row["passed"]] == []
    assert code == 0
    assert {row["id"].split(".")[0] for row in rows} == {f"A{i}" for i in range(1, 8)}
    assert all(set(row) == KEYS and row["seeds"] == 3 for row in rows)
    assert len({(row["id"], row["check"]) for row in rows}) == len(rows)
    names = {claim.id for claim in chosen(Config(smoke=True, only=SECTIONS))}
    assert {row["id"] for row in rows} == names


@pytest.mark.acceptance
def test_every_row_of_the_table_holds(tmp_path):
    assert run("--smoke", "--out", tmp_path / "run") == 0
    assert {row["id"] for row in table(tmp_path / "run")} == {c.id for c in chosen(Config())}


@pytest.mark.laws
def test_the_numbers_say_what_the_verdicts_say(sections):
    """Independent of the experiment's own thresholds."""
    for row in table(sections[1]):
        if row["check"] in ("autodiff", "imr's field"):
            assert row["worst"] < 1e-12, row
        elif row["check"] == "central differences":
            # Differences of float64 never agree to rounding: that would be no witness of its own.
            assert 1e-13 < row["worst"] < 1e-6, row
        elif row["check"] == "order":
            order = {"strang": 2, "triple_jump": 4}.get(row["id"].split(".")[2], 1)
            assert abs(row["worst"] - order) < 0.1, row
        elif row["check"] == "Jacobian − its transpose":
            gradient = row["id"] in ("A3.gradient.row", "A3.gradient.column")
            assert (row["worst"] < 1e-12) is gradient, row


@pytest.mark.laws
def test_table_metrics_and_figures_are_written(sections, capsys):
    _, out = sections
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "All hold." in text
    rows = table(out)
    assert text.count("| pass") == len(rows)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    arrays = np.load(out / "figures" / "orders.npz")
    assert arrays["A6.order.lie.error"].shape == arrays["A6.order.lie.tau"].shape == (3, 7)
    assert np.load(out / "figures" / "closed_forms.npz")["A5.two_class.solve"].shape[0] == 3
    assert all(path.stat().st_size > 10_000 for path in (out / "figures").glob("*.png"))
    capsys.readouterr()
    assert run("--smoke", "--only", *SECTIONS, "--out", out) == 0
    again = capsys.readouterr()
    assert "already run" in again.err
    assert text.strip() in again.out


def without_column_term(z, phi, targets):
    a = targets - jax.nn.softmax(z @ phi @ phi.T @ z.T, axis=1)
    return a @ z @ phi @ phi.T


def test_a_formula_without_its_column_term_fails(tmp_path, monkeypatch, capsys):
    flags = ("--smoke", "--only", "A3.symmetric", "--out", tmp_path / "run")
    monkeypatch.setattr(formulas, "symmetric", without_column_term)
    assert run(*flags) == 1
    assert "failed: A3.symmetric, autodiff" in capsys.readouterr().err
    assert {row["passed"] for row in table(tmp_path / "run")} == {False}
    assert "3 of them fail." in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    monkeypatch.undo()
    assert run(*flags) == 1, "a finished run that failed has not become right"
    assert "failed: A3.symmetric, central differences" in capsys.readouterr().err


@pytest.mark.laws
def test_a_first_order_step_is_no_strang_step(tmp_path, monkeypatch):
    one = splitting.order_claim("A6.order.strang", "", 2, imr.lie_step, splitting.linear_parts)
    monkeypatch.setattr(splitting, "CLAIMS", (one,))
    assert run("--smoke", "--only", "A6.order.strang", "--out", tmp_path / "run") == 1
    (row,) = table(tmp_path / "run")
    assert row["worst"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--only", "A9"), "--only takes beginnings of row ids, such as A1, A2"),
        (("--classes", "9"), "--classes must be at most --features, 6; found 9"),
        (("--classes", "2"), "--classes must be at least 3; found 2"),
        (("--rank", "7"), "--rank must be at most --features, 6; found 7"),
        (("--seeds", "0"), "--seeds must be at least 1; found 0"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert run(*flags, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"


@pytest.mark.laws
def test_the_command_is_in_float64_by_itself(tmp_path, monkeypatch):
    """With a user's settings, in which jax computes in float32."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    flags = ("--smoke", "--only", "A2.theorem1", "--out", tmp_path / "run")
    command = [sys.executable, "-m", "experiments.theorems", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(row["passed"] for row in table(tmp_path / "run"))
