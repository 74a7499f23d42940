"""The metrics file of a run."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imr._files import parse_json
from imr.errors import ImrError, RunError
from imr.lab.as_json import json_ready
from imr.lab.lines import Lines


class Metrics:
    """A file of flat JSON objects, one a line, `step` first; made by `RunFolder.metrics`.

    A last line that a killed process left half-written is cut off. The tags stand on every line and
    say which lines `rows` and `reset` mean.
    """

    def __init__(self, lines: Lines | str | os.PathLike[str], **tags: Any) -> None:
        self._lines = lines if isinstance(lines, Lines) else Lines(Path(lines))
        self.path, self.tags = self._lines.path, json_ready("tags", tags)
        if "step" in self.tags:
            raise ImrError("tags.step has the name of what numbers the lines. Call it otherwise.")
        self._nowhere = self.path == Path(os.devnull)  # of a process that is not the first

    def append(self, step: int | np.integer | jax.Array, **values: Any) -> None:
        """Writes a line, there for any reader on return; do it before that step's checkpoint.

        In an object store it is there within seconds, and before that checkpoint.
        """
        if both := values.keys() & self.tags.keys():
            name = min(both)
            raise ImrError(
                f"metrics.{name} has the name of a tag of these lines. Call it otherwise."
            )
        row = {"step": int(step), **self.tags, **json_ready("metrics", values)}
        for key, value in row.items():
            if isinstance(value, list | dict):
                raise ImrError(f"metrics.{key} must be a scalar; found {value!r}. Split it.")
        self._lines.append(_line(row))

    def flush(self) -> None:
        """On return all lines are there for any reader."""
        self._lines.flush()

    def rows(self, **tags: Any) -> list[dict[str, Any]]:
        """The lines that carry the tags of this object, and those given, in the order written."""
        return [row for row in self._rows() if self._carries(row, tags)]

    def reset(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Puts these rows in the place of all lines with the tags, all at once or not at all."""
        if self._nowhere:
            return
        # Without tags all lines go, also those of a damaged file.
        others = [row for row in self._rows() if not self._carries(row, {})] if self.tags else []
        self._lines.replace("".join(map(_line, [*others, *rows])))

    def _rows(self) -> list[dict[str, Any]]:
        if self._nowhere:
            return []
        try:
            data = self._lines.read()
            rows = [parse_json(line, self.path) for line in data.splitlines()]
            if any(type(row["step"]) is not int for row in rows):
                raise TypeError
            return [{"step": row["step"], **row} for row in rows]
        except RunError:
            raise
        except (ValueError, KeyError, TypeError):
            remedy = "delete that file and run the same command again, which writes it anew"
            raise RunError(f"{self.path} is damaged; {remedy}.") from None

    def _carries(self, row: Mapping[str, Any], tags: Mapping[str, Any]) -> bool:
        tags = {**self.tags, **json_ready("tags", tags)}
        return all(key in row and row[key] == value for key, value in tags.items())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
