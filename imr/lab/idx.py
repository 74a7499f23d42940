"""IDX files, the format of MNIST: an array of unsigned bytes, gzip or plain."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from imr.errors import DataError

_RANKS = {2049: 1, 2051: 3}
_AGAIN = "Copy or download it again."


def read_idx(path: str | Path) -> np.ndarray:
    """One IDX file of unsigned bytes, gzip or plain, told apart by content.

    The format: a big-endian magic number (2049 labels, 2051 images), one count for each axis, the
    bytes. No more memory is taken than the file has data, whatever its header promises.

    Returns: uint8 array, (n, rows, cols) for images or (n,) for labels.
    Raises: DataError if the file cannot be read, is empty or damaged, is not gzip under a `.gz`
      name, or its header does not agree with its bytes.

    Reference: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
            raw.seek(0)
            zipped = start == b"\x1f\x8b"
            if path.suffix == ".gz" and start and not zipped:
                raise DataError(
                    f"{path} is not a gzip file: it starts with {start.hex(' ')}, not 1f 8b. "
                    "Download it again, or take .gz off its name if it is a plain IDX file."
                )
            with gzip.GzipFile(fileobj=raw) if zipped else raw as stream:
                return _parse_idx(path, stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        what = "truncated" if isinstance(error, EOFError) else "corrupt"
        raise DataError(f"{path} is a {what} gzip file ({error}). {_AGAIN}") from error
    except OSError as error:
        what = error.strerror or error
        raise DataError(f"{path} cannot be read: {what}. Give a file that can be.") from error


def _parse_idx(path: Path, stream: Any) -> np.ndarray:
    """The array in an open IDX stream; it is read to its end, where gzip checks its CRC."""
    start = stream.read(4)
    if not start:
        raise DataError(f"{path} is empty (0 bytes). {_AGAIN}")
    magic = int.from_bytes(start, "big")
    if len(start) < 4 or magic not in _RANKS:
        raise DataError(
            f"{path} has magic {magic} (bytes {start.hex(' ')}); expected four bytes with 2051 "
            "(images) or 2049 (labels). Is it an IDX file?"
        )
    size = 4 * _RANKS[magic]
    counts = stream.read(size)
    if len(counts) < size:
        what = f"ends within its header: {4 + len(counts)} of {4 + size} bytes"
        raise DataError(f"{path} {what}. {_AGAIN}")
    shape = tuple(np.frombuffer(counts, ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{path} holds nothing: its header gives shape {shape}. {_AGAIN}")
    promised, there, body = math.prod(shape), 0, bytearray()
    # In chunks: the header alone must not decide how much is allocated.
    while chunk := stream.read(1 << 20):
        there += len(chunk)
        body += chunk[: promised - len(body)]
    if there != promised:
        raise DataError(
            f"{path} holds too {'few' if there < promised else 'many'} bytes: its header promises "
            f"{promised} for shape {shape}, and {there} are there. {_AGAIN}"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
