"""What an experiment says: tables, progress and single lines."""

import importlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import jax
import numpy as np

from imr.errors import missing_package
from imr.lab.as_json import json_ready
from imr.parallel import is_first

_PLAIN_SECONDS = 15.0


def optional_package(module: str, package: str | None = None) -> Any:
    """A module of an optional package, or a MissingPackageError with the line to type."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_package(package or module, "experiments") from error


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
      total, unit: how many units make the whole, and what is counted.
      label: what is going on.
      initial: how many were done before, by the run that this one resumes.
    Raises: MissingPackageError if it is entered on a terminal and tqdm is not installed.
    """

    def __init__(self, total: int, label: str, unit: str = "step", *, initial: int = 0) -> None:
        self.total, self.label, self.unit, self.initial = total, label, unit, initial
        self._done, self._values, self._bar, self._pending = initial, {}, None, True

    def __enter__(self) -> "Progress":
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty() and is_first():
            bar = optional_package("tqdm").tqdm
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
    """Writes a line to standard error; of several processes the first one does."""
    if is_first():
        print(words, file=sys.stderr, flush=True)
