"""Runs that are broken off, in every phase: by a signal, by kill -9, by a full disk; and gone on with."""

import gc
import os
import shutil
import signal
import subprocess
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

import imr
from imr import parallel
from imr.lab import phases
from imr.lab.beside import beside
from imr.lab.checkpoint import Checkpoints, read_newest
from imr.lab.experiment import Experiment
from imr.lab.flags import RunFlags
from imr.lab.metrics import Metrics
from imr.lab.phases import PHASES, phase
from tests.signals import CODES, Hook


@pytest.fixture(autouse=True, scope="module")
def heard():
    """SIGINT is ignored in what a shell has started in the background, and would be here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(run, lines):
    state = {"x": np.zeros(3)}
    with phase("train"), Checkpoints(run.checkpoints / "net", {}, lines=lines) as checkpoints:
        state = checkpoints.restore(state) or state
        for step in range(int(state["x"][0]) + 1, 4):
            state = {"x": np.full(3, float(step))}
            lines.append(step, loss=1 / step)
            checkpoints.save(step, state)
    return state["x"]


def measure(config, run, data):
    del config

    def regress():
        with phase("regression"):
            return 2 * data

    with beside() as thread:
        regression = thread.submit(regress)
        trained = train(run, run.metrics(net="a"))
        run.metrics(net="none").append(1, loss=0.0)
        return regression.result() + trained


class Figure:
    def savefig(self, file, **options):
        del options
        Image.effect_noise((200, 200), 50).save(file, format="png")


def report(config, run, results):
    del config
    run.save_figure("figure", Figure(), x=results)
    run.finish({"sum": results}, "| a |")


def data(config):
    del config
    return np.ones(3)


PROBE = Experiment(
    name="probe", question="?", config=RunFlags, measure=measure, report=report, data=data
)


def end_of(folder):
    """What must be the same to the bit: summary, table, metrics and the states of checkpoints."""
    files = {
        name: (folder / name).read_bytes() for name in ("summary.json", "table.md", "metrics.jsonl")
    }
    for path in sorted((folder / "checkpoints").glob("*")):
        holds, state = read_newest(path)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        arrays = [(jax.tree_util.keystr(at), np.asarray(leaf).tobytes()) for at, leaf in leaves]
        files[path.name] = repr((holds, arrays))
    assert not [path for path in folder.rglob("*") if "tmp" in path.name or path.name == ".removed"]
    return files


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert PROBE.main(["--out", str(folder)]) == 0
    return end_of(folder)


def broken_off(folder, monkeypatch, name, number, *flags):
    hook = Hook(name, number)
    monkeypatch.setattr(phases, "HOOKS", [hook])
    monkeypatch.setenv("IMR_PREEMPTED_CODE", "75")
    code = PROBE.main(["--out", str(folder), *flags])
    assert hook.sent, f"no experiment here passes through the phase {name}"
    return code


@pytest.mark.laws
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("name", PHASES)
def test_a_signal_in_each_phase(unbroken, tmp_path, monkeypatch, capsys, name, number):
    assert broken_off(tmp_path, monkeypatch, name, number) == CODES[number]
    assert "run the same command again to resume" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists() or name == "summary"
    monkeypatch.undo()
    assert PROBE.main(["--out", str(tmp_path)]) == 0
    assert end_of(tmp_path) == unbroken


@pytest.mark.laws
def test_a_folder_that_is_moved_and_altered(unbroken, tmp_path, monkeypatch):
    broken_off(tmp_path / "here", monkeypatch, "figures", signal.SIGTERM)
    monkeypatch.undo()
    folder = (tmp_path / "here").rename(tmp_path / "there")
    for name in ("metrics.jsonl", "metrics.jsonl", "summary.json", "table.md"):
        path = folder / name
        if path.exists():
            path.write_bytes(path.read_bytes()[:-20])
        assert PROBE.main(["--out", str(folder)]) == 0
        assert end_of(folder) == unbroken


@pytest.mark.laws
@pytest.mark.parametrize("name", PHASES)
def test_a_second_signal_in_each_phase_ends_the_process(tmp_path, monkeypatch, name):
    def twice(phase):
        if phase == name and not sent:
            sent.append(name)
            with parallel.stop_on_signals(wait=True):  # the first one does nothing here
                for number in CODES:
                    os.kill(os.getpid(), number)

    sent, ended = [], []
    monkeypatch.setattr(phases, "HOOKS", [twice])
    monkeypatch.setattr(os, "_exit", ended.append)
    # A signal that comes when the run has ended, from a thread of it, must not end the tests.
    before = {number: signal.signal(number, lambda *_: None) for number in CODES}
    try:
        assert PROBE.main(["--out", str(tmp_path)]) in (0, *CODES.values())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert sent == [name]
    # Where both wait for the main thread the system decides which of them comes second.
    assert len(ended) == 1
    assert ended[0] in {128 + number for number in CODES}


def test_training_saves_before_it_stops(tmp_path, monkeypatch, capsys):
    def append(self, step, **values):
        write(self, step, **values)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    write = Metrics.append
    monkeypatch.setattr(Metrics, "append", append)
    assert PROBE.main(["--out", str(tmp_path), "--overwrite"]) == 0
    assert "stopped at step 2, which is saved in" in capsys.readouterr().err
    monkeypatch.undo()
    assert read_newest(tmp_path / "checkpoints" / "net")[1]["x"].tolist() == [2, 2, 2]
    # The same command, as a scheduler repeats it.
    assert PROBE.main(["--out", str(tmp_path), "--overwrite"]) == 0
    assert "in spite of --overwrite" in capsys.readouterr().err


def test_an_interrupt_says_how_to_resume(tmp_path, monkeypatch, capsys):
    assert broken_off(tmp_path, monkeypatch, "evaluate", signal.SIGINT, "--overwrite") == 130
    assert "run the same command again, without --overwrite, to resume" in capsys.readouterr().err
    assert not (tmp_path / ".resume").exists()


def test_signals_that_nobody_heeds_go_to_whoever_handled_them_before():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), parallel.stop_on_signals(wait=True):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    # What was heeded is over; outside of all contexts nothing is asked.
    with pytest.raises(parallel.Preempted), parallel.stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert not parallel.preempted()


@pytest.mark.parametrize("within", [RuntimeError, imr.RunError])
def test_a_stop_within_a_lock_is_no_error_of_the_lock(within):
    """Python's own conditions, on which threads start, fail so if they are left in their midst."""

    @parallel.stop_on_signals()
    def left():
        condition = threading.Condition()
        try:
            with condition:
                condition.release()
                os.kill(os.getpid(), signal.SIGTERM)
        except RuntimeError as error:
            raise within("a file cannot be read") from error

    with pytest.raises(parallel.Preempted, match="stopped"):
        left()


def test_a_stop_within_an_import_is_no_error_of_the_import():
    """Modules in C++ make what is raised as they begin an ImportError; a later error is none of a stop."""

    @parallel.stop_on_signals()
    def fail(because):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except parallel.Preempted as stopped:
            error = stopped if because else None
        raise ImportError("initialization failed") from error

    with pytest.raises(parallel.Preempted, match="stopped"):
        fail(because=True)
    with pytest.raises(ImportError, match="failed"):
        fail(because=False)


class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where the signal is handled, at the latest


def test_a_stop_that_is_swallowed_comes_again(capsys):
    """As it is in a callback, whose errors Python only prints."""
    begun = []
    with parallel.stop_on_signals():
        Dying()
        with pytest.raises(parallel.Preempted, match="before the phase"), phase("figures"):
            begun.append("figures")
    assert not begun
    assert not capsys.readouterr().err


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system in memory, with options such as its size."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        return folder

    yield mount
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


def refused(capsys, folder):
    """Whether a run ends with code 2 and one line that names the path and what to do."""
    code = PROBE.main(["--out", str(folder)])
    (*_, line) = capsys.readouterr().err.splitlines() or [""]
    if code == 2:
        assert line.startswith("error: ")
        assert str(folder)[:100] in line
        assert "room" in line or "--out" in line or "run the same command again" in line
    return code == 2


@pytest.mark.acceptance
@pytest.mark.parametrize("lacks", ["room", "inodes"])
def test_a_full_disk(unbroken, mounted, capsys, lacks):
    """In whatever file it gets full; nothing is lost once there is room."""
    disk, failures = mounted("size=1m" if lacks == "room" else "nr_inodes=100"), 0
    for left in range(1 if lacks == "room" else 2, 60, 3):
        filler = disk / "filler"
        if lacks == "room":
            free = os.statvfs(disk).f_bavail - left
            filler.write_bytes(bytes(free * os.statvfs(disk).f_bsize))
        else:
            filler.mkdir()
            for number in range(os.statvfs(disk).f_ffree - left):
                (filler / str(number)).touch()
        folder = disk / "run"
        failed = refused(capsys, folder)
        failures += failed
        filler.unlink() if lacks == "room" else shutil.rmtree(filler)
        assert PROBE.main(["--out", str(folder)]) == 0
        assert end_of(folder) == unbroken
        shutil.rmtree(folder)
    assert failures > 5


@pytest.mark.acceptance
def test_a_disk_that_cannot_be_written(unbroken, mounted, capsys):
    disk = mounted("size=1m")
    assert PROBE.main(["--out", str(disk / "done")]) == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert refused(capsys, disk / "run")
    # What is finished can be read.
    assert PROBE.main(["--out", str(disk / "done")]) == 0
    assert end_of(disk / "done") == unbroken


@pytest.mark.laws
@pytest.mark.parametrize("name", ["train", "evaluate", "figures", "summary"])
def test_a_folder_that_is_removed_under_a_run(tmp_path, monkeypatch, capsys, name):
    folder = tmp_path / "run"

    def remove(phase):
        if phase == name and folder.exists():
            shutil.rmtree(folder)

    monkeypatch.setattr(phases, "HOOKS", [remove])
    assert refused(capsys, folder)


@pytest.mark.laws
@pytest.mark.parametrize("length", [250, 4000, 4040, 5000])
def test_a_path_that_is_too_long(tmp_path, capsys, length):
    path = tmp_path / ("x" * 300 if length == 250 else "/".join(["x" * 99] * (length // 100)))
    try:
        assert refused(capsys, path)
    finally:
        shutil.rmtree(tmp_path / ("x" * 99), ignore_errors=True)


@pytest.mark.acceptance
def test_fifty_runs_leave_no_file_or_thread_open(tmp_path):
    def count():
        gc.collect()
        return len(os.listdir("/dev/fd")), threading.active_count()

    def run(number):
        assert PROBE.main(["--out", str(tmp_path / str(number))]) == 0

    run(0)
    files, threads = count()
    for number in range(1, 51):
        run(number)
    files_after, threads_after = count()
    # Fewer is no fault: threads that tests before this one had started may end meanwhile.
    assert files_after <= files
    assert threads_after <= threads
