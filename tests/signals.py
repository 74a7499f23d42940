"""An experiment broken off by signals in each of its phases, in a process, or in one of several.

python -m tests.signals NAME OUT EVERY FLAGS...    prints what became of each run as JSON, a line each

With IMR_TEST_STORED=gs://BUCKET/FOLDER one more run, broken off before its end, is in that folder.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import jax

from imr.lab import phases
from imr.parallel import initialize_from_environment

ROOT = Path(__file__).resolve().parents[1]
CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(commands: Sequence[Iterable], folder: Path, programs: Path, **environment: str) -> list:
    """Starts a Python process for each list of words, as a user has it, and joins several.

    `environment` is added to that of this process. Each process has the attribute `log`, a file in the folder with all that it says.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMR_", "XLA_FLAGS"))}
    kept |= {"PYTHONPATH": str(ROOT), "IMR_COMPILATION_CACHE": str(programs)}
    kept |= {"IMR_PREEMPTED_CODE": str(CODES[signal.SIGTERM]), "JAX_PLATFORMS": "cpu"}
    kept |= environment
    port, processes = free_port(), []
    for number, words in enumerate(commands):
        joined = {
            "IMR_COORDINATOR": f"127.0.0.1:{port}", "IMR_NUM_PROCESSES": str(len(commands)),
            "IMR_PROCESS_ID": str(number),
        }  # fmt: skip
        with (folder / f"{len(list(folder.glob('*.log')))}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)], stdout=log, stderr=log, cwd=ROOT,
                env=kept | (joined if len(commands) > 1 else {}),
            )  # fmt: skip
        process.log = Path(log.name)
        processes.append(process)
    return processes


class Hook:
    """Sends a signal to this process where a phase begins for the first time."""

    def __init__(self, name, number):
        self.name, self.number, self.sent = name, number, False

    def __call__(self, name):
        if name == self.name and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


def main(name, out, every, *flags):
    """Runs it unbroken, then with signals.

    With `every` that is each signal in each phase, and after each the same command once more; without
    it one chain, in which each run goes on with the one before until the next phase.
    """
    hear()
    _make_small()
    experiment = import_module(f"experiments.{name}.__main__").EXPERIMENT
    initialize_from_environment()  # once; the runs below are then those of a process that has begun
    for variable in ("IMR_COORDINATOR", "IMR_NUM_PROCESSES", "IMR_PROCESS_ID"):
        os.environ.pop(variable, None)
    last = jax.process_index() == jax.process_count() - 1

    def run(folder, *hooks):
        phases.HOOKS[:] = hooks
        where = folder if "://" in folder else os.path.join(out, folder)
        code = experiment.main([*flags, "--smoke", "--out", where])
        phases.HOOKS.clear()
        return code

    def broken_off(folder, name, number):
        hook = Hook(name, number)
        code = run(folder, *[hook] * last)
        say(folder=folder, phase=name, wanted=CODES[number], code=code, sent=hook.sent or not last)

    seen = set()
    say(folder="unbroken", code=run("unbroken", seen.add))
    passed = [name for name in phases.PHASES if name in seen]
    say(phases=passed)
    if every:
        for name, number in product(passed, CODES):
            folder = f"{name}-{number}"
            broken_off(folder, name, number)
            say(folder=folder, code=run(folder))
    else:
        for at, name in enumerate(passed):
            broken_off("chain", name, list(CODES)[at % 2])
        say(folder="chain", code=run("chain"))
    if stored := os.environ.get("IMR_TEST_STORED"):
        broken_off(stored, passed[-1], list(CODES)[(len(passed) - 1) % 2])
        say(folder=stored, code=run(stored))


def hear():
    """Handles SIGINT, which is ignored in whatever a shell has started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def say(**what):
    print(json.dumps(what), flush=True)


def _make_small():
    """No images, which take longer than all else; and a clock that ticks once at each look, by which the
    benchmark finds the same times twice."""
    from experiments.bench import rounds
    from imr.lab import folder

    rounds.time = SimpleNamespace(perf_counter=map(float, count()).__next__)
    folder.png = lambda figure: b"image"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "every", *sys.argv[4:])
