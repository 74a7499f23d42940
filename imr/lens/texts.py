"""Texts as sequences of tokens: sample texts, files, tokenizers, pieces that fit the model."""

import importlib
import importlib.resources
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imr._checks import check_count
from imr.errors import DataError, ImrError, missing_package


class Pieces(NamedTuple):
    """Sequences of 3 tokens or more; how many texts were split, and how many pieces dropped."""

    tokens: list[np.ndarray]
    split: int
    dropped: int


def sample_texts() -> list[str]:
    """200 sentences of English, written for imr."""
    file = importlib.resources.files("imr.lens") / "sample.txt"
    return file.read_text(encoding="utf-8").splitlines()


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """Reads a UTF-8 file with one text a line; blank lines are skipped.

    Args:
      path: of the file.
    Raises: DataError if it cannot be read, or holds no text.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} is empty: give a file with one text a line.")
    return texts


def read_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Reads the tokenizer of a model folder, with truncation and padding switched off.

    Args:
      folder: with `tokenizer.json`.
    Raises:
      DataError: if `tokenizer.json` is missing or damaged.
      MissingPackageError: without tokenizers; the extra `lens` has it.
    """
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise missing_package("tokenizers", "lens") from error
    path = Path(folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path} is missing: the tokenizer is read from there.")
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise DataError(f"{path} is damaged: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(tokenizer: Any, texts: list[str], longest: int) -> Pieces:
    """Cuts texts into pieces of at most `longest` tokens, with the special tokens of the model.

    Args:
      tokenizer: of `read_tokenizer`.
      texts: of any length; the pieces of a long one count as texts.
      longest: the most tokens of a piece, special tokens included.
    Raises: ImrError if a text is empty, or `longest` leaves no room.
    """
    check_count("longest", longest)
    special = tokenizer.num_special_tokens_to_add(False)
    if longest - special < 1:
        raise ImrError(f"longest must be above the {special} special tokens; found {longest}.")
    pieces, split, dropped = [], 0, 0
    for number, text in enumerate(texts):
        if not text.strip():
            raise ImrError(f"texts[{number}] is empty. Leave it out.")
        encoding = tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(longest - special)
        parts = [encoding, *encoding.overflowing]
        split += len(parts) > 1
        for part in parts:
            tokens = np.array(tokenizer.post_process(part).ids, np.int32)
            if len(tokens) < 3:
                dropped += 1
            else:
                pieces.append(tokens)
    return Pieces(pieces, split, dropped)
