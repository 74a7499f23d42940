"""What an experiment says and how it is started: tables, progress, flags and errors."""

import importlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import jax
import numpy as np

from imr.errors import ImrError, missing_package
from imr.lab.folder import RunFolder, json_ready
from imr.parallel import (
    Preempted,
    agreed,
    initialize_from_environment,
    is_first,
)

_PLAIN_SECONDS = 15.0


def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing_package(package, "experiments") from error


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
        if sys.stderr.isatty() and is_first():
            bar = _optional("tqdm").tqdm
            self._bar = bar(total=self.total, desc=self.label, unit=self.unit, initial=self.initial)
        return self

    def update(self, done: int, **values: Any) -> None:
        """Says that `done` units are done since the beginning, beside values worth watching."""
        plain = json_ready("progress", values)
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
        say(f"{self.label}: {', '.join(parts)}")


def say(words: str) -> None:
    """One line on standard error, where the progress of an experiment goes; of the first process."""
    if not is_first():
        return
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def run_once(run: RunFolder, work: Callable[[], object]) -> None:
    """Does the work unless the folder holds its results already; then shows them, either way.

    Args:
        run: the folder, from `open_run`.
        work: makes the results, and ends in `run.finish`.

    Returns:
        Nothing; the table, the paths of the figures and of `summary.json` go to standard output.
    """
    if agreed(run.finished):
        say(f"This configuration has already run; its results, from {run.path}:")
    else:
        work()
    if not is_first():
        return
    print((run.path / "table.md").read_text(encoding="utf-8"))
    for figure in sorted(run.figures.glob("*.png")):
        print(f"figure: {figure}")
    print(f"every row, as data: {run.path / 'summary.json'}")


def run_main(main: Callable, config_type: type, argv: Sequence[str] | None = None) -> int:
    """Runs an experiment from the command line: flags to a configuration, errors to one line.

    Args:
        main: takes the configuration; its docstring heads `--help`. What it returns, if anything, is
            the exit code.
        config_type: a dataclass; each field is a flag, described by its docstring or comment.
        argv: the flags, those of the process by default.

    Returns:
        The exit code: main's, or 0, or 2 after an `ImrError`, or 130 after an interrupt. SIGTERM in
        training saves the state and ends with 0 (or `IMR_PREEMPTED_CODE`), so that a loop that starts
        it again resumes.

    Raises:
        SystemExit: from tyro, after `--help` or for flags that do not fit.
    """
    try:
        description = inspect.getdoc(main)
        config = _optional("tyro").cli(config_type, description=description, args=argv)
        initialize_from_environment()
        code = main(config)
    except Preempted as stopped:
        say(f"{stopped}: run the same command again to resume")
        return int(os.environ.get("IMR_PREEMPTED_CODE", "0"))
    except ImrError as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        _leave(2)
        return 2
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            _leave(1)
        raise
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: run the same command again to resume\n")
        return 130
    return code or 0


def _leave(code: int) -> None:
    """Ends a process of several at once: others would wait for it where they have to agree."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
