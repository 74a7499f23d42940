"""The images experiment end to end: one smoke run in this process; processes where they matter."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.images.__main__ import EXPERIMENT

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "model", "train_noise", "test_noise", "l2", "trained_iterations", "iteration", "accuracy",
    "accuracy_std", "cross_entropy", "seeds",
}  # fmt: skip
EVERY = {
    "attention", "mlp", "attention_mlp", "latent_attention", "flow", "self_attention",
    "self_attention_row", "patch_mlp",
}  # fmt: skip
FEW = ("attention", "attention_mlp", "flow", "self_attention")
MODELS = {"multinomial_regression", *FEW}


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """That of a user, one device and no settings of the tests'; compiled programs are shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def command(*flags):
    return [sys.executable, "-m", "experiments.images", *map(str, flags)]


def run(*flags):
    return subprocess.run(command(*flags), cwd=ROOT, capture_output=True, text=True, check=False)


def parameters(folder):
    """The final parameters of every model, from their checkpoints."""
    import orbax.checkpoint as ocp

    found = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        with ocp.CheckpointManager(path) as manager:
            step = manager.latest_step()
            args = ocp.args.Composite(state=ocp.args.StandardRestore())
            state = manager.restore(step, args=args)["state"]
        found[path.name] = (step, state)
    return found


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One unbroken smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    result = run("--smoke", "--models", *FEW, "--out", out)
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.mark.acceptance
def test_every_model_learns_and_has_its_rows(tmp_path):
    assert run("--smoke", "--models", *sorted(EVERY), "--out", tmp_path / "run").returncode == 0
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["table"]
    assert {row["model"] for row in rows} == {"multinomial_regression", *EVERY}
    for row in rows:
        if row["iteration"] == row["trained_iterations"] and row["test_noise"] == 0:
            assert row["accuracy"] > 0.5, row


def test_smoke_writes_every_row_and_figure(smoke):
    out, result = smoke
    summary = json.loads((out / "summary.json").read_text())
    rows = summary["table"]
    assert {row["model"] for row in rows} == MODELS
    assert all(set(row) == KEYS for row in rows)
    assert all(0 <= row["accuracy"] <= 1 and row["seeds"] == 2 for row in rows)
    measured = {"accuracy", "accuracy_std", "cross_entropy"}
    assert len({tuple(row[k] for k in sorted(KEYS - measured)) for row in rows}) == len(rows)
    for model in MODELS - {"multinomial_regression"}:
        found = {
            (r["train_noise"], r["test_noise"], r["iteration"]) for r in rows if r["model"] == model
        }
        expected = {(s, t, i) for s in (0, 0.5) for t in (0, 0.25, 0.5, 1) for i in range(4)}
        assert found == expected
    assert "multinomial_regression" in result.stdout
    for figure in ("frontier", "accuracy_train_noise_0", "iterations_attention_mlp_2"):
        assert str(out / "figures" / f"{figure}.png") in result.stdout
        assert (out / "figures" / f"{figure}.png").stat().st_size > 10_000
        assert np.load(out / "figures" / f"{figure}.npz").files
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(next(iter(line)) == "step" for line in lines)
    assert {line["model"] for line in lines} == MODELS - {"multinomial_regression"}


def test_at_iteration_0_the_table_is_plain_regression_with_the_models_theta(smoke):
    from imr.lab.data import load_images

    data = load_images("digits", train_limit=400, test_limit=100)
    _, state = parameters(smoke[0])["attention-2"]
    block = state["params"]["blocks"]
    block = block.get(0, block.get("0"))
    theta, bias = (
        np.asarray(leaf["value"] if isinstance(leaf, dict) else leaf)
        for leaf in (block["theta"], block["bias"])
    )
    accuracy = [
        np.mean(np.argmax(data.test_images @ theta[s].T + bias[s], axis=1) == data.test_labels)
        for s in range(2)  # the first runs are those without noise in training
    ]
    rows = json.loads((smoke[0] / "summary.json").read_text())["table"]
    (row,) = [
        r for r in rows
        if (r["model"], r["train_noise"], r["test_noise"], r["iteration"]) == ("attention", 0, 0, 0)
    ]  # fmt: skip
    assert row["accuracy"] == pytest.approx(np.mean(accuracy), abs=1e-6)


def test_every_model_learns(smoke):
    rows = json.loads((smoke[0] / "summary.json").read_text())["table"]
    for row in rows:
        if row["iteration"] == row["trained_iterations"] and row["test_noise"] == 0:
            least = 0.9 if row["model"] == "multinomial_regression" else 0.6
            assert row["accuracy"] > least, row


def test_the_same_again_prints_the_results(smoke):
    out, first = smoke
    again = run("--smoke", "--models", *FEW, "--out", out)
    assert again.returncode == 0
    assert "already run" in again.stderr
    assert again.stdout == first.stdout


def test_another_configuration_is_refused(smoke):
    out, _ = smoke
    result = run("--smoke", "--models", *FEW, "--out", out, "--l2", "0.5")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "another configuration" in result.stderr
    assert "Traceback" not in result.stderr


SHORT = (
    "--train-limit", "400", "--test-limit", "100", "--epochs", "400", "--checkpoint-every", "10",
    "--models", "attention", "--seeds", "2", "--penalties", "1e-3", "1e-2", "--train-noise", "0",
)  # fmt: skip


def whole_checkpoints(folder):
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


@pytest.mark.acceptance
def test_killed_and_resumed_is_bit_identical(tmp_path):
    """kill -9 in the middle of training, then the same command."""
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    assert run(*SHORT, "--out", unbroken).returncode == 0
    process = subprocess.Popen(
        command(*SHORT, "--out", out), cwd=ROOT, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = out / "checkpoints" / "attention-3"
    deadline = time.monotonic() + 300
    while not whole_checkpoints(checkpoints):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = parameters(unbroken)["attention-3"][0]
    assert 0 < max(whole_checkpoints(checkpoints)) < last, "the kill came too late to say anything"
    assert not (out / "summary.json").exists()

    result = run(*SHORT, "--out", out)
    assert result.returncode == 0, result.stderr
    wanted, found = parameters(unbroken), parameters(out)
    assert wanted.keys() == found.keys()
    for name, (step, state) in wanted.items():
        assert found[name][0] == step
        import jax

        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(found[name][1]), strict=True):
            np.testing.assert_array_equal(a, b)
    tables = [
        json.loads((folder / "summary.json").read_text())["table"] for folder in (unbroken, out)
    ]
    assert tables[0] == tables[1]
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seen = [(s["step"], s["model"], s["train_noise"]) for s in steps]
    assert len(seen) == len(set(seen)), "a step was written twice"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--iterations", "-1"), "--iterations must be at least 0; found (-1,)"),
        (
            ("--train-noise", "0", "-0.5"),
            "--train-noise must be at least 0 and finite; found (0.0, -0.5)",
        ),
        (("--test-noise", "0.5"), "--test-noise must hold 0, clean images"),
        (("--dataset", "cifar"), "digits, fashion_mnist, mnist"),
        (("--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
        (
            ("--train-noise", "0", "inf"),
            "--train-noise must be at least 0 and finite; found (0.0, inf)",
        ),
        (("--iterations", "3", "3"), "--iterations must hold each value once"),
        (("--models", "transformer"), "--models must be among attention, mlp"),
        (("--train-limit", "100000"), "1437"),
        (("--tau", "-0.1"), "--tau must be positive and finite (of any sign with --signed-step)"),
        (("--held-back", "1"), "--held-back must be above 0 and below 1; found 1.0"),
        (("--seeds", "0"), "--seeds must be at least 1; found 0"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, flags, message):
    assert EXPERIMENT.main([*flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists(), "a mistake has claimed the folder"


def test_a_mistake_beside_overwrite_loses_nothing(smoke):
    out, first = smoke
    missing = ("--dataset", "mnist", "--data-dir", "nowhere")
    result = run("--smoke", "--models", *FEW, "--out", out, "--overwrite", *missing)
    assert result.returncode == 2
    assert run("--smoke", "--models", *FEW, "--out", out).stdout == first.stdout
