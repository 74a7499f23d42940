"""The files of a model folder, which may come from anywhere."""

import os
from pathlib import Path
from typing import Any

from imr._files import parse_json, read_bytes
from imr.errors import DataError


def path_in(folder: Path, name: str) -> Path:
    """The path of a file of a folder, which must not lead out of it, by its name or by a link.

    Hugging Face's cache is an exception: its folders `snapshots/REVISION` hold links into `blobs`.

    Raises: DataError if it does.
    """
    path, plain = folder / name, name.isprintable() and name == Path(name).name
    home = Path(os.path.realpath(folder))
    cache = [home.parents[1] / "blobs"] if home.parent.name == "snapshots" else []
    target = Path(os.path.realpath(path)) if plain else path
    if not (plain and any(target.is_relative_to(each) for each in (home, *cache))):
        raise DataError(f"{path} is no file in {folder} itself. Copy it there, without links.")
    return path


def bytes_in(folder: Path, name: str) -> bytes:
    """The contents of a file of a folder, within the bounds of `imr._files.read_bytes`."""
    path = path_in(folder, name)
    try:
        return read_bytes(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def json_in(folder: Path, name: str) -> Any:
    """The value in a JSON file of a folder."""
    return parse_json(bytes_in(folder, name), folder / name)
