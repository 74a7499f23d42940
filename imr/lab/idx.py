"""IDX files, the format of MNIST: an array of unsigned bytes, gzip or plain."""

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imr._files import open_file
from imr.errors import DataError

_RANKS = {2049: 1, 2051: 3}
_AGAIN = "Copy or download it again."
_CHUNK = 2**20  # bytes
# Images are zipped to a half or a twentieth, a bomb to a thousandth; gzip can no more than 1/1032.
_MOST_UNZIPPED, _MOST_POSSIBLE = 200, 1032


def read_idx(path: str | Path, *, largest: int = 2**28) -> np.ndarray:
    """One IDX file of unsigned bytes, gzip or plain, told apart by content.

    The format: a big-endian magic number (2049 labels, 2051 images), one count for each axis, the
    bytes. No more is unzipped than the header promises, and it may not promise more than the file
    can hold.

    Args:
      path: of the file.
      largest: the most bytes that the array may have.
    Returns: uint8 array, (n, rows, cols) for images or (n,) for labels.
    Raises: DataError if the file cannot be read, is empty or damaged, is not gzip under a `.gz`
      name, its header does not agree with its bytes or promises more than `largest`, or it is zipped
      to less than a two-hundredth, as no images are.

    Reference: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    path = Path(path)
    try:
        with open_file(path) as raw:
            size, start = os.fstat(raw.fileno()).st_size, raw.read(2)
            raw.seek(0)
            zipped = start == b"\x1f\x8b"
            if path.suffix == ".gz" and start and not zipped:
                raise DataError(
                    f"{path} is not a gzip file: it starts with {start.hex(' ')}, not 1f 8b. "
                    "Download it again, or take .gz off its name if it is a plain IDX file."
                )
            chunks = _unzipped(raw) if zipped else iter(lambda: raw.read(_CHUNK), b"")
            return _parse_idx(path, chunks, size, zipped, largest)
    except (EOFError, zlib.error) as error:
        what = "truncated" if isinstance(error, EOFError) else "corrupt"
        raise DataError(f"{path} is a {what} gzip file ({error}). {_AGAIN}") from error
    except OSError as error:
        what = error.strerror or error
        raise DataError(f"{path} cannot be read: {what}. Give a file that can be.") from error


def _unzipped(raw: BinaryIO) -> Iterator[bytes]:
    """What an open gzip file holds, in chunks of bounded size; at the end its CRC has been checked."""
    member, length = zlib.decompressobj(wbits=31), 0
    while data := raw.read(2**16):
        while data:
            if member.eof:
                # Zeros may fill up a gzip file. Members without data could follow without end.
                if not (data := data.lstrip(b"\0")):
                    break
                if not length:
                    raise zlib.error("a part of it is empty")
                member, length = zlib.decompressobj(wbits=31), 0
            chunk = member.decompress(data, _CHUNK)
            length += len(chunk)
            yield chunk
            data = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise EOFError("its end is missing")


def _parse_idx(
    path: Path, chunks: Iterator[bytes], size: int, zipped: bool, largest: int
) -> np.ndarray:
    """The array in the chunks of an IDX file of that size; gzip is read to its end, where its CRC is."""
    body = bytearray()

    def read(count: int) -> None:
        while len(body) < count and (chunk := next(chunks, None)) is not None:
            body.extend(chunk)

    read(4)
    start = bytes(body[:4])
    if not start:
        raise DataError(f"{path} is empty (0 bytes). {_AGAIN}")
    magic = int.from_bytes(start, "big")
    if len(start) < 4 or magic not in _RANKS:
        raise DataError(
            f"{path} has magic {magic} (bytes {start.hex(' ')}); expected four bytes with 2051 "
            "(images) or 2049 (labels). Is it an IDX file?"
        )
    header = 4 + 4 * _RANKS[magic]
    read(header)
    if len(body) < header:
        what = f"ends within its header: {len(body)} of {header} bytes"
        raise DataError(f"{path} {what}. {_AGAIN}")
    shape = tuple(np.frombuffer(bytes(body[4:header]), ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{path} holds nothing: its header gives shape {shape}. {_AGAIN}")
    promised = math.prod(shape)

    def check(there: int, words: Any) -> None:
        if there != promised:
            raise DataError(
                f"{path} holds too {'few' if there < promised else 'many'} bytes: its header "
                f"promises {promised} for shape {shape}, and {words} are there. {_AGAIN}"
            )

    # The header alone must not decide how much is read and allocated.
    possible = _MOST_POSSIBLE * size if zipped else size - header
    if zipped:
        check(min(promised, possible), f"at most {possible}")
    else:
        check(possible, possible)
    if promised > largest:
        raise DataError(
            f"{path} has {promised} bytes of data; the most that is read is {largest}. Give a "
            "smaller file, or read it by imr.lab.data.read_idx with another `largest`."
        )
    if zipped and promised > max(_MOST_UNZIPPED * size, _CHUNK):
        raise DataError(
            f"{path} has {size} bytes and would unzip to {promised}, as no images do. {_AGAIN}"
        )
    read(header + promised + 1)
    there = len(body) - header
    check(there, f"{there} or more" if there > promised else there)
    return np.frombuffer(body, np.uint8, offset=header).reshape(shape)
