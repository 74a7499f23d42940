"""The launchers with hostile values: nothing of them runs, and every argument arrives as it was."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = [
    "a b", "a\nb", "a\tb", "", "$(touch owned)", "`touch owned`", "; touch owned", "&& touch owned",
    "'", '"', "\\", "*", "~", "$HOME", "!x", "#", "--name", "-", "{a,b}", "é", "\n#SBATCH --x", "\x01",
]  # fmt: skip


def launch(name, folder, *words):
    """Output of a dry run in that folder, which also is the one for temporary files."""
    command = [ROOT / "scripts" / name / "launch", *words]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def bash(script, folder):
    """What a script prints, with a command `tell` that prints its arguments."""
    subprocess.run(["bash", "-n", "-c", script], check=True)
    environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\0")[:-1] for line in done.stdout.split("\x1e")[:-1]]


def tell(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\nprintf '%s\\0' \"$@\"\nprintf '\\x1e'\n")
    path.chmod(0o755)


def test_slurm_passes_every_argument_as_it_is(tmp_path):
    tell(tmp_path / "bin" / "srun")
    words = ["-m", "experiments.images", *HOSTILE, "--out", "/s/$(touch owned) r"]
    done = launch("slurm", tmp_path, "--dry-run", "--time", "2-12:00", "--partition", "a,b_c", "--", *words)  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = done.stdout
    assert [line.split("=")[0] for line in job.splitlines() if line.startswith("#SBATCH")] == [
        f"#SBATCH --{flag}"
        for flag in ("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "time", "partition",
                     "requeue", "signal", "output", "open-mode")
    ]  # fmt: skip
    [found] = bash(job, tmp_path)
    assert found[2:] == ["-P", *words]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_tpu_passes_every_argument_as_it_is_and_a_dry_run_makes_nothing(tmp_path):
    runs = sorted((ROOT / "runs").rglob("*"))
    words = ["-m", "experiments.images", *HOSTILE]
    flags = ["--name", "a-1", "--zone", "z", "--type", "t", "--bucket", "gs://b", "--dry-run"]
    done = launch("tpu", tmp_path, *flags, "--", *words)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert sorted((ROOT / "runs").rglob("*")) == runs
    for command in ("gcloud", "git", "mkdir"):
        tell(tmp_path / "bin" / command)
    commands = bash(done.stdout, tmp_path)
    assert len(commands) == 9
    [remote] = [words[-1] for words in commands if "IMR_DISTRIBUTED=1" in words[-1]]
    (tmp_path / "imr").mkdir()
    tell(tmp_path / "imr-env" / "bin" / "python")
    assert bash(remote, tmp_path) == [["-P", *words, "--out", "../shared/a-1"]]
    assert not (tmp_path / "imr" / "owned").exists()
    assert not (tmp_path / "owned").exists()


TPU = {"--name": "a", "--zone": "z", "--type": "t"}
BAD = {
    "slurm": [
        ("--time", "1\n#SBATCH --wrap=x"), ("--time", "1 2"), ("--time", ""), ("--partition", "a\necho"),
        ("--partition", "a b"), ("--partition", "-x"), ("--nodes", "00"), ("--nodes", "1\n2"),
        ("--gpus-per-node", "9" * 30),
    ],
    "tpu": [
        ("--name", "a;touch owned"), ("--name", "A"), ("--name", "-a"), ("--name", "a\nb"),
        ("--zone", "$(x)"), ("--type", "-x"), ("--version", "a b"), ("--project", "a/b"),
        ("--bucket", "b"), ("--bucket", "gs://"), ("--bucket", "gs://b c"), ("--bucket", "gs://b/../c"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_values_that_could_be_commands_are_refused(tmp_path, name):
    for flag, value in BAD[name]:
        flags = (TPU if name == "tpu" else {}) | {flag: value}
        end = [] if name == "tpu" else ["--out", "/s"]
        words = [word for pair in flags.items() for word in pair]
        done = launch(name, tmp_path, *words, "--dry-run", "--", "-m", "x", *end)
        assert done.returncode == 2, (flag, value, done.stdout)
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: {flag} must be "), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_run_folder_is_found_in_both_spellings(tmp_path):
    for out in (["--out", "/s"], ["--out=/s"]):
        assert launch("slurm", tmp_path, "--dry-run", "--", "-m", "x", *out).returncode == 0
        done = launch("tpu", tmp_path, *sum(TPU.items(), ()), "--dry-run", "--", "-m", "x", *out)
        assert "leave --out to this script" in done.stderr
    done = launch("slurm", tmp_path, "--dry-run", "--", "-m", "x", "a --out b")
    assert "a folder that all nodes share" in done.stderr
