"""Run folders of experiments: the configuration, metrics and results."""

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from imr._files import parse_json, read_bytes, read_json
from imr.errors import ImrError, RunError, UnreachableError
from imr.lab.as_json import json_ready
from imr.lab.console import say
from imr.lab.files import Place, entries, is_local, make_folder, place, remove, using, write_whole
from imr.lab.flags import CONTROL
from imr.lab.lines import LARGEST, lines_of
from imr.lab.lock import LOCK_FILE, Claim, Lock, lock
from imr.lab.metrics import Metrics
from imr.lab.phases import phase
from imr.lab.plotting import png
from imr.lab.provenance import provenance
from imr.parallel import agreed, is_first

# What a run writes beside config.json, in the order in which it is taken away.
_MADE = ("summary.json", "table.md", "checkpoints", "metrics.jsonl", "figures", ".resume", ".sums")
_SUMMED = ("table.md", "summary.json", "metrics.jsonl")  # of which .sums holds checksums
_REMOVED = ".removed"
# What a process killed while it opened the folder leaves in it.
_LEFT = (LOCK_FILE, _REMOVED, "config.json.tmp")
_ABSENT = "(absent)"


def config_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it, without the control fields (`imr.lab.flags.CONTROL`).

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     rates: tuple[float, ...] = (0.0, 0.5)
    ...     out: Path | None = None
    >>> config_dict(Config())
    {'rates': [0.0, 0.5]}
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ImrError(f"config must be a dataclass instance; found {config!r}. Pass Config(...).")
    fields = [field.name for field in dataclasses.fields(config) if field.name not in CONTROL]
    return {name: json_ready(name, getattr(config, name), spell=True) for name in fields}


def config_hash(config: Any) -> str:
    """The first 10 hexadecimal digits of the sha256 of the sorted JSON of `config_dict`."""
    text = json.dumps(config_dict(config), sort_keys=True, allow_nan=False)
    return sha256(text.encode()).hexdigest()[:10]


def _read_config(path: Place, overwrite: bool) -> dict[str, Any] | None:
    """The config.json of a run folder, flat; None for an empty folder.

    Raises: RunError for another program's.
    """
    names = {entry.name for entry in entries(path)} - {*_LEFT}
    if not names:
        return None
    remedy = "so it is left alone; choose another folder with --out"
    file = path / "config.json"
    try:
        data = read_bytes(file)
        # A machine that lost power may have left it empty.
        if not data and {name.removesuffix(".tmp") for name in names} <= {"config.json", *_MADE}:
            if overwrite:
                return {}
            raise RunError(f"{file} is empty; replace that run with --overwrite.")
        record = parse_json(data, file)
        return {"experiment": record["experiment"], **record["config"]}
    except FileNotFoundError:
        raise RunError(f"{path} holds files but no run of imr, {remedy}.") from None
    except RunError:
        raise
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{file} is damaged or not from imr, {remedy}.") from None


def check_run(
    name: str, config: Any, *, out: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Place:
    """The folder that `open_run` would open, if what lies there admits it; nothing is made."""
    path = _path(name, config, out)
    with using(path, " as a run folder"):
        if path.exists():
            _check(path, {"experiment": name, **config_dict(config)}, overwrite)
    return path


def _path(name: str, config: Any, out: str | os.PathLike[str] | None) -> Place:
    return place(Path("runs", name, config_hash(config)) if out is None else out)


def open_run(
    name: str, config: Any, *, out: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> "RunFolder":
    """Opens the folder of a run: a new one, or that of the same configuration to resume.

    Asks jax for its devices: a multi-process program is started before, and one process opens.

    Args:
      name: of the experiment.
      config: a dataclass instance; see `config_dict`.
      out: the folder, `runs/<name>/<config_hash>` by default; gs://BUCKET/FOLDER for an object store.
      overwrite: whether an earlier run there, of any configuration, is removed first: only what
        a run writes, and only if config.json says that imr wrote it. A run that was itself begun
        with it, and stopped by SIGTERM, is resumed: who repeats a command then is a scheduler.
    Raises: RunError if the folder holds a run of another configuration, or is not empty and no run
      folder, or cannot be written, or another process is at work in it.
    """
    path = _path(name, config, out)
    if not is_first():
        # The first process opens the folder; this one writes checkpoints into it, with the others.
        if agreed(False):
            raise RunError("the first process could not open the run folder; it says why.")
        if not (path / "config.json").exists():
            raise RunError(
                f"{path} is here not what it is for the first process, which has just opened it; choose "
                "a folder with --out that all hosts share."
            )
        return RunFolder(path)
    opened = False
    try:
        run = _open(path, name, config_dict(config), overwrite)
        opened = True
    finally:
        agreed(not opened)
    return run


def _open(path: Place, name: str, settings: dict[str, Any], overwrite: bool) -> "RunFolder":
    now = {"experiment": name, **settings}
    with using(path, " as a run folder"):
        make_folder(path)
        there = _check(path, now, overwrite)
        whole = there and not overwrite and not (path / _REMOVED).exists()
        if whole and (run := RunFolder(path)).finished:
            return run  # to be read only, which needs no lock
        held = lock(path)
        there = _check(path, now, overwrite)  # another process may have let go of it just now
        resume = path / ".resume"
        if overwrite and there == now and resume.exists():
            say(f"{path} was stopped by SIGTERM and is resumed, in spite of --overwrite")
            overwrite = False
        resume.unlink(missing_ok=True)
        _remove(path, _MADE if overwrite else ())
        if overwrite or there is None:
            record = {"experiment": name, "config": settings, **provenance()}
            write_whole(path / "config.json", _text(record))
        return RunFolder(path, held)


def _check(path: Place, now: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The configuration in the folder; a RunError if it is in the way of the one of now."""
    there = _read_config(path, overwrite)
    if there is None or overwrite:
        return there
    pairs = [(k, there.get(k, _ABSENT), now.get(k, _ABSENT)) for k in {**now, **there}]
    if differ := "; ".join(f"{k}: {a!r} there, {b!r} now" for k, a, b in pairs if a != b):
        raise RunError(
            f"{path} holds a run of another configuration ({differ}); choose another "
            "folder with --out, or replace that run with --overwrite."
        )
    return there


def _remove(path: Place, names: tuple[str, ...]) -> None:
    """Removes parts of a run, and what an earlier call that was killed has left.

    Each is renamed first, in an order such that whatever is left at any moment can be resumed.
    """
    removed = path / _REMOVED
    if not is_local(path):
        return _remove_stored(path, _MADE if removed.exists() else names)
    for name in ("config.json", *_MADE):
        (path / f"{name}.tmp").unlink(missing_ok=True)
    if removed.exists():
        remove(removed)
    there = [name for name in names if os.path.lexists(path / name)]
    if there:
        removed.mkdir()
        for name in there:
            os.replace(path / name, removed / name)
        remove(removed)


def _remove_stored(path: Place, names: tuple[str, ...]) -> None:
    """The same in an object store, which renames nothing: a mark says that there is more to remove."""
    there = [path / name for name in names if (path / name).exists()]
    if there:
        write_whole(path / _REMOVED, "")
    for entry in there:
        remove(entry)
    (path / _REMOVED).unlink(missing_ok=True)


def _sum(data: bytes) -> str:
    return sha256(data).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


class RunFolder:
    """The folder of one run, made by `open_run`; its `figures` and `checkpoints` are absolute, too.

    Of several processes the first one writes, and holds the lock until `close`, which is also the end
    of a `with` statement.
    """

    def __init__(self, path: Place, held: Lock | Claim | None = None) -> None:
        self.path, self.figures, self.checkpoints = path, path / "figures", path / "checkpoints"
        self._lock, self._lines = held, None
        with using(path, " as a run folder"):
            make_folder(self.figures)
            make_folder(self.checkpoints)

    def close(self) -> None:
        """Lets other processes write into the folder."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def resume_in_spite_of_overwrite(self) -> None:
        """Has the next `open_run` with `overwrite`, of this configuration, resume this run."""
        if is_first():
            write_whole(self.path / ".resume", "")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, and its results are there as `finish` left them."""
        try:
            self.summary()
            with using(self.path):
                if not (self.path / ".sums").exists():  # as earlier versions have left it
                    return (self.path / "table.md").is_file()
                sums = read_json(self.path / ".sums")
                names = [name for name in _SUMMED if (self.path / name).exists()]
                return sums == {name: _sum(read_bytes(self.path / name, LARGEST)) for name in names}
        except UnreachableError:
            raise
        except ValueError:
            return False

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote; a RunError if the run has not finished."""
        try:
            with using(self.path):
                value = read_json(self.path / "summary.json")
        except UnreachableError:
            raise
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        raise RunError(f"{self.path} has not finished; run the same again to resume.")

    def metrics(self, **tags: Any) -> Metrics:
        """The metrics file; the tags stand on every line written through the result."""
        if not is_first():
            return Metrics(os.devnull, **tags)
        if self._lines is None or is_local(self.path):
            self._lines = lines_of(self.path / "metrics.jsonl", self._check)
        return Metrics(self._lines, **tags)

    def _check(self) -> None:
        """Raises if another process writes into this folder now."""
        if self._lock is not None:
            self._lock.check()

    def save_figure(self, name: str, figure: Any, **arrays: Any) -> None:
        """Writes figures/NAME.png and the arrays it shows to NAME.npz."""
        if is_first():
            self._check()
            # In memory first, whole or not at all.
            image, data = png(figure), io.BytesIO()
            np.savez_compressed(data, **arrays)
            write_whole(self.figures / f"{name}.npz", data.getvalue())
            write_whole(self.figures / f"{name}.png", image)

    def finish(self, summary: Mapping[str, Any], table: str) -> None:
        """Writes table.md, then summary.json, each whole or not at all: the run is then finished.

        Beside them, in .sums, it writes checksums of both and of the metrics, which `finished` checks.

        Args:
          summary: the tables as lists of flat rows, arrays included; what is not finite becomes null.
          table: the results to read, in Markdown.
        """
        with phase("summary"):
            ready = json_ready("summary", summary)
            if is_first():
                metrics = self.metrics()
                metrics.flush()
                self._check()
                texts = {"table.md": table.rstrip("\n") + "\n", "summary.json": _text(ready)}
                sums = {name: _sum(text.encode()) for name, text in texts.items()}
                if metrics.path.exists():
                    sums[metrics.path.name] = _sum(read_bytes(metrics.path, LARGEST))
                for name, text in {".sums": _text(sums), **texts}.items():
                    write_whole(self.path / name, text)
            agreed(True)  # none goes on before all is there
