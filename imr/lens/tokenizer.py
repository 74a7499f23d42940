"""Tokenizers of model folders."""

import base64
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imr._files import expanded, parse_json
from imr.errors import DataError, missing_package
from imr.lens._files import bytes_in

_MOST_GROWTH = 256


def read_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Reads the tokenizer of a model folder, with truncation and padding switched off.

    Args:
      folder: with `tokenizer.json`.
    Raises:
      DataError: if `tokenizer.json` is missing or damaged, or its normalizer makes a text hundreds of
        times longer.
      MissingPackageError: without tokenizers; the extra `lens` has it.
    """
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise missing_package("tokenizers", "lens") from error
    folder = expanded(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path} is missing: the tokenizer is read from there.")
    data = bytes_in(folder, "tokenizer.json")
    _check_normalizer(parse_json(data, path), path)
    with refusals(f"{path} is damaged"):
        tokenizer = library.Tokenizer.from_buffer(data)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Whatever the library raises within is a DataError: it has no classes of its own, and panics."""
    try:
        yield
    except BaseException as error:
        # A panic of Rust, such as of a regular expression that backtracks too often, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what}: {error}. Take another tokenizer.json.") from None


def _check_normalizer(options: Any, path: Path) -> None:
    """Refuses what the library would end the process for, for want of memory."""
    parts = [options.get("normalizer")] if isinstance(options, dict) else []
    growth = 1.0
    for part in parts:  # which grows
        if not isinstance(part, dict):
            continue
        parts += part["normalizers"] if isinstance(part.get("normalizers"), list) else []
        growth *= _growth(part)
        if part.get("type") == "Precompiled" and not _is_whole(part.get("precompiled_charsmap")):
            raise DataError(f"{path} is damaged: its precompiled_charsmap is cut short.")
    if growth > _MOST_GROWTH:
        raise DataError(
            f"{path} has a normalizer that could make a text {growth:.3g} times longer; at most "
            f"{_MOST_GROWTH} is read. Take another tokenizer.json."
        )


def _growth(part: dict[str, Any]) -> float:
    """How many times longer a normalizer of the kind `Replace` or `Prepend` may make a text."""
    written = part.get("content", part.get("prepend"))
    pattern = part.get("pattern")
    read = pattern.get("String") if isinstance(pattern, dict) else None
    if not isinstance(written, str):
        return 1.0
    # A regular expression may match nothing, between any two letters.
    return max(
        1.0, len(written) / len(read) if isinstance(read, str) and read else 1 + len(written)
    )


def _is_whole(charsmap: Any) -> bool:
    """Whether a base64 text holds as many bytes as its first four announce."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError):
        return False
    return len(data) >= 4 and int.from_bytes(data[:4], "little") <= len(data) - 4
