"""Run folders in an object store, and addresses that are none."""

import importlib.util
import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from imr.errors import MissingPackageError, RunError
from imr.lab import files, lines, phases
from imr.lab.checkpoint import Checkpoints, read_newest
from imr.lab.folder import open_run
from imr.lab.metrics import Metrics
from tests.object_store import serving
from tests.signals import start
from tests.test_run import Config
from tests.test_stops import PROBE, Hook, end_of


@pytest.mark.parametrize(
    "out", ["s3://bucket/run", "gs://bucket", "gs:/bucket/run", "gs:///run", "gs://bucket//", "gs://bucket/run*",
            "gs://bucket/run[12]/a", "gs://bucket/?", "http://a/b"]
)  # fmt: skip
def test_addresses_that_nothing_can_write_to_are_refused(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    assert PROBE.main(["--out", out]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"error: {out} cannot be written to. Give a folder, or gs://BUCKET/FOLDER, which has none of * ? [.\n"
    )
    for reader in (lambda: read_newest(out), lambda: Checkpoints(out, {})):
        with pytest.raises(RunError, match=f"{re.escape(out)} cannot be written to"):
            reader()
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_its_package_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=re.escape("pip install 'imr[gcs]'")):
        files.place("gs://bucket/run")
    assert PROBE.main(["--out", "gs://bucket/run"]) == 2
    assert "pip install 'imr[gcs]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_drive_and_a_colon_are_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("C:/a", "a:b", "a/b:/c"):
        assert files.is_local(files.place(name))


@pytest.fixture(scope="module")
def server():
    if importlib.util.find_spec("gcsfs") is None:  # it reads the environment when it is imported
        pytest.skip("needs the extra gcs")
    with serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def store(server):
    server.objects.clear()
    yield server
    server.lost = False


RUN = "gs://bucket/a run's/folder"
NAME = RUN.removeprefix("gs://bucket/")


def end_in(store):
    """`test_stops.end_of`, of the run in the store."""
    ends = {
        name: store.files()[f"{NAME}/{name}"]
        for name in ("summary.json", "table.md", "metrics.jsonl")
    }
    names = {name.split("/")[3] for name in store.files(f"{NAME}/checkpoints/")}
    for name in sorted(names):
        holds, state = read_newest(f"{RUN}/checkpoints/{name}")
        leaves = jax.tree_util.tree_leaves_with_path(state)
        arrays = [(jax.tree_util.keystr(at), np.asarray(leaf).tobytes()) for at, leaf in leaves]
        ends[name] = repr((holds, arrays))
    return ends


def broken_off(experiment, monkeypatch, phase, *flags, number=signal.SIGTERM):
    hook = Hook(phase, number)
    monkeypatch.setattr(phases, "HOOKS", [hook])
    monkeypatch.setenv("IMR_PREEMPTED_CODE", "75")
    code = experiment.main(["--out", RUN, *flags])
    monkeypatch.setattr(phases, "HOOKS", [])
    assert hook.sent
    return code


@pytest.mark.acceptance
def test_a_run_in_a_store_that_is_broken_off_ends_as_a_local_one(store, tmp_path, monkeypatch):
    assert PROBE.main(["--out", str(tmp_path / "local")]) == 0
    for phase in ("data", "train", "evaluate", "figures", "summary"):
        assert broken_off(PROBE, monkeypatch, phase) == 75
    assert PROBE.main(["--out", RUN]) == 0
    assert end_in(store) == end_of(tmp_path / "local")
    assert store.files(f"{NAME}/figures").keys() == {
        f"{NAME}/figures/figure.npz", f"{NAME}/figures/figure.png"
    }  # fmt: skip
    # Finished, it is only read, and with --overwrite begun anew.
    before = dict(store.objects)
    assert PROBE.main(["--out", RUN]) == 0
    assert store.objects == before
    assert broken_off(PROBE, monkeypatch, "train", "--overwrite") == 75
    assert f"{NAME}/summary.json" not in store.files()
    assert PROBE.main(["--out", RUN, "--overwrite"]) == 0
    assert end_in(store) == end_of(tmp_path / "local")


@pytest.mark.acceptance
def test_folders_of_a_store_are_checked_as_local_ones_are(store, capsys):
    open_run("probe", Config(), out=RUN).close()
    with pytest.raises(RunError, match=r"rate: 0.1 there, 0.2 now.*--out"):
        open_run("probe", Config(rate=0.2), out=RUN)
    open_run("probe", Config(rate=0.2), out=RUN, overwrite=True).close()
    store.objects.clear()
    store.objects[f"{NAME}/thesis.tex"] = (1, b"years of work")
    with pytest.raises(RunError, match="no run of imr"):
        open_run("probe", Config(), out=RUN, overwrite=True)
    assert store.files() == {f"{NAME}/thesis.tex": b"years of work"}
    with pytest.raises(RunError, match="holds no checkpoint"):
        read_newest(RUN)
    before = dict(store.objects)
    assert PROBE.main(["--out", RUN, "--check"]) == 2
    assert PROBE.main(["--out", RUN + "2", "--check"]) == 0
    assert f"can run in {RUN}2" in capsys.readouterr().err
    assert PROBE.main(["--out", "gs://nowhere/run", "--check"]) == 2
    assert "error: there is no bucket gs://nowhere; make it" in capsys.readouterr().err
    assert store.objects == before


@pytest.mark.acceptance
def test_an_array_of_seeds_is_checked_by_one_listing(store, tmp_path):
    """Of a hundred seeds the first, for all of them, and those that have a folder."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/usr/bin/env bash\necho Submitted batch job 7\n")
    sbatch.chmod(0o755)
    root = Path(__file__).resolve().parents[1]
    command = [
        root / "scripts" / "slurm" / "launch", "--gpus-per-node", "0", "--array", "0-99", "--", "-m",
        "experiments.collapse", "--smoke", "--out", RUN,
    ]  # fmt: skip
    environment = os.environ | {
        "PATH": f"{sbatch.parent}:{os.environ['PATH']}",
        "IMR_SHARED": str(root),
    }
    submit = partial(subprocess.run, command, env=environment, capture_output=True, text=True)
    done = submit()
    assert done.stdout == "Submitted batch job 7\n", done.stderr
    assert done.stderr.count("This configuration can run in") == 1
    store.objects[f"{NAME}/seed-70/config.json"] = (1, b'{"experiment": "images", "config": {}}')
    done = submit()
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {RUN}/seed-70 holds a run of another configuration" in done.stderr


@pytest.mark.acceptance
def test_of_two_programs_the_earlier_one_gives_way(store):
    first = open_run("probe", Config(), out=RUN)
    second = open_run("probe", Config(), out=RUN)
    second.metrics().append(1, loss=1.0)
    before = dict(store.objects)
    for write in (
        lambda: first.metrics().append(1, loss=2.0), lambda: first.finish({}, ""),
        lambda: first.save_figure("a", None),
    ):  # fmt: skip
        with pytest.raises(RunError, match=rf"taken over by process {os.getpid()} on .*--out"):
            write()
    assert store.objects == before
    second.finish({}, "")
    assert open_run("probe", Config(), out=RUN).finished


@pytest.mark.acceptance
def test_lines_are_there_when_their_checkpoint_is(store, monkeypatch):
    """Though a store is not written to at every line."""
    folder = open_run("probe", Config(), out=RUN)
    rows, name = folder.metrics(net="a"), f"{NAME}/metrics.jsonl"
    with Checkpoints(folder.checkpoints / "net", {}, lines=rows) as checkpoints:
        for step in range(1, 6):
            rows.append(step, loss=1.0)
            folder.metrics(net="b").append(step, loss=2.0)
            written = store.files().get(name, b"").count(b"\n")
            assert written == (1 if step == 1 else 2 * step - 2)
            checkpoints.save(step, {"x": np.zeros(3)})
            assert store.files()[name].count(b"\n") == 2 * step
    again = open_run("probe", Config(), out=RUN).metrics(net="a")
    assert len(again.rows()) == 5
    with monkeypatch.context() as patch:
        patch.setattr(lines, "_SECONDS", 0.0)
        again.reset([{"step": 9}])
        again.append(10)
    assert store.files()[name].count(b"\n") == 7
    assert Metrics(lines.StoredLines(files.place(f"{RUN}/metrics.jsonl"), int)).rows(net="b")


@pytest.mark.acceptance
def test_halves_that_a_killed_process_left_are_removed(store, monkeypatch):
    state = {"x": np.arange(3.0)}
    for step in (1, 2):
        with Checkpoints(RUN, {}) as checkpoints:
            checkpoints.save(step, state)
    # The newest is not complete, and one that was replaced is not quite gone.
    del store.objects[f"{NAME}/2/commit_success.txt"]
    store.objects[f"{NAME}/0/config/metadata"] = (1, b"{}")
    with Checkpoints(RUN, {}) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(3, state)
    assert {name.split("/")[2] for name in store.files(NAME)} == {"3"}

    # A removal that was broken off goes on, and never leaves a run that looks whole.
    store.objects.clear()
    folder = open_run("probe", Config(), out=RUN)
    folder.finish({}, "table")
    with Checkpoints(folder.checkpoints / "net", {}) as checkpoints:
        checkpoints.save(1, state)
    removed = []

    def fail(path):
        if removed:
            raise OSError("killed")
        removed.append(files.remove(path))

    with monkeypatch.context() as patch:
        patch.setattr("imr.lab.folder.remove", fail)
        with pytest.raises(RunError, match="killed"):
            open_run("probe", Config(), out=RUN, overwrite=True)
    assert len(store.files(f"{NAME}/checkpoints")) > 0
    again = open_run("probe", Config(), out=RUN)
    assert not again.finished
    assert store.files(NAME).keys() == {f"{NAME}/config.json", f"{NAME}/.lock"}


@pytest.mark.acceptance
@pytest.mark.parametrize("phase", ["data", "train", "step", "evaluate", "summary", "end"])
def test_a_store_that_is_lost_in_the_middle(store, monkeypatch, capsys, phase):
    """The run says so and ends for launchers to repeat it; so repeated, it goes on."""

    async def at_once(seconds):
        del seconds

    def save(self, step, state):
        if step == 3 and phase == "step":
            self._settle()
            store.lost = True
        write(self, step, state)

    def lose(now):
        store.lost = store.lost or now == phase

    write = Checkpoints.save
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(phases, "HOOKS", [lose])
    if phase == "end":  # of a run that has finished, and is read again
        assert PROBE.main(["--out", RUN]) == 0
        store.lost = True
    assert PROBE.main(["--out", RUN]) == 75
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"error: {RUN}\S* cannot be reached \(.+\): once it can, run the same command again to resume",
        said,
    )
    store.lost = False
    monkeypatch.undo()
    assert PROBE.main(["--out", RUN]) == 0
    assert store.files(f"{NAME}/summary.json")
    if phase == "step":  # Who has replaced a run must not lose it to a launcher that repeats this.
        monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))
        monkeypatch.setattr(phases, "HOOKS", [lambda now: setattr(store, "lost", now == "figures")])
        assert PROBE.main(["--out", RUN, "--overwrite"]) == 2
        assert (
            "run the same command again, without --overwrite, to resume" in capsys.readouterr().err
        )


AT_ONCE = """
import runpy
from types import SimpleNamespace
import gcsfs.retry
async def at_once(seconds): pass
gcsfs.retry.asyncio = SimpleNamespace(sleep=at_once)
runpy.run_module("tests.small", run_name="__main__")
"""


@pytest.mark.acceptance
def test_two_processes_that_lose_the_store_end_alike_and_go_on(store, tmp_path):
    """The first one writes, and meets the error, where the other waits for it."""
    commands = [["-c", AT_ONCE, tmp_path / "there", "train", "--out", RUN]] * 2
    run = partial(start, commands, tmp_path, tmp_path / "programs", **store.environment)
    processes = run()
    while not all(Path(f"{tmp_path}/there.{number}").exists() for number in range(2)):
        assert all(each.poll() is None for each in processes), processes[0].log.read_text()
        time.sleep(0.05)
    store.lost = True
    for process in processes:
        process.terminate()
    assert [process.wait(timeout=240) for process in processes] == [75, 75]
    first, other = (process.log.read_text() for process in processes)
    assert "cannot be reached" in first
    assert "process 0 has ended with exit code 75: so does this one" in other
    store.lost = False
    assert [process.wait(timeout=240) for process in run()] == [0, 0]
    assert store.files(f"{NAME}/summary.json")


@pytest.mark.acceptance
def test_a_store_that_does_not_answer_is_an_error_of_ours(store, monkeypatch):
    run = open_run("probe", Config(), out=RUN)

    def fail(self, path, mode):
        raise ValueError("no route to it")

    monkeypatch.setattr("etils.epath.backend._FileSystemSpecBackend.open", fail)
    with pytest.raises(RunError, match=rf"{RUN}.* cannot be used .*no route to it.*--out"):
        run.finish({}, "")
