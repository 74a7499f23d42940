"""Jobs on a real SLURM of two virtual nodes: broken off in every way, they end with the same bits."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests import slurm as virtual
from tests.test_stops import end_of

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        bool(virtual.missing()), reason=f"needs slurm-wlm and munge; missing: {virtual.missing()}"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with virtual.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def shared():
    """A folder on storage that counts as shared, unlike that for temporary files."""
    (ROOT / "runs").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=ROOT / "runs"))
    yield folder
    shutil.rmtree(folder)


def launch(slurm, folder, *words, flags=(), code=0):
    command = [ROOT / "scripts" / "slurm" / "launch", "--gpus-per-node", "0", *flags, "--", *words]
    environment = slurm.environment | {"IMR_COMPILATION_CACHE": str(folder / "programs")}
    # -P keeps the working directory out; all nodes are this machine.
    environment |= {"PYTHONPATH": str(ROOT), "IMR_SHARED": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr if code else done.stdout.split()[-1]


def small(marker, phase, out):
    return "-m", "tests.small", marker, phase, "--out", out


TWO = ("--nodes", "2")


ENDED = ("FAILED", "CANCELLED", "TIMEOUT")


def ended(shown):
    return shown["JobState"] in ("COMPLETED", *ENDED)


def finished(slurm, job):
    """Waits until a job has completed, and returns how often it was queued again."""
    whole = time.monotonic()

    def until(shown):
        # Until its nodes have let go of it, a job that is to be queued again looks failed, too.
        nonlocal whole
        if shown["JobState"] not in ENDED:
            whole = time.monotonic()
        return shown["JobState"] == "COMPLETED" or time.monotonic() - whole > 60

    shown = slurm.wait(job, until)
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0"), slurm.log(job)
    return int(shown["Restarts"])


def waits(marker, slurm, job, count=2):
    """Waits until all processes of a job are at their phase."""
    end = time.monotonic() + 240
    while not all(Path(f"{marker}.{number}").exists() for number in range(count)):
        assert time.monotonic() < end, slurm.log(job)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def unbroken(slurm, shared):
    """What a plain run of two nodes ends with."""
    job = launch(slurm, shared, *small("none", "none", shared / "unbroken"), flags=TWO)
    assert finished(slurm, job) == 0
    return end_of(shared / "unbroken")


def test_a_plain_run_on_two_nodes(slurm, shared, unbroken):
    """Of two processes, one on each node, that make one program; alone it ends alike."""
    assert set(unbroken) == {"summary.json", "table.md", "metrics.jsonl", "nets"}
    job = launch(
        slurm, shared, "-c", "import jax, imr; imr.parallel.initialize(); print(jax.process_count())",
        "--out", shared / "none", flags=(*TWO, "--cpus-per-task", "2", "--mem", "2000M"),
    )  # fmt: skip
    finished(slurm, job)
    assert slurm.log(job).split() == ["2", "2"]
    shown = slurm.show(job)
    assert (shown["CPUs/Task"], shown["MinMemoryNode"]) == ("2", "2000M")


@pytest.mark.parametrize("phase", ["regression", "train", "evaluate"])
def test_a_job_that_is_told_to_stop(slurm, shared, unbroken, phase):
    marker, out = shared / f"{phase} has begun", shared / f'it\'s "{phase}"'
    job = launch(slurm, shared, *small(marker, phase, out), flags=TWO)
    waits(marker, slurm, job)
    slurm("scancel", "--signal=TERM", job)
    assert finished(slurm, job) == 1
    assert "run the same command again to resume" in slurm.log(job)
    assert end_of(out) == unbroken


def test_a_job_that_a_higher_partition_preempts(slurm, shared, unbroken):
    marker = shared / "preempted"
    job = launch(
        slurm, shared, *small(marker, "train", shared / "low"), flags=(*TWO, "--partition", "low")
    )
    waits(marker, slurm, job)
    script = "#!/usr/bin/env bash\nsleep 2\n"
    high = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive"]
    other = slurm(*high, f"--output={shared}/high.log", input=script).strip()
    slurm.wait(other, ended)
    assert finished(slurm, job) >= 1
    assert "is saved in" in slurm.log(job)
    assert end_of(shared / "low") == unbroken


def test_a_job_whose_time_is_up(slurm, shared, unbroken):
    """SLURM sends the signal two minutes before: of three minutes that leaves one."""
    marker = shared / "time"
    job = launch(
        slurm, shared, *small(marker, "train", shared / "timed"), flags=(*TWO, "--time", "5")
    )
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=3")  # too short for the launcher
    waits(marker, slurm, job)
    assert finished(slurm, job) == 1
    assert "is saved in" in slurm.log(job)
    assert end_of(shared / "timed") == unbroken


def test_a_coordinator_that_cannot_be_reached(slurm, shared):
    """The nodes of this partition have names that nothing resolves."""
    start = time.monotonic()
    words = small("none", "none", shared / "unreachable")
    job = launch(slurm, shared, *words, flags=(*TWO, "--partition", "unnamed"))
    shown = slurm.wait(job, ended)
    assert shown["JobState"] == "FAILED"
    log = slurm.log(job)
    assert "error: coordinator nowhere1:" in log
    assert "did not answer" in log
    assert "Traceback" not in log
    assert time.monotonic() - start < 60
    assert not (shared / "unreachable").exists()


def test_an_array_of_seeds(slurm, shared):
    words = small("none", "none", shared / "an array")
    job = launch(slurm, shared, *words, flags=("--array", "3-4"))
    for seed in (3, 4):
        finished(slurm, f"{job}_{seed}")
        folder = shared / "an array" / f"seed-{seed}"
        assert f'"seed": {seed}' in (folder / "config.json").read_text()
        assert (shared / f"imr-{job}_{seed}.log").exists()
        alone = shared / f"alone {seed}"
        command = [
            str(ROOT / ".venv/bin/python"),
            "-P",
            *words[:4],
            "--out",
            alone,
            "--seed",
            f"{seed}",
        ]
        environment = slurm.environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        assert end_of(folder) == end_of(alone)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--partition", "nowhere"), "--partition"), (("--mem", "900G"), "--mem"),
        (("--partition", "closed", "--account", "mine"), "--account"), (("--nodes", "9"), "--nodes"),
    ],
)  # fmt: skip
def test_what_slurm_refuses(slurm, shared, flags, named):
    said = launch(slurm, shared, *small("none", "none", shared / "refused"), flags=flags, code=2)
    assert said.startswith("error: SLURM refuses the job: sbatch: error: ")
    assert named in said.splitlines()[1]
    assert not (shared / "refused").exists()


def test_a_folder_of_another_configuration_is_refused_before_a_job_is_queued(slurm, shared):
    words = ("-m", "experiments.collapse", "--smoke", "--out", shared / "collapse")
    folder = shared / "collapse"
    folder.mkdir()
    (folder / "config.json").write_text('{"experiment": "images", "config": {}}')
    said = launch(slurm, shared, *words, code=2)
    assert "holds a run of another configuration (experiment: 'images' there" in said
    said = launch(slurm, shared, *words, "--seeds", "0", code=2)
    assert "error: --seeds must be at least 1" in said
    assert not slurm("squeue", "-h")
