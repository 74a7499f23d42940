"""The images experiment end to end, in processes of its own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "model", "train_noise", "test_noise", "l2", "trained_iterations", "iteration", "accuracy",
    "accuracy_std", "cross_entropy", "seeds",
}  # fmt: skip
MODELS = {"multinomial_regression", "attention", "mlp", "attention_mlp", "latent_attention"}


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
    result = run("--smoke", "--out", out)
    assert result.returncode == 0, result.stderr
    return out, result


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


def test_before_the_first_block_all_models_read_out_their_theta(smoke):
    """At iteration 0 nothing has moved: cross-entropy differs from the trained depth's."""
    rows = json.loads((smoke[0] / "summary.json").read_text())["table"]
    trained = [r for r in rows if r["model"] == "attention" and r["test_noise"] == 0]
    by_iteration = {r["iteration"]: r["cross_entropy"] for r in trained if r["train_noise"] == 0}
    assert len(set(by_iteration.values())) == len(by_iteration)


def test_the_same_again_prints_the_results(smoke):
    out, first = smoke
    again = run("--smoke", "--out", out)
    assert again.returncode == 0
    assert "already run" in again.stderr
    assert again.stdout == first.stdout


def test_another_configuration_is_refused(smoke):
    out, _ = smoke
    result = run("--smoke", "--out", out, "--l2", "0.5")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "another configuration" in result.stderr
    assert "Traceback" not in result.stderr


def test_killed_and_resumed_is_bit_identical(smoke, tmp_path):
    """kill -9 in the middle of training, then the same command."""
    unbroken, _ = smoke
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("--smoke", "--out", out), cwd=ROOT, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = out / "checkpoints" / "attention-2"
    deadline = time.monotonic() + 300
    whole = lambda: [p for p in checkpoints.glob("*") if p.name.isdigit()]  # noqa: E731
    while not whole():
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()

    result = run("--smoke", "--out", out)
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
        (("--iterations", "-1"), "--iterations takes values of at least 0; found"),
        (("--train-noise", "0", "-0.5"), "--train-noise takes values of at least 0"),
        (("--test-noise", "0.5"), "--test-noise must hold 0, clean images"),
        (("--dataset", "cifar"), "digits, fashion_mnist, mnist"),
        (("--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
        (("--seeds", "0"), "--seeds takes values of at least 1"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, flags, message):
    result = run(*flags, "--smoke", "--out", tmp_path / "run")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
