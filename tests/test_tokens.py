"""The tokens experiment: its flows against closed forms, its tables, and one smoke run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from experiments.tokens.__main__ import EXPERIMENT
from experiments.tokens.flows import SETTINGS, Setting, _flags, _flow, energies, token_field
from experiments.tokens.measures import crossing_times, plateaus, violations
from experiments.tokens.theory import orthogonal_cosine
from imr.metrics import token_cosines

ROOT = Path(__file__).resolve().parents[1]
N = 12  # tokens of the smoke run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run, in a process of its own: its folder and what it printed."""
    out = tmp_path_factory.mktemp("tokens") / "run"
    # One device, as users have; and compiled fast, as it is small.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "experiments.tokens", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def summary(smoke):
    return json.loads((smoke[0] / "summary.json").read_text())


def pick(rows, **tags):
    """Rows with these tags, by increasing beta."""
    return [row for row in rows if all(row[k] == v for k, v in tags.items())]


# The fields


@pytest.fixture(scope="module")
def tokens():
    z = jax.random.normal(jax.random.key(0), (5, 3))
    return z / jnp.linalg.norm(z, axis=1, keepdims=True)


PHI, BETA = np.array([[1.0, 0.2], [0.3, -0.7], [0.1, 0.4]]), 3.0


@pytest.fixture(scope="module")
def fields(tokens):
    """The fields of all settings, in one program."""
    phi = jnp.asarray(PHI)
    of_each = jax.jit(lambda z: [token_field(s, phi, BETA)(0.0, z, None) for s in SETTINGS])
    return dict(zip(SETTINGS, of_each(tokens), strict=True))


@pytest.fixture(scope="module")
def imrs_fields(tokens):
    """The field with and without the column term, as imr has it and projected to the sphere."""
    loss = imr.feature_loss(imr.Quadratic(jnp.asarray(PHI), beta=BETA), None)

    @jax.jit
    def of_each(z):
        fields = [imr.closed_field(loss, column_term=c) for c in (False, True)]
        return [(f(0.0, z, None), imr.sphere_field(f)(0.0, z, None)) for f in fields]

    return of_each(tokens)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_field_is_imrs_in_the_time_of_geshkovski(fields, imrs_fields, setting):
    expected = -setting.sign / BETA * imrs_fields[setting.column_term][setting.sphere]
    np.testing.assert_allclose(fields[setting], expected, atol=1e-14)


def test_energies_and_their_flows(tokens, fields):
    """The log-sum-exp has the whole field as gradient; the interaction energy the weighted row term."""
    gradients = jax.jit(jax.jacrev(lambda z: energies(z, jnp.asarray(PHI), BETA)))(tokens)
    whole = fields[Setting(1, False, True)]
    np.testing.assert_allclose(gradients.attention, whole, atol=1e-13)
    row, z = fields[Setting(1, False, False)], np.asarray(tokens)
    denominators = np.exp(BETA * z @ PHI @ PHI.T @ z.T).sum(axis=1)
    weighed = 2 * (denominators / denominators.sum())[:, None] * row
    np.testing.assert_allclose(gradients.interaction, weighed, atol=1e-13)


def test_field_is_finite_for_huge_features(tokens):
    """Off the sphere features grow until the logits overflow, and no sooner."""
    z = jnp.asarray(1e8 * tokens, jnp.float32)
    field = jax.jit(lambda beta, z: token_field(SETTINGS[3], jnp.eye(3), beta)(0.0, z, None))
    assert jnp.isfinite(field(jnp.float32(0.1), z)).all()


# Tokens that start orthogonal


def test_closed_form_obeys_its_equation():
    n, betas, ts = 6, np.array([0.5, 2.0, 9.0]), np.linspace(0.0, 8.0, 801)
    g = orthogonal_cosine(n, betas, ts, 1.0)
    b = betas[:, None]
    slope = 2 * np.exp(b * g) * (1 - g) * ((n - 1) * g + 1) / (np.exp(b) + (n - 1) * np.exp(b * g))
    measured = (g[:, 2:] - g[:, :-2]) / (ts[2] - ts[0])
    np.testing.assert_allclose(measured, slope[:, 1:-1], atol=1e-4)
    assert np.all(g[:, 0] == 0)


@pytest.fixture(scope="module")
def orthogonal():
    """Solves n orthogonal tokens on the sphere for any sign and terms, in one program."""
    n, betas, ts = 6, jnp.array([0.5, 2.0, 5.0]), jnp.linspace(0.5, 6.0, 12)

    @jax.jit
    def solve(flags):
        def one(beta):
            field = jax.tree_util.Partial(_flow, *flags, jnp.eye(n), beta)
            flow = imr.solve(field, jnp.eye(n), t1=ts[-1], ts=ts, rtol=1e-9, atol=1e-11)
            return jax.vmap(token_cosines)(flow.zs), flow.result

        return jax.vmap(one)(betas)

    return n, betas, ts, solve


@pytest.mark.parametrize("column_term", [False, True], ids=["row", "row+column"])
@pytest.mark.laws
@pytest.mark.parametrize("sign", [1, -1])
def test_orthogonal_tokens_follow_the_closed_form(orthogonal, sign, column_term):
    """Geshkovski et al.'s equation for the row term up; twice its rate with the column term."""
    n, betas, ts, solve = orthogonal
    cosines, result = solve(_flags(Setting(sign, True, column_term)))
    assert np.all(result == 0)
    found = cosines[:, :, ~np.eye(n, dtype=bool)]
    expected = orthogonal_cosine(n, betas, ts, sign * (1 + column_term))
    np.testing.assert_allclose(found, np.broadcast_to(expected[..., None], found.shape), atol=1e-6)
    assert np.ptp(expected) > 0.1, "nothing has moved"


# What is read off the flows


def test_crossing_times():
    counts = np.array([[4.0, 4, 2, 1], [4, 4, 4, 4], [2, 2, 1, 1], [4, 2, 2, 2]])
    found = crossing_times(counts, np.array([1.0, 10.0, 100.0]), 2)
    np.testing.assert_allclose(found, [10, np.inf, 0, 1])
    np.testing.assert_allclose(
        crossing_times(counts[:1], np.array([1.0, 10.0, 100.0]), 3), [10**0.5]
    )


def test_plateaus():
    ts = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
    counts = np.array(
        [[[8.0, 3, 3, 1, 1], [8, 7, 7, 7, 7], [4, 4, 2, 2, 2], [4, 4, 4, np.nan, np.nan]]]
    )
    decades, height, open_ended = plateaus(counts, ts, 8)
    np.testing.assert_allclose(decades, [[1, 0, 2, 2]])
    np.testing.assert_allclose(height, [[3, np.nan, 2, 4]])
    assert open_ended.tolist() == [[False, False, True, True]]


def test_violations():
    share, worst = violations(np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]), 1e-5)
    assert (share, worst) == (0.25, 0.5)


# The smoke run


def test_every_setting_and_temperature_has_a_row(smoke, summary):
    rows = summary["table"]
    keys = {(r["sign"], r["sphere"], r["column_term"], r["beta"]) for r in rows}
    assert len(keys) == len(rows) == 8 * 5
    codes = ("success", "step_limit", "diverged", "step_too_small", "bad_times")
    assert all(sum(row[code] for code in codes) == row["seeds"] == 3 for row in rows)
    for figure in (smoke[0] / "figures").glob("*.png"):
        assert str(figure) in smoke[1]
        assert figure.stat().st_size > 10_000
        arrays = np.load(figure.with_suffix(".npz"))
        assert {"betas", "times"} < set(arrays.files)
    lines = [json.loads(line) for line in (smoke[0] / "metrics.jsonl").read_text().splitlines()]
    starts = [line for line in lines if line["step"] == 0]
    assert len(starts) == 8 * 3
    assert len({line["mean_cosine"] for line in starts}) == 1, "settings start from other tokens"


def test_ascent_on_the_sphere_clusters_and_large_beta_delays_it(smoke, summary):
    """One cluster at small beta (Geshkovski et al.); at large beta several stay for long."""
    for column in (False, True):
        rows = pick(summary["table"], sign=1, sphere=True, column_term=column)
        assert rows[0]["mean_cosine"] > 1 - 1e-4
        assert rows[0]["single_cluster_share"] == 1
        assert rows[0]["plateau_decades"] < 0.3
        assert rows[-1]["clusters"] > 1
        assert rows[-1]["plateau_decades"] > 0.5
        assert 1 < rows[-1]["plateau_clusters"] <= N / 2
        name = "sphere_row_column" if column else "sphere_row"
        cosine = np.load(smoke[0] / "figures" / "phase_cosine_ascent.npz")[name]
        assert np.all(np.diff(cosine[0]) > -1e-4), "the mean cosine falls on its way to 1"


def test_descent_on_the_sphere_repels(summary):
    """Tokens spread until they sum to zero: a mean cosine of -1 / (n - 1), the least there is."""
    for column in (False, True):
        row = pick(summary["table"], sign=-1, sphere=True, column_term=column)[0]
        assert row["mean_cosine"] == pytest.approx(-1 / (N - 1), abs=1e-3)
        assert row["clusters"] > N / 2


def test_descent_off_the_sphere_shrinks_and_ascent_grows(summary):
    for row in pick(summary["table"], sphere=False):
        assert (row["norm"] > 1) == (row["sign"] > 0)
        assert row["success"] == 3 or row["sign"] > 0


def test_only_the_column_term_makes_it_a_gradient(summary):
    for row in pick(summary["table"], column_term=True):
        assert row["antisymmetric_share_start"] < 1e-6
        assert row["attention_violations"] == 0
        assert row["gradient_cosine_min"] > 1 - 1e-4
    for row in pick(summary["table"], column_term=False):
        assert row["interaction_violations"] == 0
        if row["beta"] > 1:
            assert row["antisymmetric_share_start"] > 1e-3
            # Off the sphere, down, tokens shrink to where attention is uniform, and symmetric.
            assert row["gradient_cosine_min"] < (0.99 if row["sphere"] else 0.999)


def test_column_term_speeds_clustering_up(summary):
    """At small beta attention is nearly uniform and symmetric: the terms are equal, the rate doubles."""
    row = pick(summary["column_term"], sign=1, sphere=True)[0]
    assert row["half_time_pairs"] == 3
    assert row["half_time_ratio"] == pytest.approx(2, abs=0.15)


def test_tokens_stay_on_the_sphere(summary):
    assert all(row["norm_error"] < 1e-3 for row in pick(summary["table"], sphere=True))


def test_the_same_again_prints_the_results(smoke, capsys):
    assert EXPERIMENT.main(["--smoke", "--out", str(smoke[0])]) == 0
    found = capsys.readouterr()
    assert "already run" in found.err
    assert found.out == smoke[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tokens", "1"), "--tokens must be at least 2; found 1"),
        (("--dim", "2", "--rank", "3"), "--rank must be at most --dim = 2; found 3"),
        (("--beta-min", "0"), "--beta-min and --beta-max must be positive"),
        (("--time-max", "0.05"), "--time-min and --time-max must be positive, finite and in this"),
        (("--threshold", "0"), "--threshold must be at least 1e-06 and below 1; found 0.0"),
        (("--rtol", "1"), "--rtol must be at least 1e-12 and at most 0.01; found 1.0"),
        (("--shown", "-1"), "--shown must be above 0 and finite; found (-1.0,)"),
        (("--seeds", "0"), "--seeds must be at least 1; found 0"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert EXPERIMENT.main([*flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"
