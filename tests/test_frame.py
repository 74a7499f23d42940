"""The frame of experiments: bounds, flags, claims, compilation cache, and the way from flags to results."""

import io
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imr.errors import ImrError, MissingPackageError
from imr.lab import cache, console, experiment, flags
from imr.lab.bounds import Bound, above, at_least, at_most, below, near
from imr.lab.claims import Check, Claim, Control, Verdict, verdict_words
from imr.lab.experiment import Experiment, run_main
from imr.lab.phases import current_phase, phase

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Config(flags.RunFlags):
    """Flags of a test."""

    rate: Annotated[float, above(0), below(1)] = 0.1
    """Step size."""
    sizes: Annotated[tuple[int, ...], at_least(2)] = (3, 4)
    """Sizes."""
    limit: Annotated[int | None, at_least(1)] = None
    """The most of something."""
    scale: Annotated[float, at_least(1)] = 1.0
    """A length."""
    weights: tuple[float, ...] = (0.0,)
    """Weights."""
    data_dir: Path | None = None
    """Where the data are."""


# Bounds


def test_bounds_and_what_refutes_them():
    for bound, inside, outside in (
        (at_most(1.0), 1.0, 1.1),
        (at_least(1.0), 1.0, 0.9),
        (near(1.0, 0.5), 0.5, 1.6),
        (below(1.0), 0.9, 1.0),
        (above(1.0), 1.1, 1.0),
    ):
        assert bound.holds(inside)
        assert not bound.holds(outside)
        assert bound.refuted.holds(outside)
        assert not bound.refuted.holds(inside)
        assert bound.refuted.refuted == bound
        # What is not a number neither shows a claim nor refutes it.
        assert not bound.holds(np.nan)
        assert not bound.refuted.holds(np.nan)


def test_the_worst_number_decides_and_what_is_not_a_number_fails():
    values = np.array([1.0, 3.0, 2.0])
    for bound, worst in ((at_most(0), 3), (at_least(0), 1), (near(2.1, 0.1), 1), (below(9), 3)):
        assert bound.worst(values) == worst
    assert near(2.1, 0.1).refuted.worst(values) == 2
    for bound in (at_most(1e-12), at_least(1e-2), near(1.0, 0.1)):
        verdict = Verdict(bound, np.array([1.0, np.nan]))
        assert np.isnan(verdict.worst)
        assert not verdict.passed


def test_bounds_in_words():
    found = [str(b) for b in (at_most(6e-5), at_least(3), near(0.52, 0.1), near(0.55, 0.1).refuted)]
    assert found == ["≤ 6e-05", "≥ 3", "in [0.42, 0.62]", "not in [0.45, 0.65]"]
    assert Bound("near", 1.0, 0.5).words == "within 0.5 of 1"


# Claims


def test_the_lines_of_a_claim_are_it_and_its_controls():
    controls = (Control("untrained"), Control("other", at_most(0.5), len, "size"))
    claim = Claim("N0", "a number is large", sum, (Check("number", at_least(1)),), "net", controls)
    first, plain, other = claim.lines()
    assert first == ("claim", "net", "number", at_least(1), sum)
    assert plain == ("control", "untrained", "number", below(1), sum)
    assert other == ("control", "other", "size", at_most(0.5), len)
    assert Verdict(at_least(1), np.array([1.0, 0.5])).holds == 1
    words = {verdict_words(r, p) for r in ("claim", "control") for p in (True, False)}
    assert words == {"holds", "FAILS", "fails, as it must", "DOES NOT FAIL"}


# Flags


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "--rate must be above 0 and below 1; found 1.0. The default is 0.1."),
        ({"rate": float("nan")}, "--rate must be above 0 and below 1; found nan"),
        ({"scale": float("inf")}, "--scale must be at least 1 and finite; found inf"),
        ({"weights": (1.0, float("inf"))}, "--weights must be finite; found (1.0, inf)"),
        ({"sizes": (3, 1)}, "--sizes must be at least 2; found (3, 1)"),
        ({"limit": 0}, "--limit must be at least 1; found 0."),
        ({"seed": -1}, "--seed must be at least 0; found -1. The default is 0."),
    ],
)
def test_bounds_stand_on_the_fields(changes, message):
    with pytest.raises(ImrError) as caught:
        flags.check_bounds(Config(**changes))
    assert message in str(caught.value)


def test_flags_within_their_bounds_pass():
    flags.check_bounds(Config(sizes=(), limit=None))
    flags.check_bounds(Config(limit=3, rate=0.5))


def test_one_folder_is_one_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = {Path("a/../data"), Path("data"), tmp_path / "data"}
    found = {flags.resolve_paths(Config(data_dir=path)).data_dir for path in written}
    assert found == {tmp_path / "data"}
    assert flags.resolve_paths(Config(out=Path("a"))).out == Path("a")


def test_flags_that_are_given_several_times(tmp_path, monkeypatch):
    tyro = pytest.importorskip("tyro", reason="tyro is not installed")

    @dataclass(frozen=True, kw_only=True)
    class Folders(flags.RunFlags):
        folders: Annotated[tuple[Path, ...], flags.repeated()] = ()

    monkeypatch.chdir(tmp_path)
    config = tyro.cli(Folders, args=["--folders", "a", "--folders", "b"])
    assert config.folders == (Path("a"), Path("b"))
    assert flags.resolve_paths(config).folders == (tmp_path / "a", tmp_path / "b")
    with pytest.raises(ImrError, match=r"--folders must be an absolute path.*found a"):
        flags.check_absolute(config)


def test_phases_may_be_nested():
    with phase("evaluate"):
        with phase("train"):
            assert current_phase() == "train"
        assert current_phase() == "evaluate"
    assert current_phase() is None
    with (
        pytest.raises(ImrError, match="name must be one of data, regression, train"),
        phase("lunch"),
    ):
        pass


# The way from flags to results


def seen():
    """An experiment that writes down what happens to it."""
    events = []

    def check(config):
        events.append("check")
        if config.rate == 0.25:
            raise ImrError("a quarter\nis no rate")

    def data(config):
        events.append(f"data in {current_phase()}")
        if config.data_dir is not None:
            raise ImrError("no data there")
        return jnp.ones(2)

    def measure(config, run, data):
        events.append(f"measure in {current_phase()}, rate {config.rate:g}")
        return data.sum()

    def report(config, run, results):
        events.append(f"report in {current_phase()}, {results.dtype}")
        run.finish({"sum": results}, "| a |")

    made = Experiment(
        name="probe",
        question="What happens to an experiment?",
        config=Config,
        check=check,
        shrink=lambda config: replace(config, rate=0.5),
        data=data,
        measure=measure,
        report=report,
        verdict=lambda summary: 3 if summary["sum"] == 2 else 0,
    )
    return made, events


def test_an_experiment_from_flags_to_results(tmp_path, capsys):
    made, events = seen()
    arguments = ["--out", str(tmp_path / "run")]
    assert made.main(arguments) == 3
    first = capsys.readouterr()
    assert events == [
        "check", "data in data", "measure in evaluate, rate 0.1", "report in figures, float32"
    ]  # fmt: skip
    assert "| a |" in first.out
    assert f"every row, as data: {tmp_path / 'run' / 'summary.json'}" in first.out
    # The same again shows the results and their verdict, and measures nothing.
    events.clear()
    assert made.main(arguments) == 3
    assert events == ["check", "data in data"]
    again = capsys.readouterr()
    assert "already run" in again.err
    assert again.out == first.out
    assert made.main([*arguments, "--overwrite"]) == 3
    assert len(events) == 6


def test_the_smoke_version_and_double_precision(tmp_path):
    made, events = seen()
    made = replace(made, float64=True)
    made.main(["--smoke", "--out", str(tmp_path / "run")])
    assert events[2:] == ["measure in evaluate, rate 0.5", "report in figures, float64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "2"], "--rate must be above 0 and below 1; found 2.0"),
        (["--rate", "0.25"], "a quarter is no rate"),
        (["--data-dir", "nowhere"], "no data there"),
    ],
)
def test_a_mistake_is_one_line_and_claims_no_folder(tmp_path, capsys, arguments, message):
    assert seen()[0].main([*arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.laws
@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder where nothing can be made"
)
@pytest.mark.parametrize(
    "out", ["/proc/none", "/proc/self/a/b", "file", "file/a", "a" * 300, "link/a"]
)
def test_a_check_says_what_the_run_would_say(tmp_path, monkeypatch, capsys, out):
    """Of a folder that cannot be written, in the same words; and nothing is made."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("/proc/self")
    said = []
    for more in ([], ["--check"], ["--check", "--overwrite"]):
        assert seen()[0].main(["--out", out, *more]) == 2
        said.append(capsys.readouterr().err)
    assert "cannot be used as a run folder" in said[0]
    assert "was removed" not in said[0]
    assert {text.split("(")[0] for text in said} == {said[0].split("(")[0]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.laws
def test_a_check_of_a_run_that_has_finished_writes_nothing(tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run")]
    made = seen()[0]
    assert made.main(out) == 3
    monkeypatch.setattr(experiment, "check_writable", lambda path: pytest.fail("it is only read"))
    assert made.main([*out, "--check"]) == 0
    assert "can run in" in capsys.readouterr().err


@pytest.mark.laws
def test_a_check_for_another_machine_refuses_relative_paths(tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run"), "--check"]
    assert seen()[0].main([*out, "--data-dir", "data"]) == 0
    monkeypatch.setenv("IMR_CHECK_ELSEWHERE", "1")
    for path in ("data", "~/data"):
        assert seen()[0].main([*out, "--data-dir", path]) == 2
        said = "--data-dir must be an absolute path, that of the machine which runs it; found"
        assert f"error: {said} {path}." in capsys.readouterr().err
    assert seen()[0].main([*out, "--data-dir", "/data"]) == 0
    assert seen()[0].main(out) == 0


def test_help_shows_the_question_and_what_the_flags_mean(capsys):
    with pytest.raises(SystemExit) as caught:
        seen()[0].main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in ("What happens to an experiment?", "Step size.", "--data-dir", "--overwrite",
                  "Run folder, or gs://", "--check", "--no-compilation-cache"):  # fmt: skip
        assert words in text


def test_flags_of_every_kind_are_parsed():
    found = []
    arguments = ["--rate", "1", "--sizes", "5", "6", "--smoke", "--out", "a/b", "--overwrite"]
    assert run_main(found.append, Config, arguments) == 0
    expected = Config(rate=1.0, sizes=(5, 6), smoke=True, out="a/b", overwrite=True)
    assert found == [expected]
    assert run_main(found.append, Config, []) == 0
    assert found[1] == Config()


def test_what_main_raises(capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    def broken(config):
        raise ZeroDivisionError

    assert run_main(interrupted, Config, []) == 130
    assert "same command again to resume" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_main(broken, Config, [])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_missing_packages_name_the_line_to_type(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert run_main(lambda config: None, Config, []) == 2
    assert "pip install 'imr[experiments]'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(MissingPackageError, match="tqdm"), console.Progress(1, "a"):
        pass


# The compilation cache


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder for compiled programs, which the tests' own settings turn off."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "programs"))
    yield tmp_path / "programs"
    jax.monitoring.clear_event_listeners()


def compiled():
    """The value of a small program, compiled or read anew."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x) * 2)(np.float32(1)))


def test_a_second_run_reads_what_the_first_has_compiled(kept):
    events = Counter()
    jax.monitoring.register_event_listener(lambda name, **_: events.update([Path(name).name]))
    with cache.compilation_cache() as folder:
        value = compiled()
        assert folder is not None
        entries = {path.name for path in folder.glob("*-cache")}
        assert entries
        assert not events["cache_hits"]
        assert compiled() == value
        assert events["cache_hits"] == len(entries)
        assert {path.name for path in folder.glob("*-cache")} == entries
    assert folder.parent == kept
    assert jax.config.jax_compilation_cache_dir is None
    with cache.compilation_cache(False) as folder:
        assert folder is None


def test_an_entry_that_cannot_be_read_is_compiled_anew(kept):
    with cache.compilation_cache() as folder:
        value = compiled()
        for path in folder.glob("*-cache"):
            path.write_bytes(path.read_bytes()[:40])
        # No error, though the tests turn warnings into errors.
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
            assert compiled() == value


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "below"))
    with cache.compilation_cache() as folder:
        assert folder is None
        compiled()
    assert "compiled programs are not kept" in capsys.readouterr().err


def test_where_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "0")
    assert cache.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cache.VARIABLE)
    here = cache.cache_folder()
    assert here.parent == tmp_path / "imr" / "xla"
    assert f"jaxlib-{jax.lib.__version__}-" in here.name
    # Programs of another CPU may hold instructions that this one lacks.
    monkeypatch.setattr(cache, "_cpu", lambda: "another CPU")
    assert cache.cache_folder().parent == here.parent
    assert cache.cache_folder() != here


def test_the_cache_of_the_user_stays(kept, tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    try:
        with cache.compilation_cache() as folder:
            assert folder is None
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not kept.exists()


def test_what_was_used_longest_ago_makes_room(tmp_path):
    for age, name in enumerate(("new", "old", "older")):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(b"0" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "notes.txt").write_bytes(b"0" * 1000)
    cache._make_room(tmp_path, largest=150)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new-cache", "notes.txt"]
    cache._make_room(tmp_path)
    assert (tmp_path / "new-cache").exists()


# A process


SCRIPT = """
import sys
from dataclasses import dataclass
import jax, jax.numpy as jnp
from imr import parallel
from imr.lab.experiment import Experiment
from imr.lab.flags import RunFlags

@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    rate: float = 0.1

def measure(config, run):
    x = parallel.replicate(jnp.arange(3.0), parallel.mesh_of_all())
    return jax.jit(lambda x: jnp.sin(x).sum())(x)

def report(config, run, results):
    run.finish({"sum": results}, "| a |")

if __name__ == "__main__":
    sys.exit(Experiment("probe", "?", Config, measure, report).main())
"""


@pytest.fixture
def probe(tmp_path):
    """Starts the script in a process, warnings being errors, with a cache folder of its own."""
    (tmp_path / "probe.py").write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMR_", "XLA_FLAGS"))}
    home = {**kept, "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def start(*arguments, **variables):
        return subprocess.Popen(
            [sys.executable, "-W", "error", "probe.py", *arguments], cwd=tmp_path,
            env={**home, **variables}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def programs(folder):
    return sorted((folder / "home" / "imr" / "xla").glob("*/*-cache"))


def test_a_process_ends_with_the_code_and_keeps_its_programs(tmp_path, probe):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    refused, done = probe("--out", "taken", "--overwrite"), probe()
    _, error = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert (tmp_path / "taken" / "thesis.tex").exists()
    _, error = done.communicate(timeout=120)
    assert done.returncode == 0, error
    assert programs(tmp_path)
    assert [path.name for path in (tmp_path / "runs" / "probe").glob("*/table.md")] == ["table.md"]


@pytest.mark.acceptance
def test_several_processes_share_the_programs(tmp_path, probe):
    for again in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        joined = {"IMR_COORDINATOR": f"127.0.0.1:{port}", "IMR_NUM_PROCESSES": "2"}
        both = [
            probe("--out", str(tmp_path / f"run{again}"), IMR_PROCESS_ID=str(i), **joined)
            for i in range(2)
        ]
        errors = [process.communicate(timeout=240)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        before = programs(tmp_path) if not again else before
    assert before
    assert programs(tmp_path) == before, "the second run has compiled something"
    first, second = ((tmp_path / f"run{again}" / "summary.json") for again in (False, True))
    assert first.read_text() == second.read_text()
