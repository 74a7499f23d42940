"""The beliefs experiment: its claims, its theory, and one smoke run."""

import json

import jax
import numpy as np
import pytest

from experiments.beliefs import acceptance, theory
from experiments.beliefs.__main__ import EXPERIMENT
from experiments.beliefs.config import LACKING, LENGTH, NETS, ONE, TWO, Config, plan
from experiments.beliefs.readings import Reading
from imr.lab import train
from imr.lab.bounds import at_most
from imr.lab.claims import Check, Claim, Control
from imr.lab.nets import read_nets


def run(*flags):
    return EXPERIMENT.main([str(flag) for flag in flags])


def reading(**values):
    """A reading of which only some is known."""
    return Reading(**(dict.fromkeys(Reading._fields) | values))


@pytest.mark.laws
def test_the_theory_holds_and_its_controls_fail():
    rows = theory.rows()
    assert [row for row in rows if not row["passed"]] == []
    assert {row["id"] for row in rows} == {"T1", "T2", "T3", "T5", "T7", "T8", "T9"}
    assert sum(row["role"] == "control" for row in rows) >= 5


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run: the smallest net, too few steps for the claims."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    with pytest.MonkeyPatch.context() as patch:
        # One device: of eight fake ones each would train the whole.
        patch.setattr(train, "mesh_of_all", lambda: None)
        assert run("--smoke", "--seeds", "2", "--out", out) == 0
    return out, json.loads((out / "summary.json").read_text())


@pytest.mark.acceptance
def test_a_smoke_net_is_measured_and_drawn(smoke):
    out, summary = smoke
    assert all(row["passed"] for row in summary["theory"])
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
    for course, row in zip(summary["courses"], spreads, strict=True):
        assert course["kl"][-1] == row["KL at 10, nats"]
        assert [np.shape(course[name]) for name in ("gains", "ov_along")] == [(10,), (1, 10)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [200, 400]


@pytest.mark.acceptance
def test_a_checkpoint_says_what_net_it_holds_and_what_that_has_learned(smoke):
    nets = read_nets(smoke[0] / "checkpoints" / "slow-soft")
    assert nets.runs == [{"seed": 0}, {"seed": 1}]
    assert nets.holds["architecture"]["name"] == "Transformer"
    assert nets.holds["process"]["arguments"] == {"x": 0.15, "a": 0.6}
    trained, fresh = (jax.tree.leaves(params) for params in (nets.params, nets.untrained()))
    assert all(a.shape == b.shape for a, b in zip(trained, fresh, strict=True))
    assert any((a != b).any() for a, b in zip(trained, fresh, strict=True))


@pytest.mark.acceptance
def test_the_same_again_prints_the_results(smoke, capsys):
    assert run("--smoke", "--seeds", "2", "--out", smoke[0]) == 0
    again = capsys.readouterr()
    assert "already run" in again.err
    assert (smoke[0] / "table.md").read_text().strip() in again.out


def test_one_seed_that_fails_is_a_claim_that_fails():
    claim = Claim(
        "N0", "value", lambda r: r.kl, (Check("value", at_most(1.0)),), (ONE, "soft"),
        (Control((ONE, "untrained")),),
    )  # fmt: skip
    readings = {
        (ONE.name, "soft"): [reading(kl=0.5), reading(kl=1.5)],
        (ONE.name, "untrained"): [reading(kl=2.0), reading(kl=3.0)],
    }
    claimed, refuted = acceptance.rows([claim], readings)
    assert not claimed["passed"]
    assert claimed["holds"] == 1
    assert refuted["passed"]
    text = acceptance.markdown([claimed, refuted])
    assert "FAILS (1/2)" in text
    assert "fails, as it must" in text
    readings[ONE.name, "untrained"][0] = reading(kl=0.1)
    assert not acceptance.rows([claim], readings)[1]["passed"]


def test_every_claim_has_its_row_and_a_control():
    lines = [(claim.id, line) for claim in acceptance.claims("soft") for line in claim.lines()]
    claims, controls = (
        {id for id, line in lines if line.role == role} for role in ("claim", "control")
    )
    assert claims == {"N1", "N2", "N4", "N5", "N6", "N7", "N8", "N9", "N10", "N12", "N13", "N16"}
    assert controls == claims
    assert {line.subject[0] for _, line in lines} == set(NETS)
    hard = [line for claim in acceptance.claims("hard") for line in claim.lines()]
    assert all(line.subject[1] in ("hard", "untrained") for line in hard)


def planted(even, odd):
    """Two heads' rows of attention with so much on their own parity."""
    return reading(parity=np.array([[1 - odd, odd], [even, 1 - even]]))


def test_parity_needs_a_head_for_each():
    assert acceptance.parity(planted(0.95, 0.99)) == pytest.approx(0.95)
    assert acceptance.parity(reading(parity=np.array([[0.1, 0.9], [0.05, 0.95]]))) < 0.2
    attention = np.zeros((1, 1, LENGTH, LENGTH))
    for d in range(LENGTH):
        attention[0, 0, d, : d + 1] = 0.55 ** np.arange(d, -1, -1)
    assert acceptance.lag_ratio(reading(attention=attention)) == pytest.approx(0.55)


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
