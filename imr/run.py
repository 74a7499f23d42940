"""Run folders of experiments: the configuration, metrics, results, progress, and the way in."""

import contextlib
import dataclasses
import enum
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imr._checks import ImrError, RunError, missing_package

_CONTROL = ("out", "overwrite")  # where a run goes, not what it computes
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy", "imr")
_MADE = ("summary.json", "table.md", "metrics.jsonl", "figures", "checkpoints", "config.json")
_ABSENT = "(absent)"
_PLAIN_SECONDS = 15.0


def _plain(name: str, value: Any, spell: bool = False) -> Any:
    """The value as JSON has it; what is not finite becomes null, or its name with `spell`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", entry, spell) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, entry, spell) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(name, np.asarray(value).tolist(), spell)
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


def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing_package(package, "experiments") from error


def config_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it, without the control fields `out` and `overwrite`.

    Args:
        config: a dataclass instance of numbers, strings, paths, tuples, dicts and dataclasses.

    Returns:
        Field name to value: tuples as lists, paths and non-finite floats as strings.

    Raises:
        ImrError: for anything else, or a value that JSON cannot hold.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     rates: tuple[float, ...] = (0.0, 0.5)
    ...     out: Path | None = None
    >>> config_dict(Config())
    {'rates': [0.0, 0.5]}
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ImrError(f"config must be a dataclass instance; found {config!r}. Pass Config(...).")
    names = [field.name for field in dataclasses.fields(config)]
    return {n: _plain(n, getattr(config, n), spell=True) for n in names if n not in _CONTROL}


def config_hash(config: Any) -> str:
    """The first 10 hexadecimal digits of the sha256 of the configuration's sorted JSON.

    Args and Raises are those of `config_dict`; equal configurations agree on every machine.
    """
    text = json.dumps(config_dict(config), sort_keys=True, allow_nan=False)
    return sha256(text.encode()).hexdigest()[:10]


def _commit() -> str | None:
    """The git commit of the source tree, marked where the code differs from it."""
    root = Path(__file__).parents[1]

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
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "versions": {"python": platform.python_version()}
        | {package: installed.get(package) for package in _PACKAGES},
        "devices": [{"kind": kind, "count": count} for kind, count in kinds.items()],
        "commit": _commit(),
    }


def _read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run folder as one flat dict, told apart from any other program's."""
    remedy = "so it is left alone; choose another folder with --out"
    try:
        record = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return {"experiment": record["experiment"], **record["config"]}
    except FileNotFoundError:
        raise RunError(f"{path} holds files but no run of imr, {remedy}.") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}/config.json is damaged or not from imr, {remedy}.") from None


def _clear(path: Path) -> None:
    """Removes what a run writes and nothing else; config.json last, so that it stays ours."""
    for name in _MADE:
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def open_run(
    name: str,
    config: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> "RunFolder":
    """Opens the folder of a run: a new one, or that of the same configuration to resume.

    Asks jax for its devices: a multi-process program is started before, and one process opens.

    Args:
        name: of the experiment.
        config: a dataclass instance; see `config_dict`.
        out: the folder, `runs/<name>/<config_hash>` by default.
        overwrite: whether an earlier run there, of any configuration, is removed first: only what
            a run writes, and only where config.json says that imr wrote it.

    Returns:
        The run folder, with config.json written.

    Raises:
        RunError: if the folder holds a run of another configuration, or is not empty and no run
            folder, or cannot be written.
    """
    settings = config_dict(config)
    path = Path("runs", name, config_hash(config)) if out is None else Path(out).expanduser()
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A run killed in its first moments leaves a half-written file alone.
        used = any(entry.name != "config.json.tmp" for entry in path.iterdir())
        if used:
            now, there = {"experiment": name, **settings}, _read_config(path)
            pairs = [(k, there.get(k, _ABSENT), now.get(k, _ABSENT)) for k in {**now, **there}]
            differ = "; ".join(f"{k}: {a!r} there, {b!r} now" for k, a, b in pairs if a != b)
            if overwrite:
                _clear(path)
            elif differ:
                raise RunError(
                    f"{path} holds a run of another configuration ({differ}); choose another "
                    "folder with --out, or replace that run with --overwrite."
                )
        if overwrite or not used:
            record = {"experiment": name, "config": settings, **_provenance()}
            _write(path / "config.json", record)
        return RunFolder(path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be used as a run folder ({error.strerror}); choose another with --out."
        ) from error


class RunFolder:
    """The folder of one run; made by `open_run`.

    Attributes:
        path, figures, checkpoints: the folder and its two subfolders, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.figures, self.checkpoints = path, path / "figures", path / "checkpoints"
        self.figures.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: summary.json is there, and whole."""
        with contextlib.suppress(RunError):
            return isinstance(self.summary(), dict)
        return False

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote; a RunError if the run has not finished."""
        try:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise RunError(f"{self.path} has not finished; run the same again to resume.") from None

    def metrics(self, **tags: Any) -> "Metrics":
        """The metrics file; the tags stand on every line written through the result."""
        return Metrics(self.path / "metrics.jsonl", **tags)

    def save_figure(self, name: str, figure: Any, **arrays: Any) -> None:
        """Writes figures/NAME.png and the arrays it shows to NAME.npz; closes the figure."""
        import matplotlib.pyplot as plt

        figure.savefig(self.figures / f"{name}.png", dpi=150)
        plt.close(figure)
        np.savez_compressed(self.figures / f"{name}.npz", **arrays)

    def finish(self, summary: Mapping[str, Any], table: str) -> None:
        """Writes table.md, then summary.json, each whole or not at all: the run is then finished.

        Args:
            summary: JSON-ready, or numpy and jax arrays; the tables as lists of flat rows. What is
                not finite is written as null.
            table: the results to read, in Markdown.
        """
        ready = _plain("summary", summary)
        _write(self.path / "table.md", table.rstrip("\n") + "\n")
        _write(self.path / "summary.json", ready)


class Metrics:
    """A file of flat JSON objects, one a line, `step` first; made by `RunFolder.metrics`.

    Args:
        path: the file; a last line that a killed process left half-written is cut off.
        **tags: stand on every line after `step`, and say which lines `rows` and `rewind` mean.
    """

    def __init__(self, path: str | os.PathLike[str], **tags: Any) -> None:
        self.path = Path(path)
        self.tags = _plain("tags", tags)
        with contextlib.suppress(FileNotFoundError):
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)

    def append(self, step: int | np.integer | jax.Array, **values: Any) -> None:
        """Writes a line, there for any reader on return; do it before that step's checkpoint.

        Args:
            step: of training.
            **values: scalars and strings; what is not finite is written as null.

        Raises:
            ImrError: for a value that is no scalar.
        """
        row = {"step": int(step), **self.tags, **_plain("metrics", values)}
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
        """Drops the lines with these tags that come after `step`, all at once or not at all.

        Args:
            step: of the checkpoint from which the run goes on.
            **tags: beside those of this object.

        Raises:
            RunError: if a line is damaged.
        """
        kept = [r for r in self._rows() if r["step"] <= step or not self._carries(r, tags)]
        _write(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def _rows(self) -> list[dict[str, Any]]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        try:
            return [{"step": row["step"], **row} for row in map(json.loads, text.splitlines())]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.path} is damaged; run again with --overwrite.") from None

    def _carries(self, row: Mapping[str, Any], tags: Mapping[str, Any]) -> bool:
        wanted = {**self.tags, **_plain("tags", tags)}
        return all(key in row and row[key] == value for key, value in wanted.items())


def markdown_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str] | None = None,
    *,
    formats: Mapping[str, str] | None = None,
) -> str:
    """Rows as a Markdown table whose columns line up in plain text too.

    Args:
        rows: one mapping a row, column name to value; None and what is missing shows as `-`.
        columns: which and in what order; by default all, as they first appear.
        formats: column name to format specification; `.3f` by default for floats.

    Returns:
        The table, without a newline at its end; columns of numbers are aligned right.

    >>> print(markdown_table([{"data": "digits", "accuracy": 0.95}, {"data": "noise"}]))
    | data   | accuracy |
    | ------ | -------: |
    | digits |    0.950 |
    | noise  |        - |
    """
    names = list(dict.fromkeys(key for row in rows for key in row) if columns is None else columns)
    body = []
    for name in names:
        values = [_scalar(row.get(name)) for row in rows]
        right = all(v is None or type(v) in (int, float) for v in values)
        cells = [name, *(_cell(value, (formats or {}).get(name)) for value in values)]
        width = max(3, *map(len, cells))
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
        body.append([cells[0], "-" * (width - 1) + (":" if right else "-"), *cells[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*body, strict=True))


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray | np.generic | jax.Array) else value


def _cell(value: Any, form: str | None) -> str:
    if value is None:
        return "-"
    form = form or (".3f" if isinstance(value, float) else "")
    return format(value, form).replace("|", "\\|").replace("\n", " ")


class Progress:
    """Progress on standard error: one live line on a terminal, else a plain line now and then.

    Args:
        total: how many units make the whole.
        label: what is going on.
        unit: what is counted.
        initial: how many were done before, by the run that this one resumes.

    Use it as a context manager, and call `update` as often as you like. On a terminal it needs
    tqdm, and raises `MissingPackageError` without it.
    """

    def __init__(self, total: int, label: str, unit: str = "step", *, initial: int = 0) -> None:
        self.total, self.label, self.unit, self.initial = total, label, unit, initial
        self._done, self._values, self._bar, self._pending = initial, {}, None, True

    def __enter__(self) -> "Progress":
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty():
            bar = _optional("tqdm").tqdm
            self._bar = bar(total=self.total, desc=self.label, unit=self.unit, initial=self.initial)
        return self

    def update(self, done: int, **values: Any) -> None:
        """Says that `done` units are done since the beginning, beside values worth watching."""
        plain = _plain("progress", values)
        self._values = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in plain.items()}
        if self._bar is not None:
            self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(done - self._done)
        self._done, self._pending = done, True
        if self._bar is None and time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._say()

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._pending:
            self._say()

    def _say(self) -> None:
        self._said, self._pending = time.monotonic(), False
        rate = (self._done - self.initial) / max(self._said - self._start, 1e-9)
        left = timedelta(seconds=round((self.total - self._done) / rate)) if rate > 0 else "?"
        parts = [f"{self._done}/{self.total}", f"{rate:.3g} {self.unit}/s", f"{left} left"]
        parts += [f"{name} {value}" for name, value in self._values.items()]
        sys.stderr.write(f"{self.label}: {', '.join(parts)}\n")
        sys.stderr.flush()


def run_main(main: Callable, config_type: type, argv: Sequence[str] | None = None) -> int:
    """Runs an experiment from the command line: flags to a configuration, errors to one line.

    Args:
        main: takes the configuration; its docstring heads `--help`.
        config_type: a dataclass; each field is a flag, described by its docstring or comment.
        argv: the flags, those of the process by default.

    Returns:
        The exit code: 0, or 2 after an `ImrError`, or 130 after an interrupt.

    Raises:
        SystemExit: from tyro, after `--help` or for flags that do not fit.
    """
    try:
        description = inspect.getdoc(main)
        main(_optional("tyro").cli(config_type, description=description, args=argv))
    except ImrError as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: run the same command again to resume\n")
        return 130
    return 0
