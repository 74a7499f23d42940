"""Texts as sequences of tokens: sample texts, files, tokenizers, pieces that fit the model."""

import importlib.resources
import os
import time
from typing import Any, NamedTuple

import numpy as np

from imr._checks import check_count
from imr._files import expanded, read_bytes
from imr.errors import DataError, ImrError
from imr.lens.tokenizer import refusals

_LARGEST_TOKEN = 2**31 - 1


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
    """Reads a UTF-8 file with one text a line; blank lines and a byte-order mark are left out.

    Args:
      path: of the file, of 32 MiB at most.
    Raises: DataError if it cannot be read, or holds no text.
    """
    try:
        lines = read_bytes(expanded(path)).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} is empty: give a file with one text a line.")
    return texts


def tokenize(tokenizer: Any, texts: list[str], longest: int) -> Pieces:
    """Cuts texts into pieces of at most `longest` tokens, with the special tokens of the model.

    Args:
      tokenizer: of `read_tokenizer`.
      texts: of any length; the pieces of a long one count as texts.
      longest: the most tokens of a piece, special tokens included.
    Raises:
      ImrError: if a text is empty, or `longest` leaves no room.
      DataError: if the tokenizer fails on a text, or takes far too long for it.
    """
    check_count("longest", longest)
    with refusals("the tokenizer's post-processor fails"):
        special = tokenizer.num_special_tokens_to_add(False)
    if longest - special < 1:
        raise ImrError(f"longest must be above the {special} special tokens; found {longest}.")
    pieces, split, dropped = [], 0, 0
    for number, text in enumerate(texts):
        if not text.strip():
            raise ImrError(f"texts[{number}] is empty. Leave it out.")
        start = time.thread_time()
        with refusals(f"the tokenizer fails on texts[{number}]"):
            encoding = tokenizer.encode(text, add_special_tokens=False)
            encoding.truncate(longest - special)
            parts = [tokenizer.post_process(each) for each in (encoding, *encoding.overflowing)]
        seconds, split = time.thread_time() - start, split + (len(parts) > 1)
        # An honest one takes a second for a million letters; a regular expression may take hours.
        if seconds > 1 + 1e-5 * len(text):
            raise DataError(
                f"the tokenizer takes {seconds:.1f} s for texts[{number}] of {len(text)} letters. Take "
                "another, without the regular expression that takes so long."
            )
        for part in parts:
            tokens = np.array(part.ids, np.int64)
            if len(tokens) and tokens.max() > _LARGEST_TOKEN:
                raise DataError(
                    f"the tokenizer gives token {tokens.max()}; the largest is {_LARGEST_TOKEN}. Take "
                    "one that belongs to the model."
                )
            if len(tokens) < 3:
                dropped += 1
            else:
                pieces.append(tokens.astype(np.int32))
    return Pieces(pieces, split, dropped)
