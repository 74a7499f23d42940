"""Files that others may have written, read within bounds of size, number and depth."""

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, cast

from imr.errors import DataError

LARGEST = 2**25  # bytes
# A value of two bytes takes 70 in Python: so many commas and opening brackets take 150 MB at most.
MOST_MARKS = 2**21
DEEPEST = 100


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path, ~ and ~user expanded.

    Raises: DataError if there is no such user, or no file can have this name.
    """
    try:
        if "\0" in os.fspath(path):
            raise RuntimeError("no name of a file holds a null character")
        return Path(path).expanduser()
    except RuntimeError as error:
        words = str(error).rstrip(".")
        raise DataError(f"{os.fspath(path)!r} is no path: {words}. Give another.") from None


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a regular file for reading; a pipe or device, which may never end, is refused.

    Raises:
      OSError: if the system cannot open it.
      DataError: if it is no regular file.
    """
    if hasattr(path, "open") and not isinstance(path, Path):  # a path in an object store
        return io.BufferedReader(cast(Any, path).open("rb"))
    path = expanded(path)
    # Before it is opened, which may wait for ever; a folder the system refuses by itself.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is no regular file. Give a file.")
    return path.open("rb")


def read_bytes(path: str | os.PathLike[str], largest: int = LARGEST) -> bytes:
    """The contents of a regular file of at most `largest` bytes.

    Raises:
      OSError: if the system cannot read it.
      DataError: if it is no regular file, or larger.
    """
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        # What a system makes as it is read, as below /proc, has no size before.
        data = file.read(largest + 1) if size <= largest else b""
    if max(size, len(data)) > largest:
        raise DataError(
            f"{path} is larger than {largest} bytes, the most that is read of such a file."
        )
    return data


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The value of a JSON text in UTF-8, a byte-order mark left out; the path is for messages.

    Raises: DataError if it is no JSON, repeats a name within an object, holds a number that is not
      finite, or more or deeper values than any file of ours.

    >>> parse_json(b'{"a": [1, 2.5, null]}', "x.json")
    {'a': [1, 2.5, None]}
    >>> parse_json(b'{"a": 1e999}', "x.json")
    Traceback (most recent call last):
      ...
    imr.errors.DataError: x.json is damaged: 1e999 is no finite number.
    """
    try:
        text = data.decode("utf-8-sig")
        if sum(map(text.count, ",[{")) > MOST_MARKS:
            raise ValueError(f"it holds more than {MOST_MARKS} values")
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite
        )
        if _is_deep(value):
            raise RecursionError
        return value
    except RecursionError:
        reason = f"it is nested more than {DEEPEST} deep"
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{path} is damaged: {reason}.")


def read_json(path: str | os.PathLike[str], largest: int = LARGEST) -> Any:
    """The value in a JSON file; raises what `read_bytes` and `parse_json` raise."""
    return parse_json(read_bytes(path, largest), path)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {shortened(name)} stands twice in an object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _is_deep(value: Any) -> bool:
    level = [[value]]
    for _ in range(DEEPEST + 1):
        nested = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in nested for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True
