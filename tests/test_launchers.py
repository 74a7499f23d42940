"""The launchers: what they would do, to the letter; hostile values run nothing, and arrive as they were."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
import tomllib
from pathlib import Path

import pytest
import yaml

from imr.errors import RunError
from imr.lab.files import is_local, place
from tests import slurm

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
HOSTILE = [
    "a b", "a\nb", "a\tb", "", "$(touch owned)", "`touch owned`", "; touch owned", "&& touch owned",
    "'", '"', "\\", "*", "~", "$HOME", "!x", "#", "--name", "-", "{a,b}", "é", "\n#SBATCH --x", "\x01",
    "a&b", ": x", "- x", "%s", "$$", "$(IMR_DISTRIBUTED)", "$$(HOME)", "\x7f", "\x85", "\u2028 \u2029", "\ufeff", "\ufffe\uffff",
    "\U0001f600",
]  # fmt: skip
TPU = {"--name": "a", "--zone": "z", "--type": "v5litepod-8"}


def launch(name, folder, *words, path="", shared=True):
    """Output of a launcher in that folder, shared or not, which also is the one for temporary files."""
    command = [ROOT / "scripts" / name / "launch", *words]
    environment = os.environ | {"TMPDIR": str(folder), "PATH": f"{path}{os.environ['PATH']}"}
    environment |= {"IMR_SHARED": f"{ROOT}:{folder}" if shared else str(ROOT)}  # wherever that is
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def bash(script, folder, **variables):
    """What a script prints, with a command `tell` that prints its arguments."""
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\0")[:-1] for line in done.stdout.split("\x1e")[:-1]]


def tell(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\nprintf '%s\\0' \"$@\"\nprintf '\\x1e'\n")
    path.chmod(0o755)


IMAGES = ("--", "-m", "experiments.images", "--models", "it's", "--out", "/shared/my runs/$a")
ON_TPU = ("--", "-m", "experiments.images", "--models", "it's")
TEXTS = {
    "slurm.txt": ("slurm", "--dry-run", *IMAGES),
    "slurm_array.txt": (
        "slurm", "--dry-run", "--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "8", "--mem",
        "64G", "--partition", "a,b", "--account", "lab", "--qos", "low", "--array", "0-4%2", *IMAGES,
    ),
    "tpu.txt": (
        "tpu", "--dry-run", "--name", "a", "--zone", "z", "--type", "v5litepod-16", "--bucket",
        "gs://bucket/my runs", "--project", "p", "--spot", "--internal-ip", "--network", "n",
        "--service-account", "s@p.com", *ON_TPU,
    ),
    "tpu_one_host.txt": (
        "tpu", "--dry-run", "--name", "a", "--zone", "z", "--type", "v6e-8", "--keep", *ON_TPU,
    ),
    "jobset.yaml": (
        "tpu", "--gke", "--dry-run", "--name", "a", "--type", "v5p-32", "--bucket", "gs://bucket", "--image",
        "registry/imr:1", "--spot", "--service-account", "s", *ON_TPU,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_would_be_done(tmp_path, name):
    """After an intended change: IMR_TEST_GOLDEN=1 writes the texts anew."""
    done = launch(TEXTS[name][0], tmp_path, *TEXTS[name][1:])
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(str(ROOT), "ROOT")
    if "tpu" in name:  # the one thing that is not the same at any time
        stamp = next(word for word in text.split() if "runs/tpu/a-" in word).rpartition("/a-")[2]
        text = text.replace(stamp, "STAMP")
    if os.environ.get("IMR_TEST_GOLDEN") == "1":
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()
    assert list(tmp_path.iterdir()) == []


def test_slurm_passes_every_argument_as_it_is(tmp_path):
    tell(tmp_path / "bin" / "srun")
    words = ["-m", "experiments.images", *HOSTILE]
    out = "/s/$(touch owned) r"
    for flags, more in (((), []), (("--array", "0-4"), ["--seed", "3"])):
        done = launch("slurm", tmp_path, "--dry-run", *flags, "--", *words, "--out", out)
        assert done.returncode == 0, done.stderr
        [found] = bash(done.stdout, tmp_path, SLURM_ARRAY_TASK_ID="3")
        assert found[2:] == ["-P", *words, "--out", out + ("/seed-3" if more else ""), *more]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_tpu_passes_every_argument_as_it_is_and_a_dry_run_makes_nothing(tmp_path):
    runs = sorted((ROOT / "runs").rglob("*"))
    words = ["-m", "experiments.images", *HOSTILE]
    flags = [*sum(TPU.items(), ()), "--bucket", "gs://bucket/a b", "--dry-run"]
    done = launch("tpu", tmp_path, *flags, "--", *words)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert sorted((ROOT / "runs").rglob("*")) == runs
    for command in ("gcloud", "git", "mkdir"):
        tell(tmp_path / "bin" / command)
    [remote] = [call[-1] for call in bash(done.stdout, tmp_path) if " start " in call[-1]]
    tell(tmp_path / ".imr-launch" / "imr" / "scripts" / "tpu" / "worker")
    assert bash(remote, tmp_path) == [["start", *words, "--out", "gs://bucket/a b/a"]]
    assert not list(tmp_path.rglob("owned"))


def test_a_jobset_passes_every_argument_as_it_is(tmp_path):
    flags = ["--gke", "--dry-run", "--image", "i", "--name", "a", "--bucket", "gs://bucket/a b"]
    for kind, hosts, chips, topology in (
        ("v5litepod-1", 1, 1, "1x1"), ("v6e-16", 4, 4, "4x4"), ("v4-8", 1, 4, "2x2x1"),
    ):  # fmt: skip
        done = launch("tpu", tmp_path, *flags, "--type", kind, "--", "-m", "x", *HOSTILE)
        assert done.returncode == 0, done.stderr
        manifest = yaml.safe_load(done.stdout)
        assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        (replicated,) = manifest["spec"]["replicatedJobs"]
        job = replicated["template"]["spec"]
        assert job["parallelism"] == job["completions"] == hosts
        pod = job["template"]["spec"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {"google.com/tpu": chips}
        assert {each["name"]: each["value"] for each in container["env"]}["IMR_DISTRIBUTED"] == "1"
        variables = {each["name"]: each["value"] for each in container["env"]}
        words = [expanded(word, variables) for word in container["command"]]
        assert words == ["python", "-P", "-m", "x", *HOSTILE, "--out", "gs://bucket/a b/a"]
    done = launch("tpu", tmp_path, *flags, "--type", "v4-8", "--", "-m", "x", b"\xff")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: $'\\377' must be UTF-8, as all is in a JobSet.\n"


def expanded(word, variables):
    """What Kubernetes makes of a word of a command: $$ is $, and $(NAME) a variable that there is."""

    def value(found):
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, word)


@pytest.mark.laws
def test_what_makes_no_jobset(tmp_path):
    flags = {"--image": "i", "--name": "a", "--bucket": "gs://bucket", "--type": "v6e-16"}

    def jobset(**others):
        words = sum((flags | {f"--{key}": value for key, value in others.items()}).items(), ())
        return launch("tpu", tmp_path, "--gke", "--dry-run", *words, "--", "-m", "x")

    for name in ("yes", "null", "a" * 40):  # which YAML would take for something else
        assert yaml.safe_load(jobset(name=name).stdout)["metadata"]["name"] == name
    for others, said in (
        ({"name": "a" * 41}, "--name must have at most 40 letters with --gke"),
        ({"type": "v4-24"}, "--gke knows no slice of --type v4-24. Known to it are\n  v4-N and v5p-N with N = 8,"),
        ({"type": "v3-8"}, "--gke knows no slice of --type v3-8. Known"),
        ({"network": "n"}, "leave out --network: it is of a slice of Cloud TPU"),
        ({"version": "v"}, "leave out --version"), ({"image": "a b"}, "--image must be an image of a registry"), ({"type": "v7-8"}, "unknown --type v7-8"),
    ):  # fmt: skip
        done = jobset(**others)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {said}")
    for missing in ("--image", "--bucket"):
        words = [word for pair in flags.items() if pair[0] != missing for word in pair]
        done = launch("tpu", tmp_path, "--gke", "--dry-run", *words, "--", "-m", "x")
        assert (done.returncode, done.stdout) == (2, "")
        assert missing in done.stderr


@pytest.mark.laws
def test_a_jobset_resumes_what_was_preempted_and_ends_with_what_has_failed(tmp_path):
    """By the rules of Kubernetes: of a Job and of a JobSet, the first that fits a failure."""
    flags = (
        "--gke",
        "--dry-run",
        "--image",
        "i",
        "--name",
        "a",
        "--bucket",
        "gs://bucket",
        "--type",
        "v6e-16",
    )
    spec = yaml.safe_load(launch("tpu", tmp_path, *flags, "--", "-m", "x").stdout)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    # Without these the rules of a Job mean nothing.
    assert (job["template"]["spec"]["restartPolicy"], job["backoffLimit"]) == ("Never", 0)

    def reason(code, conditions=()):
        for rule in job["podFailurePolicy"]["rules"]:
            of_codes, of_conditions = rule.get("onExitCodes"), rule.get("onPodConditions", ())
            assert (of_codes is None) == bool(of_conditions)  # a rule has one of both
            fits = any((each["type"], each["status"]) in conditions for each in of_conditions)
            if of_codes is not None:
                assert of_codes["containerName"] == container["name"]
                fits = {"In": True, "NotIn": False}[of_codes["operator"]] == (
                    code in of_codes["values"]
                )
            if fits and rule["action"] == "FailJob":
                return "PodFailurePolicy"
            if fits:
                assert rule["action"] == "Count"
                break
        return "BackoffLimitExceeded"

    def action(why):
        rules = spec["failurePolicy"]["rules"]
        fitting = [rule["action"] for rule in rules if why in rule["onJobFailureReasons"]]
        return [*fitting, "RestartJobSet"][0]

    disrupted = [("DisruptionTarget", "True")]
    assert action(reason(int(environment["IMR_PREEMPTED_CODE"]))) == "RestartJobSet"
    for code in (75, 137, 143):
        assert action(reason(code, disrupted)) == "RestartJobSet"
    for code in (1, 2, 134, 137):
        assert action(reason(code)) == "FailJobSet"


BAD = {
    "slurm": [
        ("--time", "1\n#SBATCH --wrap=x"), ("--time", "1 2"), ("--time", ""), ("--partition", "a\necho"),
        ("--partition", "a b"), ("--partition", "-x"), ("--nodes", "00"), ("--nodes", "1\n2"),
        ("--gpus-per-node", "9" * 30), ("--cpus-per-task", "0"), ("--mem", "1 G"), ("--mem", "all"),
        ("--account", "a,b"), ("--qos", "$(x)"), ("--array", "0-"), ("--array", "0-4\n#SBATCH --x"),
        ("--array", "4-0"), ("--array", "0-4,9-08"), ("--array", "0-4%0"),
        # Too short for the signal that asks a job to save.
        ("--time", "0"), ("--time", "4"), ("--time", "04:59"), ("--time", "00:04:59"), ("--time", "0-0:4"),
    ],
    "tpu": [
        ("--name", "a;touch owned"), ("--name", "A"), ("--name", "-a"), ("--name", "a\nb"), ("--name", "a\x7f"), ("--image", "i\x7f"),
        ("--zone", "$(x)"), ("--version", "a b"), ("--project", "a/b"), ("--network", "-n"),
        ("--service-account", "a b"), ("--image", "a b"), ("--bucket", "b"), ("--bucket", "gs://"),
        ("--bucket", "gs://b c"), ("--bucket", "gs://bucket/../c"), ("--bucket", "gs://bucket/"),
    ],
}  # fmt: skip


def refused(name, folder, flags, *words):
    flags = [word for pair in flags.items() for word in pair]
    done = launch(name, folder, *flags, "--dry-run", "--", "-m", "x", *words)
    assert done.returncode == 2, (flags, done.stdout)
    assert done.stdout == ""
    assert list(folder.iterdir()) == []
    return done.stderr


@pytest.mark.laws
@pytest.mark.parametrize("name", BAD)
def test_values_that_could_be_commands_are_refused(tmp_path, name):
    for flag, value in BAD[name]:
        flags, end = ({}, ["--out", "/s"]) if name == "slurm" else (TPU, [])
        said = refused(name, tmp_path, flags | {flag: value}, *end)
        assert said.startswith(f"error: {flag} must be "), said


@pytest.mark.laws
def test_jobs_without_shared_storage_are_refused(tmp_path):
    for out in ([], ["a --out b"], ["--out"], ["--out="]):
        assert "a folder that all nodes share" in refused("slurm", tmp_path, {}, *out)
    for out in ("/tmp/r", "/var/tmp/r", "/dev/shm/../shm/r"):
        said = refused("slurm", tmp_path, {}, f"--out={out}")
        assert "--out must lie on storage that all nodes share" in said
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shutil.copytree(ROOT / "scripts", Path(folder, "scripts"))
        command = [f"{folder}/scripts/slurm/launch", "--dry-run", "--", "-c", "x", "--out", "/s"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 2
        assert done.stderr.startswith(
            "error: the repository must lie on storage that all nodes share"
        )
        for shared in (folder, f"/nowhere:{folder}/", "/"):
            environment = os.environ | {"IMR_SHARED": shared}
            done = subprocess.run(command, capture_output=True, cwd=folder, env=environment)
            assert done.returncode == 0
        program = Path(folder, "program.py")
        program.touch()
        done = launch("slurm", tmp_path, "--dry-run", "--", program, "--out", "/s")
        assert done.stderr.startswith(
            f"error: the program must lie on storage that all nodes share; found {program}"
        )
        done = launch("slurm", tmp_path, "--dry-run", "--", "-c", "x", "--out", "/s", shared=False)
        assert done.stderr.startswith(
            "error: the working folder, to which the log goes, must lie on storage"
        )
    assert "--image goes with --gke" in refused("tpu", tmp_path, TPU | {"--image": "i"})
    said = refused("tpu", tmp_path, TPU | {"--type": "v5litepod-16"})
    assert "v5litepod-16 has 4 hosts: they need --bucket" in said
    done = launch("tpu", tmp_path, *sum(TPU.items(), ()), "--spot", "--dry-run", "--", "-m", "x")
    assert done.stderr.startswith("error: --spot needs --bucket")
    for out in (["--out", "/s"], ["--out=/s"]):
        assert "leave --out to this script" in refused("tpu", tmp_path, TPU, *out)
    said = refused("slurm", tmp_path, {"--array": "0-4"}, "--out", "/s", "--seed=1")
    assert "leave --seed to --array" in said


@pytest.mark.laws
@pytest.mark.parametrize("time", ["5", "09:00", "0:5:00", "1-0", "0-1:08", "0-0:5:00", "UNLIMITED"])
def test_times_that_leave_room_for_the_signal(tmp_path, time):
    done = launch("slurm", tmp_path, "--dry-run", "--time", time, "--", "-m", "x", "--out", "/s")
    assert f"#SBATCH --time={time}\n" in done.stdout, done.stderr


@pytest.mark.laws
@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs the extra gcs")
@pytest.mark.parametrize(
    "out",
    [
        "s3://bucket/run", "gs:/bucket/run", "file:///s/run", "gs://", "gs://bucket", "gs://bucket//", "gs://bucket/run*", "gs://bucket/a[1]/b",
        "gs:///run", "GS://bucket/run", "hdfs:/x", "gs://bucket/run", "C:/a", "a:b",
        "a/b:/c", "1a:/b", "é+:/b",
    ],
)  # fmt: skip
def test_addresses_are_those_of_the_library(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    words = ("slurm", tmp_path, "--dry-run", "--", "-m", "x", "--out", out)
    path = None
    with contextlib.suppress(RunError):
        path = place(out)
    done = launch(*words, shared=path is None or not is_local(path))
    if path is None:
        with pytest.raises(RunError) as refusal:
            place(out)
        assert done.stderr == f"error: {refusal.value}\n"
    elif is_local(path):  # in a folder for temporary files
        assert f"found {path}, which each node has for itself" in done.stderr
    else:
        assert f" --out {out} " in done.stdout


@pytest.mark.laws
def test_home_is_what_a_shell_leaves_of_it(tmp_path):
    done = launch("slurm", tmp_path, "--dry-run", "--", "-m", "x", "--out=~/run")
    home = Path.home().resolve()
    assert f" --out {home}/run " in done.stdout
    assert "Spell the folder out" in refused("slurm", tmp_path, {}, "--out=~somebody/run")


@pytest.mark.laws
@pytest.mark.parametrize(
    "words", [[], ["--smoke"], ["-m"], ["-m", ""], ["-um"], ["-c"], ["-X", "dev"], ["-W", "error", "-B"]]
)  # fmt: skip
def test_a_program_is_needed(tmp_path, words):
    for name, flags in (("slurm", ["--dry-run"]), ("tpu", [*sum(TPU.items(), ()), "--dry-run"])):
        more = ["--out", "/s"] if name == "slurm" else []
        done = launch(name, tmp_path, *flags, "--", *words, *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert "error: say what to run" in done.stderr


@pytest.mark.laws
def test_a_program_that_is_not_there(tmp_path):
    """A job of SLURM runs what lies in the working folder, a TPU what is committed."""
    tpu, slurm = ["tpu", tmp_path, *sum(TPU.items(), ())], ["slurm", tmp_path]
    (tmp_path / "tests").mkdir()
    (tmp_path / "README.md").touch()
    for words in (
        ["nothere.py"], ["-m", "experiments.nothere"], ["-u", "-m", "imr.lab"], ["-"],
        ["tests"], ["README.md"], ["-m", "experiments"], ["-m", "experiments.images."],
    ):  # fmt: skip
        for command, end in ((tpu, []), (slurm, ["--out", "/s"])):
            done = launch(*command, "--dry-run", "--", *words, *end)
            assert (done.returncode, done.stdout) == (2, "")
            assert (
                f"error: there is no {'module' if '-m' in words else 'program'} {words[-1]} in "
                in done.stderr
            )
    (tmp_path / "a b.py").touch()
    for word in ("a b.py", str(ROOT / "tests" / "small.py")):
        assert launch(*slurm, "--dry-run", "--", word, "--out", "/s").returncode == 0
        assert "which is what the workers get" in launch(*tpu, "--dry-run", "--", word).stderr
    for word in ("tests/small.py", "experiments/images"):
        assert launch(*tpu, "--dry-run", "--", word).returncode == 0
    folder = ROOT / "experiments" / "images"
    assert launch(*slurm, "--dry-run", "--", folder, "--out", "/s").returncode == 0


@pytest.mark.laws
def test_values_may_follow_an_equals_sign(tmp_path):
    for name, flags, end in (
        ("slurm", ["--nodes", "2", "--array", "0-1"], ["--out", "/s"]),
        ("tpu", sum(TPU.items(), ()), []),
    ):
        joined = [f"{flag}={value}" for flag, value in zip(flags[::2], flags[1::2], strict=True)]
        done, other = (
            launch(name, tmp_path, *words, "--dry-run", "--", "-c", "a=b", *end)
            for words in (flags, joined)
        )
        assert done.returncode == 0
        stamps = [re.sub("[0-9]{8}-[0-9]{6}", "", each.stdout) for each in (done, other)]
        assert stamps[0] == stamps[1]
    done = launch("tpu", tmp_path, *joined, "--dry-run=no", "--", "-c", "x")
    assert done.stderr.startswith("error: unknown flag no.")


@pytest.mark.laws
@pytest.mark.parametrize("name", ["slurm", "tpu"])
def test_help_names_every_flag(tmp_path, name):
    lines = (ROOT / "scripts" / name / "launch").read_text().partition("\ndone\n")[0].splitlines()
    flags = [
        word
        for line in lines
        if re.match(" +--.*\\)", line)
        for word in re.findall("--[a-z-]+", line.partition(")")[0])
    ]
    for words in (["--help"], ["--name", "a", "-h", "--", "x"] if name == "tpu" else ["-h"]):
        done = launch(name, tmp_path, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(flags) > 9
        assert not [flag for flag in flags if flag not in done.stdout and flag != "--help"]
        assert "#!" not in done.stdout
        assert "set -euo" not in done.stdout


@pytest.mark.laws
@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["-m", "experiments.a", "-m", "b"], "experiments.a"), (["-u", "-m", "a"], "a"),
        (["-um", "a"], "a"), (["-ma"], "a"), (["-X", "dev", "-Werror", "-W", "-m", "-m", "a"], "a"),
        (["-c", "-m", "a"], ""), (["a b.py", "-m", "a"], ""), (["-", "-m", "a"], ""), (["-Xmc", "x"], ""),
    ],
)  # fmt: skip
def test_which_module_python_runs(tmp_path, words, module):
    tell(tmp_path / "bin" / "tell")
    script = f'source {ROOT}/scripts/setup.sh && program "$@" && tell "$module"'
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    command = ["bash", "-c", f"set -euo pipefail; {script}", "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == f"{module}\0\x1e", done.stderr


@pytest.mark.laws
def test_jobs_on_the_one_slurm_of_a_machine_are_not_run_side_by_side(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "test").write_text((ROOT / "scripts" / "test").read_text())
    (folder / "setup.sh").write_text(f"root={tmp_path} python=echo\nsetup() {{ :; }}\n")
    for words, several in (
        ("", True),
        ("-m cluster", False),
        ("-x -m cluster -k a", False),
        ("-m laws", True),
    ):
        done = subprocess.run(
            ["bash", folder / "test", *words.split()], capture_output=True, text=True
        )
        assert (" -n auto " in done.stdout) == several
        assert done.stdout.rstrip().endswith(words)
    entered = []

    def enter():
        with slurm.alone():
            entered.append(True)

    with slurm.alone():
        other = threading.Thread(target=enter)
        other.start()
        other.join(timeout=0.2)
        assert not entered
    other.join(timeout=10)
    assert entered


@pytest.mark.laws
def test_extras_that_are_missing_are_installed(tmp_path):
    """What `dev` brings need not be installed again; what it does not bring must be."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (brought,) = [line[4:-1] for line in extras["dev"] if line.startswith("imr[")]
    for name in ("scripts", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "setup.sh").write_text((ROOT / "scripts" / "setup.sh").read_text())
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/usr/bin/env bash\ncase "$*" in *"pip install"*) echo "${!#}" >>pip.log ;; "-I - "*) echo x ;; esac\n'
    )
    python.chmod(0o755)
    installed = tmp_path / ".venv" / "installed"
    for before, wanted, installs in (
        ("dev x", "dev", False), ("dev x", brought, False), ("dev x", "experiments,cuda", True),
        ("dev,experiments,cuda x", "cuda,gcs", False), ("dev,experiments,cuda x", "experiments,tpu", True),
        ("experiments x", "dev", True), ("dev,cuda y", "experiments,cuda", True),
    ):  # fmt: skip
        installed.write_text(f"{before}\n")
        script = f"source scripts/setup.sh && setup {wanted}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        log = tmp_path / "pip.log"
        assert (log.read_text() if log.exists() else "") == (f".[{wanted}]\n" if installs else "")
        log.unlink(missing_ok=True)
        kept = before.split()[0] + "," if before.endswith("x") else ""
        assert installed.read_text() == (f"{kept}{wanted} x\n" if installs else f"{before}\n")


@pytest.mark.laws
@pytest.mark.parametrize("kind", ["v7-8", "v5litepod-2", "v5p-12", "v4-0", "-x", "$(x)", "h100"])
def test_an_unknown_type_lists_the_known(tmp_path, kind):
    said = refused("tpu", tmp_path, TPU | {"--type": kind})
    assert said.startswith("error: unknown --type ")
    for known in ("v4-N", "v5p-N", "v5litepod-N", "v6e-N", "256 chips"):
        assert known in said


@pytest.mark.laws
@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v2-8", "tpu-ubuntu2204-base"), ("v4-16", "tpu-ubuntu2204-base"), ("v5p-8", "v2-alpha-tpuv5"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v6e-4", "v2-alpha-tpuv6e"),
    ],
)  # fmt: skip
def test_versions_go_with_types(tmp_path, kind, version):
    flags = sum((TPU | {"--type": kind, "--bucket": "gs://bucket"}).items(), ())
    for more, wanted in (((), version), (("--version", "other"), "other")):
        done = launch("tpu", tmp_path, *flags, *more, "--dry-run", "--", "-m", "x")
        assert f" --runtime-version {wanted}\n" in done.stdout


@pytest.mark.laws
@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("invalid partition specified: x", "--partition"), ("Memory specification can not be met", "--mem"),
        ("Invalid account or account/partition combination specified", "--partition or --account"),
        ("Invalid qos specification", "--qos"), ("Requested node configuration", "--nodes"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         "the limits of --account and --qos"),
        ("QOSMaxWallDurationPerJobLimit", "the limits of --account and --qos"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("Invalid generic resource (gres) specification", "--gpus-per-node"),
        ("Unspecified error", None),
        ("Socket timed out on send/recv operation", "squeue --me"),
        ("Unable to contact slurm controller (connect failure)", "squeue --me"),
    ],
)  # fmt: skip
def test_what_slurm_says_is_passed_on_with_the_flag(tmp_path, words, flag):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/usr/bin/env bash\necho "sbatch: error: {words}" >&2\nexit 1\n')
    sbatch.chmod(0o755)
    flags = ("--gpus-per-node", "0", "--", "-c", "x", "--out", "/s")
    done = launch("slurm", tmp_path, *flags, path=f"{tmp_path}/bin:")
    assert done.returncode == 2
    said = done.stderr[done.stderr.find("error: ") :]  # an installation may say something before
    problem = "does not answer" if flag == "squeue --me" else "refuses the job"
    first, *rest = said.splitlines()
    assert first == f"error: SLURM {problem}: sbatch: error: {words}"
    assert not rest if flag is None else flag in rest[0]
    assert not any("--" in line for line in rest) or flag is not None
