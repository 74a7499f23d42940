"""Run folders, the metrics file, tables and progress."""

import dataclasses
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imr.errors import ImrError, RunError
from imr.lab import console, provenance
from imr.lab import folder as run
from imr.lab.flags import RunFlags
from imr.lab.metrics import Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of a test."""

    rate: float = 0.1
    train_noise: tuple[float, ...] = (0.0, 0.5)
    data_dir: Path | None = None


def opened(path, config=None, **flags):
    return run.open_run("probe", config or Config(), out=path, **flags)


@pytest.fixture
def quick(monkeypatch):
    """Without what takes most of the time of opening a folder."""
    monkeypatch.setattr(run, "provenance", dict)


# Configurations


def test_config_dict_is_json_without_the_control_fields():
    config = Config(data_dir=Path("a/b"), out=Path("c"), overwrite=True)
    found = run.config_dict(config)
    assert found == {
        "seed": 0, "smoke": False, "rate": 0.1, "train_noise": [0.0, 0.5], "data_dir": "a/b"
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_config_hash_ignores_where_and_sees_what():
    base = run.config_hash(Config())
    assert len(base) == 10
    assert int(base, 16) >= 0
    assert run.config_hash(Config(out=Path("x"), overwrite=True, compilation_cache=False)) == base
    assert run.config_hash(Config(rate=0.2)) != base
    assert run.config_hash(Config(rate=math.inf)) != run.config_hash(Config(rate=math.nan))


def test_config_of_another_kind_is_refused():
    with pytest.raises(ImrError, match=r"dataclass instance.*Config"):
        run.config_dict({"rate": 1.0})
    with pytest.raises(ImrError, match=r"rate .* found a object"):
        run.config_dict(dataclasses.replace(Config(), rate=object()))


# Folders


def test_default_folder_and_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run.open_run("probe", Config())
    assert folder.path == tmp_path / "runs" / "probe" / run.config_hash(Config())
    assert folder.figures.is_dir()
    assert folder.checkpoints.is_dir()
    assert folder.checkpoints.is_absolute()
    record = json.loads((folder.path / "config.json").read_text())
    assert record["experiment"] == "probe"
    assert record["config"] == run.config_dict(Config())
    packages = ["jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy", "imr"]
    assert sorted(record["versions"]) == sorted(["python", *packages])
    assert record["versions"]["jax"] == jax.__version__
    assert sum(kind["count"] for kind in record["devices"]) == len(jax.devices())


def test_commit_is_marked_dirty_and_null_outside_git(tmp_path, monkeypatch):
    package = tmp_path / "imr" / "lab"
    package.mkdir(parents=True)
    for name in ("../__init__.py", "folder.py"):
        (package / name).write_text("")
    monkeypatch.setattr(provenance, "__file__", str(package / "folder.py"))
    # Whatever checkout the temporary folder may lie in does not track these files.
    assert provenance._commit() is None

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    git("add", ".")
    git("commit", "-m", "a")
    clean = provenance._commit()
    assert clean is not None
    assert len(clean) == 40
    (package / "folder.py").write_text("x = 1\n")
    assert provenance._commit() == f"{clean}-dirty"


def test_same_configuration_resumes(tmp_path):
    first = opened(tmp_path / "a")
    (first.checkpoints / "100").mkdir()
    first.metrics().append(1, loss=1.0)
    before = (first.path / "config.json").read_bytes()
    again = opened(tmp_path / "a", Config(out=tmp_path / "a"))
    assert (again.path / "config.json").read_bytes() == before
    assert (again.checkpoints / "100").is_dir()
    assert again.metrics().rows() == [{"step": 1, "loss": 1.0}]
    assert not again.finished


def test_a_folder_that_another_host_does_not_see_is_refused(tmp_path, monkeypatch):
    """As of a process beside the first, which has opened a folder of that name on its own disk."""
    monkeypatch.setattr(run, "is_first", lambda: False)
    with pytest.raises(RunError, match=rf"{tmp_path}/a is here not .* all hosts share"):
        opened(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").touch()
    assert opened(tmp_path / "b").path == tmp_path / "b"


def test_a_check_makes_nothing(tmp_path):
    assert run.check_run("probe", Config(), out=tmp_path / "a") == tmp_path / "a"
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path / "b")
    with pytest.raises(RunError, match=r"rate: 0.1 there, 0.2 now.*--out"):
        run.check_run("probe", Config(rate=0.2), out=tmp_path / "b")
    run.check_run("probe", Config(rate=0.2), out=tmp_path / "b", overwrite=True)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["config"]["rate"] == 0.1


def test_another_configuration_is_refused_with_both_values(tmp_path):
    opened(tmp_path / "a")
    with pytest.raises(RunError) as caught:
        opened(tmp_path / "a", Config(rate=0.2))
    text = str(caught.value)
    assert str(tmp_path / "a") in text
    assert "rate: 0.1 there, 0.2 now" in text
    assert "smoke" not in text
    assert "--out" in text
    assert "--overwrite" in text
    with pytest.raises(RunError, match="experiment: 'probe' there, 'other' now"):
        run.open_run("other", Config(), out=tmp_path / "a")


def test_a_field_that_was_added_since_is_named(tmp_path):
    folder = opened(tmp_path)
    record = json.loads((folder.path / "config.json").read_text())
    del record["config"]["smoke"]
    (folder.path / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"smoke: '\(absent\)' there, False now"):
        opened(tmp_path)


def test_overwrite_removes_what_a_run_writes_and_no_more(tmp_path):
    folder = opened(tmp_path)
    folder.metrics().append(1, loss=1.0)
    (folder.checkpoints / "1").mkdir()
    folder.finish({"rows": []}, "old")
    (tmp_path / "notes.txt").write_text("mine")
    fresh = opened(tmp_path, Config(rate=0.2), overwrite=True)
    assert not fresh.finished
    assert fresh.metrics().rows() == []
    assert list(fresh.checkpoints.iterdir()) == []
    assert not (tmp_path / "table.md").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    opened(tmp_path, Config(rate=0.2))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "text", [None, "", "{", '{"config": 1}', "[]", '{"name": "npm"}', "\x00\xff"]
)
def test_a_foreign_folder_is_never_touched(tmp_path, overwrite, text):
    (tmp_path / "thesis.tex").write_text("years of work")
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"left alone.*--out") as caught:
        opened(tmp_path, overwrite=overwrite)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} <= {"thesis.tex", "config.json"}


def test_a_folder_that_cannot_be_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match=r"cannot be used.*--out"):
            opened(path)


def test_a_run_killed_in_its_first_moment_can_be_opened(tmp_path):
    (tmp_path / "config.json.tmp").write_text("{")
    assert opened(tmp_path).path == tmp_path


@pytest.mark.usefixtures("quick")
def test_an_empty_config_is_replaced_on_demand(tmp_path):
    """A machine that loses power leaves such files."""
    folder = opened(tmp_path)
    folder.metrics().append(1, loss=1.0)
    (tmp_path / "config.json").write_text("")
    with pytest.raises(RunError, match=r"config.json is empty; replace that run with --overwrite"):
        opened(tmp_path)
    assert opened(tmp_path, overwrite=True).metrics().rows() == []
    opened(tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("renames", range(6))
def test_a_kill_in_overwrite_leaves_a_run_that_can_be_opened(tmp_path, monkeypatch, renames):
    folder = opened(tmp_path)
    folder.metrics().append(1, loss=1.0)
    (folder.checkpoints / "1").mkdir()
    folder.finish({"rows": []}, "old")
    done, replace, remove = [], os.replace, shutil.rmtree

    def until_killed(call):
        def one(*paths):
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(paths)
            call(*paths)

        return one

    monkeypatch.setattr(os, "replace", until_killed(replace))
    monkeypatch.setattr(shutil, "rmtree", until_killed(remove))
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, overwrite=True)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(shutil, "rmtree", remove)
    (tmp_path / "config.json.tmp").write_text("{")
    again = opened(tmp_path)
    # All of the old run, or one that has not finished, without metrics that lack their checkpoints.
    assert again.finished == (renames == 0)
    assert renames == 0 or (again.checkpoints / "1").exists() == (renames < 3)
    assert not (tmp_path / ".removed").exists()
    assert again.finished or not (tmp_path / "config.json.tmp").exists()


@pytest.mark.usefixtures("quick")
def test_overwrite_resumes_what_a_scheduler_repeats(tmp_path, capsys):
    folder = opened(tmp_path, overwrite=True)
    folder.metrics().append(1, loss=1.0)
    folder.resume_in_spite_of_overwrite()
    assert opened(tmp_path, overwrite=True).metrics().rows() == [{"step": 1, "loss": 1.0}]
    assert "is resumed, in spite of --overwrite" in capsys.readouterr().err
    assert opened(tmp_path, overwrite=True).metrics().rows() == []
    folder.resume_in_spite_of_overwrite()
    opened(tmp_path, Config(rate=0.2), overwrite=True)
    assert not (tmp_path / ".resume").exists()


LOCKER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("process 3 on earth", file=file, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("quick")
def test_one_process_at_a_time(tmp_path):
    opened(tmp_path).close()
    other = subprocess.Popen(
        [sys.executable, "-c", LOCKER, tmp_path / ".lock"], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with other:
        assert other.stdout.readline() == "held\n"
        for overwrite in (False, True):
            words = rf"{tmp_path} is in use by process 3 on earth; wait .* --out"
            with pytest.raises(RunError, match=words):
                opened(tmp_path, overwrite=overwrite)
        other.kill()
    opened(tmp_path).close()


def test_finish_and_summary(tmp_path):
    folder = opened(tmp_path)
    with pytest.raises(RunError, match="not finished"):
        folder.summary()
    rows = [{"data": "digits", "accuracy": np.float32(0.5), "loss": jnp.nan, "n": jnp.arange(2)}]
    folder.finish({"accuracy": rows}, "| a |")
    assert folder.finished
    wanted = {"accuracy": [{"data": "digits", "accuracy": 0.5, "loss": None, "n": [0, 1]}]}
    assert folder.summary() == wanted
    assert (tmp_path / "table.md").read_text() == "| a |\n"
    assert opened(tmp_path).finished


def test_finish_is_all_or_nothing(tmp_path, monkeypatch):
    folder = opened(tmp_path)
    with pytest.raises(ImrError, match=r"summary.bad must be JSON-ready"):
        folder.finish({"bad": object()}, "table")
    assert not (tmp_path / "table.md").exists()

    def killed(source, target):
        if target.name == "summary.json":
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.finish({"rows": []}, "table")
    assert (tmp_path / "table.md").exists()
    assert not folder.finished
    monkeypatch.undo()
    (tmp_path / "summary.json").write_text('{"rows": [')
    assert not folder.finished
    folder.finish({"rows": []}, "table")
    assert folder.finished


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["summary.json", "table.md", "metrics.jsonl", ".sums"])
def test_results_that_are_altered_are_measured_again(tmp_path, name):
    folder = opened(tmp_path)
    folder.metrics().append(1, loss=1.0)
    folder.finish({"rows": [1]}, "| a 1 |")
    whole = (tmp_path / name).read_bytes()
    for data in (whole.replace(b"1", b"2"), whole[: len(whole) // 2], b""):
        (tmp_path / name).write_bytes(data)
        assert not opened(tmp_path).finished
    (tmp_path / name).unlink()
    assert opened(tmp_path).finished == (name == ".sums")
    (tmp_path / name).write_bytes(whole)
    assert opened(tmp_path).finished


def test_save_figure_writes_both_files(tmp_path):
    from matplotlib.figure import Figure

    folder = opened(tmp_path)
    figure = Figure()
    figure.subplots().plot([0, 1])
    folder.save_figure("curve", figure, x=jnp.arange(3), y=np.ones(2))
    assert (folder.figures / "curve.png").stat().st_size > 0
    with np.load(folder.figures / "curve.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
        assert sorted(arrays) == ["x", "y"]


# Metrics


def test_metrics_lines_are_flat_valid_json_with_step_first(tmp_path):
    metrics = opened(tmp_path).metrics(data="digits")
    metrics.append(jnp.int32(3), loss=jnp.float32(0.5), gap=math.nan, top=-math.inf, split="train")
    line = (tmp_path / "metrics.jsonl").read_text()
    wanted = (
        '{"step": 3, "data": "digits", "loss": 0.5, "gap": null, "top": null, "split": "train"}\n'
    )
    assert line == wanted
    with pytest.raises(ImrError, match=r"metrics.loss must be a scalar; found \[1.0, 1.0\]"):
        metrics.append(4, loss=jnp.ones(2))
    with pytest.raises(ImrError, match=r"metrics.data has the name of a tag of these lines"):
        metrics.append(4, data="other")
    with pytest.raises(ImrError, match=r"tags.step has the name of what numbers the lines"):
        opened(tmp_path).metrics(step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == wanted


def test_a_half_written_last_line_is_dropped(tmp_path):
    folder = opened(tmp_path)
    folder.metrics().append(1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    metrics = folder.metrics()
    metrics.append(2, loss=2.0)
    assert metrics.rows() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text('{"st')
    assert folder.metrics().rows() == []


def test_reset_replaces_the_lines_with_the_same_tags(tmp_path):
    folder = opened(tmp_path)
    one, two = folder.metrics(data="one"), folder.metrics(data="two")
    for step in (1, 2, 3):
        one.append(step, loss=0.0)
        two.append(step, loss=0.0)
    kept = one.rows()[:1]
    one.reset(kept)
    assert one.rows() == kept
    assert [row["step"] for row in two.rows()] == [1, 2, 3]
    one.append(2, loss=1.0)
    assert [row["step"] for row in one.rows()] == [1, 2]
    two.reset()
    assert [row["data"] for row in folder.metrics().rows()] == ["one", "one"]
    assert len(folder.metrics().rows(step=2)) == 1
    folder.metrics().reset()
    assert folder.metrics().rows() == []


def test_a_damaged_metrics_file(tmp_path):
    folder = opened(tmp_path)
    folder.metrics().reset()
    assert folder.metrics().rows() == []
    for text in ("nonsense\n", "3\n", '{"loss": 1}\n'):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(RunError, match=r"metrics.jsonl is damaged; delete that file"):
            folder.metrics(data="one").reset()
        folder.metrics().reset()  # all lines go, whatever they are
        assert folder.metrics().rows() == []


# Tables


def test_markdown_table():
    rows = [
        {"data": "a|b", "n": 3, "loss": np.float32(0.12345)},
        {"data": "c", "n": jnp.int32(12), "loss": None, "rate": math.inf},
    ]
    found = console.markdown_table(rows, formats={"n": "d"})
    assert found.splitlines() == [
        r"| data |   n |  loss | rate |",
        r"| ---- | --: | ----: | ---: |",
        r"| a\|b |   3 | 0.123 |    - |",
        r"| c    |  12 |     - |  inf |",
    ]
    short = console.markdown_table(rows[:1], ["loss"], formats={"loss": ".1%"})
    assert short.splitlines() == ["|  loss |", "| ----: |", "| 12.3% |"]
    assert console.markdown_table([], ["loss"]).splitlines() == ["| loss |", "| ---: |"]


# Progress


def test_plain_progress_lines_are_at_most_one_in_15_seconds(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with console.Progress(1000, "digits", initial=400) as progress:
        for done in range(401, 501):
            clock[0] += 0.2
            progress.update(done, loss=jnp.float32(0.25), seed=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "digits: 475/1000, 5 step/s, 0:01:45 left, loss 0.25, seed 1",
        "digits: 500/1000, 5 step/s, 0:01:40 left, loss 0.25, seed 1",
    ]


def test_plain_progress_says_the_end_once_and_survives_no_time(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with console.Progress(2, "fit", "seed") as progress:
        clock[0] = 20.0
        progress.update(2)
    assert capsys.readouterr().err.splitlines() == ["fit: 2/2, 0.1 seed/s, 0:00:00 left"]
    with console.Progress(2, "fit", "seed"):
        pass
    assert capsys.readouterr().err.splitlines() == ["fit: 0/2, 0 seed/s, ? left"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.Progress(10, "digits", initial=2) as progress:
        for done in range(3, 11):
            progress.update(done, loss=0.25)
    assert terminal.getvalue().count("\n") == 1
    assert "10/10" in terminal.getvalue()
    assert "loss=0.25" in terminal.getvalue()


def test_metrics_of_a_process_that_is_not_the_first_go_nowhere():
    metrics = Metrics(os.devnull, model="a")
    metrics.append(1, loss=0.5)
    metrics.reset()
    assert metrics.rows() == []
