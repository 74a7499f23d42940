"""Every experiment, broken off by SIGTERM and SIGINT in every phase, alone and as two processes.

However it is broken off, the same command ends it with the same bits. By default each experiment goes
through one chain, in which every run is broken off in a later phase than the one before, and one goes
through it as two processes too (tests/test_kills.py has another, which trains). A run of each, broken off
once, is kept in a stand-in for an object store, and ends as one on a disk. IMR_TEST_SIGNALS=1 has
each signal in each phase of every experiment, alone and as two processes, each gone on with by itself.
"""

import importlib.util
import json
import os

import pytest

from imr.lab.phases import PHASES
from tests.object_store import serving
from tests.signals import ROOT, start
from tests.test_stops import end_of

EVERY = os.environ.get("IMR_TEST_SIGNALS", "0") == "1"

FRAME = {"data", "evaluate", "figures", "summary"}  # phases of all experiments
# The phases that an experiment has beside them, and flags for as little of it as has them all.
EXPERIMENTS = {
    "beliefs": ({"train"}, ("--seeds", "1")),
    "bench": (set(), ("--parts", "training")),
    "collapse": (set(), ("--classes", "3", "--t1", "10", "--decay-times", "2")),
    "features": (set(), ("--t1", "10")),
    "images": ({"regression", "train"}, ("--models", "attention")),
    "incontext": ({"train"}, ("--parts", "recurrences", "--seeds", "1")),
    "leaning": ({"train"}, ("--subjects", "images", "--seeds", "2")),
    "lens": (set(), ("--draws", "8")),
    "theorems": (set(), ("--only", "A2.bias")),
    "tokens": (set(), ("--times", "5")),
}

CASES = [
    pytest.param(name, count, id=f"{name}-{count}", marks=pytest.mark.acceptance)
    for name in EXPERIMENTS
    for count in (1, 2)
    if EVERY or count == 1 or name == "theorems"
]


def test_every_experiment_and_every_phase_is_here():
    experiments = {path.parent.name for path in ROOT.glob("experiments/*/__main__.py")}
    assert set(EXPERIMENTS) == experiments
    assert FRAME.union(*(phases for phases, _ in EXPERIMENTS.values())) == set(PHASES)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder of compiled programs that all runs share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Flags of a checkpoint and texts for the lens."""
    lens = pytest.importorskip("tests.test_lens", reason="the extra `lens` is not installed")
    folder = tmp_path_factory.mktemp("planted")
    lens.tokenizer(lens.write(folder / "model", "bert", lens.arrays(mix=-1.0)))
    (folder / "texts.txt").write_text("a b c d\n\nb a a f g h i j k l m\nc c\n")
    return "--model-dir", folder / "model", "--texts", folder / "texts.txt"


@pytest.fixture(scope="module")
def store():
    with serving() as running:
        yield running


@pytest.mark.parametrize(("name", "count"), CASES)
def test_signals_in_every_phase(tmp_path, programs, store, request, name, count):
    phases, flags = EXPERIMENTS[name]
    if name == "lens":
        flags = (*flags, *request.getfixturevalue("planted"))
    words = ["-m", "tests.signals", name, tmp_path, "every" if EVERY else "chain", *flags]
    stored = count == 1 and importlib.util.find_spec("gcsfs") is not None
    more = {"IMR_TEST_STORED": f"gs://bucket/{name}/run", **store.environment} if stored else {}
    processes = start([words] * count, tmp_path, programs, **more)
    for process in processes:
        code = process.wait(timeout=3600)
        text = process.log.read_text()
        assert code == 0, text
        runs = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        unbroken, passed, *runs = runs
        assert set(passed["phases"]) == FRAME | phases
        ends = [run for run in runs if "phase" not in run]
        for run in runs:
            if "phase" in run:
                assert run["sent"], f"{name} passes {run['phase']} without its hook"
                assert run["code"] == run["wanted"], text
            else:
                assert run["code"] == unbroken["code"], text
        stops = {(run["phase"], run["wanted"]) for run in runs if "phase" in run}
        assert len(stops) == len(passed["phases"]) * (2 if EVERY else 1)
    if stored:
        ends.pop()
        assert f"every row, as data: gs://bucket/{name}/run/summary.json" in text
        store.copy(f"{name}/run", tmp_path / "stored")
        ends.append({"folder": "stored"})
    assert len(ends) == (len(stops) if EVERY else 1) + stored
    for run in ends:
        folder = tmp_path / run["folder"]
        assert end_of(folder) == end_of(tmp_path / "unbroken"), run
        assert drawn(folder) == drawn(tmp_path / "unbroken")


def drawn(folder):
    """Names of the figures in a run folder."""
    return sorted(path.name for path in (folder / "figures").glob("*"))
