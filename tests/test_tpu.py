"""The launcher for Cloud TPU from end to end, against a pretended gcloud and a pretended store."""

import importlib.util
import os
import re
import shutil
import signal
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
        log = self.folder / "calls.log"
        return (
            [line for line in log.read_text().splitlines() if what in line] if log.exists() else []
        )

    def refused(self, *words, **options):
        """What a launcher says that stops by itself, though nothing has failed."""
        process = self.launch(*words, **options)
        assert process.wait(timeout=120) == 2, process.log.read_text()
        return process.log.read_text()

    def slice(self, name="a-1", kind="v5litepod-8", marks=",,", **states):
        """A slice or a request that is there already, with files of a run on its one disk."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "type").write_text(kind)
        (folder / "marks").write_text(marks)
        for what, state in states.items():
            (folder / what).write_text(state)
        (folder / "0").mkdir()
        (folder / "0" / "kept").touch()
        return folder

    def close(self):
        for process in self.launchers:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        for slice_ in self.folder.glob("*/type"):
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


def nothing(process):
    """Waits for a launcher whose program has ended well and has written no run folder."""
    assert process.wait(timeout=240) == 0, process.log.read_text()
    said = process.log.read_text()
    assert "the program has written nothing to --out: there is nothing to fetch" in said
    assert "run folder: " not in said


BUCKET = ("--bucket", "gs://bucket/my runs")


@pytest.fixture
def fetched():
    """Folders to remove in the end."""
    folders = []
    yield folders
    for folder in folders:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def test_two_workers_whatever_happens_to_them(cloud, tmp_path, fetched):
    marker = tmp_path / "a marker's name"
    words = ("-m", "tests.small", str(marker), "saved", "--seed", "3")

    # Made, kept and reused.
    for _ in range(2):
        process = cloud.launch(
            "-m", "tests.small", "none", "none", *words[4:], flags=(*BUCKET, "--keep")
        )
        fetched.append(succeeded(process))
        time.sleep(1)  # names of fetched folders have seconds
    assert len(cloud.calls("queued-resources create")) == 1
    assert not cloud.calls("queued-resources delete")
    assert "the run has ended on a-1" in process.log.read_text()
    starts = cloud.calls("worker start")
    assert len(starts) == 1
    assert len(cloud.calls("scp")) == 1
    assert "waiting for the slice: CREATING" in cloud.launchers[0].log.read_text()
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
    # The slice is preempted, made anew, and the run resumes from what it has saved.
    saved = re.compile("my runs/b/checkpoints/nets/[24]/commit_success.txt")
    until(lambda: any(map(saved.fullmatch, list(cloud.store.objects))), process)
    gcloud.preempt(cloud.folder, "b")
    fetched.append(succeeded(process))
    said = process.log.read_text()
    assert "it is made anew" in said
    assert re.search("nets: resumed at step [24]\n", said.partition("it is made anew")[2])
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
    marker = tmp_path / "it's there"
    words = ("-m", "tests.small", str(marker), "train", "--seed")
    failed = cloud.launch(*words, "-1", kind="v5litepod-8")
    assert failed.wait(timeout=120) == 2
    said = failed.log.read_text()
    assert "--seed must be at least 0" in said
    assert "error: the run has failed" in said
    assert "The slice is kept" in said
    # All processes of the worker are told to stop, as by a machine that shuts down: the run saves.
    process = cloud.launch(*words, "3", kind="v5litepod-8")
    worker = cloud.folder / "a-1" / "0"
    thesis = worker / "imr" / "thesis.tex"  # of the owner of the slice
    thesis.parent.mkdir()
    thesis.touch()
    until(Path(f"{marker}.0").exists, process)
    os.killpg(int((worker / gcloud.LAUNCH / "imr.pid").read_text()), signal.SIGTERM)
    fetched.append(succeeded(process))
    said = process.log.read_text()
    assert "the run was stopped; it resumes" in said
    assert "is saved in" in said
    unbroken = tmp_path / "unbroken"
    alone = [sys.executable, "-P", "-m", "tests.small", "none", "none", *words[4:], "3"]
    environment = cloud.environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([*alone, "--out", unbroken], check=True, env=environment)
    assert end_of(fetched[0]) == end_of(unbroken)
    # It is not of this call, and is deleted only if that is asked for.
    assert "The slice was there before this call, and is kept with its disk." in said
    assert "delete a-1 --zone z --force\n" in said
    assert thesis.exists()
    time.sleep(1)
    process = cloud.launch(*words, "3", kind="v5litepod-8", flags=("--delete",))
    fetched.append(succeeded(process))
    assert end_of(fetched[1]) == end_of(fetched[0])
    assert not (cloud.folder / "a-1").exists()
    assert len(cloud.calls("queued-resources create")) == 1


PROGRAM = """
import os, sys, time
open(sys.argv[1] + os.environ["IMR_PROCESS_ID"], "a").write("x")
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
print("it's the end")
"""


class Waiting:
    """A program that notes each of its starts, and waits until it may end."""

    def __init__(self, folder):
        self.began, self.end = folder / "began ", folder / "the end"
        self.words = ("-c", PROGRAM, str(self.began), str(self.end))

    def starts(self):
        """How often it has started on each of the two workers."""
        paths = [Path(f"{self.began}{i}") for i in range(2)]
        return [len(path.read_text()) if path.exists() else 0 for path in paths]


def test_connections_that_are_lost_at_any_moment(cloud, tmp_path):
    cloud.environment["IMR_TPU_TRIES"] = "12"
    program = Waiting(tmp_path)
    # The connection, and then the launcher, while it is started: after it has reached one of the workers.
    (cloud.folder / "half").write_text("worker start")
    cloud.environment["IMR_TPU_PAUSE"] = "3"  # in which it is killed
    process = cloud.launch(*program.words, flags=BUCKET)
    until(lambda: "a-1 does not answer" in process.log.read_text(), process)
    os.killpg(process.pid, 9)
    process.wait()
    until(lambda: program.starts() == [1, 0], process)
    cloud.environment["IMR_TPU_PAUSE"] = "0.2"
    process = cloud.launch(*program.words, flags=(*BUCKET, "--delete"))
    until(lambda: cloud.calls("worker log"), process)
    until(lambda: program.starts() == [1, 1], process)

    def losses():
        return process.log.read_text().count("does not answer")

    # More often in all than a launcher bears in a row.
    for count in (7, 14):
        (cloud.folder / "cut").touch()
        until(lambda count=count: losses() >= count, process)
        assert "port 22: Connection refused" in process.log.read_text()
        before = len(cloud.calls("worker log"))
        (cloud.folder / "cut").unlink()
        until(lambda before=before: len(cloud.calls("worker log")) > before, process)
    # While it ends: what has ended is not started again.
    before = losses()
    (cloud.folder / "cut").touch()
    program.end.touch()
    codes = [cloud.folder / "a-1" / str(i) / gcloud.LAUNCH / "imr.code" for i in range(2)]
    until(lambda: all(code.exists() for code in codes) and losses() > before, process)
    (cloud.folder / "cut").unlink()
    nothing(process)
    assert program.starts() == [1, 1]
    said = process.log.read_text()
    assert "the run has ended on a-1" in said
    assert "it's the end" in said


STOPPED = """
import os, sys
number = os.environ["IMR_PROCESS_ID"]
with open(sys.argv[1] + number, "a+") as file:
    first = not file.tell()
    file.write("x")
sys.exit((75 if number == "0" else 1) if first else 0)
"""


def test_a_worker_that_fails_as_another_stops_resumes_with_it(cloud, tmp_path):
    """One process says that it was stopped, and the others lose it before they know."""
    began = tmp_path / "began "
    process = cloud.launch("-c", STOPPED, str(began), flags=BUCKET)
    nothing(process)
    assert "the run was stopped; it resumes" in process.log.read_text()
    assert [Path(f"{began}{number}").read_text() for number in range(2)] == ["xx", "xx"]


def test_a_slice_is_made_anew_only_if_google_has_taken_it(cloud, tmp_path):
    program = Waiting(tmp_path)
    process = cloud.launch(*program.words, flags=(*BUCKET, "--spot"))
    until(lambda: cloud.calls("worker log"), process)
    assert program.starts() == [1, 1]
    gcloud.suspend(cloud.folder, "a-1")
    until(
        lambda: program.starts() == [2, 2] and cloud.calls("")[-1].find("worker log") > 0, process
    )
    # Somebody has deleted it.
    gcloud.end(cloud.folder / "a-1")
    shutil.rmtree(cloud.folder / "a-1")
    assert process.wait(timeout=60) == 2
    assert "error: the slice is gone, deleted by somebody else" in process.log.read_text()
    assert len(cloud.calls("queued-resources create")) == 2
    # The same command is another matter.
    program.end.touch()
    nothing(cloud.launch(*program.words, flags=(*BUCKET, "--spot")))
    assert program.starts() == [3, 3]
    assert not (cloud.folder / "a-1").exists()  # this call has made it


@pytest.mark.parametrize(
    ("flags", "states", "words"),
    [
        ((), {"state": "STOPPED", "request": "ACTIVE"}, ("a-1 is STOPPED; it is left alone", "tpu-vm start a-1")),
        (("--spot",), {"state": "UNKNOWN", "request": "ACTIVE"}, ("a-1 is UNKNOWN; it is left alone",)),
        ((), {"state": "PREEMPTED", "request": "ACTIVE"}, ("a-1 is PREEMPTED. Only with --spot",)),
        ((), {"state": "CREATING\n" * 5 + "TERMINATED", "request": "FAILED"}, ("a-1 is TERMINATED. Only",)),
        (("--spot",), {"state": "TERMINATED", "request": "ACTIVE"}, ("the slice a-1 is TERMINATED, was there before", "By --delete it is made anew", "queued-resources delete a-1 --zone z --force\n")),
        (("--spot",), {"state": "PREEMPTED"}, ("the slice a-1 is PREEMPTED, was there before", "Or delete it: gcloud compute tpus tpu-vm delete a-1 --zone z\n")),
        (("--spot",), {"request": "SUSPENDED"}, ("the request a-1 is SUSPENDED, was there before",)),
        ((), {"request": "FAILED"}, ("the request a-1 is FAILED, was there before",)),
        ((), {"state": "STOPPED"}, ("Or delete it: gcloud compute tpus tpu-vm delete a-1 --zone z\n",)),
        ((), {"state": "READY", "request": "ACTIVE", "kind": "v4-16"}, ("as a slice of --type v4-16; found v5litepod-8",)),
        ((), {"request": "WAITING_FOR_RESOURCES", "kind": "v6e-8"}, ("as a slice of --type v6e-8; found v5litepod-8",)),
    ],
)  # fmt: skip
def test_a_slice_that_is_there_is_left_alone(cloud, flags, states, words):
    slice_ = cloud.slice(**states)
    cloud.environment |= {"IMR_TPU_PAUSE": "0.01", "IMR_TPU_TRIES": "3"}
    said = cloud.refused("-c", "1", flags=(*flags, *BUCKET), kind="v5litepod-8")
    for word in words:
        assert word in said
    assert (slice_ / "0" / "kept").exists()
    for call in ("create", "delete", "ssh", "scp"):
        assert not cloud.calls(f" {call} ")


@pytest.mark.parametrize(
    ("flags", "states"),
    [
        (("--delete",), {"request": "FAILED"}),
        (("--delete", "--spot"), {"request": "SUSPENDED"}),
        (("--delete", "--spot"), {"state": "TERMINATED", "request": "ACTIVE"}),
        (("--spot",), {"request": "SUSPENDED", "marks": "spot,,"}),
        (("--spot",), {"state": "PREEMPTED", "request": "ACTIVE", "marks": ",True,"}),
        (("--spot",), {"state": "TERMINATED", "marks": ",,True"}),
    ],
)  # fmt: skip
def test_what_is_known_to_be_of_spot_or_may_be_deleted_is_made_anew(cloud, flags, states):
    """A program that writes no run folder ends well, too, and its slice is deleted."""
    cloud.slice(**states)
    process = cloud.launch("-c", "1", flags=(*flags, *BUCKET), kind="v5litepod-8")
    nothing(process)
    assert not cloud.calls("storage rsync")
    (created,) = cloud.calls("queued-resources create a-1")
    assert ("--spot --labels imr=spot" in created) == ("--spot" in flags)
    assert not (cloud.folder / "a-1").exists()


def test_a_slice_without_a_request_is_used_and_deleted(cloud, fetched):
    """One that `tpu-vm create` has made; a program that writes a folder or a file, or nothing."""
    line = "import pathlib, sys; path = pathlib.Path(sys.argv[-1]);"
    programs = [f"{line} path.mkdir(); (path / 'a').touch()", f"{line} path.write_text('')", "1"]
    made = {"--zone": "z", "--accelerator-type": "v5litepod-8", "--node-id": "a-1"}
    for program in programs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gcloud, "FOLDER", cloud.folder)
            gcloud.create("a-1", made)
        (cloud.folder / "a-1" / "request").unlink()
        (cloud.folder / "a-1" / "state").write_text("READY")
        for more in ((), ("--delete",)):
            process = cloud.launch("-c", program, flags=more, kind="v5litepod-8")
            assert process.wait(timeout=60) == 0, process.log.read_text()
            assert (cloud.folder / "a-1").exists() == (not more)
            said = process.log.read_text()
            kept = "it is no longer needed: gcloud compute tpus tpu-vm delete a-1 --zone z\n"
            assert (kept in said) == (not more)
            if program == "1":
                assert "there is nothing to fetch" in said
            else:
                (line,) = [line for line in said.splitlines() if line.startswith("run folder: ")]
                fetched.append(Path(line.removeprefix("run folder: ")))
                time.sleep(1)  # names of fetched folders have seconds
    assert fetched[0].is_dir()
    assert fetched[2].is_file()
    assert not cloud.calls("queued-resources create")


def test_what_is_refused_before_anything_is_made(cloud):
    cloud.store.objects["my runs/a-1/config.json"] = (1, b'{"experiment": "images", "config": {}}')
    said = cloud.refused("-m", "experiments.collapse", "--smoke", flags=BUCKET)
    assert ("error: gs://bucket/my runs/a-1 holds a run of another configuration") in said
    assert "choose another folder with --name, or remove that folder." in said
    flags = ("--gke", "--image", "i", *BUCKET)
    assert said.endswith(cloud.refused("-m", "experiments.collapse", "--smoke", flags=flags))
    words = ("-u", "-m", "experiments.images", "--data-dir", "data")
    said = cloud.refused(*words, kind="v5litepod-8")
    assert "error: --data-dir must be an absolute path, that of the machine which" in said
    assert [call.split()[0] for call in cloud.calls("")] == ["storage", "storage"]
    said = cloud.refused("-c", "1", "--overwrite", kind="v5litepod-8")
    assert said.startswith("error: leave out --overwrite: ")
    said = cloud.refused("-m", "no_such_package", kind="v5litepod-8")
    assert "error: Python finds no module no_such_package that it could run" in said
    # On the disk of a slice that is there, each command has a folder of its own.
    words = ("-m", "experiments.collapse", "--smoke")
    dry = cloud.launch(*words, kind="v5litepod-8", flags=("--dry-run",))
    assert dry.wait(timeout=60) == 0
    (run,) = set(re.findall("runs/[0-9a-f]{10}", dry.log.read_text()))
    slice_ = cloud.slice(state="READY", request="ACTIVE")
    folder = slice_ / "0" / gcloud.LAUNCH / run
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"experiment": "images", "config": {}}')
    said = cloud.refused(*words, kind="v5litepod-8")
    assert f"error: a-1:.imr-launch/{run} holds a run of another configuration" in said
    assert "choose another folder with --name, or remove that folder." in said
    assert not cloud.calls("scp")
    shutil.rmtree(slice_)
    # Whatever is not known of the bucket, by gcloud's words.
    said = cloud.refused("-c", "1", flags=("--bucket", "gs://nowhere"))
    assert "error: gcloud cannot read gs://nowhere/a-1: ERROR: " in said
    assert "gs://nowhere not found: 404." in said
    (cloud.folder / "denied").touch()
    said = cloud.refused("-c", "1", flags=BUCKET)
    assert "[me] does not have permission to access b instance" in said
    said = cloud.refused("-c", "1", kind="v5litepod-8")
    assert "PERMISSION_DENIED" in said
    assert "error: gcloud does not say whether there is a slice a-1" in said
    assert "The slice is kept" not in said
    assert not cloud.calls("create")


def test_what_a_worker_says_of_its_run(tmp_path):
    folder = tmp_path / gcloud.LAUNCH
    python = folder / "imr-env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (folder / "imr").mkdir()
    environment = os.environ | {"HOME": str(tmp_path)}

    def worker(*words):
        command = [ROOT / "scripts" / "tpu" / "worker", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def state(*words, verb="state"):
        return worker(verb, *words).stdout

    # What it does with a signal depends on the program: here it saves within a second.
    code = (
        "import signal, sys, time\ndef stop(*_):\n    time.sleep(1)\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\nopen('../there', 'w')\ntime.sleep(60)"
    )
    first, other = ("-c", code, "it's", "a  b"), ("-c", code, "it's", "a b")
    assert state(*first) == "imr-state none\n"
    assert worker("start", *first).returncode == 0
    while not (folder / "there").exists():
        time.sleep(0.05)
    assert (state(*first), state(*other)) == ("imr-state runs\n", "imr-state busy\n")
    assert worker("start", *first).returncode == 0
    assert "another command runs here" in worker("start", *other).stderr
    pid = (folder / "imr.pid").read_text()
    os.killpg(int(pid), signal.SIGTERM)
    assert state(*first) == "imr-state runs\n"  # until it has saved
    assert state(*first, verb="wait") == "imr-state stopped\n"
    assert state(*other) == "imr-state none\n"
    for number, said in ((0, "done"), (3, "failed 3")):
        words = ("-c", f"import sys; print('last words'); sys.exit({number})")
        worker("start", *words)
        done = worker("wait", *words)
        assert done.stdout == f"imr-state {said}\n"
        assert ("last words" in done.stderr) == (number != 0)
        assert state(*words) == done.stdout
    # After the machine has started again, another process may have that number.
    (folder / "imr.pid").write_text(str(os.getpid()))
    (folder / "imr.code").unlink()
    assert worker("runs").returncode == 1
    assert state(*words) == "imr-state stopped\n"
