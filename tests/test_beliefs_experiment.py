"""The beliefs experiment: its verdicts, its figures' arrays, and one smoke run."""

import json

import numpy as np
import pytest

from experiments.beliefs import acceptance
from experiments.beliefs.__main__ import main
from experiments.beliefs.acceptance import Bound, Line
from experiments.beliefs.config import LACKING, LENGTH, NETS, ONE, TWO, Config, plan
from imr.lab.experiment import run_main


def run(*flags):
    return run_main(main, Config, [str(flag) for flag in flags])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run: the smallest net, too few steps for the claims."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    assert run("--smoke", "--seeds", "2", "--out", out) == 0
    return out, json.loads((out / "summary.json").read_text())


def test_the_theory_holds_and_its_controls_fail(smoke):
    rows = smoke[1]["theory"]
    assert [row for row in rows if not row["passed"]] == []
    assert {row["id"] for row in rows} == {"T1", "T2", "T3", "T5", "T7", "T8", "T9"}
    assert sum(row["role"] == "control" for row in rows) >= 5


def test_a_smoke_net_is_measured_and_drawn(smoke):
    out, summary = smoke
    rows = {(r["id"], r["check"], r["role"]): r for r in summary["table"]}
    assert all(row["seeds"] == 2 for row in rows.values())
    kl = rows["N1", "mean KL, nats", "claim"]
    # Better than the unigram's 9.4e-3 nats by far, and than the last token's 1.9e-3.
    assert 0 < kl["least"] <= kl["median"] <= kl["most"] < 1e-3
    last = rows["N1", "mean KL of the last token's best", "control"]
    assert last["median"] == pytest.approx(1.9e-3, abs=5e-5)
    untrained = rows["N7", "R2 of final norm -> Bayes", "control"]
    assert untrained["passed"]
    assert untrained["median"] == pytest.approx(0.887, abs=0.015)
    for name in ("theory_simplex_0.15", "theory_attention", "simplex_slow_soft", "walk_slow_soft",
                 "values_slow_soft", "attention_slow_soft", "kl_soft"):  # fmt: skip
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
        assert np.load(out / "figures" / f"{name}.npz").files
    predicted = np.load(out / "figures" / "theory_attention.npz")["one"][0]
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-12)
    spreads = summary["attention_spread"]
    assert [(row["net"], row["seed"]) for row in spreads] == [(ONE.name, 0), (ONE.name, 1)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [200, 400]


def test_the_same_again_prints_the_results(smoke, capsys):
    assert run("--smoke", "--seeds", "2", "--out", smoke[0]) == 0
    again = capsys.readouterr()
    assert "already run" in again.err
    assert (smoke[0] / "table.md").read_text().strip() in again.out


def test_bounds_and_what_refutes_them():
    for bound, inside, outside in (
        (acceptance.at_most(1.0), 1.0, 1.1),
        (acceptance.at_least(1.0), 1.0, 0.9),
        (acceptance.near(1.0, 0.5), 0.5, 1.6),
        (Bound("below", 1.0), 0.9, 1.0),
    ):
        assert bound.holds(inside)
        assert not bound.holds(outside)
        assert bound.failed().holds(outside)
        assert not bound.failed().holds(inside)
        # What is not a number neither shows a claim nor refutes it.
        assert not bound.holds(np.nan)
        assert not bound.failed().holds(np.nan)


def test_one_seed_that_fails_is_a_claim_that_fails():
    line = Line("N0", "value", ONE, "soft", "claim", acceptance.at_most(1.0), lambda run: run["x"])
    control = line._replace(role="control", kind="untrained", bound=line.bound.failed())
    measured = {
        (ONE.name, "soft"): [{"x": 0.5}, {"x": 1.5}],
        (ONE.name, "untrained"): [{"x": 2.0}, {"x": 3.0}],
    }
    claimed, refuted = acceptance.rows([line, control], measured)
    assert not claimed["passed"]
    assert claimed["holds"] == 1
    assert refuted["passed"]
    text = acceptance.markdown([claimed, refuted])
    assert "FAILS (1/2)" in text
    assert "fails, as it must" in text
    measured[ONE.name, "untrained"][0]["x"] = 0.1
    assert not acceptance.rows([control], measured)[0]["passed"]


def test_every_claim_has_its_row_and_a_control():
    lines = acceptance.lines("soft")
    claims = {line.id for line in lines if line.role == "claim"}
    controls = {line.id for line in lines if line.role == "control"}
    assert claims == {"N1", "N2", "N4", "N5", "N6", "N7", "N8", "N9", "N10", "N12", "N13", "N16"}
    assert controls == claims
    assert {line.net for line in lines} == set(NETS)
    assert all(line.kind in ("hard", "untrained") for line in acceptance.lines("hard"))


def planted(even, odd):
    """Two heads' rows of attention with so much on their own parity."""
    return {"parity": np.array([[1 - odd, odd], [even, 1 - even]])}


def test_parity_needs_a_head_for_each():
    assert acceptance.parity(planted(0.95, 0.99)) == pytest.approx(0.95)
    assert acceptance.parity({"parity": np.array([[0.1, 0.9], [0.05, 0.95]])}) < 0.2
    attention = np.zeros((1, 1, LENGTH, LENGTH))
    for d in range(LENGTH):
        attention[0, 0, d, : d + 1] = 0.55 ** np.arange(d, -1, -1)
    assert acceptance.lag_ratio({"attention": attention}) == pytest.approx(0.55)


def test_the_plan():
    assert plan(Config(theory_only=True)) == []
    assert len(plan(Config())) == 4
    assert [
        (net.name, steps) for net, kind, steps in plan(Config(hard=True)) if kind == "hard"
    ] == [(net.name, 15000) for net in (ONE, TWO, LACKING)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds", "0"), "--seeds must be at least 1; found 0"),
        (("--checkpoint-every", "0"), "--checkpoint-every must be at least 1; found 0"),
        (("--theory-only", "--hard"), "--theory-only trains nothing"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert run(*flags, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"
