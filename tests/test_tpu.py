"""The launcher for Cloud TPU from end to end, against a pretended gcloud and a pretended store."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import gcloud
from tests.object_store import serving
from tests.test_parallel import free_port
from tests.test_stops import end_of

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs the extra gcs"),
]


@pytest.fixture(scope="module")
def store():
    with serving() as running:
        yield running


class Cloud:
    """The pretended cloud: slices and calls in a folder, a store, and launchers that run."""

    def __init__(self, folder, store):
        self.folder, self.store, self.launchers = folder, store, []
        binaries = folder / "bin"
        binaries.mkdir()
        python, script = sys.executable, ROOT / "tests" / "gcloud.py"
        # On a worker pip is asked for uv, which lies there already.
        for name, line in (("gcloud", f'exec "{python}" "{script}" "$@"'), ("python3", "true")):
            (binaries / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
            (binaries / name).chmod(0o755)
        shutil.copy(binaries / "gcloud", folder / "gcloud")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMR_", "XLA_FLAGS"))}
        self.environment = kept | store.environment | {
            "PRETENDED_GCLOUD": str(folder), "IMR_TPU_PAUSE": "0.2", "PORT": str(free_port()),
            "PATH": f"{binaries}:{os.environ['PATH']}", "IMR_COMPILATION_CACHE": str(folder / "programs"),
            "IMR_PYTHON": sys.executable,
        }  # fmt: skip

    def launch(self, *words, flags=(), name="a-1", kind="v4-16"):
        """Starts the launcher; its output goes to a file."""
        command = [
            ROOT / "scripts" / "tpu" / "launch",
            "--name",
            name,
            "--zone",
            "z",
            "--type",
            kind,
            *flags,
        ]
        with (self.folder / f"launcher {len(self.launchers)}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--", *words], env=self.environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        process.log = Path(log.name)
        self.launchers.append(process)
        return process

    def calls(self, what):
        return [
            line for line in (self.folder / "calls.log").read_text().splitlines() if what in line
        ]

    def close(self):
        for process in self.launchers:
            if process.poll() is None:
                os.killpg(process.pid, 9)
        for slice_ in self.folder.glob("*/request"):
            gcloud.end(slice_.parent)


@pytest.fixture
def cloud(tmp_path, store):
    store.objects.clear()
    folder = tmp_path / "it's a cloud"
    folder.mkdir()
    running = Cloud(folder, store)
    yield running
    running.close()


def until(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, process.log.read_text()
        time.sleep(0.05)


def succeeded(process):
    """The run folder that a launcher has fetched."""
    assert process.wait(timeout=240) == 0, process.log.read_text()
    said = process.log.read_text()
    (line,) = [line for line in said.splitlines() if line.startswith("run folder: ")]
    return Path(line.removeprefix("run folder: "))


BUCKET = ("--bucket", "gs://bucket/my runs")


@pytest.fixture
def fetched():
    """Folders to remove in the end."""
    folders = []
    yield folders
    for folder in folders:
        shutil.rmtree(folder)


def test_two_workers_whatever_happens_to_them(cloud, tmp_path, fetched):
    marker = tmp_path / "a marker's name"
    words = ("-m", "tests.small", str(marker), "train", "--seed", "3")

    # Made, kept and reused.
    for _ in range(2):
        process = cloud.launch(
            "-m", "tests.small", "none", "none", *words[4:], flags=(*BUCKET, "--keep")
        )
        fetched.append(succeeded(process))
        time.sleep(1)  # names of fetched folders have seconds
    assert len(cloud.calls("queued-resources create")) == 1
    assert not cloud.calls("queued-resources delete")
    assert "has already run" in process.log.read_text()
    unbroken = end_of(fetched[0])
    assert unbroken == end_of(fetched[1])
    assert "spot" not in cloud.calls("create")[0]

    # A spot slice. The connection is lost in the middle, then the launcher; the run goes on.
    flags = (*BUCKET, "--spot", "--internal-ip", "--network", "n", "--service-account", "s@p.com")
    process = cloud.launch(*words, flags=flags, name="b")
    until(lambda: all(Path(f"{marker}.{i}").exists() for i in range(2)), process)
    (cloud.folder / "cut").touch()
    until(lambda: "b does not answer" in process.log.read_text(), process)
    (cloud.folder / "cut").unlink()
    until(lambda: "this call comes back to it" in process.log.read_text(), process)
    os.killpg(process.pid, 9)
    process.wait()
    other = cloud.launch(*words[:-1], "4", flags=flags, name="b")
    assert other.wait(timeout=60) == 2
    assert "b is at work on something else" in other.log.read_text()
    process = cloud.launch(*words, flags=flags, name="b")
    until(lambda: "this call comes back to it" in process.log.read_text(), process)
    # The slice is preempted, made anew, and the run resumes.
    gcloud.preempt(cloud.folder, "b")
    fetched.append(succeeded(process))
    assert "it is made anew" in process.log.read_text()
    assert end_of(fetched[2]) == unbroken
    created = cloud.calls("queued-resources create b")
    assert len(created) == 2
    for flag in ("--spot", "--internal-ips", "--network n", "--service-account s@p.com",
                 "--runtime-version tpu-ubuntu2204-base"):  # fmt: skip
        assert flag in created[1]
    assert all("--internal-ip" in call for call in cloud.calls("tpu-vm ssh b"))
    assert not (cloud.folder / "b").exists()
    assert (cloud.folder / "a-1").exists()


def test_one_worker(cloud, tmp_path, fetched):
    """Without a bucket: its run folder is copied. A run that fails keeps its slice."""
    words = ("-m", "tests.small", "none", "it's", "--seed")
    failed = cloud.launch(*words, "-1", kind="v5litepod-8")
    assert failed.wait(timeout=120) == 2
    said = failed.log.read_text()
    assert "--seed must be at least 0" in said
    assert "error: the run has failed" in said
    assert "The slice is kept" in said
    fetched.append(succeeded(cloud.launch(*words, "3", kind="v5litepod-8")))
    assert end_of(fetched[0])
    assert len(cloud.calls("queued-resources create")) == 1
    assert not (cloud.folder / "a-1").exists()


def test_a_folder_of_another_configuration_is_refused_before_anything_is_made(cloud):
    cloud.store.objects["my runs/a-1/config.json"] = (1, b'{"experiment": "images", "config": {}}')
    process = cloud.launch("-m", "experiments.collapse", "--smoke", flags=BUCKET)
    assert process.wait(timeout=120) == 2
    said = process.log.read_text()
    assert said.startswith("error: gs://bucket/my runs/a-1 holds a run of another configuration")
    assert len(cloud.calls("")) == 1
