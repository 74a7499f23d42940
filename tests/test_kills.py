"""Whole experiments, broken off at random moments by signals and by kill -9.

However often a run is broken off, the same command ends it with the same bits. IMR_TEST_KILLS says how
often, by default 5 times; with more, signals go to the beliefs experiment too.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from imr.lab.lock import lock
from imr.lab.phases import PHASES
from tests import signals
from tests.test_stops import end_of

KILLS = int(os.environ.get("IMR_TEST_KILLS", "5"))  # and signals, of each experiment

IMAGES = ("images", "--smoke", "--models", "attention")
BELIEFS = ("beliefs", "--smoke")
COMMANDS = IMAGES, BELIEFS

pytestmark = pytest.mark.acceptance

SCRIPT = """
import os, sys, threading
name, wanted, nth, delay, number = sys.argv.pop(), sys.argv.pop(), *map(float, sys.argv.pop().split())
from imr.lab import phases
from tests.signals import hear

hear()

def hook(phase):
    global nth
    nth -= phase == wanted
    if nth == 0:
        nth = -1
        kill = lambda: os.kill(os.getpid(), int(number))
        threading.Timer(delay, kill).start() if delay else kill()

phases.HOOKS.append(hook)
from importlib import import_module
raise SystemExit(import_module(f"experiments.{name}.__main__").EXPERIMENT.main())
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder of compiled programs that all runs share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def start(tmp_path, programs):
    """Starts processes of an experiment, the last of which a signal may reach in a phase."""

    def start(command, folder, *flags, count=1, phase="", nth=1, delay=0.0, number=signal.SIGTERM):
        name, *words = command
        words = ["-c", SCRIPT, *words, "--out", folder, *flags, f"{nth} {delay} {int(number)}"]
        whens = ("",) * (count - 1) + (phase,)
        return signals.start([[*words, when, name] for when in whens], tmp_path, programs)

    return start


def codes(processes):
    """The exit codes, and what the processes have said."""
    found = [process.wait(timeout=3600) for process in processes]
    return found, "\n".join(process.log.read_text() for process in processes)


def end(processes):
    found, words = codes(processes)
    assert found == [0] * len(processes), words


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "command", COMMANDS if KILLS > 5 else COMMANDS[:1], ids=lambda command: command[0]
)
def test_signals_at_random_moments(tmp_path, start, command, count):
    """Of phase after phase, to one process or one of two; the folder is moved each time."""
    end(start(command, tmp_path / "unbroken", count=count))
    unbroken, folder = end_of(tmp_path / "unbroken"), tmp_path / "run"
    passed = [name for name in PHASES if name != "regression" or command is IMAGES]
    random, stops, ends = np.random.default_rng(KILLS + count), 0, 0
    while stops < KILLS:
        name = passed[stops % len(passed)]
        delay = float(random.uniform(0, 2)) if random.integers(2) else 0.0
        number = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)[stops % 3]
        found, words = codes(
            start(command, folder, count=count, phase=name, delay=delay, number=number)
        )
        assert "Traceback" not in words
        if found == [0] * count and delay:  # it ended before the signal
            assert end_of(folder) == unbroken
            shutil.rmtree(folder)
            ends += 1
            continue
        assert found == [signals.CODES[number]] * count, (name, delay, words)
        assert "to resume" in words
        stops += 1
        if folder.exists():
            folder = folder.rename(tmp_path / f"moved {stops}")
    end(start(command, folder, count=count))
    assert end_of(folder) == unbroken
    print(f"{stops} signals, {ends + 1} ends")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_kills_at_random_moments(tmp_path, start, command):
    """While a checkpoint, a figure, the summary is written, or another run replaced."""
    end(start(command, tmp_path / "unbroken"))
    unbroken, folder = end_of(tmp_path / "unbroken"), tmp_path / "run"
    random, kills, ends, flags = np.random.default_rng(KILLS), 0, 0, ()
    while kills < KILLS:
        (process,) = start(command, folder, *flags)
        seen, changes, pause = states(folder), random.integers(1, 60), random.uniform(0, 0.1)
        flags = ()
        known = len(seen)
        while process.poll() is None and len(seen) < known + changes:
            time.sleep(0.01)
            seen |= states(folder)
        time.sleep(pause)
        process.kill()
        if process.wait() != 0:
            assert process.returncode == -signal.SIGKILL, process.log.read_text()
            kills += 1
        else:
            ends += 1
            assert end_of(folder) == unbroken
            flags = ("--overwrite",)
    end(start(command, folder))
    assert end_of(folder) == unbroken
    print(f"{kills} kills, {ends + 1} ends")


def test_kills_between_two_changes(tmp_path):
    """Of a small experiment, which changes files a hundred times: 200 kills try all moments."""
    command = "-m", "tests.killed", tmp_path, KILLS
    end(signals.start([command], tmp_path, tmp_path / "programs"))


def states(folder):
    """Every file of a folder with the time of its last change."""
    found = set()
    for at, _, names in os.walk(folder):  # which passes over folders that are gone by now
        for name in names:
            with contextlib.suppress(OSError):
                path = os.path.join(at, name)
                found.add((path, os.lstat(path).st_mtime_ns))
    return found


def test_the_second_process_in_a_folder_is_refused(tmp_path, start):
    folder = tmp_path / "run"
    folder.mkdir()
    held = lock(folder)
    found, words = codes(start(IMAGES, folder))
    held.close()
    assert found == [2]
    assert f"error: {folder} is in use by process {os.getpid()} on" in words
    assert not (folder / "config.json").exists()


def test_a_second_signal_ends_a_process_at_once(tmp_path):
    """Also where it runs a compiled program, during which Python handles no signal."""
    code = (
        "import jax, jax.numpy as jnp\nfrom imr.parallel import stop_on_signals\n"
        "run = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x), jnp.ones(1000)))\n"
        "run(1)  # compiled now, which is Python's work in part\n"
        "with stop_on_signals():\n    print('begun', flush=True)\n    run(10**9).block_until_ready()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(2)
        process.terminate()
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 128 + signal.SIGINT
