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
        # Stopped at the end of its last phase, a run has nothing left to do, and passes few phases.
        over = (folder / "summary.json").exists()
        found, words = codes(
            start(command, folder, count=count, phase=name, delay=delay, number=number)
        )
        assert "Traceback" not in words
        if found == [0] * count and (delay or over):  # it ended before the signal
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


def test_signals_from_the_first_line_to_the_last(tmp_path, programs):
    """Of a command, as a user types it, which has nothing to do but to say what it has done before."""
    words = "-m", "experiments.theorems", "--smoke", "--only", "A2.bias", "--out", tmp_path / "run"
    for _ in range(2):  # the second one compiles nothing, and says how long it takes
        begun = time.monotonic()
        end(signals.start([words], tmp_path, programs))
        whole = time.monotonic() - begun
    random, ends = np.random.default_rng(KILLS), {}
    for number in range(2 * KILLS):
        (process,) = signals.start([words], tmp_path, programs)
        while not handles(process, signal.SIGTERM):
            assert process.poll() is None
        time.sleep(random.uniform(0, 0.9 * whole) if number > 1 else 0)
        sent = list(signals.CODES)[number % 2]
        process.send_signal(sent)
        found, said = codes([process])
        assert found[0] in (0, signals.CODES[sent]), said
        assert ("run the same command again to resume" in said) == (found[0] != 0)
        assert "Traceback" not in said
        ends[found[0]] = ends.get(found[0], 0) + 1
    print(f"exit codes and how often: {ends}")


def handles(process, number):
    """Whether a process, if it is not over, has a handler of its own for a signal."""
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt"))
        return int(caught.split()[1], 16) >> (number - 1) & 1
    return False


EXIT = """
import atexit, os, sys, threading, time
from dataclasses import make_dataclass

where, number = sys.argv.pop(), int(sys.argv.pop())

def send(kill=os.kill, process=os.getpid(), number=number):  # its module may be gone when it is called
    kill(process, number)

class Last:
    __del__ = staticmethod(send)

if where == "atexit":
    atexit.register(send)  # called last, after what jax has registered
from imr.lab.experiment import run_main
from tests.signals import hear

hear()
code = run_main(lambda config: 3, make_dataclass("Config", []))
if where == "thread":
    threading.Thread(target=lambda: (time.sleep(0.5), send(), time.sleep(60))).start()
if where == "modules":
    last = Last()
raise SystemExit(code)
"""


@pytest.mark.parametrize(
    ("number", "where"),
    [(signal.SIGINT, "thread"), (signal.SIGTERM, "atexit"), (signal.SIGINT, "modules")],
)
def test_signals_to_a_process_that_is_ending(tmp_path, programs, number, where):
    """While it waits for a thread, in the last of its callbacks, and as its modules are taken apart."""
    begun = time.monotonic()
    command = "-c", EXIT, int(number), where
    assert codes(signals.start([command], tmp_path, programs)) == ([3], "")
    assert time.monotonic() - begun < 60


def test_a_run_that_replaces_another_is_marked_when_it_is_stopped(tmp_path, programs):
    """From within the handler, which ends the process."""

    folder = tmp_path / "run"

    def run(phase):
        command = "-m", "tests.small", tmp_path / phase, phase, "--overwrite", "--out", folder
        processes = signals.start([command], tmp_path, programs)
        while phase and not (tmp_path / f"{phase}.0").exists():
            assert processes[0].poll() is None
            time.sleep(0.1)
        if phase:
            processes[0].terminate()
        return codes(processes)

    for phase in ("evaluate", "figures"):
        found, words = run(phase)
        assert found == [75]
        assert words.endswith("stopped: run the same command again to resume\n")
        assert (folder / ".resume").exists()
    found, words = run("")
    assert found == [0]
    assert "resumed, in spite of --overwrite" in words


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
