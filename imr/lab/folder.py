"""Run folders of experiments: the configuration, metrics and results."""

import contextlib
import dataclasses
import enum
import importlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imr._files import parse_json, read_bytes, read_json
from imr.errors import ImrError, RunError
from imr.lab.flags import CONTROL
from imr.lab.phases import phase
from imr.parallel import agreed, is_first

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy", "imr")
_MADE = ("summary.json", "table.md", "metrics.jsonl", "figures", "checkpoints", "config.json")
_ABSENT = "(absent)"
_LARGEST_METRICS = 2**28  # bytes


def json_ready(name: str, value: Any, spell: bool = False) -> Any:
    """The value as JSON has it; what is not finite becomes null, or its name with `spell`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(f"{name}.{key}", entry, spell) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(name, entry, spell) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return json_ready(name, np.asarray(value).tolist(), spell)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if spell else None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ImrError(f"{name} must be JSON-ready; found a {type(value).__name__}. Convert it first.")


def _write(path: Path, value: Any) -> None:
    """Writes the whole file or nothing: a text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, allow_nan=False) + "\n"
    half = path.with_name(path.name + ".tmp")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


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


def _commit() -> str | None:
    """The git commit of the source tree, marked if the code differs from it."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, text=True, capture_output=True, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout, which does not track it.
        git("ls-files", "--error-unmatch", "imr/__init__.py")
        changed = git("status", "--porcelain", "--", "imr", "experiments")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _provenance() -> dict[str, Any]:
    """What the numbers of a run depend on beside its configuration."""
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    installed["python"] = platform.python_version()
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "versions": {package: installed.get(package) for package in ("python", *_PACKAGES)},
        "devices": [{"kind": kind, "count": count} for kind, count in kinds.items()],
        "commit": _commit(),
    }


def _read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run folder, flat; a RunError for any other program's."""
    remedy = "so it is left alone; choose another folder with --out"
    try:
        record = read_json(path / "config.json")
        return {"experiment": record["experiment"], **record["config"]}
    except FileNotFoundError:
        raise RunError(f"{path} holds files but no run of imr, {remedy}.") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}/config.json is damaged or not from imr, {remedy}.") from None


def open_run(
    name: str, config: Any, *, out: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> "RunFolder":
    """Opens the folder of a run: a new one, or that of the same configuration to resume.

    Asks jax for its devices: a multi-process program is started before, and one process opens.

    Args:
      name: of the experiment.
      config: a dataclass instance; see `config_dict`.
      out: the folder, `runs/<name>/<config_hash>` by default.
      overwrite: whether an earlier run there, of any configuration, is removed first: only what
        a run writes, and only if config.json says that imr wrote it.
    Raises: RunError if the folder holds a run of another configuration, or is not empty and no run
      folder, or cannot be written.
    """
    path = Path("runs", name, config_hash(config)) if out is None else Path(out).expanduser()
    path = path.absolute()
    if not is_first():
        # The first process opens the folder; this one writes checkpoints into it, with the others.
        if agreed(False):
            raise RunError("the first process could not open the run folder; it says why.")
        return RunFolder(path)
    opened = False
    try:
        run = _open(path, name, config_dict(config), overwrite)
        opened = True
    finally:
        agreed(not opened)
    return run


def _open(path: Path, name: str, settings: dict[str, Any], overwrite: bool) -> "RunFolder":
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A run killed in its first moments leaves a half-written file alone.
        used = any(entry.name != "config.json.tmp" for entry in path.iterdir())
        if used:
            now, there = {"experiment": name, **settings}, _read_config(path)
            pairs = [(k, there.get(k, _ABSENT), now.get(k, _ABSENT)) for k in {**now, **there}]
            differ = "; ".join(f"{k}: {a!r} there, {b!r} now" for k, a, b in pairs if a != b)
            if differ and not overwrite:
                raise RunError(
                    f"{path} holds a run of another configuration ({differ}); choose another "
                    "folder with --out, or replace that run with --overwrite."
                )
        if overwrite:
            # What a run writes and nothing else; config.json last, so that it stays ours.
            for entry in (path / made for made in _MADE):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        if overwrite or not used:
            record = {"experiment": name, "config": settings, **_provenance()}
            _write(path / "config.json", record)
        return RunFolder(path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be used as a run folder ({error.strerror}); choose another with --out."
        ) from error


class RunFolder:
    """The folder of one run, made by `open_run`; its `figures` and `checkpoints` are absolute, too.

    Of several processes the first one writes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.figures, self.checkpoints = path, path / "figures", path / "checkpoints"
        self.figures.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: summary.json is there, and whole."""
        with contextlib.suppress(RunError):
            self.summary()
            return (self.path / "table.md").is_file()
        return False

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote; a RunError if the run has not finished."""
        try:
            value = read_json(self.path / "summary.json")
            if isinstance(value, dict):
                return value
            raise ValueError
        except (OSError, ValueError):
            raise RunError(f"{self.path} has not finished; run the same again to resume.") from None

    def metrics(self, **tags: Any) -> "Metrics":
        """The metrics file; the tags stand on every line written through the result."""
        return Metrics(self.path / "metrics.jsonl" if is_first() else Path(os.devnull), **tags)

    def save_figure(self, name: str, figure: Any, **arrays: Any) -> None:
        """Writes figures/NAME.png and the arrays it shows to NAME.npz."""
        if is_first():
            figure.savefig(self.figures / f"{name}.png", dpi=150)
            np.savez_compressed(self.figures / f"{name}.npz", **arrays)

    def finish(self, summary: Mapping[str, Any], table: str) -> None:
        """Writes table.md, then summary.json, each whole or not at all: the run is then finished.

        Args:
          summary: the tables as lists of flat rows, arrays included; what is not finite becomes null.
          table: the results to read, in Markdown.
        """
        with phase("summary"):
            ready = json_ready("summary", summary)
            if is_first():
                _write(self.path / "table.md", table.rstrip("\n") + "\n")
                _write(self.path / "summary.json", ready)
            agreed(True)  # none goes on before all is there


class Metrics:
    """A file of flat JSON objects, one a line, `step` first; made by `RunFolder.metrics`.

    A last line that a killed process left half-written is cut off. The tags stand on every line and
    say which lines `rows` and `rewind` mean.
    """

    def __init__(self, path: str | os.PathLike[str], **tags: Any) -> None:
        self.path, self.tags = Path(path), json_ready("tags", tags)
        data = self.path.read_bytes() if self.path.is_file() else b""  # os.devnull is no file
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def append(self, step: int | np.integer | jax.Array, **values: Any) -> None:
        """Writes a line, there for any reader on return; do it before that step's checkpoint."""
        row = {"step": int(step), **self.tags, **json_ready("metrics", values)}
        for key, value in row.items():
            if isinstance(value, list | dict):
                raise ImrError(f"metrics.{key} must be a scalar; found {value!r}. Split it.")
        # Opened anew for each line, since `rewind` puts a new file in the place of the old one.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rows(self, **tags: Any) -> list[dict[str, Any]]:
        """The lines that carry the tags of this object, and those given, in the order written."""
        return [row for row in self._rows() if self._carries(row, tags)]

    def rewind(self, step: int, **tags: Any) -> None:
        """Drops the lines with these tags that come after `step`, all at once or not at all."""
        if self.path == Path(os.devnull):
            return
        kept = [r for r in self._rows() if r["step"] <= step or not self._carries(r, tags)]
        _write(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def _rows(self) -> list[dict[str, Any]]:
        data = read_bytes(self.path, _LARGEST_METRICS) if self.path.exists() else b""
        try:
            rows = [parse_json(line, self.path) for line in data.splitlines()]
            if any(type(row["step"]) is not int for row in rows):
                raise TypeError
            return [{"step": row["step"], **row} for row in rows]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.path} is damaged; run again with --overwrite.") from None

    def _carries(self, row: Mapping[str, Any], tags: Mapping[str, Any]) -> bool:
        tags = {**self.tags, **json_ready("tags", tags)}
        return all(key in row and row[key] == value for key, value in tags.items())
